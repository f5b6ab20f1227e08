"""Boards as Grafana's JSON, through the types of grafana-foundation-sdk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import dashboard as make
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as types

from headroom_boards.common import ENGINE, FLEET, PLAN
from headroom_boards.layout import layout
from headroom_boards.model import Row
from headroom_boards.panels import DATASOURCE, build

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog.builder import Builder

    from headroom_boards.model import Annotation, Board, Variable

_RUNBOOKS = "https://github.com/headroom-exporter/headroom-exporter/tree/main/docs/runbooks"
_BOARDS = ((FLEET, "Fleet"), (PLAN, "Plan against reality"), (ENGINE, "Engine and GPU"))


def to_json(board: Board) -> str:
    """The file for Grafana, with a newline at the end; the same board gives the same text."""
    built = (
        make.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(list(board.tags))
        # Provisioned: what is changed in the browser would be lost.
        .readonly()
        .time(board.span, "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(types.DashboardCursorSync.CROSSHAIR)
        .links(_links(board))
        .with_variable(_datasource())
        .annotations([_annotation(each) for each in board.annotations])
    )
    for variable in board.variables:
        built.with_variable(_variable(variable))
    _place(built, board)
    document = json.loads(json.dumps(built.build(), cls=JSONEncoder))
    _complete(document, board)
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _place(built: make.Dashboard, board: Board) -> None:
    for number, (item, place) in enumerate(layout(board), start=1):
        where = types.GridPos(h=place.height, w=place.width, x=place.x, y=place.y)
        if isinstance(item, Row):
            built.with_row(make.Row(item.title).id(number).grid_pos(where))
        else:
            built.with_panel(build(item, number, where))


def _datasource() -> make.DatasourceVariable:
    return make.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _variable(variable: Variable) -> make.QueryVariable:
    built = (
        make.QueryVariable(variable.name)
        .label(variable.label)
        .query(variable.query)
        .datasource(DATASOURCE)
        .refresh(types.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(types.VariableSort.NATURAL_ASC)
        .multi(variable.many)
        .include_all(variable.many)
    )
    if variable.many:
        built.all_value(variable.all_value)
        built.current(types.VariableOption(selected=True, text=["All"], value=["$__all"]))
    if variable.hidden:
        built.hide(types.VariableHide.HIDE_VARIABLE)
    return built


def _annotation(annotation: Annotation) -> make.AnnotationQuery:
    return (
        make.AnnotationQuery()
        .name(annotation.name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(annotation.color)
        .expr(annotation.expr)
    )


def _links(board: Board) -> list[Builder[types.DashboardLink]]:
    others: list[Builder[types.DashboardLink]] = [
        make.DashboardLink(title)
        .type(types.DashboardLinkType.LINK)
        .icon("dashboard")
        .url(f"/d/{uid}")
        .include_vars(True)
        .keep_time(True)
        for uid, title in _BOARDS
        if uid != board.uid
    ]
    runbooks = (
        make.DashboardLink("Runbooks")
        .type(types.DashboardLinkType.LINK)
        .icon("doc")
        .url(_RUNBOOKS)
        .target_blank(True)
    )
    return [*others, runbooks]


def _complete(document: dict[str, Any], board: Board) -> None:
    """What Grafana's Prometheus annotations have and the SDK's type has not."""
    for made, annotation in zip(document["annotations"]["list"], board.annotations, strict=True):
        made |= {"titleFormat": annotation.title, "textFormat": annotation.text}
