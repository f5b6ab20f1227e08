"""Capacity moves the right way with everything it depends on, and never leaves its inequality."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.config import Lengths
from headroom_exporter.derive.kv_cache import (
    FootprintMeter,
    capacity,
    normal_quantile,
    planned_footprint,
)
from headroom_exporter.samples import Footprint

# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)

means = st.floats(1e-5, 1.0)
stddevs = st.floats(0.0, 1.0)
skews = st.floats(0.0, 4.0)
# From z = 1 on: below it the tail's correction turns round (a skewed median lies below the mean).
accepted = st.floats(1e-6, 0.15)
reserves = st.floats(0.0, 1.0)


def footprint(mean, stddev, skewness):
    return Footprint(mean=mean, stddev=stddev, skewness=skewness, basis="live")


def needed(seen, sequences, accept):
    z = normal_quantile(1 - accept)
    normal = sequences * seen.mean + math.sqrt(sequences) * seen.stddev * z
    return normal + seen.stddev * (z * z - 1) * seen.skewness / 6


@relaxed
@given(means, stddevs, skews, accepted, reserves)
def test_capacity_is_whole_and_the_largest_that_fits(mean, stddev, skewness, accept, reserve):
    seen = footprint(mean, stddev, skewness)
    found = capacity(seen, accept, reserve)
    assert found >= 0
    assert found == int(found)
    if found:
        assert needed(seen, found, accept) <= 1 - reserve + 1e-6
    assert needed(seen, found + 1, accept) > 1 - reserve - 1e-6


@relaxed
@given(means, stddevs, skews, accepted, accepted, reserves)
def test_the_more_overrun_is_accepted_the_more_fits(mean, stddev, skewness, one, other, reserve):
    seen = footprint(mean, stddev, skewness)
    assert capacity(seen, min(one, other), reserve) <= capacity(seen, max(one, other), reserve)


@relaxed
@given(means, means, stddevs, skews, accepted)
def test_the_larger_the_mean_the_fewer_fit(one, other, stddev, skewness, accept):
    large, small = (
        footprint(mean, stddev, skewness) for mean in (max(one, other), min(one, other))
    )
    assert capacity(large, accept) <= capacity(small, accept)


@relaxed
@given(means, stddevs, stddevs, skews, accepted)
def test_the_larger_the_spread_the_fewer_fit(mean, one, other, skewness, accept):
    wide, narrow = (
        footprint(mean, spread, skewness) for spread in (max(one, other), min(one, other))
    )
    assert capacity(wide, accept) <= capacity(narrow, accept)


@relaxed
@given(means, stddevs, skews, skews, accepted)
def test_the_longer_the_tail_the_fewer_fit(mean, stddev, one, other, accept):
    long, short = (
        footprint(mean, stddev, skewness) for skewness in (max(one, other), min(one, other))
    )
    assert capacity(long, accept) <= capacity(short, accept)


@relaxed
@given(means, stddevs, skews, accepted, reserves, reserves)
def test_the_more_is_kept_free_the_fewer_fit(mean, stddev, skewness, accept, one, other):
    seen = footprint(mean, stddev, skewness)
    assert capacity(seen, accept, max(one, other)) <= capacity(seen, accept, min(one, other))


@relaxed
@given(means, stddevs, skews, accepted)
def test_spread_never_adds_to_what_the_mean_allows(mean, stddev, skewness, accept):
    assert capacity(footprint(mean, stddev, skewness), accept) <= 1 / mean + 1e-6


@relaxed
@given(st.floats(1e-9, 1 - 1e-9))
def test_the_normal_quantile_inverts_the_distribution(probability):
    z = normal_quantile(probability)
    assert math.isclose(0.5 * math.erfc(-z / math.sqrt(2)), probability, rel_tol=1e-9)


@relaxed
@given(st.floats(1, 1e5), st.floats(1, 20), st.floats(1, 1e4), st.floats(1, 20), st.floats(1, 1024))
def test_a_planned_footprint_has_the_moments_of_something_real(p50, spread_p, o50, spread_o, block):
    seen = planned_footprint(
        Lengths(p50=p50, p95=p50 * spread_p), Lengths(p50=o50, p95=o50 * spread_o), 1e6, block
    )
    assert seen is not None
    # No smaller than the mean prompt and half of the median output.
    assert seen.mean * 1e6 >= (p50 + o50 / 2) * 0.999999
    assert seen.stddev is not None
    # Ages alone spread an output of o by o / sqrt(12).
    assert seen.stddev * 1e6 >= o50 / math.sqrt(12) * 0.999
    assert 0 <= seen.skewness <= 4


# Sizes of the pool's sequences: the meter is told only their number and their sum.
sizes = st.lists(st.floats(0.001, 0.02), min_size=1, max_size=30)


@settings(relaxed, max_examples=40)
@given(st.lists(st.tuples(sizes, st.floats(0.2, 2.0)), min_size=30, max_size=60))
def test_the_live_mean_is_held_share_time_over_sequence_time(polls):
    meter, now = _warm(), 2.0
    held = count = 0.0
    for running, seconds in polls:
        now += seconds
        usage = sum(running)
        meter.add(now, len(running), usage, seconds, 1e6)
        held += usage * seconds
        count += len(running) * seconds
    seen = meter.read(now)
    assert seen is not None
    assert seen.stddev is not None
    # Forgetting over two minutes of a half-life of fifteen weighs the first samples a tenth less.
    assert math.isclose(seen.mean, held / count, rel_tol=0.1)
    assert seen.stddev >= 0
    assert 0 <= seen.skewness <= 4


def _warm():
    """A meter that has seen sequences come and go, and whose next sample is the first that counts."""
    meter = FootprintMeter()
    meter.add(1.0, 1.0, 0.01, 1.0, 0.0)
    meter.add(2.0, 1.0, 0.01, 1.0, 50.0)
    return meter
