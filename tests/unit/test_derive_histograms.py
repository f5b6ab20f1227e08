"""What can be read from an engine's histograms: table by table."""

from __future__ import annotations

import pytest

from headroom_exporter.derive.histograms import HistogramWindow, over, quantile, subtract, thin
from headroom_exporter.samples import Histogram

BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)


def histogram(counts, bounds=BOUNDS, total=0.0):
    return Histogram(bounds=bounds, counts=tuple(map(float, counts)), sum=total)


SEEN = histogram((10, 30, 60, 90, 95, 100))


def test_a_quantile_is_linear_inside_its_bucket():
    assert quantile(SEEN, 0.5) == pytest.approx(2 + 3 * (50 - 30) / 30)
    assert quantile(SEEN, 0.95) == pytest.approx(20.0)
    assert quantile(SEEN, 0.9) == pytest.approx(10.0)


@pytest.mark.parametrize("q", [0.0, 0.05, 0.1])
def test_a_quantile_in_the_first_bucket_is_unknown(q):
    assert quantile(SEEN, q) is None


@pytest.mark.parametrize("q", [0.951, 1.0])
def test_a_quantile_beyond_the_last_bound_is_unknown(q):
    assert quantile(SEEN, q) is None


def test_a_quantile_of_nothing_is_unknown():
    assert quantile(histogram((0,) * 6), 0.5) is None


def test_empty_buckets_do_not_disturb_a_quantile():
    assert quantile(histogram((0, 0, 0, 8, 8, 8)), 0.5) == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (5.0, (40.0, 40.0)),  # an edge: exact
        (7.0, (10.0, 40.0)),  # between two edges
        (0.5, (90.0, 100.0)),  # below the first
        (1.0, (90.0, 90.0)),
        (20.0, (5.0, 5.0)),
        (50.0, (0.0, 5.0)),  # beyond the last: at most what lies there
    ],
)
def test_over_is_bracketed_by_the_two_edges_around_the_limit(limit, expected):
    assert over(SEEN, limit) == expected


def test_subtracting_gives_what_was_observed_between():
    later = histogram((10, 31, 63, 95, 101, 108), total=70.0)
    between = subtract(later, histogram((10, 30, 60, 90, 95, 100), total=50.0))
    assert between == histogram((0, 1, 3, 5, 6, 8), total=20.0)


def test_a_restart_and_new_bounds_leave_nothing_to_subtract():
    assert subtract(histogram((0, 0, 0, 0, 0, 1)), SEEN) is None
    assert subtract(histogram((10, 20), bounds=(1.0,)), SEEN) is None


# --- thinning ------------------------------------------------------------------------------------

ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


def itl(counts=None):
    counts = counts or range(1, len(ITL) + 2)
    return histogram(counts, bounds=ITL, total=12.0)


def test_thinning_keeps_the_ends_of_the_range_and_spreads_the_rest():
    thinned = thin(itl(), keep=6, low=0.025, high=2.5)
    assert len(thinned.bounds) == 6
    assert (thinned.bounds[0], thinned.bounds[-1]) == (0.025, 2.5)
    steps = [high / low for low, high in zip(thinned.bounds, thinned.bounds[1:], strict=False)]
    assert max(steps) < 4.1


def test_thinning_keeps_what_there_is_when_it_is_little():
    assert thin(itl(), keep=100, low=0.0, high=100.0) == itl()


def test_the_bounds_around_a_planned_limit_stay_even_outside_the_range():
    thinned = thin(itl(), keep=4, low=0.1, high=1.0, around=(0.06, 6.0))
    assert {0.05, 0.075, 5.0, 7.5} <= set(thinned.bounds)


def test_a_limit_that_is_a_bound_needs_only_that_one():
    thinned = thin(itl(), keep=3, low=0.1, high=1.0, around=(0.4,))
    assert thinned.bounds == (0.1, 0.4, 1.0)


def test_a_limit_beyond_all_bounds_pins_the_nearest_one():
    assert thin(itl(), keep=2, low=0.1, high=1.0, around=(99.0,)).bounds[-1] == 10.0


def test_more_pinned_bounds_than_kept_all_stay():
    thinned = thin(itl(), keep=2, low=0.01, high=10.0, around=(0.06, 0.35, 3.0))
    assert {0.05, 0.075, 0.3, 0.4, 2.5, 5.0} <= set(thinned.bounds)


def test_a_bound_of_zero_can_be_thinned():
    # --custom-histogram-buckets lets an owner begin anywhere.
    bounds = (0.0, 1.0, 2.0, 3.0, 4.0)
    thinned = thin(histogram(range(6), bounds=bounds), keep=3, low=0.0, high=4.0)
    assert len(thinned.bounds) == 3
    assert thinned.bounds[0] == 0.0


# --- the window ----------------------------------------------------------------------------------


def at(count):
    return histogram((0, count, count, count, count, count), total=float(count))


def test_one_reading_is_not_yet_a_window():
    window = HistogramWindow(300.0)
    assert window.read() is None
    window.add(0.0, at(5))
    assert window.read() is None


def test_a_window_holds_what_was_observed_in_about_its_length():
    window = HistogramWindow(300.0)
    for now in range(0, 1001, 10):
        window.add(float(now), at(now))
    # The oldest reading kept is the last that is 300 s old.
    assert window.read().count == 300


def test_a_pause_longer_than_the_window_still_leaves_two_readings():
    window = HistogramWindow(300.0)
    window.add(0.0, at(5))
    window.add(10_000.0, at(9))
    assert window.read().count == 4


def test_a_window_starts_again_with_the_engine():
    window = HistogramWindow(300.0)
    window.add(0.0, at(500))
    window.add(10.0, at(510))
    window.add(20.0, at(2))
    assert window.read() is None
    window.add(30.0, at(7))
    assert window.read().count == 5


def test_a_window_starts_again_with_new_bounds():
    window = HistogramWindow(300.0)
    window.add(0.0, at(5))
    window.add(10.0, itl())
    assert window.read() is None
