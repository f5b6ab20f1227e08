"""What the simulated server answers as a vLLM 0.32."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects.speaker import Answer
from headroom_exporter.simulate.exposition import (
    CONTENT_TYPE,
    CONTENT_TYPE_MOUNTED,
    VERSION,
    Page,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.frontend import Frontend


class Speaker:
    """Args: as ``speaker``."""

    paths = ("/metrics", "/metrics/", "/health", "/version", "/v1/models")

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        self._page = Page(frontend, epoch=epoch, speed=speed)

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """Answer; only the mounted /metrics/ looks at the names."""
        if path == "/metrics":
            return Answer(content_type=CONTENT_TYPE, body=self._page.render().encode())
        if path == "/metrics/":
            text = self._page.render(names or None)
            return Answer(content_type=CONTENT_TYPE_MOUNTED, body=text.encode())
        if path == "/health":
            return Answer(content_type="application/octet-stream", body=b"")
        if path == "/version":
            return _json({"version": VERSION})
        return _json(self._models())

    def _models(self) -> dict[str, object]:
        """The answer of /v1/models, without the permissions nobody reads."""
        profile = self._frontend.profile
        model = {
            "id": profile.model_name,
            "object": "model",
            "created": int(self._page.started),
            "owned_by": "vllm",
            "root": profile.model_name,
            "parent": None,
            "max_model_len": profile.max_model_len,
        }
        return {"object": "list", "data": [model]}


def _json(content: object) -> Answer:
    return Answer(content_type="application/json", body=json.dumps(content).encode())
