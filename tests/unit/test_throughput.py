"""tools/throughput: the fits, the claim check and the page they write."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.simulate.requests import Finished, Request

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


blocks = load("throughput.blocks")
claim = load("throughput.claim")
compare = load("throughput.compare")
constants = load("throughput.constants")
fit = load("throughput.fit")
predict = load("throughput.predict")
replay = load("throughput.replay")
svg = load("throughput.svg")
tables = load("throughput.tables")


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in constants.build()}


# --- fits ------------------------------------------------------------------------------------------


def test_fit_finds_the_constants_that_made_the_rows():
    rows = [
        tables.Closed(clients=c, prompt=p, output=o, tpot=7e-3 + c * (3e-5 + 5e-8 * (p + o / 2)))
        for c in (1, 8, 64)
        for p in (100, 2000)
        for o in (64, 500)
    ]
    found = fit.non_negative(fit.closed_rows(rows))
    assert found.values == pytest.approx((7e-3, 3e-5, 5e-8, 0.0), rel=1e-6, abs=1e-12)
    assert found.worst_error < 1e-9


def test_fit_leaves_a_negative_slope_at_zero():
    rows = [fit.Row(columns=(1.0, n), seconds=10.0 - n) for n in (1.0, 2.0, 3.0)]
    found = fit.non_negative(rows)
    assert found.values[1] == 0.0
    assert 7.0 < found.values[0] < 9.0


def test_fit_refuses_rows_that_nothing_explains():
    with pytest.raises(ValueError, match="2 rows"):
        fit.non_negative([fit.Row(columns=(-1.0,), seconds=1.0)] * 2)


def test_weight_moves_the_fit_towards_the_heavier_rows():
    rows = [
        fit.Row(columns=(1.0,), seconds=1.0, weight=1.0),
        fit.Row(columns=(1.0,), seconds=2.0, weight=1000.0),
    ]
    assert fit.non_negative(rows).values[0] == pytest.approx(2.0, rel=0.01)


def test_median_of_an_even_number_is_between_the_middle_two():
    assert fit.median_absolute([-0.1, 0.3, 0.2, 0.9]) == pytest.approx(0.25)


# --- constants -------------------------------------------------------------------------------------


def test_committed_constants_are_what_the_tables_give(entries):
    assert constants.PATH.read_text(encoding="utf-8") == constants.dump(list(entries.values()))
    assert constants.load() == entries


def test_every_card_and_model_has_a_profile_that_the_simulator_accepts(entries):
    cards = {(entry.gpu, entry.model_name.rsplit("-", 1)[1]) for entry in entries.values()}
    wanted = ("L4", "RTX 4090", "A100-80", "H100", "H200")
    assert cards == {(card, size) for card in wanted for size in ("8B", "70B")}
    for entry in entries.values():
        assert entry.profile().step_seconds(1, 100, 0) > 0
        assert entry.basis in ("fitted", "scaled")


def test_pool_of_the_recorded_card_comes_out_as_recorded():
    blocks_found = constants.pool_blocks(constants.RTX4090, constants.LLAMA_8B, 1)
    assert blocks_found == pytest.approx(2588, rel=0.002)


def test_fixed_part_is_never_below_what_reading_the_weights_takes(entries):
    cards = {c.name: c for c in (constants.L4, constants.RTX4090, constants.A100)}
    cards |= {c.name: c for c in (constants.H100, constants.H200)}
    models = {m.name: m for m in (constants.LLAMA_8B, constants.LLAMA_70B)}
    for entry in entries.values():
        weights = models[entry.model_name].weights / entry.gpus
        assert entry.step_fixed > weights / cards[entry.gpu].bandwidth


# --- the tables ------------------------------------------------------------------------------------


def test_saturated_vllm_on_an_h100_is_predicted_within_five_percent(entries):
    profile = entries["h100-llama-3.1-8b"].profile()
    points = compare._saturated(profile, tables.open_loop(prefix_caching=False))
    assert len(points) == 6
    assert max(abs(point.error) for point in points) < 0.05


def test_hiding_decode_beside_prompts_would_miss_saturation(entries):
    profile = replace(entries["h100-llama-3.1-8b"].profile(), decode_beside_prefill=0.3)
    points = compare._saturated(profile, tables.open_loop(prefix_caching=False))
    assert min(point.error for point in points) > 0.2


def test_live_steps_of_70b_are_met_within_four_percent(entries):
    for name, key in (("h100x4-llama-3.1-70b", "h100"), ("a100-80x4-llama-3.1-70b", "a100")):
        points = compare._steps(entries[name].profile(), tables.live_steps(key, 4))
        assert max(abs(point.error) for point in points) < 0.04


def test_closed_loop_of_the_engine_agrees_with_the_formula(entries):
    profile = entries["h100-llama-3.1-8b"].profile()
    row = tables.Closed(clients=32, prompt=512, output=256, tpot=1.0)
    formula = sum(
        value * column
        for value, column in zip(
            (
                profile.step_fixed,
                profile.step_per_sequence,
                profile.step_per_kv_token,
                profile.step_per_prefill_token,
            ),
            fit.closed_rows([row])[0].columns,
            strict=True,
        )
    )
    outcome = predict.closed(profile, row)
    assert outcome.tpot == pytest.approx(formula, rel=0.03)
    # Little: clients = requests per second x time of one.
    duration = outcome.ttft + outcome.tpot * (row.output - 1)
    assert outcome.completed * duration == pytest.approx(row.clients, rel=0.05)


def test_error_is_positive_where_the_simulator_is_faster():
    point = compare.Point(label="", published=100.0, predicted=110.0)
    assert point.error == pytest.approx(0.1)


def test_request_without_a_token_is_refused():
    request = Request(arrival=0.0, prompt_tokens=1, output_tokens=1, id="7")
    lost = Finished(
        request=request,
        scheduled=None,
        first_token=None,
        finished=1.0,
        output_tokens=0,
        preemptions=0,
        reason="abort",
    )
    with pytest.raises(ValueError, match="'7' ended as abort"):
        predict.first_token(lost)


# --- the claim -------------------------------------------------------------------------------------


def test_a100_gives_the_claim_at_batch_1_and_32_but_not_at_8(entries):
    verdict = claim.best(entries["a100-80-llama-3.1-8b"].profile(), (1, 32))
    assert abs(verdict.errors[1]) < 0.03
    assert abs(verdict.errors[32]) < 0.03
    assert verdict.errors[8] > 0.1
    assert verdict.context == 640


@pytest.mark.parametrize("card", ["l4", "rtx4090", "h100", "h200"])
def test_no_other_card_in_bfloat16_gives_95_at_batch_1(entries, card):
    verdict = claim.check(entries[f"{card}-llama-3.1-8b"].profile(), 512)
    assert abs(verdict.errors[1]) > 0.3


def test_cards_slower_than_the_weights_need_cannot_reach_the_claim():
    needed = claim.needed_bandwidth(claim.CLAIMED[1])
    assert constants.RTX4090.bandwidth < needed < constants.A100.bandwidth


@given(fixed=st.floats(1e-4, 0.02), slope=st.floats(0.0, 1e-3))
def test_no_line_in_the_batch_meets_the_claim(fixed, slope):
    errors = [
        abs((fixed + slope * batch) / seconds - 1)
        for batch, seconds in claim.implied_steps().items()
    ]
    assert max(errors) >= claim.line_error() - 1e-9
    assert claim.line_error() == pytest.approx(0.0724, abs=1e-4)


def test_knee_is_where_sequences_take_four_fifths_of_a_step(entries):
    profile = entries["h100-llama-3.1-8b"].profile()
    batch = claim.knee(profile, 1024)
    step = profile.step_seconds(round(batch), round(batch) * 1024, 0)
    assert 1 - profile.step_fixed / step == pytest.approx(0.8, abs=0.001)


def test_fp8_weights_are_faster_and_leave_a_larger_pool(entries):
    entry = entries["rtx4090-llama-3.1-8b"]
    fp8 = claim.with_fp8_weights(entry)
    assert 0.5 < fp8.step_fixed / entry.step_fixed < 0.65
    assert fp8.pool_tokens > 2 * entry.profile().pool_tokens


# --- the recorded overload -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(entries):
    return replay.recorded(), replay.simulated(entries["rtx4090-llama-3.1-8b"].profile())


def test_recorded_overload_is_met(runs):
    found = {metric.name: metric.error for metric in replay.metrics(*runs)}
    levels = ("mean running", "mean waiting", "mean kv_usage", "makespan, s", "most waiting")
    assert all(abs(found[name]) < 0.02 for name in levels)
    assert all(abs(error) < 0.08 for error in found.values())
    mean = sum(abs(error) for error in found.values()) / len(found)
    assert f"mean {mean:.1%}" in constants._rtx4090_8b().quality


def test_recorded_overload_is_met_second_by_second(runs):
    assert replay.series_error(*runs, "running") < 0.08
    assert replay.series_error(*runs, "waiting") < 0.04
    assert replay.series_error(*runs, "kv_usage") < 0.04


def test_a_card_of_half_the_speed_would_not_pass(runs, entries):
    profile = entries["rtx4090-llama-3.1-8b"].profile()
    slow = replay.simulated(replace(profile, step_fixed=2 * profile.step_fixed))
    found = {metric.name: metric.error for metric in replay.metrics(runs[0], slow)}
    assert found["makespan, s"] > 0.3
    assert replay.series_error(runs[0], slow, "waiting") > 0.2


def test_quantile_interpolates():
    assert replay.quantile([3.0, 1.0, 2.0], 0.25) == pytest.approx(1.5)


# --- page and pictures -----------------------------------------------------------------------------


def test_page_pictures_and_constants_are_what_the_tool_writes(entries, runs):
    chart = load("throughput.chart")
    page = (ROOT / "docs" / "throughput.md").read_text(encoding="utf-8")
    assert blocks.insert(page, blocks.all_blocks(entries, *runs)) == page, (
        "run tools/throughput_check.py --write"
    )
    images = ROOT / "docs" / "images"
    assert (images / "throughput-curve.svg").read_text(encoding="utf-8") == chart.curve(entries)
    assert (images / "throughput-replay.svg").read_text(encoding="utf-8") == chart.overload(*runs)


def test_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match="block claim: 0 pairs"):
        blocks.insert("nothing here", {"claim": "| a |"})


def test_block_is_replaced_and_the_rest_kept():
    page = "before\n<!-- begin x -->\nold\n<!-- end x -->\nafter\n"
    assert blocks.insert(page, {"x": r"new \1"}) == page.replace("old", r"new \1")


def test_logarithmic_axis_puts_decades_at_equal_distances():
    axis = svg.Axis(low=10, high=1000, ticks=(), log=True)
    assert [axis.share(value) for value in (10, 100, 1000)] == pytest.approx([0, 0.5, 1])


def test_line_leaves_out_points_beyond_the_panel():
    axis = svg.Axis(low=0, high=1, ticks=())
    panel = svg.Panel(x=0, y=0, width=100, height=100, across=axis, up=axis)
    panel.line([(0.5, 0.5), (2.0, 0.5)], "#000000")
    assert "points='50.0,50.0'" in panel.parts[0]


def test_text_in_a_picture_is_escaped():
    assert "a &lt; b" in svg.text(0, 0, "a < b")
