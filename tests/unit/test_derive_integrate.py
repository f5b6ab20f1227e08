"""Integrals over time: the edges. That any cut of a signal gives the same is in tests/property."""

from __future__ import annotations

import pytest

from headroom_exporter.derive.integrate import (
    BATCH_BOUNDS,
    OCCUPANCY_BOUNDS,
    Peak,
    RollingMean,
    SecondsBy,
    TimeHistogram,
)


def test_a_level_on_a_bound_counts_at_or_below_it():
    histogram = TimeHistogram((1, 2, 4))
    histogram.add(2, 1.0)
    assert histogram.snapshot().milliseconds == (0, 1000, 1000, 1000)


def test_a_level_just_above_a_bound_counts_above_it():
    histogram = TimeHistogram((1, 2, 4))
    histogram.add(2.0001, 1.0)
    assert histogram.snapshot().milliseconds == (0, 0, 1000, 1000)


def test_a_level_beyond_all_bounds_counts_only_in_the_total():
    histogram = TimeHistogram((1, 2, 4))
    histogram.add(5, 1.0)
    assert histogram.snapshot().milliseconds == (0, 0, 0, 1000)


def test_level_zero_is_time_too():
    histogram = TimeHistogram(BATCH_BOUNDS)
    histogram.add(0, 2.5)
    seen = histogram.snapshot()
    assert seen.milliseconds == (2500,) * (len(BATCH_BOUNDS) + 1)
    assert seen.sum == 0.0


def test_what_is_less_than_a_millisecond_is_carried_not_lost():
    histogram = TimeHistogram((1,))
    for _ in range(10_000):
        histogram.add(1, 0.00025)
    assert histogram.snapshot().milliseconds == pytest.approx((2500, 2500), abs=1)


def test_the_sum_is_level_times_milliseconds():
    histogram = TimeHistogram(BATCH_BOUNDS)
    histogram.add(3, 0.5)
    histogram.add(10, 0.25)
    assert histogram.snapshot().sum == 3 * 500 + 10 * 250


def test_a_snapshot_does_not_change_when_time_goes_on():
    histogram = TimeHistogram((1,))
    histogram.add(1, 1.0)
    seen = histogram.snapshot()
    histogram.add(1, 1.0)
    assert seen.milliseconds == (1000, 1000)


@pytest.mark.parametrize("bounds", [BATCH_BOUNDS, OCCUPANCY_BOUNDS])
def test_published_bounds_ascend(bounds):
    assert list(bounds) == sorted(set(bounds))


def test_seconds_by_shows_every_key_and_none_counts_nowhere():
    seconds = SecondsBy(("a", "b"))
    seconds.add("a", 1.5)
    seconds.add(None, 7.0)
    seconds.add("a", 0.25)
    assert dict(seconds.snapshot()) == {"a": 1.75, "b": 0.0}


def test_a_peak_leaves_exactly_one_window_after_it_was_seen():
    peak = Peak(60)
    peak.add(0.0, 9.0)
    peak.add(1.0, 3.0)
    assert peak.value(59.999) == 9.0
    assert peak.value(60.0) == 3.0
    assert peak.value(61.0) is None


def test_a_peak_of_nothing_is_unknown():
    assert Peak(60).value(0.0) is None


def test_a_rolling_mean_waits_for_enough_seconds():
    mean = RollingMean(60)
    mean.add(1.0, 4.0, 1.0)
    assert mean.mean(1.0, at_least=5.0) is None
    mean.add(5.0, 16.0, 4.0)
    assert mean.mean(5.0, at_least=5.0) == pytest.approx(4.0)


def test_a_rolling_mean_forgets_what_left_its_window():
    mean = RollingMean(60)
    for second in range(1, 61):
        mean.add(float(second), 100.0, 1.0)
    for second in range(61, 130):
        mean.add(float(second), 1.0, 1.0)
    assert mean.mean(129.0, at_least=5.0) == pytest.approx(1.0)
    assert mean.mean(500.0, at_least=5.0) is None
