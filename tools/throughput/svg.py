"""Just enough SVG for two pictures: panels with axes, lines, marks and text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from math import log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INK, GRID, MUTED = "#1f2328", "#e3e6ea", "#59636e"
FONT = "font-family='system-ui,Helvetica,Arial,sans-serif'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """
    One axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end.
        ticks: Values that get a line and a label.
        log: Logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        if self.log:
            return (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(slots=True, kw_only=True)
class Panel:
    """A plot: its rectangle in pixels, its axes and what was drawn."""

    x: float
    y: float
    width: float
    height: float
    across: Axis
    up: Axis
    parts: list[str] = field(default_factory=list)
    _below: int = 0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return (
            self.x + self.across.share(x) * self.width,
            self.y + (1 - self.up.share(y)) * self.height,
        )

    def frame(self, title: str, *, labels_up: bool = True, labels_across: bool = True) -> None:
        """Grid, labels and title."""
        for tick in self.across.ticks:
            x, _ = self.place(tick, self.up.low)
            self.parts.append(_line(x, self.y, x, self.y + self.height, GRID))
            if labels_across:
                self.parts.append(text(x, self.y + self.height + 15, f"{tick:,g}", anchor="middle"))
        for tick in self.up.ticks:
            _, y = self.place(self.across.low, tick)
            self.parts.append(_line(self.x, y, self.x + self.width, y, GRID))
            if labels_up:
                self.parts.append(text(self.x - 6, y + 4, f"{tick:,g}", anchor="end"))
        self.parts.append(text(self.x, self.y - 8, title, size=13, bold=True))

    def line(
        self, points: list[tuple[float, float]], color: str, width: float = 2, dash: str = ""
    ) -> None:
        """Draw a line through points, those outside the panel left out."""
        inside = [
            self.place(x, y)
            for x, y in points
            if self.across.low <= x <= self.across.high and self.up.low <= y <= self.up.high
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        style = f" stroke-dasharray='{dash}'" if dash else ""
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='{width}'{style}/>"
        )

    def dots(self, points: list[tuple[float, float]], color: str, size: float = 3.5) -> None:
        """Draw hollow circles."""
        for x, y in points:
            left, top = self.place(x, y)
            self.parts.append(
                f"<circle cx='{left:.1f}' cy='{top:.1f}' r='{size}' fill='#ffffff' "
                f"fill-opacity='0.6' stroke='{color}' stroke-width='1.4'/>"
            )

    def diamonds(self, points: list[tuple[float, float]], color: str) -> None:
        """Draw filled diamonds."""
        for x, y in points:
            left, top = self.place(x, y)
            self.parts.append(
                f"<path d='M{left:.1f} {top - 7:.1f}l7 7l-7 7l-7 -7z' fill='{color}' "
                "stroke='#ffffff' stroke-width='1'/>"
            )

    def triangle(self, point: tuple[float, float], color: str) -> None:
        """Draw a triangle whose tip touches a point from below."""
        left, top = self.place(*point)
        self.parts.append(f"<path d='M{left:.1f} {top:.1f}l7 12h-14z' fill='{color}'/>")

    def upright(self, x: float, color: str, label: str, top: float = 14) -> None:
        """Draw a dashed vertical line with a label at its upper end."""
        left, _ = self.place(x, self.up.low)
        self.parts.append(_line(left, self.y, left, self.y + self.height, color, "4 3"))
        after = left < self.x + 0.72 * self.width
        anchor, shift = ("start", 4) if after else ("end", -4)
        self.parts.append(
            text(left + shift, self.y + top, label, size=11, color=color, anchor=anchor)
        )

    def below(self, lines: Sequence[tuple[str, str]]) -> None:
        """Add lines of text, each with its color, under the panel."""
        for label, color in lines:
            self._below += 1
            top = self.y + self.height + 20 + 15 * self._below
            self.parts.append(text(self.x, top, label, color=color))


def text(
    x: float,
    y: float,
    label: str,
    *,
    size: int = 11,
    color: str = INK,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    """Return one line of text."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{color}' "
        f"text-anchor='{anchor}'{weight}>{escape(label)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dash: str = "") -> str:
    style = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}'{style}/>"
    )


def document(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return the picture, on white so that it reads on a dark page too."""
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
            *parts,
            "</svg>",
            "",
        ]
    )
