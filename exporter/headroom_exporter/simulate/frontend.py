"""
What stands before the engines: one vLLM server with its data-parallel ranks, as clients meet it.

Behaviour of vLLM 0.32: the API server turns requests away when too many are queued (status 503,
v1/engine/async_llm.py: check_admission), refuses prompts that do not fit the model (400), and gives
the others to the least loaded rank (v1/engine/core_client.py). A restart takes everything with it,
counters too, and for as long as the start takes connections are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.counters import Integrals
from headroom_exporter.simulate.dialects import VLLM
from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.requests import Finished, OnFinish, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headroom_exporter.simulate.dialects import Dialect
    from headroom_exporter.simulate.profiles import Profile

REJECTION_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")
# Between stop and ready (vLLM 0.32.0 with a tiny model on two cores); large models take minutes.
START_SECONDS = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    vLLM's queue limits (``--max-num-queued-reqs``, ``--max-num-queued-tokens``).

    Attributes:
        max_num_queued_reqs: Unfinished requests of all ranks; None for no limit.
        max_num_queued_tokens: Prompt tokens of requests that have given no token; None for none.
    """

    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None


@dataclass(slots=True, kw_only=True)
class Fates:
    """
    Requests that reached no engine, or were cut off there; kept over restarts, unlike counters.

    Attributes:
        rejected: Turned away by a queue limit.
        refused: Too long for the model.
        lost: Sent while nothing listened, or unfinished when the server stopped.
    """

    rejected: int = 0
    refused: int = 0
    lost: int = 0


class Frontend:
    """
    A server in virtual seconds that begin at 0, with one engine for each rank.

    Args:
        profile: Model, device and limits of every rank.
        ranks: Data-parallel size.
        limits: Queue limits.
        events: What happens to it, at any times.
        start_seconds: How long a restart takes.
        api_servers: API server processes; with more than one the page is the multiprocess one.
        dialect: The engine whose words it uses, and whose gauges' cadence.

    Attributes:
        engines: One for each rank; others after a restart.
        clock: The time it was last advanced to.
        started: When the present process began to answer.
        up: Whether anything listens.
        sleep_level: As it was put to sleep; None while awake.
        slowdown: How many times as long as the profile says a step takes; of the GPU, so a restart keeps it.
        rejections: By reason, since the start of the process.
        fates: What became of requests that no engine counts.
        hung_up: Requests whose client left, over restarts.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        ranks: int = 1,
        limits: Limits | None = None,
        events: Iterable[Event] = (),
        start_seconds: float = START_SECONDS,
        api_servers: int = 1,
        dialect: Dialect = VLLM,
    ) -> None:
        if ranks < 1 or api_servers < 1:
            raise ConfigError(f"ranks {ranks}, api_servers {api_servers}: must be at least 1")
        if ranks > 1 and not dialect.ranks:
            raise ConfigError(f"ranks {ranks}: must be 1, since {dialect.title} knows no ranks")
        if api_servers > 1 and dialect is not VLLM:
            raise ConfigError(f"api_servers {api_servers}: must be 1 but with the dialect vllm")
        self.profile = profile
        self.api_servers = api_servers
        self.clock = 0.0
        self.started = 0.0
        self.up = True
        self.sleep_level: int | None = None
        self.slowdown = 1.0
        self.rejections = dict.fromkeys(REJECTION_REASONS, 0)
        self.fates = Fates()
        self.dialect = dialect
        self.engines = tuple(
            SimulatedEngine(profile, gauge_steps=dialect.gauge_steps) for _ in range(ranks)
        )
        self._limits = limits or Limits()
        self._start_seconds = start_seconds
        self._events = sorted(events)
        self._arrivals: list[tuple[float, int, Request]] = []
        self._submitted = 0
        # Requests that arrive before this may go straight to the only rank.
        self._straight_until = 0.0
        self._first_rank = 0
        # Of processes that are gone.
        self._past_steps = 0
        self._past_hung_up = 0
        self._past_finished = 0
        self._past_integrals: list[Integrals] = []

    @property
    def steps(self) -> int:
        """Steps that ended, of all ranks, over restarts."""
        return self._past_steps + sum(engine.steps for engine in self.engines)

    @property
    def hung_up(self) -> int:
        """Requests whose client left before they ended, over restarts."""
        return self._past_hung_up + sum(engine.hung_up for engine in self.engines)

    @property
    def finished(self) -> int:
        """Requests that the engines counted as ended, over restarts."""
        counted = (sum(engine.counters.finished.values()) for engine in self.engines)
        return self._past_finished + sum(counted)

    @property
    def unfinished(self) -> int:
        """Requests submitted whose fate is open, those still to arrive included."""
        return len(self._arrivals) + sum(engine.unfinished for engine in self.engines)

    @property
    def integrals(self) -> Integrals:
        """Levels of all ranks added up and integrated over time, over restarts."""
        parts = [*self._past_integrals, *(engine.integrals for engine in self.engines)]
        return Integrals(
            running=sum(part.running for part in parts),
            waiting=sum(part.waiting for part in parts),
            kv_usage=sum(part.kv_usage for part in parts),
            busy=sum(part.busy for part in parts),
        )

    @property
    def _knows_nothing(self) -> bool:
        """Whether a request's way depends on no engine's state."""
        return len(self.engines) == 1 and self._limits == Limits()

    def submit(self, request: Request) -> None:
        """Let a request arrive; what becomes of it is decided then."""
        if self._knows_nothing and self.up and request.arrival < self._straight_until:
            self._admit(request, None)
            return
        heappush(self._arrivals, (request.arrival, self._submitted, request))
        self._submitted += 1

    def advance(
        self, until: float, on_finish: OnFinish | None = None, max_steps: int | None = None
    ) -> bool:
        """
        Run until a time.

        Args:
            until: Virtual seconds; every request that arrives before must have been submitted.
            on_finish: Called for each request that ended, whatever became of it; may submit others.
                With ranks or limits these are looked at in the next call, since the other ranks
                may be further on: whoever closes a loop should advance in small steps.
            max_steps: Stop after about so many steps.

        Returns:
            Whether ``until`` was reached.
        """
        limit = None if max_steps is None else self.steps + max_steps
        while True:
            event = self._events[0].at if self._events else inf
            stop = max(self.clock, min(until, event))
            if not self._run(stop, on_finish, limit):
                return False
            if event > until:
                return True
            self._apply(self._events.pop(0), on_finish)

    # --- time ------------------------------------------------------------------------------------

    def _run(self, stop: float, on_finish: OnFinish | None, limit: int | None) -> bool:
        """Run until the next event, or until there were enough steps."""
        self._straight_until = stop
        while self._arrivals and self._arrivals[0][0] < stop:
            arrival, number, request = heappop(self._arrivals)
            if not self._knows_nothing and not self._advance_all(arrival, on_finish, limit):
                heappush(self._arrivals, (arrival, number, request))
                return False
            self._admit(request, on_finish)
        return self._advance_all(stop, on_finish, limit)

    def _advance_all(self, until: float, on_finish: OnFinish | None, limit: int | None) -> bool:
        reached = True
        if self.up:
            for engine in self.engines:
                steps = None if limit is None else max(0, limit - self.steps)
                reached = engine.advance(until, on_finish, steps) and reached
        if reached:
            self.clock = max(self.clock, until)
        else:
            self.clock = max(self.clock, min(engine.clock for engine in self.engines))
        return reached

    # --- requests --------------------------------------------------------------------------------

    def _admit(self, request: Request, on_finish: OnFinish | None) -> None:
        """Give a request that arrives to a rank, or turn it away."""
        if not self.up:
            self.fates.lost += 1
            _turn_away(request, "lost", on_finish)
            return
        if request.prompt_tokens >= self.profile.max_model_len:
            self.fates.refused += 1
            _turn_away(request, "refused", on_finish)
            return
        limit = self._exceeded()
        if limit is not None:
            self.rejections[limit] += 1
            self.fates.rejected += 1
            _turn_away(request, "rejected", on_finish)
            return
        self.engines[self._least_loaded()].submit(request)

    def _exceeded(self) -> str | None:
        """The queue limit that one more request would exceed, in the order vLLM looks at them."""
        limits = self._limits
        if limits.max_num_queued_reqs is not None:
            unfinished = sum(engine.unfinished for engine in self.engines)
            if unfinished + 1 > limits.max_num_queued_reqs:
                return "max_num_queued_reqs"
        if limits.max_num_queued_tokens is not None:
            tokens = sum(engine.prefilling_tokens for engine in self.engines)
            if tokens >= limits.max_num_queued_tokens:
                return "max_num_queued_tokens"
        return None

    def _least_loaded(self) -> int:
        """
        The rank for a request, as vLLM's balancer with one API server chooses it.

        Load is the requests in flight; a queue weighs up to three times more where the cache is more
        than half full. Among equals the search begins one rank further each time.
        """
        ranks = len(self.engines)
        if ranks == 1:
            return 0
        best, least = 0, inf
        for offset in range(ranks):
            index = (self._first_rank + offset) % ranks
            load = _load(self.engines[index])
            if load < least:
                best, least = index, load
        self._first_rank = (self._first_rank + 1) % ranks
        return best

    # --- events ----------------------------------------------------------------------------------

    def _apply(self, event: Event, on_finish: OnFinish | None) -> None:
        if event.action == "sleep":
            self.sleep(event.level, on_finish)
        elif event.action == "wake":
            self.wake()
        elif event.action == "restart":
            self._stop(on_finish)
            self._events.append(Event(at=event.at + self._start_seconds, action="ready"))
            self._events.sort()
        elif event.action == "slow":
            self._slow(event.factor)
        else:
            self._start()

    def sleep(self, level: int = 1, on_finish: OnFinish | None = None) -> None:
        """Give every request up and stop computing, as POST /sleep does."""
        if self.up:
            self.sleep_level = level
            for engine in self.engines:
                engine.sleep(level, on_finish)

    def wake(self) -> None:
        """Compute again, as POST /wake_up does."""
        self.sleep_level = None
        for engine in self.engines:
            engine.wake()

    def _slow(self, factor: float) -> None:
        """Let every step of every rank that begins from now on take so many times as long."""
        self.slowdown = factor
        for engine in self.engines:
            engine.slowdown = factor

    def _stop(self, on_finish: OnFinish | None) -> None:
        """End the process; a second restart during a start begins the start anew."""
        self._events = [event for event in self._events if event.action != "ready"]
        if not self.up:
            return
        self.up = False
        for engine in self.engines:
            self.fates.lost += engine.stop(on_finish)
            self._past_steps += engine.steps
            self._past_hung_up += engine.hung_up
            self._past_finished += sum(engine.counters.finished.values())
            self._past_integrals.append(engine.integrals)
        self.engines = self._fresh_engines()
        self.rejections = dict.fromkeys(REJECTION_REASONS, 0)
        self.sleep_level = None

    def _start(self) -> None:
        self.up = True
        self.started = self.clock
        self.engines = self._fresh_engines()

    def _fresh_engines(self) -> tuple[SimulatedEngine, ...]:
        """Those of a new process, on the same cards."""
        return tuple(
            SimulatedEngine(self.profile, self.clock, self.slowdown, self.dialect.gauge_steps)
            for _ in self.engines
        )


def _load(engine: SimulatedEngine) -> float:
    waiting = engine.waiting
    usage = engine.used_blocks / engine.profile.usable_blocks
    return engine.unfinished + waiting * 6.0 * max(0.0, usage - 0.5)


def _turn_away(request: Request, reason: str, on_finish: OnFinish | None) -> None:
    if on_finish is not None:
        on_finish(
            Finished(
                request=request,
                scheduled=None,
                first_token=None,
                finished=request.arrival,
                output_tokens=0,
                preemptions=0,
                reason=reason,
            )
        )
