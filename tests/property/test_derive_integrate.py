"""However a signal is cut into polls, the integrals agree; peaks and means equal brute force."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.derive.integrate import Peak, RollingMean, TimeHistogram

BOUNDS = (0, 1, 2, 4, 8, 16, 32)
LENGTH = 20.0
# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)

levels = st.floats(0, 40) | st.integers(0, 40).map(float)
# Knots of a signal of LENGTH seconds: (time, level from here on).
signals = st.lists(st.tuples(st.floats(0.1, LENGTH - 0.1), levels), min_size=1, max_size=12)


def knots_of(signal):
    knots = {0.0: signal[0][1], **dict(signal)}
    return sorted(knots.items())


def step_level(knots, at):
    return [level for time, level in knots if time <= at][-1]


def line_level(knots, at):
    for (t0, y0), (t1, y1) in pairwise([*knots, (LENGTH, knots[-1][1])]):
        if t0 <= at <= t1:
            return y0 if t1 == t0 else y0 + (y1 - y0) * (at - t0) / (t1 - t0)
    raise AssertionError(at)


def poll(level_at, times):
    """What the exporter does between two polls: half of the time to each end."""
    histogram = TimeHistogram(BOUNDS)
    for before, after in pairwise(times):
        histogram.add(level_at(before), (after - before) / 2)
        histogram.add(level_at(after), (after - before) / 2)
    return histogram.snapshot()


def cut_times(cuts):
    return sorted({0.0, LENGTH, *cuts})


def largest_gap(times):
    return max(after - before for before, after in pairwise(times))


def step_integral(knots, top):
    ends = [*(time for time, _ in knots[1:]), LENGTH]
    return math.fsum(
        (end - time) * (level if top is None else level <= top)
        for (time, level), end in zip(knots, ends, strict=True)
    )


cuts = st.lists(st.floats(0, LENGTH), max_size=60)


@relaxed
@given(signals, cuts)
def test_no_cut_of_a_signal_loses_a_millisecond(signal, polls):
    times = cut_times(polls)
    seen = poll(lambda at: step_level(knots_of(signal), at), times)
    assert LENGTH * 1000 - 1.001 <= seen.milliseconds[-1] <= LENGTH * 1000 + 0.001


@relaxed
@given(signals, cuts)
def test_time_at_or_below_each_level_of_a_step_signal_is_right_within_the_sampling_error(
    signal, polls
):
    knots, times = knots_of(signal), cut_times(polls)
    seen = poll(lambda at: step_level(knots, at), times)
    # Only an interval in which the level jumps can be wrong, by half of it and one carry.
    wrong = sum(
        (after - before) / 2 * 1000
        for before, after in pairwise(times)
        if any(before < time <= after for time, _ in knots[1:])
    )
    jumps = any(level != knots[0][1] for _, level in knots)
    for bound, milliseconds in zip(seen.bounds, seen.milliseconds, strict=False):
        exact = step_integral(knots, bound) * 1000
        # Several jumps inside one interval can hide all of it.
        assert abs(milliseconds - exact) <= 2 * wrong + (1 + len(times) if jumps else 1.001)


@relaxed
@given(signals, cuts)
def test_the_mean_of_a_step_signal_is_right_within_the_sampling_error(signal, polls):
    knots, times = knots_of(signal), cut_times(polls)
    seen = poll(lambda at: step_level(knots, at), times)
    top = max(level for _, level in knots)
    unseen = sum(
        after - before
        for before, after in pairwise(times)
        if any(before < time <= after for time, _ in knots[1:])
    )
    carry = 0.001 * top * (2 * len(times))
    assert abs(seen.sum / 1000 - step_integral(knots, None)) <= top * unseen + carry + 1e-6


@relaxed
@given(signals, cuts)
def test_the_mean_of_a_line_polled_at_its_knots_is_exact_but_for_the_carry(signal, polls):
    knots = knots_of(signal)
    times = sorted({*cut_times(polls), *(time for time, _ in knots)})
    seen = poll(lambda at: line_level(knots, at), times)
    ends = [*knots[1:], (LENGTH, knots[-1][1])]
    exact = math.fsum(
        (t1 - t0) * (y0 + y1) / 2 for (t0, y0), (t1, y1) in zip(knots, ends, strict=True)
    )
    # A carry moves less than one millisecond from one poll's level to the next one's.
    moved = sum(
        abs(line_level(knots, after) - line_level(knots, before))
        for before, after in pairwise(times)
    )
    top = max(level for _, level in knots)
    assert abs(seen.sum / 1000 - exact) <= 0.001 * (moved + top) + 1e-6


@relaxed
@given(signals, st.integers(40, 400), st.integers(40, 400))
def test_two_rhythms_of_polling_agree_within_their_sampling_error(signal, one, other):
    knots = knots_of(signal)
    top = max(level for _, level in knots)
    sums = []
    for count in (one, other):
        times = [LENGTH * i / count for i in range(count)] + [LENGTH]
        sums.append(poll(lambda at: step_level(knots, at), times).sum / 1000)
    gaps = LENGTH / one + LENGTH / other
    carry = 0.001 * top * 2 * (one + other + 2)
    assert abs(sums[0] - sums[1]) <= top * len(knots) * gaps + carry


@relaxed
@given(st.lists(st.tuples(levels, st.floats(0, 3)), max_size=40))
def test_a_snapshot_is_cumulative_and_every_bucket_only_grows(adds):
    histogram = TimeHistogram(BOUNDS)
    before = histogram.snapshot()
    for level, seconds in adds:
        histogram.add(level, seconds)
        after = histogram.snapshot()
        assert list(after.milliseconds) == sorted(after.milliseconds)
        assert all(b >= a for a, b in zip(before.milliseconds, after.milliseconds, strict=True))
        assert after.sum >= before.sum
        before = after


@relaxed
@given(st.lists(st.tuples(levels, st.floats(0.0001, 3)), min_size=1, max_size=40))
def test_the_mean_never_leaves_what_was_seen(adds):
    histogram = TimeHistogram(BOUNDS)
    for level, seconds in adds:
        histogram.add(level, seconds)
    seen = histogram.snapshot()
    if seen.milliseconds[-1]:
        mean = seen.sum / seen.milliseconds[-1]
        lowest, highest = min(level for level, _ in adds), max(level for level, _ in adds)
        assert lowest - 1e-9 <= mean <= highest + 1e-9


# --- peaks and rolling means ---------------------------------------------------------------------

# (pause before it, level), and a pause before the question.
series = st.lists(st.tuples(st.floats(0, 30), levels), max_size=40)


@relaxed
@given(series, st.floats(0, 100), st.floats(1, 60))
def test_a_peak_equals_brute_force(points, pause, window):
    peak, seen, now = Peak(window), [], 0.0
    for gap, level in points:
        now += gap
        peak.add(now, level)
        seen.append((now, level))
        inside = [value for time, value in seen if time > now - window]
        assert peak.value(now) == max(inside)
    now += pause
    inside = [value for time, value in seen if time > now - window]
    assert peak.value(now) == max(inside, default=None)


@relaxed
@given(st.lists(st.tuples(st.floats(0.05, 5), levels), min_size=1, max_size=80), st.floats(0, 80))
def test_a_rolling_mean_lies_between_brute_force_over_one_cell_less_and_the_whole_window(
    points, pause
):
    window, cells = 60.0, 30
    span = window / cells
    rolling, seen, now = RollingMean(window, cells), [], 0.0
    for seconds, level in points:
        now += seconds
        rolling.add(now, level * seconds, seconds)
        seen.append((now, level, seconds))
    now += pause
    # The window's far edge stands on a cell's edge: somewhere between window - span and window.
    edge = (now // span - cells + 1) * span
    assert now - window <= edge <= now - window + span + 1e-9
    inside = [(level, seconds) for end, level, seconds in seen if end // span * span >= edge - 1e-9]
    total = math.fsum(seconds for _, seconds in inside)
    got = rolling.mean(now, at_least=0.01)
    if not inside:
        assert got is None
    else:
        mean = math.fsum(level * seconds for level, seconds in inside) / total
        assert got is not None
        assert math.isclose(got, mean, rel_tol=1e-9, abs_tol=1e-9)


@relaxed
@given(st.lists(st.tuples(st.floats(0.05, 5), levels), min_size=1, max_size=80))
def test_a_rolling_mean_of_a_constant_is_the_constant(points):
    rolling, now = RollingMean(60.0), 0.0
    for seconds, _ in points:
        now += seconds
        rolling.add(now, 7.0 * seconds, seconds)
    got = rolling.mean(now, at_least=0.01)
    assert got is not None
    assert math.isclose(got, 7.0)
