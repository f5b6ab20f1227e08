"""
Many engines in one cheap process: each a port that plays a recording of a real vLLM in real time.

    python engines.py COUNT         prints the addresses as a JSON list, then serves until SIGTERM

A filtered request (``/metrics/?name[]=...``) is answered as prometheus_client does inside vLLM: the
asked samples with the headers of their families. Pages are made ready or remembered, so that this
process does not become the bottleneck; an engine's answer is one write.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

RECORDING = (
    Path(__file__).resolve().parents[1] / "fixtures" / "recordings" / "vllm-0.32.0-ramp.jsonl.gz"
)
# The recording was made at 4 pages a second; before this one the engine had not done its first step,
# and the page lacks the series that come with it.
PAGE_SECONDS = 0.25
FIRST_PAGE = 25
# Engines play the same recording, each this many pages ahead of the one before.
PAGES_APART = 6
FACTS = {
    "/version": {"version": "0.32.0"},
    "/v1/models": {"object": "list", "data": [{"id": "tiny", "max_model_len": 2048}]},
}


def load_pages() -> list[str]:
    """Every page from the first step on."""
    with gzip.open(RECORDING, "rt", encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines][FIRST_PAGE:]


def restrict(page: str, wanted: frozenset[str]) -> str:
    """The samples of a page whose names are wanted, each family with its headers."""
    kept: list[str] = []
    headers: list[str] = []
    for line in page.splitlines():
        if line.startswith("# HELP"):
            headers = [line]
        elif line.startswith("#"):
            headers.append(line)
        elif line.partition("{")[0].partition(" ")[0] in wanted:
            kept += [*headers, line]
            headers = []
    return "".join(line + "\n" for line in kept)


class Fleet:
    """What all engines share: the pages, and how often they were asked for them."""

    def __init__(self) -> None:
        self.polls = {"full": 0, "filtered": 0}
        self._pages = load_pages()
        self._full = [page.encode() for page in self._pages]
        self._filtered: dict[tuple[str, int], bytes] = {}
        self._began = time.monotonic()

    def answer(self, target: str, offset: int) -> tuple[int, bytes]:
        """Status and body for one request to the engine that is ``offset`` pages ahead."""
        path, _, query = target.partition("?")
        played = int((time.monotonic() - self._began) / PAGE_SECONDS)
        index = (offset + played) % len(self._full)
        if path == "/metrics/" and query:
            self.polls["filtered"] += 1
            return 200, self._restricted(query, index)
        if path in ("/metrics", "/metrics/"):
            self.polls["full"] += 1
            return 200, self._full[index]
        if path == "/polls":
            return 200, json.dumps(self.polls).encode()
        if path in FACTS:
            return 200, json.dumps(FACTS[path]).encode()
        return 404, b"{}"

    def _restricted(self, query: str, index: int) -> bytes:
        body = self._filtered.get((query, index))
        if body is None:
            wanted = frozenset(name for key, name in parse_qsl(query) if key == "name[]")
            body = restrict(self._pages[index], wanted).encode()
            self._filtered[query, index] = body
        return body


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as a poller needs it: GET, keep-alive."""

    def __init__(self, fleet: Fleet, offset: int) -> None:
        self._fleet = fleet
        self._offset = offset
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received and self._transport is not None:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            status, body = self._fleet.answer(head.split(b" ", 2)[1].decode(), self._offset)
            reason = "OK" if status == 200 else "Not Found"
            self._transport.write(
                f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )


async def serve(count: int) -> None:
    """Serve ``count`` engines, for ever."""
    loop = asyncio.get_running_loop()
    fleet = Fleet()
    addresses = []
    for number in range(count):
        engine = partial(Connection, fleet, number * PAGES_APART)
        server = await loop.create_server(engine, "127.0.0.1", 0)
        addresses.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    print(json.dumps(addresses), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
