"""One function for each kind of panel: answers in, a picture on matplotlib's axes out."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from headroom_boards.model import Kind, Style
from matplotlib import ticker

from previews.values import CARD, DIM, EDGE, GRID, TEXT, color, step_color, written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headroom_boards.model import Panel, Query
    from headroom_boards.trial import Answer
    from matplotlib.axes import Axes

    Answers = Sequence[tuple[Query, Sequence[Answer]]]
    Marks = Sequence[tuple[float, str]]

SMALL, MIDDLE, LARGE = 7.5, 8.5, 22
STEP = 30.0


def legend(query: Query, answer: Answer) -> str:
    """The legend with the labels filled in."""
    filled = re.sub(r"{{(\w+)}}", lambda m: answer.labels.get(m[1], ""), query.legend)
    return filled.strip()


def draw(axes: Axes, panel: Panel, answers: Answers, marks: Marks, seconds: float) -> None:
    """Draw a panel's answers; ``marks`` are moments and colours of annotations."""
    if not any(found for _, found in answers):
        axes.axis("off")
        text = panel.no_value or "No data"
        axes.text(0.5, 0.5, text, color=DIM, size=11, ha="center", va="center")
        return
    if panel.kind is Kind.TIME_SERIES:
        over_time(axes, panel, answers, marks, seconds)
        return
    others: Mapping[Kind, Callable[[Axes, Panel, Answers], None]] = {
        Kind.STAT: stat,
        Kind.BAR_GAUGE: bars,
        Kind.TABLE: table,
        Kind.HEATMAP: heat,
        Kind.XY_CHART: points,
    }
    others[panel.kind](axes, panel, answers)


# --- over time -----------------------------------------------------------------------------------


def over_time(axes: Axes, panel: Panel, answers: Answers, marks: Marks, seconds: float) -> None:
    """Lines, bands, stacks, limits."""
    _axes(axes, seconds)
    axes.yaxis.set_major_formatter(lambda value, _: written(value, panel.unit))
    if panel.unit == "bytes":
        axes.yaxis.set_major_locator(ticker.MultipleLocator(6 * 2**30))
    right = axes.twinx() if any(query.right for query, _ in answers) else None
    if right is not None:
        _axes(right, seconds)
        right.grid(visible=False)
    entries: list[tuple[str, str, str]] = []
    above: Answer | None = None
    base: dict[float, float] = {}
    for query, found in answers:
        for answer in found:
            name, unit = legend(query, answer), query.unit or panel.unit
            shade = color(dict(panel.colors).get(name, query.color), len(entries))
            on = right if query.right and right is not None else axes
            if panel.stack:
                _stack(axes, answer, shade, base)
            else:
                _line(on, query, answer, shade, fill=not panel.axis)
            if query.style is Style.BAND and above is not None:
                _band(axes, above, answer, shade)
            above = answer
            entries.append((name, shade, written(answer.values[-1], unit)))
    for at, shade in marks:
        axes.axvline(at, color=color(shade), lw=0.8, ls=(0, (3, 3)), alpha=0.8)
    _limits(axes, panel)
    if right is not None:
        right.set_ylim(0, 1)
        right.yaxis.set_major_formatter(lambda value, _: written(value, "percentunit"))
    _entries(axes, entries)


def _line(axes: Axes, query: Query, answer: Answer, shade: str, *, fill: bool) -> None:
    times, values = _gaps(answer)
    limit, faint = query.style is Style.LIMIT, query.style is Style.FAINT
    dash = (0, (5, 4)) if limit else "solid"
    axes.plot(times, values, color=shade, lw=0.8 if faint else 1.3, ls=dash)
    if query.style is Style.LINE and fill:
        axes.fill_between(times, values, 0, color=shade, alpha=0.07, lw=0)


def _gaps(answer: Answer) -> tuple[list[float], list[float]]:
    """With a hole where a value is missing, so that the line ends there."""
    times: list[float] = []
    values: list[float] = []
    for at, value in zip(answer.times, answer.values, strict=True):
        if times and at - times[-1] > 1.5 * STEP:
            times.append(at - 1)
            values.append(float("nan"))
        times.append(at)
        values.append(value)
    return times, values


def _band(axes: Axes, upper: Answer, lower: Answer, shade: str) -> None:
    below = dict(zip(lower.times, lower.values, strict=True))
    pairs = [
        (at, value, below[at])
        for at, value in zip(upper.times, upper.values, strict=True)
        if at in below
    ]
    if pairs:
        times, high, low = zip(*pairs, strict=True)
        axes.fill_between(times, high, low, color=shade, alpha=0.22, lw=0)


def _stack(axes: Axes, answer: Answer, shade: str, base: dict[float, float]) -> None:
    times, values = _gaps(answer)
    low = [base.get(at, 0.0) for at in times]
    high = [under + value for under, value in zip(low, values, strict=True)]
    axes.fill_between(times, low, high, color=shade, alpha=0.7, lw=0)
    base.update((at, top) for at, top in zip(times, high, strict=True) if at in answer.times)


def _limits(axes: Axes, panel: Panel) -> None:
    if panel.axis == "symlog":
        axes.set_yscale("symlog", base=2, linthresh=8, linscale=0.5)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if panel.minimum is not None:
        axes.set_ylim(bottom=panel.minimum)
    if panel.maximum is not None:
        axes.set_ylim(top=panel.maximum * (1.02 if panel.minimum is not None else 1))
    low, high = axes.get_ylim()
    for bound, shade in panel.steps:
        if bound is not None and low <= bound <= high:
            axes.axhline(bound, color=color(shade), lw=0.9, ls=(0, (6, 4)), alpha=0.9)


def _axes(axes: Axes, seconds: float) -> None:
    axes.set_facecolor(CARD)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=DIM, labelsize=SMALL, length=0)
    axes.grid(visible=True, color=GRID, lw=0.6)
    axes.set_xlim(0, seconds)
    axes.set_xticks(range(0, int(seconds) + 1, 1800))
    axes.xaxis.set_major_formatter(
        lambda at, _: f"{int(at) // 3600:02d}:{int(at) % 3600 // 60:02d}"
    )


def _entries(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    """Legend below the picture, as long as there is room."""
    bounds = axes.get_window_extent()
    widest, line = bounds.width, 13.0
    x, row = 0.0, 0
    for name, shade, last in entries:
        text = f"{name}  {last}"
        width = 26 + 6.1 * len(text)
        if x and x + width > widest:
            x, row = 0.0, row + 1
        y = -(30 + line * row) / bounds.height
        at: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([x / widest, (x + 12) / widest], [y, y], color=shade, lw=2, **at)
        axes.text(
            (x + 17) / widest,
            y,
            text,
            color=TEXT,
            size=SMALL,
            va="center",
            transform=axes.transAxes,
        )
        x += width


# --- one moment ----------------------------------------------------------------------------------


def stat(axes: Axes, panel: Panel, answers: Answers) -> None:
    """Large numbers or words."""
    axes.axis("off")
    shown = [(query, found[0]) for query, found in answers if found]
    for place, (query, answer) in enumerate(shown):
        value = answer.values[0]
        text, shade = written(value, panel.unit, panel.decimals), step_color(value, panel.steps)
        if panel.unit == "string":
            text, shade = legend(query, answer), step_color(value, panel.steps)
        for number, word, named in panel.mapping:
            if value == number:
                text, shade = word, color(named)
        x = (place + 0.5) / len(shown)
        axes.text(x, 0.5, text, color=shade, size=LARGE, ha="center", va="center")
        if len(panel.queries) > 1:
            axes.text(x, 0.9, query.legend, color=TEXT, size=MIDDLE, ha="center", va="center")


def bars(axes: Axes, panel: Panel, answers: Answers) -> None:
    """Horizontal bars with their values."""
    axes.axis("off")
    rows = [(legend(query, each), each.values[0]) for query, found in answers for each in found]
    most = max(1e-9, *(value for _, value in rows))
    height = min(1 / len(rows), 0.22)
    for place, (name, value) in enumerate(rows):
        y = 1 - (place + 0.5) * height
        shade = step_color(value, panel.steps) if panel.steps else color("green")
        at: dict[str, Any] = {"transform": axes.transAxes}
        axes.text(0, y + 0.3 * height, name, color=TEXT, size=MIDDLE, va="center", **at)
        left, width = 0.0, 0.84
        axes.barh(y - 0.1 * height, width, height * 0.4, left, color=EDGE)
        axes.barh(y - 0.1 * height, width * max(value, 0) / most, height * 0.4, left, color=shade)
        text = written(value, panel.unit, panel.decimals)
        axes.text(1, y - 0.1 * height, text, color=shade, size=11, va="center", ha="right", **at)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def table(axes: Axes, panel: Panel, answers: Answers) -> None:
    """One line for each set of labels, as Grafana's merge makes it."""
    axes.axis("off")
    headers, rows = merged(panel, answers)
    weights = [
        max(len(header), *(len(row.get(header, ("", ""))[0]) for row in rows)) + 3
        for header in headers
    ]
    total, height = sum(weights), min(0.11, 1 / (len(rows) + 1))
    x = 0.0
    for header, weight in zip(headers, weights, strict=True):
        at: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
        axes.text(x, 1 - height / 2, header, color="#6e9fff", size=MIDDLE, weight="bold", **at)
        for place, row in enumerate(rows, start=1):
            text, shade = row.get(header, ("", TEXT))
            axes.text(x, 1 - height * (place + 0.5), text, color=shade, size=MIDDLE, **at)
        x += weight / total
    for place in range(1, len(rows) + 2):
        axes.axhline(1 - height * place, color=EDGE, lw=0.7)
    axes.set_ylim(0, 1)


def merged(panel: Panel, answers: Answers) -> tuple[list[str], list[dict[str, tuple[str, str]]]]:
    """Headers, and of each row the text and colour under each header; sorted as the panel asks."""
    names = {column.label: column.header for column in panel.columns}
    shared = set.intersection(*(set(each.labels) for _, found in answers for each in found))
    rows: dict[tuple[tuple[str, str], ...], dict[str, tuple[str, str]]] = {}
    order: dict[tuple[tuple[str, str], ...], float] = {}
    for query, found in answers:
        for answer in found:
            key = tuple(sorted((k, v) for k, v in answer.labels.items() if k in shared))
            row = rows.setdefault(key, {})
            row |= {names[k]: (v, TEXT) for k, v in answer.labels.items() if k in names}
            if query.legend:
                row[query.legend] = _cell(query, panel, answer.values[0])
            if panel.sort is not None and query.legend == panel.sort[0]:
                order[key] = answer.values[0]
    down = panel.sort is not None and panel.sort[1]
    keys = sorted(rows, key=lambda key: order.get(key, 0.0), reverse=down)
    headers = [*names.values(), *(query.legend for query, _ in answers if query.legend)]
    places = {header: place for place, header in enumerate(panel.order)}
    headers.sort(key=lambda header: places.get(header, len(places)))
    return headers, [rows[key] for key in keys]


def _cell(query: Query, panel: Panel, value: float) -> tuple[str, str]:
    for number, word, named in query.mapping:
        if value == number:
            return word, color(named)
    shade = step_color(value, query.steps) if query.steps else TEXT
    return written(value, query.unit or panel.unit, query.decimals), shade


# --- other pictures ------------------------------------------------------------------------------


def heat(axes: Axes, _panel: Panel, answers: Answers) -> None:
    """Time at each level: buckets less the bucket below, as Grafana makes of a cumulative histogram."""
    ((_, found),) = answers
    levels = sorted(found, key=lambda each: float(each.labels["le"]))
    times = sorted({at for each in levels for at in each.times})
    grid, below = [], dict.fromkeys(times, 0.0)
    for each in levels:
        now = dict(zip(each.times, each.values, strict=True))
        grid.append([max(now.get(at, 0.0) - below[at], 0.0) or float("nan") for at in times])
        below = {at: now.get(at, below[at]) for at in times}
    used = max(
        (place for place, row in enumerate(grid) if not all(math.isnan(value) for value in row)),
        default=0,
    )
    shown = grid[: used + 2]
    _axes(axes, max(times))
    axes.grid(visible=False)
    axes.pcolormesh(
        times, range(len(shown)), shown, cmap="inferno", vmin=0, vmax=0.6, shading="nearest"
    )
    axes.set_xlim(0, max(times))
    ticks = range(0, len(shown), 2)
    axes.set_yticks(list(ticks), [f"{float(levels[place].labels['le']):g}" for place in ticks])


def points(axes: Axes, panel: Panel, answers: Answers) -> None:
    """Y against x, joined by time."""
    _axes(axes, 1)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(8))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    fields = {query.legend: (query, found[0]) for query, found in answers if found}
    entries = []
    for x, y in panel.pairs:
        if x in fields and y in fields:
            query, answer = fields[y]
            xs = dict(zip(fields[x][1].times, fields[x][1].values, strict=True))
            pairs = [
                (xs[at], value)
                for at, value in zip(answer.times, answer.values, strict=True)
                if at in xs
            ]
            shade = color(query.color)
            axes.scatter(
                [at for at, _ in pairs],
                [value for _, value in pairs],
                s=7,
                color=shade,
                alpha=0.7,
                lw=0,
            )
            entries.append((y, shade, written(answer.values[-1], panel.unit)))
    axes.set_xlim(left=0, right=None)
    axes.autoscale(axis="x")
    axes.set_ylim(bottom=0)
    axes.text(1, 0.02, "batch →", color=DIM, size=SMALL, ha="right", transform=axes.transAxes)
    _entries(axes, entries)
