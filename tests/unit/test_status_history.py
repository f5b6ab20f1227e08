"""The ring of the last 15 minutes: bounded, at poll resolution, honest about gaps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.samples import EngineState, HeadroomState, Histogram, RankSample
from headroom_exporter.status.history import LEVELS, MAX_ROWS, WINDOW_SECONDS, History, Ring
from headroom_exporter.status.recent import STEP_SECONDS, Recent
from status_scenes import MODEL, bare_rank, engine, rank

OK = HeadroomState.OK
NOTHING = (None,) * len(LEVELS)
KEY = ("e", "0", MODEL)
PROMPTS = "request_prompt_tokens"


def levels(running: float | None) -> tuple[float | None, ...]:
    return (running, *NOTHING[1:])


def at(engine: EngineState, seconds: float) -> EngineState:
    return replace(engine, last_success_monotonic=seconds, stale_after=6.0)


# --- the ring ------------------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in_and_unknown_is_none():
    ring = Ring()
    ring.add(10.0, OK, levels(3.0))
    ring.add(10.25, HeadroomState.UNKNOWN, NOTHING)
    found = ring.columns()
    assert found["time"] == [10.0, 10.25]
    assert found["state"] == ["ok", "unknown"]
    assert found["running"] == [3, None]
    assert found["capacity_slots"] == [None, None]
    assert set(found) == {"time", "state", *LEVELS}


def test_a_number_too_large_for_a_column_is_unknown_and_still_json():
    ring = Ring()
    ring.add(10.0, OK, levels(1.7e308))
    assert json.loads(json.dumps(ring.columns(), allow_nan=False))["running"] == [None]


def test_a_reader_gets_only_what_it_has_not_seen():
    ring = Ring()
    for i in range(5):
        ring.add(100.0 + i / 3, OK, levels(float(i)))
    first = ring.columns(offset=1e9)
    ring.add(110.0, OK, levels(9.0))
    later = ring.columns(offset=1e9, after=first["time"][-1])
    assert (later["time"], later["running"]) == ([1e9 + 110.0], [9])


def test_a_row_that_is_not_newer_is_ignored():
    ring = Ring()
    for when in (5.0, 5.0, 4.0):
        ring.add(when, OK, levels(1.0))
    assert ring.columns()["time"] == [5.0]


def test_what_is_older_than_15_minutes_goes():
    ring = Ring()
    for second in range(3000):
        ring.add(float(second), OK, levels(float(second)))
    found = ring.columns()
    assert found["time"] == [float(s) for s in range(2999 - int(WINDOW_SECONDS), 3000)]
    assert found["running"][0] == found["time"][0]


@pytest.mark.parametrize(("rate", "most"), [(1, 90_000), (10, 900_000), (100, 900_000)])
def test_memory_is_bounded_far_below_4_mib_whatever_the_rate(rate, most):
    ring = Ring()
    for i in range(40_000):
        ring.add(i / rate, OK, levels(1.0))
    assert len(ring) == min(MAX_ROWS, int(WINDOW_SECONDS * rate) + 1)
    assert ring.nbytes < most < 4 * 2**20


@given(
    st.lists(st.floats(0.001, 400.0), min_size=1, max_size=300),
    st.floats(0.0, 2000.0),
)
def test_rows_are_in_order_within_the_window_and_after_what_was_asked(gaps, after):
    ring, now = Ring(), 0.0
    for gap in gaps:
        now += gap
        ring.add(now, OK, levels(now))
    times = ring.columns(after=after)["time"]
    assert times == sorted(times)
    assert all(time > after for time in times)
    assert all(time >= now - WINDOW_SECONDS - 0.001 for time in times)
    assert (now > after + 0.001) <= (round(now, 3) in times)


# --- what is noted -------------------------------------------------------------------------------


def test_a_poll_is_noted_once():
    history, seen = History(), at(engine("e"), 50.0)
    history.note(seen, 50.1)
    history.note(seen, 50.9)
    ring = history.ring(KEY)
    assert ring is not None
    found = ring.columns()
    assert found["time"] == [50.0]
    assert (found["running"], found["waiting"], found["kv_usage"]) == ([15], [1], [0.632])
    assert (found["sustainable"], found["capacity_latency"]) == ([22], [28])


def test_an_engine_that_goes_away_leaves_a_gap_only_once_its_numbers_are_stale():
    history = History()
    history.note(at(engine("e"), 50.0), 50.0)
    failed = replace(at(engine("e"), 50.0), up=False)
    history.note(failed, 55.0)
    ring = history.ring(KEY)
    assert ring is not None
    assert ring.columns()["time"] == [50.0]
    history.note(failed, 57.0)
    found = ring.columns()
    assert found["time"] == [50.0, 57.0]
    assert found["running"] == [15, None]
    assert found["state"][-1] == "unknown"


def test_gauges_that_are_not_believed_are_not_drawn():
    shown = rank()
    assert shown.derived is not None
    stale = replace(shown, derived=replace(shown.derived, demand=None))
    history = History()
    history.note(replace(at(engine("e"), 5.0), ranks=(stale,)), 5.0)
    ring = history.ring(KEY)
    assert ring is not None
    assert ring.columns()["running"] == [None]


def test_what_the_state_shows_no_more_is_forgotten():
    history = History()
    both = replace(at(engine("e"), 5.0), ranks=(rank("0"), bare_rank("1")))
    history.note(both, 5.0)
    history.note(at(engine("f"), 5.0), 5.0)
    history.note(at(engine("e"), 6.0), 6.0)
    assert history.ring(KEY) is not None
    assert history.ring(("e", "1", MODEL)) is None
    history.forget("e")
    assert history.ring(KEY) is None
    assert history.ring(("f", "0", MODEL)) is not None


# --- recent requests -----------------------------------------------------------------------------


def sample(count: float, finished: float = 0.0, running: float = 0.0) -> RankSample:
    histogram = Histogram(bounds=(10.0,), counts=(0.0, count), sum=count * 20)
    return RankSample(
        rank="0",
        model_name="m",
        running=running,
        waiting=0.0,
        finished={"stop": finished, "length": 1.0},
        histograms={PROMPTS: histogram},
    )


def test_recent_is_what_came_within_the_window():
    recent = Recent(900.0)
    for minute in range(31):
        recent.add(60.0 * minute, sample(10.0 * minute, 10.0 * minute))
    seen = recent.histogram(PROMPTS)
    assert seen is not None
    assert seen.count == 150.0
    assert recent.seconds == 900.0
    assert recent.request_rate() == pytest.approx(150.0 / 900.0)


def test_readings_between_minutes_are_read_but_not_kept():
    recent = Recent(900.0)
    for second in range(0, 3000, 10):
        recent.add(float(second), sample(float(second)))
    assert len(recent._readings) <= 900.0 / STEP_SECONDS + 2
    seen = recent.histogram(PROMPTS)
    assert seen is not None
    assert 890.0 <= seen.count <= 970.0


def test_an_engine_without_one_of_the_histograms_still_has_the_others():
    recent = Recent(WINDOW_SECONDS)
    for at, count in ((0.0, 0.0), (60.0, 30.0)):
        told = sample(count)
        waits = {"time_to_first_token_seconds": told.histograms[PROMPTS]}
        recent.add(at, replace(told, histograms=waits))
    waited = recent.histogram("time_to_first_token_seconds")
    assert waited is not None
    assert waited.count == 30.0


def test_a_request_counts_when_it_comes_not_when_it_ends():
    recent = Recent(900.0)
    recent.add(0.0, sample(0.0, finished=0.0, running=5.0))
    recent.add(10.0, sample(1.0, finished=5.0, running=20.0))
    assert recent.request_rate() == pytest.approx(2.0)


def test_a_restarted_engine_begins_anew():
    recent = Recent(900.0)
    recent.add(0.0, sample(100.0))
    recent.add(60.0, sample(200.0))
    recent.add(120.0, sample(3.0))
    assert recent.histogram(PROMPTS) is None
    assert recent.request_rate() is None
    recent.add(180.0, sample(8.0))
    seen = recent.histogram(PROMPTS)
    assert seen is not None
    assert seen.count == 5.0


def test_nothing_is_said_of_one_reading_or_of_an_engine_that_tells_nothing():
    recent = Recent(900.0)
    assert recent.histogram(PROMPTS) is None
    for second in (0.0, 60.0, 120.0):
        recent.add(second, RankSample(rank="0", model_name="m", running=1.0))
    assert recent.histogram(PROMPTS) is None
    assert recent.request_rate() is None
    assert not math.isnan(recent.seconds)
