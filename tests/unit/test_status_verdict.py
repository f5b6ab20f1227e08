"""One sentence that says what the numbers come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from headroom_exporter import links
from headroom_exporter.derive.headroom import NO_PLAN, Evidence, derive
from headroom_exporter.samples import LIMITING, Constraint, Derived, HeadroomState, RankSample
from headroom_exporter.status import verdict
from headroom_exporter.status.plan import Dimension, Fit
from headroom_exporter.status.verdict import Verdict, engine_away, judge, rank_away
from status_scenes import PLAN, engine, rank

RULES = Path(__file__).parents[2] / "rules" / "alerts"
SAMPLE = RankSample(rank="0", model_name="m", running=20.0, waiting=3.0)
FITS = Derived(
    state=HeadroomState.OK,
    reason="fits",
    demand=16.0,
    sustainable=22.0,
    binding=Constraint.KV_CACHE,
    headroom=6.0,
    ratio=6 / 22,
    spike_multiple=1.6,
)


def said(sample: RankSample = SAMPLE, **changes: object) -> Verdict:
    return judge(sample, replace(FITS, **changes), PLAN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "KV cache binds first: 6 more sequences fit; the plan's 2x spike would not."),
        (
            {"spike_multiple": 2.0},
            "KV cache binds first: 6 more sequences fit; the plan's 2x spike would fit too.",
        ),
        ({"spike_multiple": None}, "KV cache binds first: 6 more sequences fit."),
        ({"headroom": 1.9, "spike_multiple": None}, "KV cache binds first: 1 more sequence fits."),
        (
            {"binding": Constraint.SLOTS, "spike_multiple": None},
            "Slots (max_num_seqs) bind first: 6 more sequences fit.",
        ),
        (
            {"state": HeadroomState.LOW, "reason": "below_floor", "headroom": 2.3},
            "KV cache binds first: only 2 more sequences fit, less than the 20% the plan keeps free.",
        ),
        (
            {"state": HeadroomState.EXHAUSTED, "reason": "waiting", "sustainable": 19.8},
            "Overloaded: 3 requests wait for room in the KV cache; 20 run, about 19 are sustainable.",
        ),
        (
            {"state": HeadroomState.EXHAUSTED, "reason": "waiting", "binding": None},
            "Overloaded: 3 requests wait; 20 run, about 22 are sustainable.",
        ),
        (
            {"state": HeadroomState.EXHAUSTED, "reason": "preempting"},
            (
                "Overloaded: the KV cache is full and running sequences are thrown out of the "
                "batch; 3 requests wait."
            ),
        ),
        (
            {"state": HeadroomState.EXHAUSTED, "reason": "no_headroom", "demand": 23.0},
            "No headroom: 23 sequences want to run; about 22 are sustainable, held by the KV cache.",
        ),
        (
            {"state": HeadroomState.UNKNOWN, "reason": "no_capacity_known"},
            "Unknown: 20 sequences in the batch, and no ceiling is known yet.",
        ),
    ],
)
def test_the_sentence(changes, sentence):
    assert said(**changes).sentence == sentence


@pytest.mark.parametrize("binding", [*LIMITING, None])
@pytest.mark.parametrize("state", HeadroomState)
def test_whatever_binds_there_is_a_sentence_and_advice_where_it_hurts(state, binding):
    reasons = {
        HeadroomState.OK: ["fits"],
        HeadroomState.LOW: ["below_floor"],
        HeadroomState.EXHAUSTED: ["waiting", "preempting", "no_headroom"],
        HeadroomState.UNKNOWN: ["no_gauges", "stale_gauges", "no_capacity_known"],
    }
    for reason in reasons[state]:
        found = said(state=state, reason=reason, binding=binding)
        assert found.sentence.endswith(".")
        assert "None" not in found.sentence
        if state != HeadroomState.OK:
            assert found.advice
            assert found.alert
    calm = said(state=state, reason=reasons[state][0], binding=binding, spike_multiple=3.0)
    assert (calm.alert is None) is (state == HeadroomState.OK)


def test_nothing_known_at_all_is_still_a_sentence():
    nothing = RankSample(rank="0", model_name="m")
    found = judge(nothing, derive(Evidence(), NO_PLAN), None)
    assert found.sentence == "Unknown: the engine publishes no running or waiting sequences."


def test_without_a_plan_it_says_that_nothing_can_be_judged():
    found = judge(SAMPLE, FITS, None)
    assert "plan" not in found.sentence
    assert [note.alert for note in found.notes] == ["HeadroomPlanMissing"]
    assert said().notes == ()


def test_each_deviation_is_a_note_and_only_those_that_are_proven():
    names = verdict._DEVIATION
    every = [
        Dimension(name=name, unit="", planned=2000.0, observed=3.14159, fit=fit, basis="")
        for name in names
        for fit in Fit
    ]
    notes = judge(SAMPLE, FITS, PLAN, every).notes
    assert len(notes) == len(names)
    assert all(note.alert for note in notes)
    assert notes[0].text == (
        "Demand peaked at 3.14 sequences within 5 minutes; the plan is made for 2,000."
    )


def test_an_engine_that_is_away_says_why():
    asked = replace(engine(), last_error="no answer within 5 s")
    assert engine_away(asked).sentence == "No data: no answer within 5 s."
    assert engine_away(asked, 7.2).sentence == "No data for 7 s: no answer within 5 s."
    assert engine_away(asked, 600.0).sentence.startswith("No data for 10 min: ")
    assert engine_away(asked, 7200.0).sentence.startswith("No data for 2 h: ")
    assert engine_away(asked).alert == "HeadroomEngineDown"
    fresh = replace(engine(), last_success=None, last_error=None)
    assert engine_away(fresh).alert is None
    assert "not on its last page" in rank_away().sentence


def test_every_runbook_is_one_that_an_alert_rule_names():
    source = Path(verdict.__file__).read_text(encoding="utf-8")
    named = {word for word in source.replace('"', " ").split() if word.startswith("Headroom")}
    named -= {"HeadroomState", "HeadroomState.UNKNOWN:", "HeadroomState.EXHAUSTED:"}
    alerts = {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for path in RULES.glob("*.yaml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }
    used = {name.strip(",)(") for name in named if not name.startswith("HeadroomState")}
    assert len(used) >= 6
    assert used <= set(alerts)
    for name in used:
        assert alerts[name] == links.runbook(name)


def test_a_rank_of_the_scenes_says_what_the_issue_asks_for():
    shown = rank()
    assert shown.sample is not None
    assert shown.derived is not None
    assert judge(shown.sample, shown.derived, PLAN).sentence == (
        "KV cache binds first: 6 more sequences fit; the plan's 2x spike would not."
    )
