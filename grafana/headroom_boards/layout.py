"""Where panels lie on Grafana's grid of 24 columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_boards.model import Board, Panel, Row

COLUMNS, ROW_HEIGHT = 24, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rectangle, in columns and lines of the grid; y grows downwards."""

    x: int
    y: int
    width: int
    height: int


def layout(board: Board) -> Iterator[tuple[Row | Panel, Place]]:
    """Rows below each other, each followed by its panels."""
    top = 0
    for row in board.rows:
        yield row, Place(x=0, y=top, width=COLUMNS, height=ROW_HEIGHT)
        skyline = [top + ROW_HEIGHT] * COLUMNS
        for panel in row.panels:
            yield panel, fit(panel, skyline)
        top = max(skyline)


def fit(panel: Panel, skyline: list[int]) -> Place:
    """
    The highest place for a panel, the leftmost of those; its column heights are raised.

    Args:
        panel: At most as wide as there are columns.
        skyline: First free line of each column; changed.
    """
    starts = range(len(skyline) - panel.width + 1)
    y, x = min((max(skyline[at : at + panel.width]), at) for at in starts)
    skyline[x : x + panel.width] = [y + panel.height] * panel.width
    return Place(x=x, y=y, width=panel.width, height=panel.height)
