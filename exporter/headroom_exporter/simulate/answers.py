"""What the simulated server answers to whom reads it, apart from how it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.simulate.exposition import (
    CONTENT_TYPE,
    CONTENT_TYPE_MOUNTED,
    VERSION,
    Page,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.frontend import Frontend

PATHS = ("/metrics", "/metrics/", "/health", "/version", "/v1/models")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status 200, always: other paths are not here."""

    content_type: str
    body: bytes


def answer(frontend: Frontend, page: Page, path: str, names: Collection[str]) -> Answer:
    """
    Answer as vLLM 0.32 does.

    Args:
        frontend: The server.
        page: Its metrics.
        path: One of PATHS.
        names: The values of ``name[]``, which only the mounted /metrics/ looks at.
    """
    if path == "/metrics":
        return Answer(content_type=CONTENT_TYPE, body=page.render().encode())
    if path == "/metrics/":
        text = page.render(names or None)
        return Answer(content_type=CONTENT_TYPE_MOUNTED, body=text.encode())
    if path == "/health":
        return Answer(content_type="application/octet-stream", body=b"")
    if path == "/version":
        return _json({"version": VERSION})
    return _json(_models(frontend, page.started))


def _json(content: object) -> Answer:
    return Answer(content_type="application/json", body=json.dumps(content).encode())


def _models(frontend: Frontend, started: float) -> dict[str, object]:
    """The answer of /v1/models, without the permissions nobody reads."""
    profile = frontend.profile
    model = {
        "id": profile.model_name,
        "object": "model",
        "created": int(started),
        "owned_by": "vllm",
        "root": profile.model_name,
        "parent": None,
        "max_model_len": profile.max_model_len,
    }
    return {"object": "list", "data": [model]}
