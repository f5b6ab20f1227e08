"""What the samples say: whether anything grows."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.processes import Sample
    from soak.soaking import Soak

MIB = 2**20
# Slopes are of medians by the minute: neighbours within one are not independent.
BLOCK = 60.0
# Two-sided 95 %.
NORMAL = 1.96
# What is called flat though the interval leaves out 0, each hour: bytes, descriptors, threads, tasks.
FLAT = {"rss": 2.0 * MIB, "uss": 2.0 * MIB, "fds": 2.0, "threads": 1.0, "tasks": 2.0}
# Beyond what was there before: one kept-alive connection to each engine, hanging scrapers, a hung NVML call.
MORE = {"fds": 12, "threads": 2, "tasks": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Growth each hour by Theil and Sen, with the interval of 95 % of its pairs' ranks."""

    hourly: float
    low: float
    high: float
    blocks: int


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """
    Theil-Sen over medians of one-minute blocks; None with fewer than five blocks.

    The interval is Sen's (1968): the slopes of all pairs in order, those NORMAL standard deviations of
    Kendall's statistic away from the middle.

    Args:
        points: Seconds and values.
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at, value in points:
        blocks.setdefault(int((at - points[0][0]) / BLOCK), []).append((at, value))
    middles = [
        (statistics.median(at for at, _ in each), statistics.median(value for _, value in each))
        for each in blocks.values()
    ]
    n = len(middles)
    if n < 5:
        return None
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(middles, 2))
    spread = NORMAL * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Slope(
        hourly=3600 * statistics.median(slopes),
        low=3600 * slopes[low],
        high=3600 * slopes[high],
        blocks=n,
    )


def growth(samples: Sequence[Sample], what: str) -> Slope | None:
    """The slope of one figure over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    points = [
        (each.at, float(getattr(each, what))) for each in half if getattr(each, what) is not None
    ]
    return slope(points) if points else None


def growing(samples: Sequence[Sample]) -> list[str]:
    """What grows: 0 is outside its interval and the slope is more than what counts as flat."""
    found = []
    for what, flat in FLAT.items():
        line = growth(samples, what)
        if line is not None and line.low > 0 and line.hourly > flat:
            found.append(
                f"{what} grows by {line.hourly:.3g} an hour ({line.low:.3g} to {line.high:.3g})"
            )
    return found


def leaked(soak: Soak) -> list[str]:
    """What is more after the misery than before it, beyond what may come and go."""
    found = []
    if soak.before is None or soak.after is None:
        return ["there was no before or no after"]
    for what, more in MORE.items():
        before, after = getattr(soak.before, what), getattr(soak.after, what)
        if before is not None and after is not None and after > before + more:
            found.append(f"{what}: {before} before, {after} after")
    for kind, count in soak.after.kinds.items():
        # Of those with a name exactly as many are needed as before.
        if kind != "unnamed" and count > soak.before.kinds.get(kind, 0) > 0:
            found.append(f"tasks {kind}: {soak.before.kinds[kind]} before, {count} after")
    return found


def judge(soak: Soak) -> list[str]:
    """All that is wrong; empty: nothing."""
    return [*soak.problems, *growing(soak.samples), *leaked(soak)]


def lines(soak: Soak) -> list[str]:
    """The figures, for people."""
    samples = soak.samples
    found = [
        f"{len(samples)} samples in {(samples[-1].at - samples[0].at) / 60:.1f} minutes"
        if samples
        else "no samples"
    ]
    for name, each in (("before", soak.before), ("after", soak.after), ("empty", soak.empty)):
        if each is not None:
            found.append(
                f"{name:7} RSS {each.rss / MIB:.1f} PSS {each.pss / MIB:.1f} USS {each.uss / MIB:.1f} MiB, "
                f"fds {each.fds}, threads {each.threads}, tasks {each.tasks}, series {each.series}, "
                f"objects {each.objects}"
            )
    found += [_spread(samples, what, scale) for what, scale in SHOWN.items() if samples]
    if samples:
        last, first = samples[-1], samples[0]
        minutes = max((last.at - first.at) / 60, 1e-9)
        found.append(f"peak RSS {last.peak / MIB:.1f} MiB")
        found.append(f"CPU {last.cpu - first.cpu:.1f} s in {60 * minutes:.0f} s")
        found.append(f"log lines a minute {(last.log_lines - first.log_lines) / minutes:.1f}")
    found.append(f"recovery {soak.recovery}, stop {soak.stop}")
    told = dict(soak.world)
    seconds = told.pop("seconds", [])
    if seconds:
        at = [seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95, 1.0)]
        found.append("scrape seconds p50 {:.3f} p95 {:.3f} longest {:.3f}".format(*at))
    found.append(str(told))
    return found


SHOWN: dict[str, float] = {
    "rss": MIB,
    "pss": MIB,
    "uss": MIB,
    "fds": 1,
    "own_fds": 1,
    "threads": 1,
    "tasks": 1,
    "series": 1,
    "objects": 1,
}


def _spread(samples: Sequence[Sample], what: str, scale: float) -> str:
    values = [getattr(each, what) / scale for each in samples if getattr(each, what) is not None]
    if not values:
        return f"{what}: not known"
    text = (
        f"{what:8} {min(values):.1f} to {max(values):.1f}, median {statistics.median(values):.1f}"
    )
    line = growth(samples, what)
    if line is not None:
        each = [number / scale for number in (line.hourly, line.low, line.high)]
        text += "; second half {:+.2f} an hour ({:+.2f} to {:+.2f})".format(*each)
    return text
