"""Whatever windows come, the fit is sane or unknown; its inverses invert it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.derive.step_time import (
    MAX_RELATIVE_ERROR,
    MIN_WINDOWS,
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

# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)

windows = st.builds(
    Window,
    batch=st.floats(0.1, 512),
    prefill=st.floats(0, 5000),
    step=st.floats(1e-4, 2),
    seconds=st.floats(2, 6),
)
fits = st.builds(
    StepFit,
    fixed=st.floats(1e-4, 0.1),
    per_sequence=st.floats(1e-6, 0.01),
    per_prefill_token=st.floats(1e-7, 1e-3),
    batch_max=st.floats(1, 512),
    windows=st.just(50.0),
)


def fed(seen):
    meter = StepMeter()
    for one in seen:
        meter.add(one)
    return meter.read()


@relaxed
@given(st.lists(windows, max_size=60))
def test_a_fit_is_sane_or_unknown(seen):
    fit = fed(seen)
    assert (fit.fixed is None) == (fit.per_sequence is None)
    if fit.fixed is not None:
        assert fit.fixed >= 0
        assert fit.per_sequence > 0
        assert fit.windows >= MIN_WINDOWS
    if fit.per_prefill_token is not None:
        assert fit.per_prefill_token > 0
    assert fit.batch_max == max((one.batch for one in seen), default=0.0)
    assert fit.windows <= len(seen)
    for number in (knee(fit), marginal_gain(fit, 8.0), latency_capacity(fit, 0.05, 1.5)):
        assert number is None or (math.isfinite(number) and number >= 0)


@relaxed
@given(
    st.floats(1e-4, 0.05),
    st.floats(1e-5, 0.005),
    st.integers(0, 10_000),
    st.floats(1, 50),
    st.floats(2, 8),
)
def test_a_line_without_noise_is_found(alpha, beta, seed, low, factor):
    draw, seen = random.Random(seed), []
    for _ in range(15):
        batch = draw.uniform(low, low * factor)
        seen.append(Window(batch=batch, prefill=0.0, step=alpha + beta * batch, seconds=2.0))
    fit = fed(seen)
    span = max(one.batch for one in seen) - min(one.batch for one in seen)
    if span < 0.3 * max(one.batch for one in seen):
        assert fit.fixed is None
    elif fit.fixed is not None:
        # Rounding is all that errs; it counts where one part is a thousandth of the other.
        tolerance = 1e-6 * (alpha + beta * low * factor)
        assert math.isclose(fit.fixed, alpha, rel_tol=1e-3, abs_tol=tolerance)
        assert math.isclose(fit.per_sequence, beta, rel_tol=1e-3, abs_tol=tolerance)
    else:
        # The slope drowns in rounding, or the intercept came out below zero by it.
        assert alpha < 1e-3 * beta * low or beta * span < 1e-3 * alpha * MAX_RELATIVE_ERROR


@relaxed
@given(st.integers(0, 10_000), st.floats(0.5, 20), st.floats(0.01, 0.2))
def test_prompts_in_step_with_the_batch_never_give_a_cost_per_token(seed, share, noise):
    draw, seen = random.Random(seed), []
    for _ in range(40):
        batch = draw.uniform(1, 60)
        step = (0.01 + 0.0004 * batch) * draw.lognormvariate(0, noise)
        seen.append(Window(batch=batch, prefill=share * batch, step=step, seconds=2.0))
    assert fed(seen).per_prefill_token is None


@relaxed
@given(fits, st.integers(1, 4), st.floats(1, 4), st.floats(0, 1))
def test_latency_capacity_inverts_step_seconds(fit, multiple, spread, rest):
    batch = max(1, int(fit.batch_max) * multiple - 1)
    limit = step_seconds(fit, batch + 0.9 * rest) * spread
    assert latency_capacity(fit, limit, spread) == batch


@relaxed
@given(fits, st.floats(1e-4, 10), st.floats(1, 4))
def test_a_latency_capacity_keeps_the_plan_and_one_more_breaks_it(fit, limit, spread):
    found = latency_capacity(fit, limit, spread)
    if found is not None:
        assert step_seconds(fit, found + 1) * spread > limit * (1 - 1e-6)
        if found > 0:
            assert step_seconds(fit, found) * spread <= limit * (1 + 1e-6)


@relaxed
@given(fits, st.floats(0, 2000), st.floats(0, 2000))
def test_marginal_gain_falls_from_one_to_nothing(fit, one, other):
    low, high = min(one, other), max(one, other)
    assert marginal_gain(fit, 0.0) == 1.0
    assert 0 < marginal_gain(fit, high) <= marginal_gain(fit, low) <= 1


@relaxed
@given(fits, st.floats(1, 1e6))
def test_at_the_prefill_multiple_prompts_take_four_fifths_of_the_time(fit, rate):
    share = fit.per_prefill_token * rate
    assert prefill_multiple(fit, rate) * share == pytest.approx(0.8)


@relaxed
@given(
    st.integers(10, 500),
    st.integers(1, 200),
    st.floats(1e-3, 0.2),
    st.floats(0, 3),
    st.floats(1, 5),
)
def test_a_window_counts_only_when_it_was_busy(steps, batch, step, idle, accepted):
    busy = steps * step
    gaps, drafts = float(steps * batch), float(steps * batch)
    before = RankSample(
        rank="0",
        model_name="m",
        **dict.fromkeys(
            (
                "steps",
                "generation_tokens",
                "step_tokens",
                "inter_token_count",
                "inter_token_seconds",
                "spec_drafts",
                "spec_accepted_tokens",
            ),
            0.0,
        ),
    )
    after = RankSample(
        rank="0",
        model_name="m",
        steps=float(steps),
        generation_tokens=gaps * accepted,
        step_tokens=gaps * accepted,
        inter_token_count=gaps,
        inter_token_seconds=gaps * step,
        spec_drafts=drafts,
        spec_accepted_tokens=drafts * (accepted - 1),
    )
    seen = window(before, after, busy * (1 + idle))
    if idle > 0.16:
        assert seen is None
    elif idle < 0.14:
        assert seen is not None
        assert math.isclose(seen.batch, batch, rel_tol=1e-9)
        assert math.isclose(seen.step, step * (1 + idle), rel_tol=1e-9)
