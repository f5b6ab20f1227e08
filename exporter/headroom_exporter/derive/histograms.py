"""What can be read from an engine's own histograms, and how few buckets carry it."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from headroom_exporter.samples import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable


def subtract(after: Histogram, before: Histogram) -> Histogram | None:
    """What was observed between two readings; None where bounds changed or the engine started again."""
    if after.bounds != before.bounds:
        return None
    counts = tuple(a - b for a, b in zip(after.counts, before.counts, strict=True))
    if min(counts) < 0:
        return None
    return Histogram(bounds=after.bounds, counts=counts, sum=after.sum - before.sum)


def quantile(histogram: Histogram, q: float) -> float | None:
    """
    A quantile, linear inside its bucket.

    Returns:
        None where there is no observation, or where the quantile falls into the first or the last bucket:
        there it is only bounded on one side, and interpolating would invent it.
    """
    rank = q * histogram.count
    if histogram.count <= 0:
        return None
    for i, bound in enumerate(histogram.bounds):
        if histogram.counts[i] >= rank:
            if i == 0:
                return None
            low, below = histogram.bounds[i - 1], histogram.counts[i - 1]
            inside = histogram.counts[i] - below
            return low + (bound - low) * (rank - below) / inside if inside > 0 else bound
    return None


# Within a bucket no wider than this (upper over lower bound), interpolating is off by a third at most.
_NARROW = 2.0


def quantile_at_least(histogram: Histogram, q: float) -> float:
    """
    A quantile where its bucket is narrow, else the bucket's lower bound; 0 in the first bucket.

    Args:
        histogram: With at least one observation.
        q: 0 to 1.
    """
    rank = q * histogram.count
    low = 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if count >= rank:
            exact = quantile(histogram, q) if low > 0 and bound <= _NARROW * low else None
            return low if exact is None else exact
        low = bound
    return low


def over(histogram: Histogram, limit: float) -> tuple[float, float]:
    """
    How many observations exceed ``limit``: (certainly, at most).

    The two bucket edges around the limit bracket it; they agree where the limit is an edge.
    """
    at_most_low = 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if bound <= limit:
            at_most_low = count
        if bound >= limit:
            return histogram.count - count, histogram.count - at_most_low
    return 0.0, histogram.count - at_most_low


def thin(
    histogram: Histogram, keep: int, low: float, high: float, around: Iterable[float] = ()
) -> Histogram:
    """
    The same histogram with at most ``keep`` finite bounds from ``low`` to ``high``, each still exact.

    Bounds next to ``around`` (a planned limit) always stay; of the others, the one closest to its
    neighbours on a logarithmic scale goes first. Which stay depends on the bounds alone, never on counts,
    so the series are stable.
    """
    pinned: set[float] = set()
    for limit in around:
        pinned.update([bound for bound in histogram.bounds if bound <= limit][-1:])
        pinned.update([bound for bound in histogram.bounds if bound >= limit][:1])
    bounds = [b for b in histogram.bounds if low <= b <= high or b in pinned]
    while len(bounds) > keep:
        loose = [i for i in range(1, len(bounds) - 1) if bounds[i] not in pinned]
        if not loose:
            break
        del bounds[min(loose, key=lambda i: _ratio(bounds[i - 1], bounds[i + 1]))]
    counts = dict(zip(histogram.bounds, histogram.counts, strict=False))
    return Histogram(
        bounds=tuple(bounds),
        counts=(*(counts[bound] for bound in bounds), histogram.count),
        sum=histogram.sum,
    )


def _ratio(low: float, high: float) -> float:
    """How far apart two bounds are; an owner's own buckets may begin at 0, infinitely far from the next."""
    return high / low if low > 0 else math.inf


class HistogramWindow:
    """A histogram's observations of about the last ``window`` seconds."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._seen: deque[tuple[float, Histogram]] = deque()

    def add(self, now: float, histogram: Histogram) -> None:
        """Note the engine's cumulative histogram at ``now``."""
        if self._seen and subtract(histogram, self._seen[-1][1]) is None:
            self._seen.clear()
        self._seen.append((now, histogram))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window:
            self._seen.popleft()

    def read(self) -> Histogram | None:
        """Observations since the oldest reading kept; None while there is only one."""
        if len(self._seen) < 2:
            return None
        return subtract(self._seen[-1][1], self._seen[0][1])
