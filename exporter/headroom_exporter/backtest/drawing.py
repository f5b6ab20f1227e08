"""What the panels of the picture are drawn with: scales, lines, areas, frames. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from headroom_exporter.backtest import Series

WIDTH, LEFT, RIGHT = 1120, 232, 100
PLOT = WIDTH - LEFT - RIGHT
# More points than this nobody sees, and a week would make a page of megabytes.
_CELLS = 600

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """
    From values to pixels.

    Attributes:
        top: Pixels of the panel's upper edge.
        height: Pixels.
        low: Value at the lower edge.
        high: Value at the upper edge.
        log: Equal factors are equally high.
    """

    top: float
    height: float
    low: float
    high: float
    log: bool = False

    def y(self, value: float) -> float:
        """Pixels; what is below the panel is put at its edge."""
        low, high, at = self.low, self.high, max(value, self.low)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.top + self.height * (1 - (at - low) / (high - low))


def x_of(at: float, seconds: float) -> float:
    """Pixels of a moment of a recording of so many seconds."""
    return LEFT + min(at / seconds, 1.0) * PLOT


# --- lines ---------------------------------------------------------------------------------------


def points(
    found: Iterable[Series], seconds: float, pick: Callable[[Iterable[float]], float]
) -> Points:
    """
    Series as one line of not too many points.

    Args:
        found: Series of which at most one has a value at a time.
        seconds: The recording's length.
        pick: What stands for the values of one point: their mean, or the largest.

    Returns:
        Time and value, ascending; what is no number is left out.
    """
    line = sorted(
        (at, value)
        for each in found
        for at, value in zip(each.times, each.values, strict=True)
        if math.isfinite(value)
    )
    return thinned(line, seconds, pick)


def thinned(line: Points, seconds: float, pick: Callable[[Iterable[float]], float]) -> Points:
    """A line of not too many points, ``pick`` of what each stands for."""
    if len(line) <= _CELLS:
        return line
    cells = groupby(line, key=lambda point: int(point[0] / seconds * _CELLS))
    kept = [list(cell) for _, cell in cells]
    return [(cell[len(cell) // 2][0], pick([value for _, value in cell])) for cell in kept]


def _runs(seconds: float, line: Points) -> Iterator[Points]:
    """The line without what lies in its gaps."""
    longest = max(90.0, 2.5 * seconds / _CELLS)
    run: Points = []
    for point in line:
        if run and point[0] - run[-1][0] > longest:
            yield run
            run = []
        run.append(point)
    if run:
        yield run


def stroked(kind: str, seconds: float, line: Points, scale: Scale) -> str:
    """A line as a path of a class; nothing where there is no point."""
    path = "".join(_path(seconds, run, scale) for run in _runs(seconds, line))
    return f'<path class="line {kind}" d="{path}"/>' if path else ""


def filled(kind: str, seconds: float, line: Points, scale: Scale) -> str:
    """The area below a line as a path of a class; nothing where there is no point."""
    floor = scale.top + scale.height
    path = "".join(
        f"{_path(seconds, run, scale)}V{floor:.1f}H{x_of(run[0][0], seconds):.1f}Z"
        for run in _runs(seconds, line)
    )
    return f'<path class="area {kind}" d="{path}"/>' if path else ""


def _path(seconds: float, run: Points, scale: Scale) -> str:
    return "M" + "L".join(f"{x_of(at, seconds):.1f} {scale.y(value):.1f}" for at, value in run)


# --- frames --------------------------------------------------------------------------------------


def frame(
    title: str,
    scale: Scale,
    marks: Sequence[float],
    words: Callable[[float], str],
    keys: Iterable[tuple[str, str]],
) -> list[str]:
    """A panel's name and its keys at the left, and its horizontal lines."""
    top = scale.top
    parts = [f'<text class="title" x="0" y="{top + 9:.1f}">{escape(title)}</text>']
    for index, (kind, said) in enumerate(keys, 1):
        y = top + 10 + index * 17
        parts.append(
            f'<rect class="{kind}" x="0.5" y="{y - 9:.1f}" width="14" height="9"/>'
            if kind.startswith("area")
            else f'<path class="{kind}" d="M0 {y - 4:.1f}h15"/>'
        )
        parts.append(f'<text class="key" x="21" y="{y:.1f}">{escape(said)}</text>')
    for mark in marks:
        y = scale.y(mark)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{PLOT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words(mark)}</text>'
        )
    return parts


def round_ticks(high: float) -> list[int]:
    """At most seven whole marks from 0, a round step apart."""
    step = next(
        size * 10**power
        for power in range(9)
        for size in (1, 2, 5)
        if high / (size * 10**power) <= 6
    )
    return list(range(0, int(high) + 1, step))


def log_ticks(scale: Scale) -> list[float]:
    """Powers of ten that are in the picture; where that is one or none, the steps between too."""
    powers = range(-6, 7)
    tens = [10.0**power for power in powers]
    fine = sorted(tens + [size * ten for ten in tens for size in (2.0, 5.0)])
    inside = [mark for mark in tens if scale.low <= mark <= scale.high]
    if len(inside) > 1:
        return inside
    return [mark for mark in fine if scale.low <= mark <= scale.high]
