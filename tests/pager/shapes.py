"""Recorded pages of other deployments, served as exporters whose counters move."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGES = Path(__file__).parents[1] / "golden" / "data" / "exposition"
COUNTED = ("_total", "_bucket", "_count", "_sum")
# Counters double in so many seconds.
DOUBLING_SECONDS = 600.0


def aged(page: str, seconds: float) -> str:
    """The page with every counter grown in proportion: histograms stay cumulative."""
    growth = 1 + seconds / DOUBLING_SECONDS
    lines = []
    for line in page.splitlines(keepends=True):
        name = line.partition("{")[0].partition(" ")[0]
        if name.endswith(COUNTED):
            series, _, value = line.rpartition(" ")
            line = f"{series} {float(value) * growth}\n"  # noqa: PLW2901
        lines.append(line)
    return "".join(lines)


class Shapes:
    """
    A server on loopback in a thread of its own; a context manager.

    Args:
        names: Of the golden pages; each is one target.
    """

    def __init__(self, names: Sequence[str]) -> None:
        pages = {f"/{name}": (PAGES / f"{name}.prom").read_text("utf-8") for name in names}
        began = time.monotonic()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = aged(pages[self.path], time.monotonic() - began).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._names = names
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def targets(self) -> list[dict[str, Any]]:
        """Entries of ``static_configs``; the name of the page is the instance."""
        address = f"127.0.0.1:{self._server.server_port}"
        return [
            {"targets": [address], "labels": {"__metrics_path__": f"/{name}", "instance": name}}
            for name in self._names
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
