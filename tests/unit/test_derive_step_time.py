"""What a step costs: the fit, its gates, and what is read from it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from headroom_exporter.derive.step_time import (
    HALF_LIFE,
    MAX_EXTRAPOLATION,
    StepMeter,
    Window,
    knee,
    latency_capacity,
    marginal_gain,
    prefill_multiple,
    step_seconds,
    window,
)
from headroom_exporter.samples import RankSample, StepFit

ALPHA, BETA, DELTA = 0.012, 0.0004, 0.00003


def fit(fixed=ALPHA, per_sequence=BETA, per_prefill_token=DELTA, batch_max=100.0):
    return StepFit(
        fixed=fixed,
        per_sequence=per_sequence,
        per_prefill_token=per_prefill_token,
        batch_max=batch_max,
        windows=100.0,
    )


# --- a window from counters ----------------------------------------------------------------------


def counters(steps, batch, step, *, prefill=0.0, accepted=None, idle=0.0):
    """Counters after so many steps of ``step`` seconds; idle time leaves no trace in them."""
    tokens = steps * batch * (1.0 if accepted is None else accepted)
    drafts = None if accepted is None else steps * batch
    return RankSample(
        rank="0",
        model_name="m",
        steps=steps,
        generation_tokens=tokens,
        step_tokens=tokens + steps * prefill,
        # One gap per sequence and step.
        inter_token_count=steps * batch,
        inter_token_seconds=steps * batch * step,
        spec_drafts=drafts,
        spec_accepted_tokens=None if accepted is None else drafts * (accepted - 1),
    )


NOTHING = counters(0, 0, 0)


def added(first, second):
    """Counters after both."""
    sums = {}
    for name in RankSample.__slots__:
        one, other = getattr(first, name), getattr(second, name)
        sums[name] = one + other if isinstance(one, int | float) and other is not None else other
    return RankSample(**sums)


def test_a_window_is_of_what_came_between_not_of_all():
    before = counters(5000, 30, 0.05, prefill=7, accepted=3.0)
    after = added(before, counters(100, 8, 0.02, prefill=30, accepted=2.0))
    seen = window(before, after, 2.0)
    assert (seen.batch, seen.prefill, seen.step) == pytest.approx((8, 30, 0.02))


def test_steps_that_several_servers_count_again_count_once():
    # Two API servers: each counts its share of a step as a step.
    after = counters(100, 8, 0.02, prefill=30)
    twice = replace(after, steps=after.steps * 2)
    seen = window(NOTHING, twice, 2.0)
    assert (seen.batch, seen.prefill, seen.step) == pytest.approx((8, 30, 0.02))


def test_gaps_stretched_by_preemption_are_no_sign_of_several_servers():
    after = replace(counters(100, 8, 0.02), inter_token_seconds=100 * 8 * 0.03)
    quiet, preempted = replace(NOTHING, preemptions=4.0), replace(after, preemptions=5.0)
    assert window(quiet, preempted, 2.0) is None
    # Stretched by a tenth, as in the recordings, the steps are believed.
    after = replace(after, inter_token_seconds=100 * 8 * 0.022, preemptions=5.0)
    assert window(quiet, after, 2.0).step == pytest.approx(0.02)


def test_drafts_without_a_count_of_accepted_tokens_are_no_division():
    before = replace(counters(0, 8, 0.02, accepted=2.0), spec_accepted_tokens=None)
    after = replace(counters(100, 8, 0.02, accepted=2.0), spec_accepted_tokens=None)
    assert window(before, after, 2.0).batch == pytest.approx(16)


def test_a_window_is_means_over_counters():
    seen = window(NOTHING, counters(100, 8, 0.02, prefill=30), 2.0)
    assert seen.batch == pytest.approx(8)
    assert seen.prefill == pytest.approx(30)
    assert seen.step == pytest.approx(0.02)
    assert seen.seconds == 2.0


def test_speculative_decoding_counts_sequences_not_tokens():
    before = counters(0, 8, 0.02, accepted=2.5)
    seen = window(before, counters(100, 8, 0.02, accepted=2.5), 2.0)
    assert seen.batch == pytest.approx(8)


def test_speculative_decoding_hides_no_idle_time():
    before = counters(0, 8, 0.02, accepted=2.5)
    # 100 steps of 20 ms in 4 s: half of it idle.
    assert window(before, counters(100, 8, 0.02, accepted=2.5), 4.0) is None


@pytest.mark.parametrize(
    ("seconds", "counts"), [(2.0, True), (2.2, True), (2.4, False), (9, False)]
)
def test_a_window_that_was_partly_idle_does_not_count(seconds, counts):
    assert (window(NOTHING, counters(100, 8, 0.02), seconds) is not None) is counts


def test_fewer_than_ten_steps_are_no_window():
    assert window(NOTHING, counters(9, 8, 0.2), 1.8) is None
    assert window(NOTHING, counters(10, 8, 0.2), 2.0) is not None


def test_steps_that_decode_nothing_are_no_window():
    # Single-token answers: no gap between tokens says whether the engine was busy.
    before = RankSample(rank="0", model_name="m", steps=0.0, generation_tokens=0.0, step_tokens=0.0)
    after = RankSample(
        rank="0", model_name="m", steps=20.0, generation_tokens=20.0, step_tokens=500.0
    )
    assert window(before, after, 2.0) is None


@pytest.mark.parametrize("missing", ["generation_tokens", "inter_token_seconds"])
def test_without_a_counter_there_is_no_window(missing):
    after = counters(100, 8, 0.02)
    kept = {name: getattr(after, name) for name in RankSample.__slots__ if name != missing}
    assert window(NOTHING, RankSample(**kept), 2.0) is None


def test_without_steps_the_gaps_between_tokens_tell_batch_and_step():
    after = counters(100, 8, 0.02)
    kept = {name: getattr(after, name) for name in RankSample.__slots__ if name != "steps"}
    seen = window(NOTHING, RankSample(**kept), 2.0)
    assert (seen.batch, seen.step, seen.prefill) == (pytest.approx(8), pytest.approx(0.02), 0.0)
    assert window(NOTHING, RankSample(**kept), 0.1) is None


def test_without_the_total_of_tokens_prompts_are_taken_as_none():
    after = counters(100, 8, 0.02, prefill=30)
    kept = {name: getattr(after, name) for name in RankSample.__slots__ if name != "step_tokens"}
    assert window(NOTHING, RankSample(**kept), 2.0).prefill == 0.0


def test_no_time_is_no_window():
    assert window(NOTHING, counters(100, 8, 0.02), 0.0) is None


# --- the fit -------------------------------------------------------------------------------------


def cost(batch, prefill, noise=0.0, draw=None):
    exact = ALPHA + BETA * batch + DELTA * prefill
    return exact * (1 + draw.gauss(0, noise)) if draw else exact


def fed(windows):
    meter = StepMeter()
    for batch, prefill, step in windows:
        meter.add(Window(batch=batch, prefill=prefill, step=step, seconds=2.0))
    return meter.read()


def noisy(count, seed, prefill_of=lambda _: 0.0, batch_of=lambda draw: draw.uniform(1, 60)):
    draw = random.Random(seed)
    for _ in range(count):
        batch, prefill = batch_of(draw), prefill_of(draw)
        yield batch, prefill, cost(batch, prefill, 0.1, draw)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_and_beta_are_found_under_ten_percent_noise(seed):
    found = fed(noisy(200, seed))
    assert found.fixed == pytest.approx(ALPHA, rel=0.1)
    assert found.per_sequence == pytest.approx(BETA, rel=0.15)
    assert found.per_prefill_token is None
    assert found.batch_max == pytest.approx(60, abs=2)


@pytest.mark.parametrize("seed", range(5))
def test_delta_is_found_when_prompts_vary_apart_from_the_batch(seed):
    found = fed(noisy(300, seed, prefill_of=lambda draw: draw.uniform(0, 500)))
    assert found.per_prefill_token == pytest.approx(DELTA, rel=0.2)


def test_a_fit_without_noise_is_exact():
    found = fed((b, p, cost(b, p)) for b in range(1, 40, 3) for p in (0, 100, 300, 700))
    assert found.per_prefill_token == pytest.approx(DELTA, rel=1e-4)
    alone = fed((b, 0.0, cost(b, 0)) for b in range(1, 40, 3))
    assert alone.fixed == pytest.approx(ALPHA, rel=1e-6)
    assert alone.per_sequence == pytest.approx(BETA, rel=1e-6)


def test_the_fit_predicts_the_mean_step_of_its_own_mix():
    found = fed(noisy(300, 7, prefill_of=lambda draw: draw.uniform(0, 500)))
    assert step_seconds(found, 30.0) == pytest.approx(cost(30, 250), rel=0.03)
    assert found.per_sequence == pytest.approx(BETA, rel=0.15)


def test_windows_that_happened_to_be_fast_weigh_no_more():
    # Steps scatter by 23 % while sequences are preempted; weights of 1 / step^2 would give 10 % less.
    means = []
    for seed in range(10):
        draw, windows = random.Random(seed), []
        for _ in range(400):
            batch = draw.uniform(1, 60)
            scatter = draw.lognormvariate(-(0.23**2) / 2, 0.23)
            windows.append((batch, 0.0, cost(batch, 0) * scatter))
        means.append(step_seconds(fed(windows), 30.0) / cost(30, 0))
    assert sum(means) / len(means) == pytest.approx(1.0, abs=0.02)


def test_delta_stays_unknown_when_prompts_rise_with_the_batch():
    draw = random.Random(8)
    exactly = fed((b, 5.0 * b, cost(b, 5.0 * b, 0.1, draw)) for b in range(1, 60))
    assert exactly.per_prefill_token is None
    nearly = []
    for _ in range(100):
        batch = draw.uniform(1, 60)
        prefill = 5 * batch * draw.uniform(0.97, 1.03)
        nearly.append((batch, prefill, cost(batch, prefill, 0.1, draw)))
    assert fed(nearly).per_prefill_token is None
    # Alone, the batch still explains the step, its share of prompts included.
    assert fed(nearly).per_sequence == pytest.approx(BETA + 5 * DELTA, rel=0.15)


def open_loop(seed, *, delta, noise, spread, count=300):
    """
    Windows of an engine to which prompts come at their own rate, whatever its steps take.

    A step slowed by a neighbour on the card, a long context or a hot clock then holds more prompts: the
    effect looks like a cause. ``spread`` is that of the rate between windows, ``noise`` that of the step.
    """
    draw = random.Random(seed)
    for _ in range(count):
        batch, slowed = draw.uniform(1, 60), draw.lognormvariate(0, noise)
        rate = 6000.0 * draw.lognormvariate(0, spread)
        # step = (alpha + beta b + delta x rate x step) x slowed
        step = (ALPHA + BETA * batch) * slowed / (1 - delta * rate * slowed)
        yield batch, rate * step, step


@pytest.mark.parametrize("seed", range(5))
def test_prompts_that_cost_nothing_are_not_given_the_cost_of_what_slows_the_engine(seed):
    for noise, spread in ((0.07, 0.05), (0.15, 0.1), (0.25, 0.2)):
        assert fed(open_loop(seed, delta=0.0, noise=noise, spread=spread)).per_prefill_token is None


@pytest.mark.parametrize("seed", range(5))
def test_delta_is_found_when_the_rate_of_prompts_varies_more_than_the_step(seed):
    found = fed(open_loop(seed, delta=DELTA, noise=0.03, spread=0.4))
    assert found.per_prefill_token == pytest.approx(DELTA, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_a_delta_that_is_published_is_about_right(seed):
    for noise in (0.03, 0.07, 0.1, 0.15, 0.2):
        for spread in (0.05, 0.1, 0.2, 0.4):
            found = fed(open_loop(seed, delta=DELTA, noise=noise, spread=spread))
            if found.per_prefill_token is not None:
                assert found.per_prefill_token == pytest.approx(DELTA, rel=0.35)


def test_at_a_constant_rate_prompts_explain_everything_and_so_nothing():
    found = fed(open_loop(1, delta=DELTA, noise=0.1, spread=0.0))
    assert found.per_prefill_token is None


def test_ten_windows_are_needed():
    windows = [(b, 0.0, cost(b, 0)) for b in range(2, 24, 2)]
    assert len(windows) == 11
    assert fed(windows).fixed == pytest.approx(ALPHA)
    assert fed(windows[:9]).fixed is None
    assert fed(windows[:9]).per_sequence is None


def test_a_batch_that_hardly_varies_identifies_nothing():
    narrow = fed(noisy(200, 9, batch_of=lambda draw: draw.uniform(50, 60)))
    assert narrow.fixed is None
    assert narrow.per_sequence is None
    assert narrow.batch_max == pytest.approx(60, abs=0.5)


def test_a_step_that_falls_with_the_batch_identifies_nothing():
    found = fed((b, 0.0, 0.05 - 0.0005 * b) for b in range(1, 41))
    assert (found.fixed, found.per_sequence) == (None, None)


def test_a_step_below_zero_at_no_batch_identifies_nothing():
    found = fed((b, 0.0, 0.001 * b - 0.005) for b in range(10, 41))
    assert (found.fixed, found.per_sequence) == (None, None)


def test_noise_that_hides_the_slope_identifies_nothing():
    draw = random.Random(10)
    found = fed((b, 0.0, 0.02 * draw.lognormvariate(0, 0.8)) for b in range(1, 21))
    assert (found.fixed, found.per_sequence) == (None, None)


def test_nothing_seen_identifies_nothing():
    found = StepMeter().read()
    assert (found.fixed, found.per_sequence, found.per_prefill_token) == (None, None, None)
    assert (found.batch_max, found.windows) == (0.0, 0.0)


def test_the_old_engine_is_forgotten_after_some_half_lives():
    meter, draw = StepMeter(), random.Random(11)
    for _ in range(900):
        batch = draw.uniform(1, 60)
        meter.add(Window(batch=batch, prefill=0.0, step=2 * cost(batch, 0), seconds=2.0))
    for _ in range(int(6 * HALF_LIFE / 2)):
        batch = draw.uniform(1, 60)
        meter.add(Window(batch=batch, prefill=0.0, step=cost(batch, 0), seconds=2.0))
    found = meter.read()
    assert found.fixed == pytest.approx(ALPHA, rel=0.05)
    assert found.per_sequence == pytest.approx(BETA, rel=0.05)


def test_half_of_the_evidence_is_older_than_a_half_life():
    meter = StepMeter()
    counts = []
    for _ in range(40):
        for _ in range(int(HALF_LIFE / 60)):
            meter.add(Window(batch=8.0, prefill=0.0, step=0.02, seconds=60.0))
        counts.append(meter.read().windows)
    assert counts[0] == pytest.approx(counts[-1] / 2)


@pytest.mark.parametrize(("noise", "published"), [(0.06, 1.0), (0.3, 0.4), (0.6, 0.0)])
def test_a_slope_is_published_while_its_error_is_below_a_quarter(noise, published):
    # Forty windows of 10 to 30 sequences: the slope's relative error is about 1.0 x the noise, a little
    # less than the plain mean step / (beta x deviation of the batch x sqrt(40)) = 1.3.
    passed = 0
    for seed in range(60):
        draw, seen = random.Random(seed), []
        for at in range(40):
            batch = 10 + 20 * at / 39
            seen.append((batch, 0.0, cost(batch, 0) * draw.lognormvariate(0, noise)))
        passed += fed(seen).per_sequence is not None
    assert passed / 60 == pytest.approx(published, abs=0.15)


def test_the_span_is_forgotten_too():
    meter, draw = StepMeter(), random.Random(12)
    for batch in (1.0, 200.0):
        meter.add(Window(batch=batch, prefill=0.0, step=cost(batch, 0), seconds=2.0))
    for _ in range(int(2.1 * HALF_LIFE / 2)):
        batch = draw.uniform(50, 60)
        meter.add(Window(batch=batch, prefill=0.0, step=cost(batch, 0), seconds=2.0))
    found = meter.read()
    assert found.batch_max <= 60
    assert found.fixed is None


def test_the_standard_error_gate_is_honest():
    """Of fits that pass the gate, few are further from the truth than twice what it allows."""
    passed = wrong = 0
    for seed in range(200):
        found = fed(noisy(25, seed, batch_of=lambda draw: draw.uniform(20, 60)))
        if found.per_sequence is not None:
            passed += 1
            wrong += abs(found.per_sequence - BETA) > 0.5 * BETA
    assert passed > 100
    assert wrong / passed < 0.05


# --- what is read from it ------------------------------------------------------------------------


def test_at_the_knee_four_fifths_of_a_step_are_paid_per_sequence():
    at = knee(fit())
    assert at == pytest.approx(4 * ALPHA / BETA)
    assert BETA * at / step_seconds(fit(), at) == pytest.approx(0.8)


@pytest.mark.parametrize("batch", [0.0, 1.0, 10.0, 120.0, 1000.0])
def test_marginal_gain_is_the_derivative_of_output_relative_to_the_first_sequence(batch):
    def output(b):
        return b / (ALPHA + BETA * b)

    h = 1e-4
    here = (output(batch + h) - output(batch - h)) / (2 * h)
    first = (output(h) - output(-h)) / (2 * h)
    assert marginal_gain(fit(), batch) == pytest.approx(here / first, rel=1e-5)


@pytest.mark.parametrize("batch", range(1, 300, 7))
def test_latency_capacity_is_the_inverse_of_step_seconds(batch):
    known = fit(batch_max=100.0)
    limit = step_seconds(known, batch) * 1.3
    assert latency_capacity(known, limit, 1.3) == batch
    assert latency_capacity(known, limit * 0.9999, 1.3) == batch - 1


def test_a_plan_no_batch_can_keep_has_no_capacity():
    assert latency_capacity(fit(), ALPHA / 2, 1.0) == 0.0


def test_a_batch_far_beyond_the_largest_seen_is_a_guess():
    known = fit(batch_max=10.0)
    edge = MAX_EXTRAPOLATION * 10
    assert latency_capacity(known, step_seconds(known, edge - 0.5), 1.0) == edge - 1
    assert latency_capacity(known, step_seconds(known, edge + 0.5), 1.0) is None


def test_prompts_may_grow_until_they_take_four_fifths_of_the_time():
    # 0.03 ms a token, 10,000 tokens a second: 30 % of the time.
    assert prefill_multiple(fit(), 10_000.0) == pytest.approx(0.8 / 0.3)


def test_twice_as_costly_prompts_halve_the_prefill_multiple():
    cheap = prefill_multiple(fit(per_prefill_token=1e-5), 1000.0)
    assert prefill_multiple(fit(per_prefill_token=2e-5), 1000.0) == pytest.approx(cheap / 2)


@pytest.mark.parametrize(
    "known", [None, fit(fixed=None, per_sequence=None, per_prefill_token=None)]
)
def test_an_unidentified_fit_gives_no_number(known):
    assert step_seconds(known, 8.0) is None
    assert knee(known) is None
    assert marginal_gain(known, 8.0) is None
    assert latency_capacity(known, 0.05, 1.2) is None
    assert prefill_multiple(known, 1000.0) is None


@pytest.mark.parametrize(("tpot", "spread"), [(None, 1.2), (0.05, None)])
def test_latency_capacity_needs_the_plan_and_the_spread(tpot, spread):
    assert latency_capacity(fit(), tpot, spread) is None


@pytest.mark.parametrize("rate", [None, 0.0])
def test_the_prefill_multiple_needs_prompts(rate):
    assert prefill_multiple(fit(), rate) is None


def test_steps_that_several_api_servers_count_are_told_from_the_gaps_between_tokens() -> None:
    """Seen with two servers: 5.95 tokens per counted step, 11.94 running; tokens 5.99 ms apart."""
    before = RankSample(
        rank="0",
        model_name="m",
        steps=0.0,
        step_tokens=0.0,
        generation_tokens=0.0,
        inter_token_count=0.0,
        inter_token_seconds=0.0,
        preemptions=0.0,
    )
    after = replace(
        before,
        steps=1000.0,
        step_tokens=5950.0,
        generation_tokens=5950.0,
        inter_token_count=5900.0,
        inter_token_seconds=5900 * 0.00599,
    )
    seen = window(before, after, 3.01)
    assert seen is not None
    assert seen.step == pytest.approx(0.00599)
    assert seen.batch == pytest.approx(11.84, abs=0.01)
    stretched = replace(after, preemptions=5.0)
    assert window(before, stretched, 3.01) is None
