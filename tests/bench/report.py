"""Rows of measurements and the table they make."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit the issue sets: at most ``limit``, or at least where ``at_least``."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self, unit: str) -> str:
        """``<= 1 %``."""
        return f"{'>=' if self.at_least else '<='} {shown(self.limit)} {unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One measured number.

    Attributes:
        part: Heading it stands under.
        what: What was measured.
        value: In ``unit``.
        unit: As people read it (%, MiB, ms); empty for counts.
        target: The limit it is held against, where there is one.
        beside: More figures of the same thing, in the same unit, by name.
    """

    part: str
    what: str
    value: float
    unit: str = ""
    target: Target | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; ``met`` is None where nothing was promised."""
        return {
            "part": self.part,
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "beside": dict(self.beside),
            "target": self.target.text(self.unit) if self.target else None,
            "met": self.target.met(self.value) if self.target else None,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """A heading; makes the rows that stand under it."""

    heading: str

    def row(
        self,
        what: str,
        value: float,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
    ) -> Row:
        """A row with a target where ``most`` or ``least`` is given."""
        target = None
        if most is not None:
            target = Target(limit=most)
        elif least is not None:
            target = Target(limit=least, at_least=True)
        return Row(part=self.heading, what=what, value=value, unit=unit, target=target)


def shown(value: float) -> str:
    """Three significant digits, thousands whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Iterable[Row]) -> str:
    """Rows under the headings of their parts: what, measured, target and whether it is kept."""
    lines: list[str] = []
    heading = ""
    for row in rows:
        if row.part != heading:
            heading = row.part
            lines += ["", heading]
        lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Row) -> str:
    text = f"  {row.what:<70} {shown(row.value):>9} {row.unit:<6}"
    if row.target is None:
        beside = ", ".join(f"{name} {shown(value)}" for name, value in row.beside.items())
        return f"{text} {beside}".rstrip()
    kept = "kept" if row.target.met(row.value) else "MISSED"
    return f"{text} {row.target.text(row.unit):<11} {kept}"


def machine() -> str:
    """The machine and what runs on it, in one line."""
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({_processor()}), {_memory_gib():.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {loads}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all are at or below."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered) + 0.499999) - 1))]
