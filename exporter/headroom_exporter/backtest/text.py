"""The report in the terminal: a compact time line, tables, the verdict. Pure."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.backtest.words import (
    about,
    clock,
    facts,
    headline,
    how_long,
    lasting,
    rule_names,
    verdict,
)
from headroom_exporter.simulate.progress import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headroom_exporter.backtest import Firing
    from headroom_exporter.backtest.report import Report

MIN_CELLS, MAX_CELLS = 20, 96
_TICK_CELLS = 12
# Steps between marks of the time axis, seconds.
_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 604_800)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The characters of the time line, and of the verdict."""

    quiet: str = "·"
    pending: str = "░"
    firing: str = "█"
    felt: str = "▒"
    good: str = "✓"
    bad: str = "✕"
    neither: str = "–"


ASCII = Marks(quiet=".", pending="-", firing="#", felt="!", good="+", bad="x", neither="-")


def marks_for(encoding: str | None) -> Marks:
    """Those that an output's encoding can say."""
    marks = Marks()
    try:
        (marks.quiet + marks.pending + marks.firing + marks.felt + marks.good + marks.bad).encode(
            encoding or "ascii"
        )
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return marks


def text(report: Report, *, width: int = 100, marks: Marks | None = None) -> str:
    """
    The whole report.

    Args:
        report: What came of the backtest.
        width: Columns of the terminal; table lines may be longer.
        marks: The characters to draw with; block elements when not given.
    """
    drawn = marks or Marks()
    parts = (
        _header(report, width),
        _time_line(report, width, drawn),
        _alerts(report),
        _breaches(report),
        _verdict(report, drawn),
    )
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _header(report: Report, width: int) -> list[str]:
    stage = report.stage
    rules = len(report.evaluation.rules)
    speed = stage.seconds / report.wall_seconds if report.wall_seconds else 0.0
    rows = (
        *facts(stage),
        ("rules", f"{rules} alerts of {rule_names(stage)}"),
        (
            "played",
            f"{span(stage.seconds)} in {report.wall_seconds:.1f} s, {speed:,.0f} times real time",
        ),
        *(("note", note) for note in stage.notes),
    )
    lines = []
    for name, said in rows:
        lines += textwrap.wrap(
            said,
            max(width, 60),
            initial_indent=f"{name:<9}",
            subsequent_indent=" " * 9,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


# --- the time line -------------------------------------------------------------------------------


def _time_line(report: Report, width: int, marks: Marks) -> list[str]:
    names = [name for _, name in report.up]
    label = max([len("users"), *map(len, names)]) + 2
    cells = min(MAX_CELLS, max(MIN_CELLS, width - label - 1))
    cell = report.end / cells
    lines = [" " * label + _axis(report.stage.offset, report.end, cells)]
    felt = [(minute.at, minute.at + 60.0) for minute in report.felt.minutes if minute.breach]
    lines.append(f"{'users':<{label}}" + row(cells, cell, [(marks.felt, felt)], marks.quiet))
    for severity, name in report.up:
        firings = [
            each
            for each in report.evaluation.firings
            if (each.severity, each.alert) == (severity, name)
        ]
        layers = [
            (marks.pending, list(_pending(firings, report.end))),
            (marks.firing, list(_firing(firings, report.end))),
        ]
        lines.append(f"{name:<{label}}" + row(cells, cell, layers, marks.quiet))
    what = f"{marks.quiet} quiet   {marks.pending} pending   {marks.firing} firing"
    lines.append(
        f"{'':<{label}}{what}   {marks.felt} users miss the plan   a column is {lasting(cell)}"
    )
    return lines


def row(
    cells: int, cell: float, layers: Iterable[tuple[str, Sequence[tuple[float, float]]]], quiet: str
) -> str:
    """
    One row of the time line.

    Args:
        cells: Its columns.
        cell: Seconds of one.
        layers: A mark, and the spans [begin, end) in which it holds; later ones cover earlier ones. What
            lasts less than a column still shows.
        quiet: The mark of all other columns.
    """
    found = [quiet] * cells
    for mark, spans in layers:
        for begin, end in spans:
            first = min(int(begin / cell), cells - 1)
            last = max(first, min(cells - 1, -int(-end / cell // 1) - 1))
            found[first : last + 1] = [mark] * (last + 1 - first)
    return "".join(found)


def _pending(firings: Iterable[Firing], end: float) -> Iterator[tuple[float, float]]:
    for each in firings:
        until = each.fired_at if each.fired_at is not None else each.resolved_at
        yield each.pending_at, end if until is None else until


def _firing(firings: Iterable[Firing], end: float) -> Iterator[tuple[float, float]]:
    for each in firings:
        if each.fired_at is not None:
            yield each.fired_at, end if each.resolved_at is None else each.resolved_at


def ticks(offset: float, seconds: float, most: int) -> list[float]:
    """
    Round moments of the traffic's clock.

    Args:
        offset: The clock at the recording's begin, seconds.
        seconds: The recording's length.
        most: How many marks there is room for.

    Returns:
        Seconds since the recording's begin.
    """
    step = next((each for each in _STEPS if seconds / each <= most), _STEPS[-1])
    first = -(-offset // step) * step - offset
    return [first + index * step for index in range(int((seconds - first) // step) + 1)]


def _axis(offset: float, seconds: float, cells: int) -> str:
    line = ""
    for at in ticks(offset, seconds, max(2, cells // _TICK_CELLS)):
        column = int(at / seconds * cells)
        if column < cells - 4:
            line = f"{line:<{column}}{clock(offset + at)}"
    return line


# --- tables and the verdict ----------------------------------------------------------------------


def _alerts(report: Report) -> list[str]:
    offset = report.stage.offset
    rows = [
        (
            each.severity or "–",
            each.alert,
            about(each, report.constraint(each)) or "–",
            clock(offset + each.pending_at),
            clock(offset + (each.fired_at or 0.0)),
            "at the end" if each.resolved_at is None else clock(offset + each.resolved_at),
            how_long(each, report.end),
        )
        for each in report.fired
    ]
    if not rows:
        return ["No alert fired."]
    heads = ("SEVERITY", "ALERT", "WHAT", "PENDING", "FIRED", "CLEARED", "FOR")
    return table(heads, rows)


def _breaches(report: Report) -> list[str]:
    offset = report.stage.offset
    rows = [
        (
            clock(offset + each.begin),
            clock(offset + each.end),
            lasting(each.end - each.begin),
            "sustained" if each.sustained else "short",
            each.constraint or "unknown",
        )
        for each in report.felt.breaches
    ]
    heads = ("USERS MISSED THE PLAN FROM", "TO", "FOR", "KIND", "BOUND BY")
    found = table(heads, rows) if rows else ["Users missed the plan in no minute."]
    lost = (
        [f"{report.felt.lost:,} requests were lost: the server was down, or ended under them."]
        if report.felt.lost
        else []
    )
    return found + lost


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as what stands in them."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *rows)
    ]


def _verdict(report: Report, marks: Marks) -> list[str]:
    signs = {True: marks.good, False: marks.bad, None: marks.neither}
    lines = [f"{signs[good]} {name}: {found}" for name, found, good in verdict(report)]
    return [headline(report), *lines]
