"""Every query of every board on a real Prometheus that watched simulated engines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
from headroom_boards import engine, fleet, plan
from headroom_boards.model import SOME, Kind, substitute
from headroom_boards.trial import CHAT, NAMESPACE, SECONDS

from headroom_exporter.catalog import CATALOG

CALM = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    board: object
    panel: object
    index: int

    @property
    def query(self):
        return self.panel.queries[self.index]

    def __str__(self):
        return f"{self.board.uid}: {self.panel.title} {self.query.legend or self.index}"


BOARDS = (fleet.board(), plan.board(), engine.board())
CASES = [
    Case(board, panel, index)
    for board in BOARDS
    for panel in board.panels
    for index in range(len(panel.queries))
]
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]


def answers(trial, board, panel, query, choices, *, at=None):
    expr = substitute(query.expr, choices, board)
    if at is not None:
        return trial.instant(expr, at=at)
    return trial.instant(expr) if panel.instant else trial.range(expr)


def one_value(trial, title, legend, *, scene=0, at=SECONDS - 30):
    """The only value of a panel's query at a moment."""
    for board, panel in PANELS:
        for query in panel.queries:
            if panel.title.startswith(title) and query.legend == legend:
                (found,) = answers(trial, board, panel, query, board.scenes[scene], at=at)
                return found.values[0]
    raise AssertionError(f"no panel {title!r} with {legend!r}")


def rows(trial, title, index=0, *, scene=0, at=SECONDS - 30):
    """Labels and value of each series of a panel's query at a moment."""
    (case,) = (c for c in CASES if c.panel.title.startswith(title) and c.index == index)
    found = answers(trial, case.board, case.panel, case.query, case.board.scenes[scene], at=at)
    return [(each.labels, each.values[0]) for each in found]


@pytest.mark.parametrize("scene", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_query_gives_as_many_series_as_its_panel_expects(trial, case, scene):
    choices = case.board.scenes[scene]
    found = answers(trial, case.board, case.panel, case.query, choices)
    expected = case.query.expects[scene]
    assert len(found) >= 1 if expected == SOME else len(found) == expected
    assert all(math.isfinite(value) for each in found for value in each.values)
    for each in found:
        assert set(re.findall(r"{{(\w+)}}", case.query.legend)) - {"namespace"} <= set(each.labels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_query_about_what_is_not_there_has_no_answer_rather_than_zero(trial, case):
    nothing = {variable.name: "no-such-thing" for variable in case.board.variables}
    assert answers(trial, case.board, case.panel, case.query, nothing, at=SECONDS - 30) == []


@pytest.mark.parametrize("scene", [0, 1])
@pytest.mark.parametrize(("board", "panel"), PANELS, ids=str)
def test_no_two_lines_of_a_panel_have_the_same_legend(trial, board, panel, scene):
    legends = []
    for query in panel.queries:
        for each in answers(trial, board, panel, query, board.scenes[scene]):
            filled = re.sub(r"{{(\w+)}}", lambda m, e=each: e.labels.get(m[1], ""), query.legend)
            legends.append(
                tuple(sorted(each.labels.items())) if panel.kind is Kind.TABLE else filled
            )
    if panel.kind is not Kind.TABLE:
        assert len(set(legends)) == len(legends)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_table_has_each_column_that_it_shows(trial, board):
    for panel in board.panels:
        if panel.kind is Kind.TABLE:
            found = [
                set(each.labels)
                for query in panel.queries
                for each in answers(trial, board, panel, query, {})
            ]
            columns = {column.label for column in panel.columns}
            assert not found or columns <= set().union(*found)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_each_choice_of_a_board_has_values(trial, board):
    for variable in board.variables:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.query).groups()
        found = trial.range(substitute(f"group by ({label}) ({metric})", {}, board), step=300)
        values = {each.labels.get(label) for each in found}
        # Two of the three engines are scraped without a namespace; the boards work with either.
        assert values == {None, NAMESPACE} if label == "namespace" else None not in values


def test_the_choice_of_a_namespace_leaves_out_the_engines_of_others_and_of_none(trial):
    board, panel = next(each for each in PANELS if each[1].title.startswith("Which engines have"))
    for query in panel.queries[:2]:
        found = answers(trial, board, panel, query, {"namespace": NAMESPACE})
        assert [each.labels["engine"] for each in found] == ["assistant-0"]


def test_a_calm_fleet_is_short_of_nothing_and_an_overloaded_one_says_who(trial):
    assert one_value(trial, "How many have no headroom?", "exhausted", at=CALM) == 0
    assert one_value(trial, "How many have no headroom?", "exhausted") == 1
    assert one_value(trial, "How many pages fire?", "pages", at=CALM) == 0
    assert one_value(trial, "How many pages fire?", "pages") >= 1
    headroom = rows(trial, "Which engines have least headroom?")
    worst = min(headroom, key=lambda row: row[1])
    assert worst[0]["engine"] == "chat-1"
    assert worst[1] < 0


def test_the_table_says_in_words_what_the_worst_engine_is_bound_by(trial):
    states = {row[0]["engine"]: row[1] for row in rows(trial, "Which engines have least", 1)}
    assert states["chat-1"] == 3
    assert states["assistant-0"] == 0
    bound = {row[0]["engine"]: row[0]["constraint"] for row in rows(trial, "Which engines have", 4)}
    assert bound["chat-1"] == "kv_cache"


def test_an_engine_that_is_down_is_listed_as_not_seen(trial):
    assert [row[0]["engine"] for row in rows(trial, "Who is not seen?", at=2730.0)] == ["chat-0"]
    assert one_value(trial, "How many engines do not answer?", "down", at=2730.0) == 1
    assert one_value(trial, "How many engines do not answer?", "down") == 0


def test_the_planned_lines_are_the_plans_numbers(trial):
    assert one_value(trial, "Is concurrency within the plan?", "plan") == CHAT.concurrency
    assert one_value(trial, "Do users see the first token", "plan") == CHAT.ttft_p95_seconds
    assert one_value(trial, "Are prompts as long", "planned p95") == CHAT.prompt_tokens.p95
    assert one_value(trial, "Does headroom stay above", "floor") == CHAT.floor_ratio


def test_a_ceiling_that_is_unknown_for_one_replica_is_no_sum_of_the_others(trial):
    (board, panel) = next(each for each in PANELS if each[1].title.startswith("Does demand stay"))
    (latency,) = (query for query in panel.queries if query.legend == "ceiling: latency")
    assert answers(trial, board, panel, latency, board.scenes[0]) == []
    busy = {**board.scenes[0], "engine": "chat-1"}
    assert len(answers(trial, board, panel, latency, busy)) == 1


def test_shares_of_time_add_up_to_the_whole(trial):
    for title in ("In which state", "Which constraint binds"):
        assert sum(row[1] for row in rows(trial, title)) == pytest.approx(1)


def test_the_budget_burns_only_under_overload(trial):
    assert one_value(trial, "How fast is the error budget spent?", "1 h", at=CALM) < 1
    assert one_value(trial, "How fast is the error budget spent?", "1 h") > 10


def test_the_batch_of_the_heat_map_adds_up_to_one_second_a_second(trial):
    levels = {row[0]["le"]: row[1] for row in rows(trial, "How large was the batch")}
    assert levels["+Inf"] == pytest.approx(1, rel=0.05)


def test_a_restart_is_marked_once_and_alerts_while_they_fire(trial):
    for board in BOARDS:
        alerts, restarts = (
            trial.range(substitute(each.expr, {}, board)) for each in board.annotations
        )
        assert "HeadroomExhausted" in {each.labels["alertname"] for each in alerts}
        ((found),) = restarts
        assert found.labels["engine"] == "chat-0"
        assert 2700 < found.times[0] < 3000
        assert found.times[-1] - found.times[0] <= 60


def test_alerts_of_other_engines_are_not_marked_on_an_engines_board(trial):
    board = BOARDS[2]
    alerts = board.annotations[0]
    assert trial.range(substitute(alerts.expr, {"engine": "chat-1"}, board))
    assert trial.range(substitute(alerts.expr, {"engine": "chat-0"}, board)) == []


def test_gpus_are_those_of_the_chosen_engine_and_none_where_none_is_read(trial):
    assert one_value(trial, "Is the GPU read?", "driver") == 1
    assert rows(trial, "Is the GPU read?", scene=1) == []
    assert {row[0]["owner"] for row in rows(trial, "Who holds the GPU's memory?")} == {
        "engine",
        "other",
    }


def test_most_of_the_catalog_is_on_some_board():
    text = " ".join(query.expr for _, panel in PANELS for query in panel.queries)
    shown = {spec.name for spec in CATALOG if spec.name in text}
    assert len(shown) >= 0.6 * len(CATALOG)
