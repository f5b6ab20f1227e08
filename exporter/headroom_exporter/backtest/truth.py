"""
What users felt: breaches of the plan, from the requests themselves and never from what is derived. Pure.

A minute is a breach when, of the requests that arrived in it and in the four before (at least 20), more
than 5 % missed the planned time to first token or the planned time per output token (the plan speaks of
95th percentiles), or more than 1 % were rejected. Five such minutes in a row, or more, are a sustained
breach. Requests that were refused as too long, or whose client left before it could have been served in
time, say nothing; requests lost because no server listened, or because it ended before they could be late,
are an outage, which is not a lack of headroom: they are counted apart. All others count, the rejected too.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from headroom_exporter.samples import Constraint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headroom_exporter.config import PlanConfig
    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.requests import Finished, Request

MINUTE = 60.0
WINDOW_MINUTES = 5
SUSTAINED_MINUTES = 5
MIN_REQUESTS = 20
MISSED_SHARE = 0.05
REJECTED_SHARE = 0.01
# What is seen so many seconds before a breach, and during it, says what bound.
CAUSE_SECONDS = 300.0

_FINE, _LATE, _SLOW, _REJECTED, _LOST = range(5)


class Requests:
    """
    The fates of one server's requests against a plan.

    Args:
        plan: Its TTFT and TPOT are what users were promised; what it leaves open nobody can miss.

    Attributes:
        lost: Requests that found no server, or were cut off by its end.
    """

    def __init__(self, plan: PlanConfig) -> None:
        self._plan = plan
        self._arrivals = array("d")
        self._fates = array("b")
        # Sent and not ended; by identity, since requests can be equal.
        self._open: dict[int, Request] = {}
        self.lost = 0

    def __len__(self) -> int:
        """Requests that count."""
        return len(self._arrivals) - self.lost

    def sent(self, arrivals: Iterable[Request], until: float) -> Iterator[Request]:
        """
        Pass on the arrivals before a time, and remember them until they have ended.

        Args:
            arrivals: In order of arrival.
            until: Seconds.
        """
        for request in arrivals:
            if request.arrival >= until:
                return
            self._open[id(request)] = request
            yield request

    def give_up(self, at: float) -> None:
        """Judge what was sent and has not ended: whoever waits for longer than planned was served late."""
        plan = self._plan.ttft_p95_seconds
        for request in self._open.values():
            if plan is not None and at - request.arrival > plan:
                self._arrivals.append(request.arrival)
                self._fates.append(_LATE)
        self._open.clear()

    def note(self, record: Finished) -> None:
        """Take a request that ended: ``OnFinish`` of a load."""
        self._open.pop(id(record.request), None)
        fate = self._judge(record)
        if fate is None:
            return
        self.lost += fate == _LOST
        self._arrivals.append(record.request.arrival)
        self._fates.append(fate)

    def _judge(self, record: Finished) -> int | None:
        plan, request = self._plan, record.request
        if record.reason == "refused":
            return None
        if record.reason == "rejected":
            return _REJECTED
        known = record.finished if record.first_token is None else record.first_token
        if plan.ttft_p95_seconds is not None and known - request.arrival > plan.ttft_p95_seconds:
            return _LATE
        if record.reason == "lost":
            return _LOST
        if record.first_token is None:
            return None
        gaps = record.output_tokens - 1
        if plan.tpot_p95_seconds is not None and gaps > 0:
            tpot = (record.finished - record.first_token) / gaps
            if tpot > plan.tpot_p95_seconds:
                return _SLOW
        return _FINE

    def minutes(self, seconds: float) -> list[Minute]:
        """
        Every whole minute of a recording.

        Args:
            seconds: Its length.

        Returns:
            One record for each minute, in order.
        """
        counts = [Counter[int]() for _ in range(int(seconds // MINUTE))]
        for arrival, fate in zip(self._arrivals, self._fates, strict=True):
            index = int(arrival // MINUTE)
            if index < len(counts):
                counts[index][fate] += 1
        recent: deque[Counter[int]] = deque(maxlen=WINDOW_MINUTES)
        found = []
        for index, count in enumerate(counts):
            recent.append(count)
            found.append(_minute(index, recent))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """
    One minute, looked at with the four before.

    Attributes:
        at: Its begin, seconds.
        requests: How many count, of the five minutes.
        late: Share that missed the planned TTFT; None below MIN_REQUESTS.
        slow: Share that missed the planned TPOT alone; None below MIN_REQUESTS.
        rejected: Share turned away; None below MIN_REQUESTS.
    """

    at: float
    requests: int
    late: float | None
    slow: float | None
    rejected: float | None

    @property
    def breach(self) -> bool:
        """Whether users felt it."""
        if self.late is None or self.slow is None or self.rejected is None:
            return False
        return self.late + self.slow > MISSED_SHARE or self.rejected > REJECTED_SHARE


def _minute(index: int, recent: Iterable[Counter[int]]) -> Minute:
    total: Counter[int] = Counter()
    for count in recent:
        total += count
    requests = sum(total.values()) - total[_LOST]
    enough = requests >= MIN_REQUESTS
    return Minute(
        at=index * MINUTE,
        requests=requests,
        late=total[_LATE] / requests if enough else None,
        slow=total[_SLOW] / requests if enough else None,
        rejected=total[_REJECTED] / requests if enough else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """
    Breach minutes in a row.

    Attributes:
        begin: Begin of the first of them, seconds.
        end: End of the last.
        constraint: What bound, where it could be seen.
    """

    begin: float
    end: float
    constraint: Constraint | None = None

    @property
    def sustained(self) -> bool:
        """Whether it lasted."""
        return self.end - self.begin >= SUSTAINED_MINUTES * MINUTE


def breaches(minutes: Sequence[Minute], causes: Causes | None = None) -> list[Breach]:
    """Put breach minutes that follow each other together."""
    found: list[Breach] = []
    begin: float | None = None
    for minute in minutes:
        if minute.breach and begin is None:
            begin = minute.at
        elif not minute.breach and begin is not None:
            found.append(_breach(begin, minute.at, minutes, causes))
            begin = None
    if begin is not None:
        found.append(_breach(begin, minutes[-1].at + MINUTE, minutes, causes))
    return found


def _breach(begin: float, end: float, minutes: Sequence[Minute], causes: Causes | None) -> Breach:
    inside = [minute for minute in minutes if begin <= minute.at < end]
    late = sum((minute.late or 0.0) + (minute.rejected or 0.0) for minute in inside)
    slow = sum(minute.slow or 0.0 for minute in inside)
    if slow > late:
        return Breach(begin=begin, end=end, constraint=Constraint.LATENCY)
    bound = None if causes is None else causes.between(begin - CAUSE_SECONDS, end)
    return Breach(begin=begin, end=end, constraint=bound)


class Causes:
    """What the heads of the queues of one server wait for, by minute: the simulator's own knowledge."""

    def __init__(self) -> None:
        self._minutes: dict[int, Counter[str]] = {}

    def look(self, at: float, frontend: Frontend) -> None:
        """Look at a server once, at an even rhythm."""
        for engine in frontend.engines:
            if engine.waiting and engine.blocked is not None:
                minute = self._minutes.setdefault(int(at // MINUTE), Counter())
                minute[engine.blocked] += engine.waiting

    def between(self, begin: float, end: float) -> Constraint | None:
        """What most waiting time was spent on; None where nothing waited."""
        total: Counter[str] = Counter()
        for minute in range(int(begin // MINUTE), ceil(end / MINUTE)):
            total += self._minutes.get(minute, Counter())
        return Constraint(total.most_common(1)[0][0]) if total else None
