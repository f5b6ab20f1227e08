"""Panels as Grafana's own types have them (grafana-foundation-sdk, which validates what it is given)."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, Protocol, cast

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.builders import dashboard as make
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as types
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as prom
from grafana_foundation_sdk.models import xychart as xy

from headroom_boards.model import GREEN, Kind, Panel, Query, Style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

DATASOURCE = types.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Of the labels an answer carries, these would only repeat.
_NEVER_SHOWN = ("Time", "Value", "job", "cluster", "__name__")


class _Built(Protocol):
    """What all panel builders of the SDK have in common, as far as it is used here."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: types.DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def interval(self, interval: str) -> Self: ...
    def no_value(self, no_value: str) -> Self: ...
    def decimals(self, decimals: float) -> Self: ...
    def min(self, min_val: float) -> Self: ...
    def max(self, max_val: float) -> Self: ...
    def mappings(self, mappings: list[types.ValueMapping]) -> Self: ...
    def thresholds(self, thresholds: make.ThresholdsConfig) -> Self: ...
    def color_scheme(self, color: make.FieldColor) -> Self: ...
    def with_target(self, target: prometheus.Dataquery) -> Self: ...
    def grid_pos(self, grid_pos: types.GridPos) -> Self: ...
    def id(self, id_val: int) -> Self: ...
    def build(self) -> types.Panel: ...


def build(panel: Panel, number: int, place: types.GridPos) -> make.Panel:
    """
    A panel for the SDK's dashboard.

    Args:
        panel: What it shows.
        number: Its id, unique on its board.
        place: Where it lies.
    """
    makers = {
        Kind.TIME_SERIES: _time_series,
        Kind.STAT: _stat,
        Kind.BAR_GAUGE: _bar_gauge,
        Kind.TABLE: _table,
        Kind.HEATMAP: _heatmap,
        Kind.XY_CHART: _xy_chart,
    }
    built = makers[panel.kind](panel)
    _describe(built, panel)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        built.with_target(_target(panel, query, letter))
    # Each kind has a builder of its own, which the dashboard takes for a panel's.
    return cast("make.Panel", built.id(number).grid_pos(place))


def _describe(built: _Built, panel: Panel) -> None:
    built.title(panel.title).description(panel.description).datasource(DATASOURCE)
    built.unit(panel.unit).no_value(panel.no_value)
    if not panel.instant:
        built.interval(f"{panel.step}s")
    if panel.decimals is not None:
        built.decimals(panel.decimals)
    if panel.minimum is not None:
        built.min(panel.minimum)
    if panel.maximum is not None:
        built.max(panel.maximum)
    if panel.mapping:
        built.mappings([mapping(panel.mapping)])
    # Without steps of our own, one colour: Grafana's default turns red at 80 of whatever it is.
    built.thresholds(_steps(panel.steps or ((None, GREEN),)))


def _target(panel: Panel, query: Query, letter: str) -> prometheus.Dataquery:
    formats = {Kind.TABLE: prom.PromQueryFormat.TABLE, Kind.HEATMAP: prom.PromQueryFormat.HEATMAP}
    target = (
        prometheus.Dataquery()
        .expr(query.expr)
        .ref_id(letter)
        .datasource(DATASOURCE)
        .editor_mode(prom.QueryEditorMode.CODE)
        .format(formats.get(panel.kind, prom.PromQueryFormat.TIME_SERIES))
        .legend_format(query.legend or "{{__name__}}")
    )
    return target.instant() if panel.instant else target.range()


def mapping(pairs: Sequence[tuple[int, str, str]]) -> types.ValueMap:
    """Texts and colours for whole numbers."""
    return types.ValueMap(
        options={
            str(value): types.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, text, color) in enumerate(pairs)
        }
    )


def _steps(pairs: Sequence[tuple[float | None, str]]) -> make.ThresholdsConfig:
    return (
        make.ThresholdsConfig()
        .mode(types.ThresholdsMode.ABSOLUTE)
        .steps([types.Threshold(value=value, color=color) for value, color in pairs])
    )


def _value(id_: str, value: object) -> types.DynamicConfigValue:
    return types.DynamicConfigValue(id_val=id_, value=value)


def _fixed(color: str) -> types.DynamicConfigValue:
    return _value("color", {"mode": "fixed", "fixedColor": color})


# --- over time -----------------------------------------------------------------------------------


def _time_series(panel: Panel) -> _Built:
    built = (
        timeseries.Panel()
        .draw_style(kinds.GraphDrawStyle.LINE)
        .line_width(1.5)
        .fill_opacity(70 if panel.stack else 0 if panel.axis else 8)
        .show_points(kinds.VisibilityMode.NEVER)
        # A gap is a gap: what was not known is not drawn.
        .span_nulls(False)
        .color_scheme(make.FieldColor().mode(types.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(kinds.TooltipDisplayMode.MULTI)
            .sort(kinds.SortOrder.DESCENDING)
        )
    )
    if panel.stack:
        built.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if panel.steps:
        style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        built.thresholds_style(style)
    if panel.axis == "symlog":
        scale = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.SYMLOG)
        built.scale_distribution(scale.log(2).linear_threshold(8))
    below = (*panel.queries[1:], None)
    for letter, query, next_ in zip(ascii_uppercase, panel.queries, below, strict=False):
        properties = _drawn(query)
        if next_ is not None and next_.style is Style.BAND:
            properties += [
                _value("custom.fillBelowTo", next_.legend),
                _value("custom.fillOpacity", 20),
            ]
        if properties:
            built.override_by_query(letter, properties)
    for name, color in panel.colors:
        built.override_by_name(name, [_fixed(color)])
    return built


def _drawn(query: Query) -> list[types.DynamicConfigValue]:
    """How a query's lines differ from the panel's."""
    found = [] if query.color is None else [_fixed(query.color)]
    if query.style is Style.LIMIT:
        found += [
            _value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            _value("custom.fillOpacity", 0),
        ]
    elif query.style is Style.FAINT:
        found += [_value("custom.lineWidth", 1), _value("custom.fillOpacity", 0)]
    elif query.style is Style.BAND:
        found.append(_value("custom.fillOpacity", 0))
    if query.right:
        found.append(_value("custom.axisPlacement", "right"))
    if query.unit is not None:
        found.append(_value("unit", query.unit))
    return found


# --- one moment ----------------------------------------------------------------------------------


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _stat(panel: Panel) -> _Built:
    named = panel.unit == "string"
    return (
        stat.Panel()
        .reduce_options(_last())
        .graph_mode(kinds.BigValueGraphMode.NONE)
        .color_mode(kinds.BigValueColorMode.VALUE)
        .text_mode(
            kinds.BigValueTextMode.NAME
            if named
            else kinds.BigValueTextMode.VALUE_AND_NAME
            if len(panel.queries) > 1
            else kinds.BigValueTextMode.VALUE
        )
        .color_scheme(make.FieldColor().mode(types.FieldColorModeId.THRESHOLDS))
    )


def _bar_gauge(_panel: Panel) -> _Built:
    return (
        bargauge.Panel()
        .reduce_options(_last())
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .value_mode(kinds.BarGaugeValueMode.COLOR)
        .show_unfilled(True)
        .color_scheme(make.FieldColor().mode(types.FieldColorModeId.THRESHOLDS))
    )


def _table(panel: Panel) -> _Built:
    letters = ascii_uppercase[: len(panel.queries)]
    shown = {f"Value #{letter}": q.legend for letter, q in zip(letters, panel.queries, strict=True)}
    hidden = [*_NEVER_SHOWN, *(name for name, header in shown.items() if not header)]
    names = {column.label: column.header for column in panel.columns}
    names |= {"namespace": "Namespace"} | {name: header for name, header in shown.items() if header}
    places = {header: place for place, header in enumerate(panel.order)}
    ordered = sorted(names, key=lambda name: places.get(names[name], len(places)))
    built = (
        table.Panel()
        .with_transformation(types.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            types.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": dict.fromkeys(hidden, True),
                    "indexByName": {name: place for place, name in enumerate(ordered)},
                    "renameByName": names,
                },
            )
        )
        .cell_height(kinds.TableCellHeight.SM)
        .footer(common.TableFooterOptions().show(False).reducer(["sum"]))
    )
    if panel.sort is not None:
        name, down = panel.sort
        built.sort_by([common.TableSortByFieldState().display_name(name).desc(down)])
    for column in panel.columns:
        built.override_by_name(column.header, _column_of_label(column.width, column.link))
    for query in panel.queries:
        if query.legend:
            built.override_by_name(query.legend, _column(query))
    return built


def _column_of_label(width: int | None, link: str | None) -> list[types.DynamicConfigValue]:
    found = [] if width is None else [_value("custom.width", width)]
    if link is not None:
        found.append(_value("links", [{"title": "Open its board", "url": link}]))
    return found


def _column(query: Query) -> list[types.DynamicConfigValue]:
    found = [_value("unit", query.unit or "short"), _value("custom.align", "right")]
    if query.width is not None:
        found.append(_value("custom.width", query.width))
    if query.decimals is not None:
        found.append(_value("decimals", query.decimals))
    if query.mapping:
        found.append(_value("mappings", [mapping(query.mapping)]))
    if query.steps:
        steps = [{"value": value, "color": color} for value, color in query.steps]
        found += [
            _value("thresholds", {"mode": "absolute", "steps": steps}),
            _value("color", {"mode": "thresholds"}),
        ]
    if query.mapping or query.steps:
        found.append(_value("custom.cellOptions", {"type": "color-text"}))
    return found


# --- other pictures ------------------------------------------------------------------------------


def _heatmap(panel: Panel) -> _Built:
    color = (
        heatmap.HeatmapColorOptions()
        .mode(heat.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .fill("dark-orange")
        .exponent(0.5)
        .steps(64)
        .reverse(False)
    )
    return (
        heatmap.Panel()
        .calculate(False)
        .color(color)
        .cell_gap(1)
        .y_axis(heatmap.YAxisConfig().unit("short").decimals(0))
        .cell_values(heatmap.CellValues().unit(panel.unit))
        .show_legend()
        .filter_values(heatmap.FilterValueRange().le(1e-9))
    )


def _xy_chart(panel: Panel) -> _Built:
    series = []
    for x, y in panel.pairs:
        one = (
            xychart.XYSeriesConfig()
            .name(xychart.XychartXYSeriesConfigName().fixed(y))
            .frame(
                xychart.XychartXYSeriesConfigFrame().matcher(
                    xychart.MatcherConfig().id("byIndex").options(0)
                )
            )
            .x(xychart.XychartXYSeriesConfigX().matcher(_named(x)))
            .y(xychart.XychartXYSeriesConfigY().matcher(_named(y)))
        )
        series.append(one)
    built = (
        xychart.Panel()
        .mapping(xy.SeriesMapping.MANUAL)
        .series(list(series))
        .show(xy.XYShowMode.POINTS)
        .with_transformation(
            types.DataTransformerConfig(
                id_val="joinByField", options={"byField": "Time", "mode": "outer"}
            )
        )
        .color_scheme(make.FieldColor().mode(types.FieldColorModeId.PALETTE_CLASSIC))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
        )
    )
    for query in panel.queries:
        if query.color is not None:
            built.override_by_name(query.legend, [_fixed(query.color)])
    return built


def _named(name: str) -> xychart.MatcherConfig:
    return xychart.MatcherConfig().id("byName").options(name)
