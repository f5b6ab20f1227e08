"""A wire that takes no time: what the exporter's poller meets in place of HTTP, in virtual time."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from headroom_exporter.simulate.dialects.speaker import speaker
from headroom_exporter.simulate.families import CACHE_CONFIG, COUNTER, FAMILIES, HISTOGRAM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from yarl import URL

    from headroom_exporter.simulate.frontend import Frontend

_HEAD = b"# HELP "
_START = "process_start_time_seconds"
_KINDS = {family.name: family.kind for family in (*FAMILIES, CACHE_CONFIG)}


class Wire:
    """
    In place of an HTTP client: the answers of one simulated server.

    Args:
        frontend: The server.
        epoch: Unix seconds of virtual time 0.
        hidden: Families that are left out of its pages.
        hidden_from: Virtual seconds from which on they are.
    """

    def __init__(
        self,
        frontend: Frontend,
        epoch: float,
        *,
        hidden: frozenset[str] = frozenset(),
        hidden_from: float = 0.0,
    ) -> None:
        self._frontend = frontend
        self._speaker = speaker(frontend, epoch=epoch)
        self._hidden = frozenset(part.encode() for name in hidden for part in _with_created(name))
        self._hidden_from = hidden_from
        # Taking an address apart costs more than the answer.
        self._asked: dict[URL, tuple[str, frozenset[str]]] = {}

    @asynccontextmanager
    async def get(self, url: URL, **_: object) -> AsyncIterator[Response]:
        """Answer a request; of a session the poller uses this alone."""
        if not self._frontend.up:
            refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            raise aiohttp.ClientConnectorError(cast("Any", _Address()), refused)
        asked = self._asked.get(url)
        if asked is None:
            asked = self._asked[url] = (url.path, frozenset(url.query.getall("name[]", [])))
        path, names = asked
        if path not in self._speaker.paths:
            yield Response(404, b"")
        else:
            yield Response(200, self._body(path, names))

    def _body(self, path: str, names: frozenset[str]) -> bytes:
        body = self._speaker.answer(path, names).body
        if self._hidden and self._frontend.clock >= self._hidden_from:
            return _without(body, self._hidden)
        return body


def family_names() -> frozenset[str]:
    """Names of the families that can be hidden, as on the TYPE lines of a page."""
    return frozenset(_KINDS) | {_START}


class _Address:
    """As much of a connection's address as the text of an error needs."""

    host = "simulated.invalid"
    port = 8000
    ssl = True


class Response:
    """As much of an HTTP response as the poller looks at."""

    __slots__ = ("_body", "content", "headers", "reason", "status")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.reason = "OK" if status == 200 else "Not Found"
        self.headers: dict[str, str] = {}
        self.content = self
        self._body = body

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Give the body."""
        yield self._body


# --- pages with families missing -----------------------------------------------------------------


def _with_created(name: str) -> tuple[str, ...]:
    """A family's name and that of the gauges that say since when it counts."""
    if _KINDS.get(name) == COUNTER:
        return (name, f"{name.removesuffix('_total')}_created")
    if _KINDS.get(name) == HISTOGRAM:
        return (name, f"{name}_created")
    return (name,)


def _without(body: bytes, hidden: frozenset[bytes]) -> bytes:
    """A page less the lines of some families; each begins with its HELP line, and JSON has none."""
    kept = []
    shown = True
    for line in body.splitlines(keepends=True):
        if line.startswith(_HEAD):
            shown = line[len(_HEAD) :].split(b" ", 1)[0] not in hidden
        if shown:
            kept.append(line)
    return b"".join(kept)
