"""Load on a simulated engine: a script of phases drawn from a seed, or traffic from a trace."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random
from typing import TYPE_CHECKING, Protocol

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.requests import Finished, OnFinish, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_exporter.simulate.lengths import LengthDistribution

# Requests of an open loop are submitted at most so far ahead: memory stays flat on long runs.
_AHEAD_SECONDS = 60.0
_CLIENT = "client"
# A server with several ranks looks at the next request of a closed loop's client only so often.
_CLOSED_LOOP_SECONDS = 0.02
# A client of a closed loop that was turned away asks again after so long.
_RETRY_SECONDS = 1.0
_TURNED_AWAY = ("rejected", "refused", "lost")


class Target(Protocol):
    """What a load is put on: one engine, or a whole server."""

    @property
    def clock(self) -> float:
        """Virtual seconds it was advanced to."""

    @property
    def steps(self) -> int:
        """Steps that ended."""

    def submit(self, request: Request) -> None:
        """Let a request arrive."""

    def advance(
        self, until: float, on_finish: OnFinish | None = None, max_steps: int | None = None
    ) -> bool:
        """Run until a time, or for so many steps; whether the time was reached."""


class Load(Protocol):
    """Traffic that can drive a target."""

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        """
        Advance the target under this load.

        Args:
            target: The same one in every call.
            until: Virtual seconds.
            max_steps: Stop after so many steps.

        Returns:
            Whether ``until`` was reached.
        """


class TraceLoad:
    """
    Plays requests from a stream, each at its time; memory does not grow with the stream.

    Args:
        arrivals: In order of arrival.
        on_finish: Told of every request that ended.

    Attributes:
        submitted: Requests handed over so far.
        over: Whether the stream has ended.
    """

    def __init__(self, arrivals: Iterator[Request], on_finish: OnFinish | None = None) -> None:
        self.submitted = 0
        self.over = False
        self._arrivals = arrivals
        self._on_finish = on_finish
        self._next: Request | None = None
        self._take()

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        """See ``Load.drive``."""
        limit = None if max_steps is None else target.steps + max_steps
        while True:
            stop = min(until, target.clock + _AHEAD_SECONDS)
            while self._next is not None and self._next.arrival < stop:
                target.submit(self._next)
                self.submitted += 1
                self._take()
            steps = None if limit is None else limit - target.steps
            if not target.advance(stop, self._on_finish, steps):
                return False
            if stop >= until:
                return True

    def _take(self) -> None:
        self._next = next(self._arrivals, None)
        self.over = self._next is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """
    A stretch of load.

    Attributes:
        seconds: How long it lasts.
        clients: Closed loop: so many clients, each sending its next request when one is answered.
        rate: Open loop: requests per second at its start, Poisson.
        rate_end: The rate at its end, reached linearly; None for a constant rate.
    """

    seconds: float
    clients: int = 0
    rate: float = 0.0
    rate_end: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """
    Phases in order and the lengths of their requests.

    Attributes:
        repeat: Begin again after the last phase; else nothing more arrives.
        think: Seconds a client of a closed loop takes between answer and next request.
        finish_reason: What requests end with.

    Raises:
        ConfigError: no phase, or one that lasts no time.
    """

    phases: tuple[Phase, ...]
    prompt: LengthDistribution
    output: LengthDistribution
    seed: int = 0
    repeat: bool = False
    think: float = 0.0
    finish_reason: str = "stop"

    def __post_init__(self) -> None:
        if not self.phases or min(phase.seconds for phase in self.phases) <= 0:
            raise ConfigError("script: must have phases, each longer than 0 seconds")


class ScriptedLoad:
    """Plays a script on one target: always the same requests for the same seed and target."""

    def __init__(self, script: Script) -> None:
        self._script = script
        # Apart, so that what one loop draws does not depend on when the other does.
        self._open_rng = Random(f"{script.seed} open")
        self._client_rng = Random(f"{script.seed} clients")
        self._index = -1
        self._phase: Phase | None = None
        self._begin = 0.0
        self._end = 0.0
        # The next candidate arrival of the open loop.
        self._next = inf
        self._clients = 0
        self._wanted = 0

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        """See ``Load.drive``."""
        limit = None if max_steps is None else target.steps + max_steps
        while True:
            if target.clock >= self._end:
                self._enter_next_phase(target)
            ahead = _CLOSED_LOOP_SECONDS if self._clients else _AHEAD_SECONDS
            stop = min(until, self._end, target.clock + ahead)
            self._submit_open(target, stop)
            steps = None if limit is None else limit - target.steps
            if not target.advance(stop, lambda record: self._answer(target, record), steps):
                return False
            if stop >= until:
                return True

    def _enter_next_phase(self, target: Target) -> None:
        """Go on to the next phase: start its clients or draw its first arrival."""
        phases = self._script.phases
        self._index += 1
        self._begin = self._end
        if self._index == len(phases) and not self._script.repeat:
            self._phase, self._wanted, self._next, self._end = None, 0, inf, inf
            return
        self._phase = phase = phases[self._index % len(phases)]
        self._end = self._begin + phase.seconds
        self._wanted = phase.clients
        while self._clients < self._wanted:
            self._clients += 1
            self._submit(target, self._begin, _CLIENT)
        self._next = self._begin
        self._draw_arrival()

    def _submit(self, target: Target, arrival: float, source: str) -> None:
        rng = self._client_rng if source == _CLIENT else self._open_rng
        target.submit(
            Request(
                arrival=arrival,
                prompt_tokens=self._script.prompt.draw(rng),
                output_tokens=self._script.output.draw(rng),
                id=source,
                finish_reason=self._script.finish_reason,
            )
        )

    def _submit_open(self, target: Target, stop: float) -> None:
        """Submit what arrives before ``stop``."""
        while self._next < min(stop, self._end):
            self._submit(target, self._next, "")
            self._draw_arrival()

    def _draw_arrival(self) -> None:
        """Draw the next arrival of the open loop: a Poisson process at the top rate, thinned."""
        phase = self._phase
        if phase is None or max(phase.rate, phase.rate_end or 0.0) <= 0:
            self._next = inf
            return
        last = phase.rate if phase.rate_end is None else phase.rate_end
        top = max(phase.rate, last)
        while self._next < self._end:
            self._next += self._open_rng.expovariate(top)
            share = (self._next - self._begin) / phase.seconds
            if self._open_rng.random() * top < phase.rate + share * (last - phase.rate):
                return

    def _answer(self, target: Target, record: Finished) -> None:
        """A client of the closed loop has its answer: it sends the next request, or leaves."""
        if record.request.id != _CLIENT:
            return
        if self._clients > self._wanted:
            self._clients -= 1
        else:
            pause = self._script.think
            if record.reason in _TURNED_AWAY:
                pause = max(pause, _RETRY_SECONDS)
            self._submit(target, record.finished + pause, _CLIENT)
