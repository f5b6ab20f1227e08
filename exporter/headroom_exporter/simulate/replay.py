"""
A day in a minute: simulated servers in virtual time, read by the exporter's own poller.

Nothing of the exporter is imitated. ``poll.EnginePoller`` asks, ``track.EngineTrack`` parses the page's
text and derives; only the clock and the wire are not real. Probes, both rhythms, refused connections
and resets come as they do in life. The one thing left out is the jitter after a failure, so that a
replay gives the same States each time.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.poll import FULL, Clocks, EnginePoller
from headroom_exporter.samples import GpuState, ReloadState, State
from headroom_exporter.simulate.answers import PATHS, answer
from headroom_exporter.simulate.exposition import Page
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from yarl import URL

    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.load import Load
    from headroom_exporter.track import PlanOf

# Resolves nowhere: the poller also looks for the engine's process on its own machine.
_URL = "http://simulated.invalid:8000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """
    One simulated server of a replay.

    Attributes:
        name: The ``engine`` label.
        frontend: The server, at the beginning of its time.
        load: The traffic on it.
    """

    name: str
    frontend: Frontend
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """
    What the exporter knew at one moment.

    Attributes:
        at: Virtual seconds; also the exporter's monotonic clock.
        state: As a scrape would have shown it.
    """

    at: float
    state: State


def no_plan(_engine: str, _model: str) -> PlanConfig | None:
    """For whoever declared none."""
    return None


def replay(
    replicas: Sequence[Replica],
    until: float,
    *,
    poll: PollConfig | None = None,
    plan_of: PlanOf = no_plan,
    epoch: float = 0.0,
) -> Iterator[Moment]:
    """
    Run servers under their loads and poll them, in virtual time.

    Args:
        replicas: At least one; all start at 0.
        until: Virtual seconds.
        poll: Rhythms; the defaults of the exporter when not given.
        plan_of: The plan for an engine's name and a model's.
        epoch: Unix seconds of virtual time 0, for the timestamps in the State.

    Yields:
        The State after each round of polls, from 0 on. Memory does not grow with time.

    Raises:
        RuntimeError: called where an event loop runs already.
    """
    rhythm = poll or PollConfig()
    now = _Now(epoch)
    readers = [_Reader(replica, rhythm, plan_of, now) for replica in replicas]
    due = [(0.0, index) for index in range(len(readers))]
    heapify(due)
    reload = ReloadState(successful=True, at=epoch)
    with _loop() as loop:
        while due[0][0] < until:
            now.seconds = due[0][0]
            while due[0][0] == now.seconds:
                _, index = heappop(due)
                reader = readers[index]
                reader.advance()
                loop.run_until_complete(reader.tick())
                heappush(due, (now.seconds + reader.pause(), index))
            yield Moment(
                at=now.seconds,
                state=State(
                    engines=tuple(reader.track.state() for reader in readers),
                    gpu=GpuState(up=None),
                    reload=reload,
                ),
            )


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """
    A loop to run the poller in; there is nothing to wait for.

    Not asyncio.Runner: it handles SIGINT anew for each of a hundred thousand polls.
    """
    if _running():
        raise RuntimeError("a replay cannot run inside an event loop: call it in a thread")
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


def _running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Now:
    """The clock of a replay."""

    __slots__ = ("epoch", "seconds")

    def __init__(self, epoch: float) -> None:
        self.seconds = 0.0
        self.epoch = epoch

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.epoch + self.seconds


class _Reader:
    """One replica and the poller that reads it."""

    def __init__(self, replica: Replica, poll: PollConfig, plan_of: PlanOf, now: _Now) -> None:
        self._replica = replica
        self._poll = poll
        self._now = now
        self._failures = 0
        config = EngineConfig(name=replica.name, url=_URL)
        self.track = EngineTrack(config, poll, plan_of)
        self._poller = EnginePoller(
            config,
            poll,
            self.track,
            lambda: None,
            # Of a session the poller uses get() alone.
            cast("aiohttp.ClientSession", _Wire(replica.frontend, now.epoch)),
            Clocks(monotonic=now.monotonic, wall=now.wall),
        )

    def advance(self) -> None:
        """Let the server's time pass."""
        self._replica.load.drive(self._replica.frontend, self._now.seconds)

    async def tick(self) -> None:
        """Poll once."""
        await self._poller.tick()
        self._failures = 0 if self.track.up else self._failures + 1

    def pause(self) -> float:
        """Seconds until the next poll: the poller's own rhythm without its jitter."""
        fallback = self.track.poll_mode == FULL
        interval = self._poll.fallback_interval if fallback else self._poll.interval
        if not self._failures:
            return interval
        doubled = interval * 2.0 ** min(self._failures - 1, 10)
        return min(max(self._poll.max_backoff, interval), doubled)


# --- a wire that takes no time -------------------------------------------------------------------


class _Wire:
    """In place of an HTTP client: the answers of one simulated server."""

    def __init__(self, frontend: Frontend, epoch: float) -> None:
        self._frontend = frontend
        self._page = Page(frontend, epoch=epoch)
        # Taking an address apart costs more than the answer.
        self._asked: dict[URL, tuple[str, frozenset[str]]] = {}

    @asynccontextmanager
    async def get(self, url: URL, **_: object) -> AsyncIterator[_Response]:
        """Answer a request."""
        if not self._frontend.up:
            refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            raise aiohttp.ClientConnectorError(cast("Any", _Address()), refused)
        asked = self._asked.get(url)
        if asked is None:
            asked = self._asked[url] = (url.path, frozenset(url.query.getall("name[]", [])))
        path, names = asked
        if path not in PATHS:
            yield _Response(404, b"")
        else:
            yield _Response(200, answer(self._frontend, self._page, path, names).body)


class _Address:
    """As much of a connection's address as the text of an error needs."""

    host = "simulated.invalid"
    port = 8000
    ssl = True


class _Response:
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
