"""
The last 15 minutes of each rank at poll resolution: what the chart of the status page draws.

Columns of machine numbers, not records: a row is 45 bytes, so a rank takes 40 KB at one poll a second and
less than 1 MiB at ten. Inside a column NaN stands for unknown; whoever reads them gets None.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headroom_exporter.samples import Constraint, HeadroomState
from headroom_exporter.status.recent import Recent

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineState, RankState

WINDOW_SECONDS = 900.0
# 15 minutes at ten polls a second, the fastest allowed, and some for a clock that is not exact.
MAX_ROWS = 9_200
STATES = tuple(HeadroomState)
# What a row holds besides its time and its state.
LEVELS = (
    "running",
    "waiting",
    "kv_usage",
    "sustainable",
    *(f"capacity_{constraint}" for constraint in Constraint),
)
Key = tuple[str, str, str]


class Ring:
    """One rank's rows, oldest first; those older than the window go when others come."""

    def __init__(self) -> None:
        self._at = array("d")
        self._states = array("b")
        self._levels = tuple(array("f") for _ in LEVELS)
        # Rows before this one are gone; the arrays are cut now and then, not at each poll.
        self._first = 0

    def __len__(self) -> int:
        return len(self._at) - self._first

    @property
    def last_at(self) -> float | None:
        """When the newest row was; None while there is none."""
        return self._at[-1] if self._at else None

    @property
    def nbytes(self) -> int:
        """Bytes the columns take."""
        return sum(len(column) * column.itemsize for column in self._columns())

    def _columns(self) -> tuple[array[Any], ...]:
        return (self._at, self._states, *self._levels)

    def add(self, at: float, state: HeadroomState, levels: tuple[float | None, ...]) -> None:
        """
        Append a row; one that is not newer than the last is ignored.

        Args:
            at: Monotonic seconds.
            state: The headroom's state then.
            levels: One for each of LEVELS.
        """
        if self._at and at <= self._at[-1]:
            return
        self._at.append(at)
        self._states.append(STATES.index(state))
        for column, level in zip(self._levels, levels, strict=True):
            column.append(math.nan if level is None else level)
        self._forget(at)

    def _forget(self, now: float) -> None:
        while self._at[self._first] < now - WINDOW_SECONDS or len(self) > MAX_ROWS:
            self._first += 1
        # Cut when half is gone: each row is moved once at most, on average.
        if self._first > 64 and self._first * 2 > len(self._at):
            for column in self._columns():
                del column[: self._first]
            self._first = 0

    def columns(self, offset: float = 0.0, after: float = -math.inf) -> dict[str, list[Any]]:
        """
        The rows newer than ``after``, oldest first, by column: time, state, and each of LEVELS.

        Args:
            offset: Added to monotonic seconds; ``time`` and ``after`` are on that scale.
            after: Seconds.
        """
        # Rounded before comparing: what was answered comes back as ``after``.
        times = [round(at + offset, 3) for at in self._at[self._first :]]
        start = bisect_right(times, after)
        first = self._first + start
        found: dict[str, list[Any]] = {
            "time": times[start:],
            "state": [STATES[number] for number in self._states[first:]],
        }
        for name, column in zip(LEVELS, self._levels, strict=True):
            found[name] = [_known(level) for level in column[first:]]
        return found


def _known(level: float) -> float | None:
    """A level as JSON has it: short, and null where it is unknown or beyond what a column can hold."""
    if not math.isfinite(level):
        return None
    return int(level) if level.is_integer() else round(level, 3)


@dataclass(slots=True)
class Past:
    """What is remembered of one rank."""

    ring: Ring
    recent: Recent


class History:
    """The rings of all ranks; fed once after each poll, never larger than what the State shows."""

    def __init__(self) -> None:
        self._past: dict[Key, Past] = {}

    def note(self, engine: EngineState, now: float) -> None:
        """
        Take an engine's newest state in: a row for each rank that was seen, a gap for one that is away.

        Args:
            engine: Its state right after a poll, good or failed.
            now: Monotonic seconds.
        """
        shown = set()
        for rank in engine.ranks:
            key = (engine.name, rank.rank, rank.model_name)
            shown.add(key)
            past = self._past.get(key)
            if past is None:
                past = self._past[key] = Past(Ring(), Recent(WINDOW_SECONDS))
            _note(past, engine, rank, now)
        for key in [key for key in self._past if key[0] == engine.name and key not in shown]:
            del self._past[key]

    def forget(self, engine: str) -> None:
        """Drop an engine that is polled no more."""
        for key in [key for key in self._past if key[0] == engine]:
            del self._past[key]

    def ring(self, key: Key) -> Ring | None:
        """The ring of (engine, rank, model name); None where there is no such rank."""
        past = self._past.get(key)
        return None if past is None else past.ring

    def recent(self, key: Key) -> Recent | None:
        """What requests of the last 15 minutes were like; None where there is no such rank."""
        past = self._past.get(key)
        return None if past is None else past.recent


def _note(past: Past, engine: EngineState, rank: RankState, now: float) -> None:
    sample, derived, at = rank.sample, rank.derived, engine.last_success_monotonic
    stale = at is None or now - at > engine.stale_after
    if sample is None or derived is None or at is None or stale:
        # A row at each poll: the picture's right edge goes on, so that a gap is as wide as it is long.
        past.ring.add(now, HeadroomState.UNKNOWN, (None,) * len(LEVELS))
        return
    if past.ring.last_at is None or at > past.ring.last_at:
        believed = derived.demand is not None
        past.recent.add(at, sample)
        past.ring.add(
            at,
            derived.state,
            (
                sample.running if believed else None,
                sample.waiting if believed else None,
                sample.kv_usage if believed else None,
                derived.sustainable,
                *(derived.capacities.get(constraint) for constraint in Constraint),
            ),
        )
