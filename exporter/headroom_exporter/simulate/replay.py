"""
A day in a minute: simulated servers in virtual time, read by the exporter's own poller.

Nothing of the exporter is imitated. ``poll.EnginePoller`` asks, ``track.EngineTrack`` parses the page's
text and derives; only the clock and the wire are not real. Probes, both rhythms, refused connections
and resets come as they do in life. The one thing left out is the jitter after a failure, so that a
replay gives the same States each time.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, cast

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.errors import ConfigError
from headroom_exporter.gpus.slowdowns import SlowdownWatch
from headroom_exporter.poll import FULL, Clocks, EnginePoller
from headroom_exporter.samples import GpuState, ReloadState, State
from headroom_exporter.simulate.wire import Wire, family_names
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import aiohttp

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
        hidden: Families that its pages do not have, by their names on a page's TYPE lines; with a
            counter or histogram its ``_created`` gauges go too.
        hidden_from: Virtual seconds from which on they are missing.

    Raises:
        ConfigError: a hidden family that no page has.
    """

    name: str
    frontend: Frontend
    load: Load
    hidden: frozenset[str] = frozenset()
    hidden_from: float = 0.0

    def __post_init__(self) -> None:
        for name in sorted(self.hidden - family_names()):
            raise ConfigError(
                f"replica {self.name}: hidden {name!r}: must be a family of the simulated page, such as "
                "vllm:kv_cache_usage_perc or vllm:num_preemptions_total"
            )


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
    restarts: Sequence[tuple[float, float]] = (),
    gpus: Callable[[float], GpuState] | None = None,
) -> Iterator[Moment]:
    """
    Run servers under their loads and poll them, in virtual time.

    Args:
        replicas: At least one; all start at 0.
        until: Virtual seconds.
        poll: Rhythms; the defaults of the exporter when not given.
        plan_of: The plan for an engine's name and a model's.
        epoch: Unix seconds of virtual time 0, for the timestamps in the State.
        restarts: When the exporter's process ends, and for how many seconds there is none; what overlaps
            is one outage. The next one remembers nothing and its counters begin at 0; the servers go on.
        gpus: What is read off the GPUs at a virtual time, ``read_at`` in virtual seconds; asked once
            for each Moment. When their slowdowns change, step times are forgotten, as in life. None
            for GPUs that are not looked at.

    Yields:
        The State after each round of polls, from 0 on; none while there is no exporter. Memory does
        not grow with time.

    Raises:
        ConfigError: a restart at no time, or one that ends before it begins.
        RuntimeError: called where an event loop runs already.
    """
    lives = _lives(restarts, until)
    now = _Now(epoch)
    with _loop() as loop:
        for begin, end in lives:
            now.seconds = begin
            exporter = _Exporter(replicas, poll or PollConfig(), plan_of, now)
            while exporter.next_poll < end:
                now.seconds = exporter.next_poll
                loop.run_until_complete(exporter.tick())
                gpu = GpuState(up=None) if gpus is None else gpus(now.seconds)
                yield exporter.moment(gpu)
        if not lives or lives[-1][1] < until:  # the servers go on to the end all the same
            for replica in replicas:
                replica.load.drive(replica.frontend, until)


def _lives(restarts: Sequence[tuple[float, float]], until: float) -> list[tuple[float, float]]:
    """When there is an exporter: begin and end of each process, in order."""
    lives = []
    begin = 0.0
    for at, seconds in sorted(restarts):
        if not (0 <= at < inf and 0 <= seconds < inf):
            raise ConfigError(
                f"restart ({at:g}, {seconds:g}): must be virtual seconds and how many seconds there is no "
                "exporter, both at least 0 and finite"
            )
        if begin < min(at, until):
            lives.append((begin, min(at, until)))
        begin = max(begin, at + seconds)
    if begin < until:
        lives.append((begin, until))
    return lives


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


class _Exporter:
    """One process of the exporter: what it polls, when, and what it remembers."""

    def __init__(
        self, replicas: Sequence[Replica], poll: PollConfig, plan_of: PlanOf, now: _Now
    ) -> None:
        self._now = now
        self._readers = [_Reader(replica, poll, plan_of, now) for replica in replicas]
        self._due = [(now.seconds, index) for index in range(len(self._readers))]
        heapify(self._due)
        self._slowdowns = SlowdownWatch()
        self._reload = ReloadState(successful=True, at=now.wall())

    @property
    def next_poll(self) -> float:
        """Virtual seconds."""
        return self._due[0][0]

    async def tick(self) -> None:
        """Let the servers come to this moment and poll those that are due."""
        now = self._now.seconds
        while self._due[0][0] == now:
            _, index = heappop(self._due)
            reader = self._readers[index]
            reader.advance()
            await reader.tick()
            heappush(self._due, (now + reader.pause(), index))

    def moment(self, gpu: GpuState) -> Moment:
        """
        The State after a round of polls.

        Step times are forgotten after the polls and not before: what these saw passed before the GPUs
        were read.
        """
        if self._slowdowns.changed(gpu.gpus):
            for reader in self._readers:
                reader.track.forget_step_time()
        return Moment(
            at=self._now.seconds,
            state=State(
                engines=tuple(reader.track.state() for reader in self._readers),
                gpu=gpu,
                reload=self._reload,
            ),
        )


class _Reader:
    """One replica and the poller that reads it."""

    def __init__(self, replica: Replica, poll: PollConfig, plan_of: PlanOf, now: _Now) -> None:
        self._replica = replica
        self._poll = poll
        self._now = now
        self._failures = 0
        config = EngineConfig(name=replica.name, url=_URL)
        self.track = EngineTrack(config, poll, plan_of)
        wire = Wire(
            replica.frontend, now.epoch, hidden=replica.hidden, hidden_from=replica.hidden_from
        )
        self._poller = EnginePoller(
            config,
            poll,
            self.track,
            lambda: None,
            # Of a session the poller uses get() alone.
            cast("aiohttp.ClientSession", wire),
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
