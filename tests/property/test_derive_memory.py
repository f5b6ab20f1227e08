"""Whatever samples come, in whatever rhythm: nothing is lost, nothing goes back, unknown is no number."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.config import PlanConfig
from headroom_exporter.derive.memory import COUNTERS, RankMemory
from headroom_exporter.samples import HeadroomState, RankSample

# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)
MAX_GAP = 5.0

gauges = st.none() | st.integers(0, 40).map(float)
usages = st.none() | st.floats(0, 1)
# How far each counter moves: mostly on, seldom back (a restart), seldom absent.
moves = st.sampled_from([0.0, 0.0, 1.0, 5.0, 40.0, 300.0, -1000.0, None])
PAUSES = [0.0, 0.1, 0.25, 1.0, 2.0, 5.0, 5.5, 60.0]


def scripts(pauses, max_size):
    """Stretches of equal polls."""
    polls = st.fixed_dictionaries(
        {
            "pause": st.sampled_from(pauses),
            "running": gauges,
            "waiting": gauges,
            "kv_usage": usages,
            "counters": st.tuples(*(moves for _ in COUNTERS)),
            "repeat": st.integers(1, 12),
        }
    )
    return st.lists(polls, max_size=max_size)


# No clock does it, but if one went back, nothing should be lost.
any_scripts = scripts([*PAUSES, -1.0], 25)


def play(script):
    """(time, sample) of a script; a counter never falls below 0."""
    now, counters = 0.0, dict.fromkeys(COUNTERS, 0.0)
    for poll in script:
        for _ in range(poll["repeat"]):
            now += poll["pause"]
            shown = {}
            for counter, move in zip(COUNTERS, poll["counters"], strict=True):
                if move is not None:
                    counters[counter] = max(0.0, counters[counter] + move)
                    shown[counter] = counters[counter]
            yield (
                now,
                RankSample(
                    rank="0",
                    model_name="m",
                    running=poll["running"],
                    waiting=poll["waiting"],
                    kv_usage=poll["kv_usage"],
                    inter_token_seconds=shown.get("inter_token_count", 0.0) * 0.01,
                    **shown,
                ),
            )


def restarted(before, after):
    pairs = [(getattr(before, c), getattr(after, c)) for c in COUNTERS]
    return any(None not in pair and pair[1] < pair[0] for pair in pairs)


def cumulative(snapshot):
    for histogram in (snapshot.effective_batch, snapshot.demand, snapshot.kv_occupancy):
        yield from histogram.milliseconds
        yield histogram.sum
    yield from snapshot.state_seconds.values()
    yield from snapshot.constraint_seconds.values()


@relaxed
@given(any_scripts)
def test_no_counter_ever_decreases(script):
    memory = RankMemory(MAX_GAP)
    before = list(cumulative(memory.snapshot(0.0)))
    for now, sample in play(script):
        memory.observe(now, sample)
        after = list(cumulative(memory.snapshot(now)))
        assert all(b >= a for a, b in zip(before, after, strict=True))
        before = after


@relaxed
@given(any_scripts)
def test_every_observed_second_is_in_one_state_and_no_other_is(script):
    memory, observed, previous = RankMemory(MAX_GAP), 0.0, None
    for now, sample in play(script):
        memory.observe(now, sample)
        if previous is not None and not restarted(previous[1], sample):
            observed += now - previous[0] if 0 < now - previous[0] <= MAX_GAP else 0.0
        previous = now, sample
    seen = memory.snapshot(0.0)
    assert sum(seen.state_seconds.values()) == pytest.approx(observed)
    known = seen.demand.milliseconds[-1] / 1000
    assert known <= observed + 1e-6
    assert sum(seen.constraint_seconds.values()) <= known + 0.0011
    assert seen.effective_batch.milliseconds[-1] == seen.demand.milliseconds[-1]
    assert seen.kv_occupancy.milliseconds[-1] <= seen.demand.milliseconds[-1] + 1


@relaxed
@given(any_scripts, st.none() | st.floats(1, 64))
def test_what_is_derived_agrees_with_itself(script, slots):
    memory = RankMemory(MAX_GAP)
    plan = PlanConfig(floor_ratio=0.2, concurrency=16)
    for now, sample in play(script):
        seen = memory.observe(now, replace(sample, argument_slots=slots), plan)
        unknown = sample.running is None or sample.waiting is None or seen.reason == "stale_gauges"
        assert (seen.demand is None) is unknown
        if unknown:
            assert seen.state is HeadroomState.UNKNOWN
            assert (seen.headroom, seen.ratio, seen.spike_multiple) == (None, None, None)
        if seen.state is HeadroomState.UNKNOWN:
            assert (seen.headroom, seen.ratio, seen.spike_multiple) == (None, None, None)
        if seen.headroom is not None:
            assert seen.headroom == seen.sustainable - seen.demand
        if seen.ratio is not None:
            assert seen.ratio <= 1
            assert seen.ratio == pytest.approx(1 - seen.demand / seen.sustainable)
        if seen.state is HeadroomState.OK:
            assert seen.ratio >= plan.floor_ratio
            assert seen.headroom > 0
        if seen.state is HeadroomState.LOW:
            assert 0 < seen.ratio < plan.floor_ratio
        if seen.binding is not None and seen.sustainable is not None:
            assert seen.capacities[seen.binding] == seen.sustainable
        for number in (
            seen.sustainable,
            seen.ratio,
            seen.spike_multiple,
            *seen.capacities.values(),
        ):
            assert number is None or math.isfinite(number)


@relaxed
@given(any_scripts, st.none() | st.floats(1, 64))
def test_while_a_queue_stands_no_more_is_sustained_than_ran_within_the_last_seconds(script, slots):
    memory, ran, start = RankMemory(MAX_GAP), [], 0
    previous = None
    for now, sample in play(script):
        seen = memory.observe(now, replace(sample, argument_slots=slots), None)
        if previous is not None and restarted(previous, sample):
            start = len(ran)
        previous = sample
        ran.append((now, sample.running))
        if seen.reason == "waiting":
            lately = [level for at, level in ran[start:] if at > now - 5.0 and level is not None]
            assert seen.sustainable <= max(lately)


@relaxed
@given(scripts(PAUSES, 12))
def test_any_number_of_readers_change_nothing(script):
    read_often, read_once = RankMemory(MAX_GAP), RankMemory(MAX_GAP)
    now = 0.0
    for now, sample in play(script):
        first, second = read_often.observe(now, sample), read_once.observe(now, sample)
        assert first == second
        for _ in range(3):
            read_often.snapshot(now)
    assert read_often.snapshot(now) == read_once.snapshot(now)


# --- one traffic, many rhythms -------------------------------------------------------------------

TICK = 0.05
LENGTH = 120.0


def traffic(seed):
    """Running, waiting and usage at every TICK: birth and death of sequences of known size in 12 slots."""
    draw, leaving, waiting, series = random.Random(seed), [], 0, []
    for _ in range(int(LENGTH / TICK)):
        leaving = [left - 1 for left in leaving if left > 1]
        waiting += draw.random() < 0.18
        while waiting and len(leaving) < 12:
            waiting -= 1
            leaving.append(draw.randint(20, 100))
        series.append((float(len(leaving)), float(waiting), 0.03 * len(leaving)))
    return series


def watch(series, times):
    memory = RankMemory(MAX_GAP)
    for now in times:
        running, waiting, usage = series[min(len(series) - 1, int(now / TICK))]
        memory.observe(
            now,
            RankSample(
                rank="0",
                model_name="m",
                running=running,
                waiting=waiting,
                kv_usage=usage,
                steps=now,
            ),
        )
    return memory.snapshot(times[-1])


@settings(relaxed, max_examples=25)
@given(st.integers(0, 1000), st.lists(st.floats(0.05, 0.45), min_size=1, max_size=40))
def test_however_traffic_is_cut_into_polls_the_integrals_agree(seed, pauses):
    series = traffic(seed)
    irregular = [0.0]
    while irregular[-1] < LENGTH - 1:
        irregular.append(irregular[-1] + pauses[len(irregular) % len(pauses)])
    regular = [0.25 * i for i in range(int(irregular[-1] / 0.25) + 1)]
    seen, reference = watch(series, irregular), watch(series, regular)
    length = irregular[-1]
    inside = series[: int(length / TICK)]
    for field, column in (("effective_batch", 0), ("kv_occupancy", 2)):
        truth = math.fsum(levels[column] for levels in inside) / len(inside)
        for snapshot, watched in ((seen, length), (reference, regular[-1])):
            histogram = getattr(snapshot, field)
            assert histogram.milliseconds[-1] == pytest.approx(watched * 1000, abs=1.01)
            assert histogram.sum / histogram.milliseconds[-1] == pytest.approx(truth, rel=0.04)
    demand = math.fsum(running + waiting for running, waiting, _ in inside) / len(inside)
    assert seen.demand.sum / seen.demand.milliseconds[-1] == pytest.approx(demand, rel=0.04)
    top = max(running for running, _, _ in inside)
    assert seen.peak_running[300] <= top


def test_the_traffic_above_moves():
    levels = {running for running, _, _ in traffic(1)}
    assert len(levels) > 5
    assert any(one != other for one, other in pairwise(traffic(1)))
