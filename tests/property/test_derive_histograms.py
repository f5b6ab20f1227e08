"""A histogram of known values: what is read from it brackets the truth."""

from __future__ import annotations

import math
from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.derive.histograms import HistogramWindow, over, quantile, subtract, thin
from headroom_exporter.samples import Histogram

# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)

values = st.floats(0.001, 5000)
samples = st.lists(values, max_size=80)
all_bounds = st.lists(values, min_size=1, max_size=25, unique=True).map(lambda b: tuple(sorted(b)))


def collect(bounds, seen):
    ordered = sorted(seen)
    counts = (*(float(bisect_right(ordered, bound)) for bound in bounds), float(len(seen)))
    return Histogram(bounds=bounds, counts=counts, sum=math.fsum(seen))


def more_than(seen, limit):
    return sum(value > limit for value in seen)


@relaxed
@given(all_bounds, samples, values)
def test_over_brackets_the_truth(bounds, seen, limit):
    certainly, at_most = over(collect(bounds, seen), limit)
    assert certainly <= more_than(seen, limit) <= at_most


@relaxed
@given(all_bounds, samples, st.data())
def test_over_is_exact_at_an_edge(bounds, seen, data):
    edge = data.draw(st.sampled_from(bounds))
    assert over(collect(bounds, seen), edge) == (more_than(seen, edge),) * 2


@relaxed
@given(all_bounds, samples, values)
def test_over_is_as_tight_as_the_buckets_allow(bounds, seen, limit):
    certainly, at_most = over(collect(bounds, seen), limit)
    above = [bound for bound in bounds if bound >= limit]
    below = [bound for bound in bounds if bound <= limit]
    assert certainly == (more_than(seen, above[0]) if above else 0)
    assert at_most == (more_than(seen, below[-1]) if below else len(seen))


@relaxed
@given(all_bounds, samples, st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one_or_is_unknown(bounds, seen, q):
    got = quantile(collect(bounds, seen), q)
    if not seen:
        assert got is None
        return
    rank = max(1, math.ceil(q * len(seen)))
    truth = sorted(seen)[rank - 1]
    inside = [bound for bound in bounds if bound >= truth]
    if got is None:
        # Only in the first bucket or beyond the last bound.
        assert (
            not inside or inside[0] == bounds[0] or q * len(seen) <= collect(bounds, seen).counts[0]
        )
    else:
        low = max((bound for bound in bounds if bound < truth), default=0.0)
        assert low - 1e-9 <= got <= inside[0] + 1e-9


limits = st.lists(values, max_size=3)


@relaxed
@given(all_bounds, samples, st.integers(2, 12), values, values, limits)
def test_thinning_changes_no_count_that_it_keeps(bounds, seen, keep, one, other, around):
    whole = collect(bounds, seen)
    thinned = thin(whole, keep, min(one, other), max(one, other), around)
    assert list(thinned.bounds) == sorted(set(thinned.bounds))
    assert thinned == collect(thinned.bounds, seen)


@relaxed
@given(all_bounds, samples, st.integers(2, 12), values, values, limits)
def test_thinning_keeps_no_more_than_asked_but_for_the_pinned(
    bounds, seen, keep, one, other, around
):
    low, high = min(one, other), max(one, other)
    thinned = thin(collect(bounds, seen), keep, low, high, around)
    pinned = set()
    for limit in around:
        pinned |= {max((b for b in bounds if b <= limit), default=None)}
        pinned |= {min((b for b in bounds if b >= limit), default=None)}
    pinned.discard(None)
    assert pinned <= set(thinned.bounds)
    assert all(low <= bound <= high or bound in pinned for bound in thinned.bounds)
    # The two ends stay whatever happens: a range without ends is none.
    assert len(thinned.bounds) <= max(keep, len(pinned) + 2)


@relaxed
@given(all_bounds, samples, samples, st.integers(2, 12), limits)
def test_which_bounds_stay_does_not_depend_on_the_counts(bounds, one, other, keep, around):
    first = thin(collect(bounds, one), keep, 0.0, 1e9, around)
    assert first.bounds == thin(collect(bounds, other), keep, 0.0, 1e9, around).bounds


@relaxed
@given(all_bounds, samples, limits)
def test_exceedance_of_a_planned_limit_survives_thinning(bounds, seen, around):
    whole = collect(bounds, seen)
    thinned = thin(whole, 2, 0.0, 1e9, around)
    for limit in around:
        assert over(thinned, limit) == over(whole, limit)


@relaxed
@given(all_bounds, samples, samples)
def test_subtraction_is_the_histogram_of_what_came_between(bounds, early, late):
    between = subtract(collect(bounds, early + late), collect(bounds, early))
    assert between is not None
    assert between.counts == collect(bounds, late).counts
    assert math.isclose(between.sum, math.fsum(late), abs_tol=1e-6)


@relaxed
@given(all_bounds, st.lists(st.tuples(st.floats(0.1, 30), samples), min_size=2, max_size=20))
def test_a_window_is_the_readings_since_the_last_that_is_old_enough(bounds, arrivals):
    length, now, seen = 60.0, 0.0, []
    window, readings = HistogramWindow(length), []
    for pause, fresh in arrivals:
        now += pause
        seen = seen + fresh
        reading = collect(bounds, seen)
        window.add(now, reading)
        readings.append((now, reading))
    old = [reading for at, reading in readings[:-1] if at <= now - length]
    expected = subtract(readings[-1][1], old[-1] if old else readings[0][1])
    assert window.read() == expected
