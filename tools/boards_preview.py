"""
Draw docs/images/board-*.png: what the boards would show of the trial's recording.

    python tools/boards_preview.py [--folder docs/images]

Every number is Prometheus' answer to the board's own query. The picture is matplotlib's, not Grafana's,
and says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "grafana"), str(ROOT / "tools")]

import matplotlib as mpl  # noqa: E402 - after the path

mpl.use("Agg")

from headroom_boards import engine, fleet, plan  # noqa: E402
from headroom_boards.layout import COLUMNS, layout  # noqa: E402
from headroom_boards.model import Kind, Panel, substitute  # noqa: E402
from headroom_boards.trial import SECONDS, SMALL, trial  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402
from previews.pictures import draw  # noqa: E402
from previews.values import CARD, DIM, EDGE, PAGE, TEXT  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_boards.model import Board
    from headroom_boards.trial import Trial
    from matplotlib.figure import Figure

CAPTION = (
    "Preview drawn from Prometheus' answers about simulated engines; not a Grafana screenshot."
)
CELL_WIDTH, CELL_HEIGHT, GAP, HEAD, DPI = 66, 34, 8, 64, 100
# Left, right, top and bottom of a picture inside its card, pixels.
MARGINS = {
    Kind.TIME_SERIES: (56, 16, 30, 66),
    Kind.XY_CHART: (56, 16, 30, 70),
    Kind.HEATMAP: (40, 16, 30, 26),
    Kind.STAT: (8, 8, 26, 4),
}
OTHERWISE = (14, 14, 34, 8)
# What each board is opened with.
CHOICES: Mapping[str, Mapping[str, str]] = {
    "headroom-fleet": {},
    "headroom-plan": {"model_name": SMALL},
    "headroom-engine": {"engine": "chat-1"},
}


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="Draw previews of the boards.")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="headroom-boards-") as folder,
        trial(Path(folder)) as seen,
    ):
        for board in (fleet.board(), plan.board(), engine.board()):
            name = board.uid.removeprefix("headroom-")
            figure = picture(board, seen, CHOICES[board.uid])
            figure.savefig(chosen.folder / f"board-{name}.png", dpi=DPI, facecolor=PAGE)
            plt.close(figure)
    return 0


def picture(board: Board, seen: Trial, choices: Mapping[str, str]) -> Figure:
    """One board."""
    items = list(layout(board))
    lines = max(place.y + place.height for _, place in items)
    width, height = COLUMNS * CELL_WIDTH + GAP, HEAD + lines * CELL_HEIGHT + GAP
    figure = plt.figure(figsize=(width / DPI, height / DPI), facecolor=PAGE)
    _heading(figure, board, choices, height)
    marks = _marks(board, seen, choices)
    for item, place in items:
        left, top = GAP + place.x * CELL_WIDTH, HEAD + place.y * CELL_HEIGHT
        right, bottom = (
            left + place.width * CELL_WIDTH - GAP,
            top + place.height * CELL_HEIGHT - GAP,
        )
        box = (left, top, right, bottom)
        if isinstance(item, Panel):
            _panel(figure, item, box, (board, seen, choices, marks), (width, height))
        else:
            y = 1 - (top + bottom) / 2 / height
            figure.text(
                left / width, y, f"▾ {item.title}", color=TEXT, size=11, va="center", weight="bold"
            )
    return figure


def _heading(figure: Figure, board: Board, choices: Mapping[str, str], height: int) -> None:
    shown = "   ".join(
        f"{variable.label}: {choices.get(variable.name, 'All')}"
        for variable in board.variables
        if not variable.hidden
    )
    figure.text(0.006, 1 - 18 / height, board.title, color=TEXT, size=14, va="center")
    figure.text(0.006, 1 - 44 / height, shown, color=DIM, size=10, va="center")
    figure.text(0.994, 1 - 18 / height, CAPTION, color="#ff9830", size=10, va="center", ha="right")
    figure.text(
        0.994, 1 - 44 / height, "last 90 minutes", color=DIM, size=10, va="center", ha="right"
    )


def _panel(
    figure: Figure,
    panel: Panel,
    box: tuple[int, int, int, int],
    asked: tuple[Board, Trial, Mapping[str, str], list[tuple[float, str]]],
    size: tuple[int, int],
) -> None:
    board, seen, choices, marks = asked
    width, height = size
    left, top, right, bottom = box
    card = FancyBboxPatch(
        (left / width, 1 - bottom / height),
        (right - left) / width,
        (bottom - top) / height,
        boxstyle="square,pad=0",
        transform=figure.transFigure,
        facecolor=CARD,
        edgecolor=EDGE,
        lw=0.8,
        zorder=-1,
    )
    figure.add_artist(card)
    title = textwrap.shorten(panel.title, int((right - left) / 6.1), placeholder=" …")
    figure.text(
        (left + 10) / width,
        1 - (top + 15) / height,
        title,
        color=TEXT,
        size=9,
        va="center",
    )
    pad_left, pad_right, pad_top, pad_bottom = MARGINS.get(panel.kind, OTHERWISE)
    if any(query.right for query in panel.queries):
        pad_right += 30
    axes = figure.add_axes(
        (
            (left + pad_left) / width,
            1 - (bottom - pad_bottom) / height,
            (right - left - pad_left - pad_right) / width,
            (bottom - top - pad_top - pad_bottom) / height,
        )
    )
    axes.set_facecolor(CARD)
    answers = []
    for query in panel.queries:
        expr = substitute(query.expr, choices, board)
        answers.append((query, seen.instant(expr) if panel.instant else seen.range(expr)))
    draw(axes, panel, answers, marks, SECONDS)


def _marks(board: Board, seen: Trial, choices: Mapping[str, str]) -> list[tuple[float, str]]:
    """Beginnings of what the annotations mark."""
    found = []
    for annotation in board.annotations:
        for answer in seen.range(substitute(annotation.expr, choices, board)):
            before = -1e9
            for at in answer.times:
                if at - before > 120:
                    found.append((at, annotation.color))
                before = at
    return found


if __name__ == "__main__":
    sys.exit(main())
