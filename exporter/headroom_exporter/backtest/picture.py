"""The time line as a picture: panels over one axis of time, as SVG that needs no script. Pure."""

from __future__ import annotations

import math
from html import escape
from itertools import groupby
from statistics import fmean, median
from typing import TYPE_CHECKING

from headroom_exporter.backtest.drawing import (
    LEFT,
    PLOT,
    WIDTH,
    Scale,
    filled,
    frame,
    log_ticks,
    points,
    round_ticks,
    stroked,
    thinned,
    x_of,
)
from headroom_exporter.backtest.text import ticks
from headroom_exporter.backtest.truth import MISSED_SHARE
from headroom_exporter.backtest.words import about, clock, how_long, lasting
from headroom_exporter.config.text import number
from headroom_exporter.samples import LIMITING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headroom_exporter.backtest import Firing, Series
    from headroom_exporter.backtest.drawing import Points
    from headroom_exporter.backtest.report import Report

_TOP, _GAP, _ROW, _LABEL = 26, 20, 22, 15
_HIGH, _LOW, _FLAT = 230, 96, 62
# A longer name would begin beyond the picture's edge.
_NAME = 29


def picture(report: Report) -> str:
    """
    Draw a report.

    Returns:
        An ``svg`` element; its colours are CSS variables of the page around it.
    """
    panels: list[str] = []
    top = float(_TOP)
    for draw, height in _panels(report):
        panels.extend(draw(report, top, height))
        top += height + _GAP
    rows = _rows(report, top)
    bottom = top + _ROW * max(1, len(report.up))
    behind = [*_bands(report, bottom), *_grid(report, bottom)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 24:.0f}" role="img" aria-labelledby="picture-title">'
        '<title id="picture-title">Demand, latency and alerts over time; the tables below say the same'
        "</title>" + "".join([*behind, *panels, *rows]) + "</svg>"
    )


def _panels(report: Report) -> Iterator[tuple[Callable[[Report, float, float], list[str]], float]]:
    plan = report.stage.plan
    yield _demand, _HIGH
    yield _ttft, _LOW
    if plan.tpot_p95_seconds is not None:
        yield _tpot, _LOW
    yield _missed, _FLAT
    yield _exhausted, _FLAT


# --- behind everything ---------------------------------------------------------------------------


def _bands(report: Report, bottom: float) -> Iterator[str]:
    offset = report.stage.offset
    for each in report.felt.breaches:
        begin, end = x_of(each.begin, report.end), x_of(each.end, report.end)
        kind = "sustained" if each.sustained else "short"
        words = (
            f"users missed the plan from {clock(offset + each.begin)} to {clock(offset + each.end)},"
            f" {lasting(each.end - each.begin)}, bound by {each.constraint or 'unknown'}"
        )
        yield (
            f'<rect class="breach {kind}" x="{begin:.1f}" y="{_TOP}" width="{max(end - begin, 1):.1f}"'
            f' height="{bottom - _TOP:.1f}"><title>{escape(words)}</title></rect>'
        )


def _grid(report: Report, bottom: float) -> Iterator[str]:
    offset = report.stage.offset
    for at in ticks(offset, report.end, 10):
        x = x_of(at, report.end)
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom:.1f}"/>'
        for y in (_TOP - 9, bottom + 16):
            yield (
                f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">'
                f"{clock(offset + at)}</text>"
            )


# --- panels --------------------------------------------------------------------------------------


def _demand(report: Report, top: float, height: float) -> list[str]:
    series = report.evaluation.series
    mean = points(series["demand_mean"], report.end, fmean)
    peak = points(series["demand_peak"], report.end, max)
    ceilings = {
        name: points(found, report.end, fmean) for name, found in _by_constraint(series["capacity"])
    }
    high = _highest(peak or mean, ceilings)
    scale = Scale(top=top, height=height, low=0.0, high=high)
    shown = {name: line for name, line in ceilings.items() if min(v for _, v in line) < high}
    keys = [("area demand", "mean of 5 minutes"), ("line peak", "peak of each minute")]
    keys += [(f"line ceiling line-{name}", f"ceiling: {name}") for name in shown]
    lines = [
        filled("demand", report.end, mean, scale),
        stroked("peak", report.end, peak, scale),
        *(stroked(f"ceiling line-{name}", report.end, line, scale) for name, line in shown.items()),
    ]
    return [
        *frame("Sequences at once", scale, round_ticks(high), str, keys),
        # What rises out of the picture comes back into it.
        f'<clipPath id="inside"><rect x="{LEFT}" y="{top}" width="{PLOT}" height="{height}"/></clipPath>',
        f'<g clip-path="url(#inside)">{"".join(lines)}</g>',
        *_beyond(peak or mean, ceilings, scale),
        *_names_at_the_end(shown, scale),
    ]


def _beyond(demand: Points, ceilings: dict[str, Points], scale: Scale) -> Iterator[str]:
    """In words, what the picture is not high enough for."""
    most = max((value for _, value in demand), default=0.0)
    said = [f"demand up to {most:,.0f}"] if most > scale.high else []
    for name, line in ceilings.items():
        if min(value for _, value in line) >= scale.high:
            said.append(f"{name} {median(value for _, value in line):,.0f}")
    if said:
        words = f"beyond the picture: {', '.join(said)}"
        yield f'<text class="tick" x="{LEFT + 6}" y="{scale.top + 13:.1f}">{escape(words)}</text>'


def _by_constraint(found: Sequence[Series]) -> Iterator[tuple[str, list[Series]]]:
    """Ceilings by constraint, of which something is known."""

    def name(series: Series) -> str:
        return dict(series.labels).get("constraint", "")

    for constraint, series in groupby(sorted(found, key=name), key=name):
        known = [each for each in series if any(math.isfinite(v) for v in each.values)]
        if known:
            yield constraint, known


def _highest(demand: Points, ceilings: dict[str, Points]) -> float:
    """
    What the picture shows at most.

    All demand, and the ceiling that matters, with room above it. Neither 256 slots over a demand of 20 nor
    a queue of thousands may press the rest flat.
    """
    limiting = [median(v for _, v in line) for name, line in ceilings.items() if name in LIMITING]
    highest = max((value for _, value in demand), default=1.0)
    lowest = min(limiting, default=highest)
    return 1.08 * max(min(highest, 4 * lowest), 1.35 * lowest, 1.0)


def _names_at_the_end(ceilings: dict[str, Points], scale: Scale) -> Iterator[str]:
    """Each line's name beside its end, moved apart where two ends meet."""
    ends = sorted((scale.y(line[-1][1]), name) for name, line in ceilings.items())
    last = -math.inf
    for y, name in ends:
        beyond = " ↑" if y < scale.top else ""
        last = max(y, scale.top, last + 13)
        yield (
            f'<text class="label text-{name}" x="{LEFT + PLOT + 6}" y="{last + 4:.1f}">'
            f"{escape(name)}{beyond}</text>"
        )


def _ttft(report: Report, top: float, height: float) -> list[str]:
    planned = report.stage.plan.ttft_p95_seconds
    return _latency(report, top, height, ("ttft_p95", "Time to first token, p95"), planned)


def _tpot(report: Report, top: float, height: float) -> list[str]:
    planned = report.stage.plan.tpot_p95_seconds
    return _latency(report, top, height, ("tpot_p95", "Time per token, p95"), planned)


def _latency(
    report: Report, top: float, height: float, what: tuple[str, str], planned: float | None
) -> list[str]:
    name, title = what
    line = points(report.evaluation.series[name], report.end, max)
    values = [value for _, value in line if value > 0] + ([planned] if planned else [])
    low, high = min(values, default=0.1), max(values, default=1.0)
    scale = Scale(top=top, height=height, low=low / 1.5, high=high * 1.5, log=True)
    keys = [("line latency", "last 5 minutes"), *([("line plan", "plan")] if planned else [])]
    parts = [
        *frame(title, scale, log_ticks(scale), lambda v: f"{v:g} s", keys),
        stroked("latency", report.end, line, scale),
    ]
    if planned is not None:
        y = scale.y(planned)
        parts.append(f'<path class="line plan" d="M{LEFT} {y:.1f}h{PLOT}"/>')
        parts.append(
            f'<text class="label" x="{LEFT + PLOT + 6}" y="{y + 4:.1f}">plan {number(planned)} s</text>'
        )
    return parts


def _missed(report: Report, top: float, height: float) -> list[str]:
    line = [
        (minute.at + 30.0, min(minute.late + minute.slow + (minute.rejected or 0.0), 1.0))
        for minute in report.felt.minutes
        if minute.late is not None and minute.slow is not None
    ]
    keys = [("area missed", "of 5 minutes' requests")]
    # A breach must be seen to be one: its threshold is a few pixels high, whatever the worst minute was.
    most = max((share for _, share in line), default=0.0)
    high = next(each for each in (0.2, 0.5, 1.0) if most <= each or each == 1.0)
    scale = Scale(top=top, height=height, low=0.0, high=high)
    y = scale.y(MISSED_SHARE)
    return [
        *frame("Users: missed the plan", scale, [0.0, high / 2, high], _percent, keys),
        filled("missed", report.end, thinned(line, report.end, max), scale),
        f'<path class="line plan" d="M{LEFT} {y:.1f}h{PLOT}"/>',
        f'<text class="label" x="{LEFT + PLOT + 6}" y="{y + 2:.1f}">breach {MISSED_SHARE:.0%}</text>',
    ]


def _exhausted(report: Report, top: float, height: float) -> list[str]:
    scale = Scale(top=top, height=height, low=0.0, high=1.0)
    line = points(report.evaluation.series["exhausted"], report.end, max)
    keys = [("area exhausted", "of the last 5 minutes")]
    return [
        *frame("Time without headroom", scale, [0.0, 0.5, 1.0], _percent, keys),
        filled("exhausted", report.end, line, scale),
    ]


def _percent(value: float) -> str:
    return f"{value:.0%}"


# --- alerts --------------------------------------------------------------------------------------


def _rows(report: Report, top: float) -> list[str]:
    if not report.up:
        return [
            f'<text class="title" x="0" y="{top + _LABEL:.1f}">Alerts</text>',
            f'<text class="tick" x="{LEFT + 6}" y="{top + _LABEL:.1f}">none was ever pending</text>',
        ]
    parts = []
    for index, (severity, name) in enumerate(report.up):
        y = top + index * _ROW
        parts.append(f'<path class="grid" d="M0 {y:.1f}H{LEFT + PLOT}"/>')
        parts.append(
            f'<text class="alert tone-{_tone(severity)}" x="{LEFT - 8}" y="{y + _LABEL:.1f}"'
            f' text-anchor="end">{escape(_short(name))}</text>'
        )
        own = [e for e in report.evaluation.firings if (e.severity, e.alert) == (severity, name)]
        # An alert can be pending for one thing while it fires for another: the firing is what counts.
        bars = sorted(part for each in own for part in _bars(report, each, y))
        parts += [part for _, part in bars]
    return parts


def _bars(report: Report, firing: Firing, y: float) -> Iterator[tuple[int, str]]:
    """From pending to fired, from fired to cleared; with the layer on which each lies."""
    end = report.end if firing.resolved_at is None else firing.resolved_at
    fired = end if firing.fired_at is None else firing.fired_at
    title = f"<title>{escape(_said(report, firing))}</title>"
    if fired > firing.pending_at:
        yield 0, _bar("pending", report, (firing.pending_at, fired), y, title)
    if firing.fired_at is not None:
        yield 1, _bar(f"firing bar-{_tone(firing.severity)}", report, (fired, end), y, title)


def _bar(kind: str, report: Report, span: tuple[float, float], y: float, inside: str) -> str:
    begin, end = (x_of(at, report.end) for at in span)
    return (
        f'<rect class="bar {kind}" x="{begin:.1f}" y="{y + 4:.1f}" width="{max(end - begin, 1.5):.1f}"'
        f' height="{_ROW - 8}">{inside}</rect>'
    )


def _said(report: Report, firing: Firing) -> str:
    offset = report.stage.offset
    words = [f"{firing.alert}: pending {clock(offset + firing.pending_at)}"]
    if firing.fired_at is not None:
        words.append(f"fired {clock(offset + firing.fired_at)}, for {how_long(firing, report.end)}")
    return ", ".join(filter(None, [*words, about(firing, report.constraint(firing))]))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _tone(severity: str) -> str:
    return severity if severity in ("critical", "warning") else "info"
