"""The previews in docs/images: numbers with their units, tables as Grafana merges them, and the caption."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from headroom_boards import fleet
from headroom_boards.model import Column, Kind, Panel, Query
from headroom_boards.trial import Answer

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import boards_preview  # noqa: E402 - after the path
from previews.pictures import legend, merged  # noqa: E402
from previews.values import step_color, written  # noqa: E402


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.6, "percentunit", None, "60%"),
        (-0.742, "percentunit", 0, "-74%"),
        (0.0354, "s", None, "35.4 ms"),
        (7.0, "s", None, "7 s"),
        (24 * 2**30, "bytes", None, "24 GiB"),
        (41_392, "short", None, "41.4 K"),
        (1.19, "suffix:×", 1, "1.2×"),
        (450, "watt", None, "450 W"),
        (15.2, "d", 0, "15 days"),
        (0, "s", None, "0 s"),
    ],
)
def test_a_value_is_written_with_its_unit(value, unit, decimals, text):
    assert written(value, unit, decimals) == text


def test_a_colour_is_that_of_the_last_step_reached():
    steps = ((None, "red"), (1.0, "green"))
    assert step_color(0.99, steps) != step_color(1.0, steps) == step_color(5.0, steps)


def answer(value, **labels):
    return Answer(labels=labels, times=(0.0,), values=(value,))


def test_a_legend_has_its_labels_and_no_empty_end():
    query = Query(expr="headroom_ratio", legend="{{model_name}} {{namespace}}", expects=(1, 1))
    assert legend(query, answer(1.0, model_name="m")) == "m"


def test_a_table_has_one_line_for_each_engine_sorted_with_holes_for_what_is_unknown():
    headroom = Query(expr="headroom_ratio", legend="Headroom", unit="percentunit", expects=(2, 2))
    bound = Query(expr="headroom_binding_constraint", expects=(1, 1))
    panel = Panel(
        kind=Kind.TABLE,
        title="Which?",
        description="",
        queries=(headroom, bound),
        unit="short",
        columns=(
            Column(label="engine", header="Engine"),
            Column(label="constraint", header="Bound by"),
        ),
        order=("Engine", "Headroom"),
        sort=("Headroom", False),
    )
    headers, rows = merged(
        panel,
        [
            (headroom, [answer(0.5, engine="a"), answer(-0.1, engine="b")]),
            (bound, [answer(1.0, engine="b", constraint="slots")]),
        ],
    )
    assert headers == ["Engine", "Headroom", "Bound by"]
    texts = [[row.get(header, ("", ""))[0] for header in headers] for row in rows]
    assert texts == [["b", "-10%", "slots"], ["a", "50%", ""]]


def test_a_preview_says_that_it_is_one_and_shows_what_prometheus_answered(trial):
    figure = boards_preview.picture(fleet.board(), trial, {})
    headings = [text.get_text() for text in figure.texts]
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    boards_preview.plt.close(figure)
    assert boards_preview.CAPTION in headings
    assert "not a Grafana screenshot" in boards_preview.CAPTION
    assert {"chat-1", "exhausted", "kv_cache"} <= set(inside)


def test_there_is_a_preview_of_each_board(root, boards):
    for uid in boards:
        path = root / "docs" / "images" / f"board-{uid.removeprefix('headroom-')}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
