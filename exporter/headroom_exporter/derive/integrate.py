"""
Integrals over time of a level that is seen at irregular moments.

Between two polls half of the interval is given to the level before and half to the level after, the
trapezoid rule, so that however a signal is cut into polls the integrals agree within the sampling error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from headroom_exporter.samples import TimeHistogramSnapshot

# Steps of at most 2 where batches are small and people look, and few enough for the series budget.
BATCH_BOUNDS = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
OCCUPANCY_BOUNDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)

KeyT = TypeVar("KeyT", bound=Hashable)


class TimeHistogram:
    """
    Milliseconds spent at each level.

    Whole milliseconds, because OpenMetrics wants integer bucket counts; what is less than one is carried
    to the next call, so nothing is lost.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._cells = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._carry = 0.0

    def add(self, level: float, seconds: float) -> None:
        """Count ``seconds`` spent at ``level``."""
        exact = seconds * 1000.0 + self._carry
        whole = int(exact)
        self._carry = exact - whole
        self._cells[bisect_left(self._bounds, level)] += whole
        self._sum += level * whole

    def snapshot(self) -> TimeHistogramSnapshot:
        """The cumulative histogram so far."""
        total, cumulative = 0, []
        for cell in self._cells:
            total += cell
            cumulative.append(total)
        return TimeHistogramSnapshot(
            bounds=self._bounds, milliseconds=tuple(cumulative), sum=self._sum
        )


class SecondsBy(Generic[KeyT]):
    """Seconds spent in each of a fixed set of states."""

    def __init__(self, keys: tuple[KeyT, ...]) -> None:
        self._seconds = dict.fromkeys(keys, 0.0)

    def add(self, key: KeyT | None, seconds: float) -> None:
        """Count ``seconds`` in ``key``; None is no state and counts nowhere."""
        if key is not None:
            self._seconds[key] += seconds

    def snapshot(self) -> Mapping[KeyT, float]:
        """Seconds of every key, zeros too."""
        return MappingProxyType(dict(self._seconds))


class Peak:
    """Largest level of the last ``window`` seconds, exact: a monotonic queue."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._queue: deque[tuple[float, float]] = deque()

    def add(self, now: float, level: float) -> None:
        """Note the level at ``now`` (seconds, not falling)."""
        while self._queue and self._queue[-1][1] <= level:
            self._queue.pop()
        self._queue.append((now, level))
        self._expire(now)

    def value(self, now: float) -> float | None:
        """Largest level in (now - window, now]; None when nothing was seen in it."""
        self._expire(now)
        return self._queue[0][1] if self._queue else None

    def _expire(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now - self._window:
            self._queue.popleft()


class RollingMean:
    """
    Time-weighted mean of a level over about the last ``window`` seconds.

    Kept in ``cells`` cells, so the window's far edge moves in steps of window / cells.
    """

    def __init__(self, window: float, cells: int = 30) -> None:
        self._span = window / cells
        self._cells: deque[tuple[int, float, float]] = deque(maxlen=cells)

    def add(self, now: float, integral: float, seconds: float) -> None:
        """Count ``integral`` (level x seconds) over the ``seconds`` that end at ``now``."""
        cell = int(now // self._span)
        if self._cells and self._cells[-1][0] == cell:
            _, old_integral, old_seconds = self._cells[-1]
            self._cells[-1] = (cell, old_integral + integral, old_seconds + seconds)
        else:
            self._cells.append((cell, integral, seconds))

    def mean(self, now: float, at_least: float) -> float | None:
        """The mean; None while less than ``at_least`` seconds were counted inside the window."""
        oldest = int(now // self._span) - (self._cells.maxlen or 1)
        inside = [cell for cell in self._cells if cell[0] > oldest]
        seconds = sum(cell[2] for cell in inside)
        return sum(cell[1] for cell in inside) / seconds if seconds >= at_least > 0 else None
