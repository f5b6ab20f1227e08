"""Every detector on one scenario: slopes, thresholds, pages held against the right breaches."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headroom_exporter.backtest import Firing
from headroom_exporter.backtest.prometheus import Series
from headroom_exporter.backtest.score import Score
from headroom_exporter.backtest.truth import Breach
from headroom_exporter.config import Lengths, PlanConfig

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


baselines = load("scoreboard.baselines")
judge = load("scoreboard.judge")
scenarios = load("scoreboard.scenarios")
stage = load("scoreboard.stage")

STEP = 30.0
HOUR = 3600.0


def series(values, labels=(("instance", "a:8000"),), *, first: float = 0.0) -> Series:
    """A value for each evaluation; None where there is none."""
    known = [(first + index * STEP, value) for index, value in enumerate(values)]
    known = [(at, float(value)) for at, value in known if value is not None]
    return Series(
        labels=labels, times=[at for at, _ in known], values=[value for _, value in known]
    )


# --- GuideLLM's slopes -----------------------------------------------------------------------------


def rises(values) -> bool:
    """Whether the slope over these, the oldest first, is surely positive at the last."""
    known = series(values)
    return judge._rises(dict(zip(known.times, known.values, strict=True)), (len(values) - 1) * STEP)


def test_a_straight_line_up_rises_and_one_down_does_not():
    assert rises([1, 2, 3, 4, 5])
    assert not rises([5, 4, 3, 2, 1])


def test_a_level_does_not_rise():
    assert not rises([3, 3, 3, 3, 3])


def test_a_slope_that_may_be_chance_does_not_rise():
    # In steps: slope 4/10 = 0.4; fitted 0, 0.4, 0.8, 1.2, 1.6; squares left 0.36 + 0.64 + 0.04 + 0.16 = 1.2;
    # error of the slope sqrt(1.2 / 3 / 10) = 0.2; t = 2.0, below 2.353.
    assert not rises([0, 1, 0, 1, 2])


def test_a_slope_that_is_hardly_chance_rises():
    # Slope 0.4; fitted 0.2, 0.6, 1, 1.4, 1.8; squares left 0.4; error 0.1155; t = 3.46.
    assert rises([0, 1, 1, 1, 2])


def test_between_the_two_the_quantile_decides():
    # 0, 1, a, 1, 2: slope 0.4; about the mean the middle alone moves, so that squares left are
    # 0.4 + 0.8 (a - 1)^2, and t = 0.4 / sqrt((0.4 + 0.8 d^2) / 30) = 2.353 at d^2 = 0.5837.
    assert rises([0, 1, 1 - 0.763, 1, 2])
    assert not rises([0, 1, 1 - 0.765, 1, 2])


def test_fewer_than_five_points_say_nothing():
    assert not rises([1, 2, 3, 4])
    assert not rises([1, 2, None, 4, 5])


def test_only_the_last_two_minutes_are_looked_at():
    assert rises([9, 9, 1, 2, 3, 4, 5])
    assert not rises([1, 2, 3, 4, 5, 5, 5, 5, 5])


@given(st.lists(st.integers(0, 50), min_size=5, max_size=5))
def test_slopes_agree_with_the_correlation(values):
    mean_x, mean_y = 2.0, sum(values) / 5
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values))
    syy = sum((y - mean_y) ** 2 for y in values)
    if syy == 0:
        assert not rises(values)
        return
    r = sxy / math.sqrt(10.0 * syy)
    # Student's t of a correlation with three degrees of freedom.
    t = math.inf if r > 1 - 1e-12 else r * math.sqrt(3 / (1 - r * r)) if r > -1 + 1e-12 else -1.0
    assume(abs(t - 2.353) > 1e-6)
    assert rises(values) == (t > 2.353)


def test_over_saturation_is_ttft_while_both_rise_in_the_same_server():
    up, flat = [1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7]
    b, c = (("instance", "b:8000"),), (("instance", "c:8000"),)
    concurrency = [series(up), series(up, b), series(flat, c)]
    delays = series([each / 2 for each in up])
    found = judge._oversaturation(concurrency, [delays, series(flat, b), series(up, c)])
    assert [(dict(each.labels)["instance"], list(each.values)) for each in found] == [
        ("a:8000", [2.5, 3.0]),
        ("b:8000", []),
        ("c:8000", []),
    ]
    assert list(found[0].times) == [120, 150]


def test_without_ttft_nothing_is_saturated():
    (found,) = judge._oversaturation([series([1, 2, 3, 4, 5])], [])
    assert list(found.values) == []


# --- baselines against breaches --------------------------------------------------------------------

BREACH = Breach(begin=HOUR, end=2 * HOUR)


def baseline(seconds: float = 0.0, *, above: bool = True):
    return baselines.Baseline(
        id="B",
        words="b",
        value=lambda _scenario, _pool: "b",
        threshold=10.0,
        above=above,
        seconds=seconds,
        origin="alert",
    )


def scenario(seconds: float = 4 * HOUR, **changes):
    values = {
        "name": "s",
        "story": "S.",
        "kind": "ramp",
        "split": "tune",
        "profile": "tiny-cpu",
        "plan": PlanConfig(),
        "servers": (
            scenarios.Server(traffic=scenarios.Traffic(source="synthetic:poisson?rate=1")),
        ),
        "seconds": seconds,
    }
    return scenarios.Scenario(**values | changes)


def outcome(values, breaches):
    return judge.Outcome(
        name="s",
        ours=Score(),
        leads=(),
        firings=(),
        values={"B": tuple(values)},
        breaches=breaches,
        outgrown={},
        lost=0,
    )


def pulse(begin: float, end: float, level: float = 11.0, rest: float = 0.0) -> list[float]:
    return [level if begin <= index * STEP < end else rest for index in range(480)]


def scored(one, values, breaches, threshold: float = 10.0):
    return judge.baseline_score(one, threshold, outcome(values, breaches), scenario())


def test_a_baseline_pages_when_its_value_has_been_past_its_threshold_for_long_enough():
    value = series(pulse(HOUR - 600, HOUR + 600))
    score, leads = scored(baseline(), [value], {"a": (BREACH,)})
    assert (score.caught, score.pages, score.false_pages, leads) == (1, 1, 0, (600.0,))
    assert scored(baseline(300.0), [value], {"a": (BREACH,)})[1] == (300.0,)
    assert scored(baseline(1200.0), [value], {"a": (BREACH,)})[0].missed == 1


def test_at_its_threshold_a_baseline_is_silent():
    value = series(pulse(HOUR, 2 * HOUR, level=10.0))
    assert scored(baseline(), [value], {"a": (BREACH,)})[0].pages == 0
    assert scored(baseline(), [value], {"a": (BREACH,)}, threshold=9.99)[0].pages == 1


def test_a_baseline_may_fire_below_its_threshold():
    value = series(pulse(HOUR, 2 * HOUR, level=9.0, rest=11.0))
    score, leads = scored(baseline(above=False), [value], {"a": (BREACH,)})
    assert (score.pages, leads) == (1, (0.0,))


def test_no_number_is_past_no_threshold():
    value = series([math.nan] * 480)
    for above in (True, False):
        assert scored(baseline(above=above), [value], {"a": (BREACH,)})[0].pages == 0


def test_a_page_that_is_still_up_at_the_end_lasts_until_then():
    late = Breach(begin=3.9 * HOUR, end=4 * HOUR)
    score, _ = scored(baseline(), [series(pulse(0, 4 * HOUR))], {"a": (late,)})
    assert (score.caught, score.false_pages) == (1, 1)


def test_pages_are_held_against_the_breaches_of_their_own_server():
    values = [series(pulse(HOUR, 2 * HOUR), (("instance", f"{name}:8000"),)) for name in "ab"]
    score, leads = scored(baseline(), values, {"a": (BREACH,), "b": ()})
    assert (score.caught, score.missed, score.false_pages, leads) == (1, 0, 1, (0.0,))


def test_a_server_with_a_breach_and_no_page_is_a_miss_with_no_lead():
    values = [series(pulse(HOUR, 2 * HOUR))]
    score, leads = scored(baseline(), values, {"a": (BREACH,), "b": (BREACH,)})
    assert (score.caught, score.missed, leads) == (1, 1, (0.0, None))


def test_a_detector_of_a_model_is_held_against_all_its_replicas():
    value = series(pulse(HOUR, 2 * HOUR), (("model_name", "m"),))
    score, leads = scored(baseline(), [value], {"a": (), "b": (BREACH,)})
    assert (score.caught, score.false_pages, leads) == (1, 0, (0.0,))


def test_two_ranks_that_fire_at_once_do_not_flap():
    values = [
        series(pulse(HOUR, 2 * HOUR), (("engine", rank), ("instance", "a:8000"))) for rank in "01"
    ]
    assert scored(baseline(), values, {"a": (BREACH,)})[0].flaps == 0


# --- our pages -------------------------------------------------------------------------------------


def firing(**changes) -> Firing:
    values = {
        "alert": "HeadroomExhausted",
        "severity": "critical",
        "labels": (("engine", "llm-0"),),
        "pending_at": 60.0,
        "fired_at": 90.0,
        "resolved_at": None,
        "value": 1.0,
    }
    return Firing(**values | changes)


@pytest.mark.parametrize(
    ("changes", "is_page"),
    [
        ({}, True),
        ({"severity": "warning"}, False),
        ({"fired_at": None}, False),
        ({"alert": "HeadroomEngineDown"}, False),
    ],
)
def test_a_page_is_a_critical_alert_that_fired_for_lack_of_headroom(changes, is_page):
    assert judge._is_page(firing(**changes)) == is_page


def test_a_page_names_what_its_text_would_have_named_when_it_fired():
    binding = [
        series([1, 1, 1, None], (("constraint", "slots"), ("engine", "llm-0"))),
        series([1], (("constraint", "kv_cache"), ("engine", "llm-0")), first=90.0),
        series([1] * 9, (("constraint", "prefill"), ("engine", "llm-1"))),
    ]
    named = judge._Named(binding)
    page = judge._page(firing(), named, scenario())
    assert (page.engine, page.begin, page.end, page.constraint) == (
        "llm-0",
        90.0,
        4 * HOUR,
        "kv_cache",
    )
    assert judge._page(firing(fired_at=60.0), named, scenario()).constraint == "slots"
    assert judge._page(firing(fired_at=600.0), named, scenario()).constraint is None
    assert judge._page(firing(resolved_at=120.0), named, scenario()).end == 120.0


def test_scores_add_up_and_the_lead_is_the_first_known():
    total = judge.add(
        [
            Score(caught=1, missed=1, pages=3, false_pages=1, flaps=1, named=1, nameable=2),
            Score(caught=2, lead=30.0, pages=2, nameable=1),
            Score(lead=60.0),
        ]
    )
    assert total == Score(
        caught=3, missed=1, lead=30.0, pages=5, false_pages=1, flaps=1, named=1, nameable=3
    )
    assert judge.add([]) == Score()


def test_outgrown_are_the_hours_whose_mean_rate_is_above_the_plan():
    source = "synthetic:ramp?rate=0.5&rate_end=2.5&duration=7200&seed=1"
    server = scenarios.Server(traffic=scenarios.Traffic(source=source))
    made = scenario(7300.0, plan=PlanConfig(request_rate=1.5), servers=(server,))
    assert judge._outgrown(made, server) == {"request_rate": (1,), "prompts": ()}
    nothing = {"request_rate": (), "prompts": ()}
    assert judge._outgrown(scenario(7300.0, plan=PlanConfig(request_rate=9.0)), server) == nothing
    assert judge._outgrown(scenario(7300.0), server) == nothing


def test_outgrown_are_the_hours_with_half_as_many_long_prompts_again():
    source = "synthetic:drift?rate=1&prompt_growth=4&duration=10800&seed=2"
    server = scenarios.Server(traffic=scenarios.Traffic(source=source))
    plan = PlanConfig(prompt_tokens=Lengths(p50=512, p95=2048))
    hours = judge._outgrown(scenario(10_800.0, plan=plan, servers=(server,)), server)["prompts"]
    assert 2 in hours
    longer = PlanConfig(prompt_tokens=Lengths(p95=20_000))
    made = scenario(10_800.0, plan=longer, servers=(server,))
    assert judge._outgrown(made, server)["prompts"] == ()


# --- the whole way ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overload(tmp_path_factory):
    """Two servers on a tiny engine: one calm, one beyond what fits from the twentieth minute on."""
    lengths = "prompt_p95=600&prompt_max=1000&output_p50=300&output_p95=500&output_max=900"
    calm = f"synthetic:poisson?rate=1&duration=3000&seed=1&{lengths}"
    hot = f"synthetic:spike?rate=1&factor=12&at=1200&seconds=1200&duration=3000&seed=2&{lengths}"
    made = scenario(
        3000.0,
        plan=PlanConfig(
            concurrency=200,
            max_num_seqs=48,
            request_rate=2.0,
            ttft_p95_seconds=1.0,
            tpot_p95_seconds=0.2,
        ),
        servers=tuple(
            scenarios.Server(name=name, traffic=scenarios.Traffic(source=source))
            for name, source in (("calm", calm), ("hot", hot))
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "CACHE", tmp_path_factory.mktemp("cache"))
        return judge.judge(made)


def test_an_overload_is_felt_by_the_users_of_one_server_alone(overload):
    assert overload.breaches["calm"] == ()
    (breach,) = overload.breaches["hot"]
    assert breach.sustained
    assert 1200 <= breach.begin <= 1500
    assert breach.constraint is not None


def test_our_pages_catch_it_and_name_what_bound(overload):
    assert (overload.ours.caught, overload.ours.missed) == (1, 0)
    assert overload.ours.false_pages == 0
    assert overload.ours.named == overload.ours.nameable > 0
    (lead,) = overload.leads
    assert -180 <= lead <= 1800
    assert {dict(each.labels)["engine"] for each in overload.firings if judge._is_page(each)} == {
        "hot"
    }


def test_no_baseline_is_silent_for_want_of_values(overload):
    # B69's is kept only while both slopes rise, B51's while the cache is full and few run.
    assert {name for name, values in overload.values.items() if not values} == set()


def test_waiting_requests_catch_it_too(overload):
    (waiting,) = (each for each in baselines.BASELINES if each.id == "B24")
    score, leads = judge.baseline_score(waiting, waiting.threshold, overload, scenario(3000.0))
    assert (score.caught, score.missed, score.false_pages) == (1, 0, 0)
    assert len(leads) == 1
