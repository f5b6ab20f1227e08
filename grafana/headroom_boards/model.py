"""
What a board is made of, without Grafana: panels that ask, queries that say how many series they expect.

``sdk.py`` turns this into Grafana's JSON, ``trial.py`` and the tests run its queries, and
``tools/boards_preview.py`` draws the answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from headroom_boards.names import check, labels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of a Prometheus that scrapes every 15 s: four scrapes, the least that Grafana makes of it.
SUBSTITUTES = {"$__rate_interval": "1m", "$__interval": "30s", "$__range": "1h"}

# For Query.expects: one series or more.
SOME = -1

RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, GREY = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "#8e8e8e",
)


class Kind(StrEnum):
    """How a panel shows its answers; Grafana's plugin ids."""

    TIME_SERIES = "timeseries"
    STAT = "stat"
    BAR_GAUGE = "bargauge"
    TABLE = "table"
    HEATMAP = "heatmap"
    XY_CHART = "xychart"


class Style(StrEnum):
    """How a line is drawn."""

    LINE = "line"
    # A plan or a ceiling: dashed, unfilled.
    LIMIT = "limit"
    # The lower edge of the band whose upper edge is the query before it.
    BAND = "band"
    FAINT = "faint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """
    One query of a panel.

    Attributes:
        expr: PromQL; its metric names are checked.
        legend: Grafana's legend format; of a table the column's header.
        expects: How many series the two scenes of the trial give: (first, second);
            SOME for one or more.
        style: Of its lines.
        color: Of its lines; None for the palette.
        unit: In a table: of the column; None for the panel's.
        decimals: In a table: of the column.
        steps: In a table: colours from a value on.
        mapping: In a table: texts and colours for values.
        width: In a table: of the column, pixels.
        right: On an axis of its own at the right.
    """

    expr: str
    expects: tuple[int, int]
    legend: str = ""
    style: Style = Style.LINE
    color: str | None = None
    unit: str | None = None
    decimals: int | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    mapping: tuple[tuple[int, str, str], ...] = ()
    width: int | None = None
    right: bool = False

    def __post_init__(self) -> None:
        check(self.expr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A label of a table's answers that is shown: its header, and pixels where it needs a width."""

    label: str
    header: str
    width: int | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """
    One panel.

    Attributes:
        title: Asks or states.
        description: What to do with what it shows.
        unit: Grafana's id.
        width: Of 24.
        no_value: Shown instead of a number where there is none.
        steps: Colours from a value on; only values that mean the same under every plan.
        mapping: Texts and colours for values.
        stack: Areas on top of each other.
        columns: Of a table: labels shown, in order.
        order: Of a table: headers from left to right; empty for labels, then values.
        sort: Of a table: header, and whether the largest comes first.
        minimum, maximum: Of the axis.
        pairs: Of an XY chart: (x, y) by legend.
        step: Least seconds between two points: rules record every 30 s.
        colors: Of lines by what their legend comes to.
        axis: ``symlog`` for an axis that is logarithmic above 8.
    """

    kind: Kind
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    width: int = 12
    height: int = 8
    no_value: str = "unknown"
    decimals: int | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    mapping: tuple[tuple[int, str, str], ...] = ()
    stack: bool = False
    columns: tuple[Column, ...] = ()
    order: tuple[str, ...] = ()
    sort: tuple[str, bool] | None = None
    minimum: float | None = None
    maximum: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    colors: tuple[tuple[str, str], ...] = ()
    axis: str = ""
    step: int = 30

    @property
    def instant(self) -> bool:
        """Whether it asks for one moment only."""
        return self.kind in {Kind.TABLE, Kind.STAT, Kind.BAR_GAUGE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """
    A choice at the top of a board.

    Attributes:
        name: Of the variable and of the label.
        query: Grafana's label_values(...); the choices before it narrow it.
        many: Whether several, or all, can be chosen.
        all_value: Regular expression of "All"; ".*" also meets series without the label.
        hidden: Not shown, but can be set by a link.
    """

    name: str
    label: str
    query: str
    many: bool = True
    all_value: str = ".+"
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Moments marked on every panel over time."""

    name: str
    expr: str
    color: str
    title: str
    text: str

    def __post_init__(self) -> None:
        check(self.expr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """
    One board.

    Attributes:
        uid: In the address of the board, and in the alerts' links.
        span: How far back it looks when opened.
        scenes: Choices under which the trial runs every query, as Query.expects counts them.
    """

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    annotations: tuple[Annotation, ...]
    scenes: tuple[Mapping[str, str], Mapping[str, str]]
    span: str = "now-6h"
    tags: tuple[str, ...] = field(default=("headroom", "llm", "capacity"))

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """
    Writes selectors that follow a board's choices.

    Attributes:
        chosen: Names of the board's variables.
    """

    chosen: tuple[str, ...]

    def __call__(self, name: str, **matchers: str) -> str:
        """
        A selector of one metric.

        Args:
            name: As exposed or recorded.
            matchers: Label to value; a value that begins with ``~`` or ``!`` is a regular expression, or
                a value to leave out.

        Raises:
            HeadroomError: nobody exports or records it.
        """
        parts = [_matcher(label, f"~${label}") for label in labels_of(name) if label in self.chosen]
        parts += [_matcher(label, value) for label, value in matchers.items()]
        return f"{name}{{{', '.join(parts)}}}"


def _matcher(label: str, value: str) -> str:
    if value[:1] in {"~", "!"}:
        operator = {"~": "=~", "!": "!="}[value[0]]
        return f'{label}{operator}"{value[1:]}"'
    return f'{label}="{value}"'


def substitute(expr: str, choices: Mapping[str, str], board: Board) -> str:
    """
    What Grafana sends to Prometheus.

    Args:
        expr: As it stands in the board.
        choices: Variable to a regular expression; those left out are "All".
        board: Gives the variables.
    """
    values = {f"${each.name}": choices.get(each.name, each.all_value) for each in board.variables}
    values |= SUBSTITUTES
    return _VARIABLE.sub(lambda found: values[found[0]], expr)


_VARIABLE = re.compile(r"\$\w+")
