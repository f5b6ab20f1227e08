"""
The mathematics on two recordings of a real vLLM 0.32: what it said must be what math.md found in it.

Recorded with 48 slots and a pool of 71 x 128 tokens (ramp: 2, 8, 16, 28, 40, 8, 1 clients), and with 16
slots and a pool that is never full (slots: 4, 12, 24, 40, 6 clients).
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from headroom_exporter.derive.memory import RankMemory, completed
from headroom_exporter.derive.step_time import StepMeter, knee, step_seconds, window
from headroom_exporter.engines.base import parse_page
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.samples import Constraint, HeadroomState

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
POOL = 71 * 128


@cache
def recording(name):
    """(time, sample) of every page; the engine was stopped before the last one of ``slots``."""
    samples = []
    with gzip.open(RECORDINGS / f"vllm-0.32.0-{name}.jsonl.gz", "rt") as file:
        for line in file:
            page = json.loads(line)
            if page["text"]:
                read = VLLM.read(parse_page(page["text"].encode(), VLLM.full_names))
                samples.append((page["t"] + page["dur"], read.ranks[0]))
    return samples


def watch(samples):
    """A fresh memory fed with the samples: (memory, answers, end)."""
    memory = RankMemory(max_gap=5.0)
    answers = [memory.observe(now, sample) for now, sample in samples]
    return memory, answers, samples[-1][0]


def between(name, start, end):
    return [(now, sample) for now, sample in recording(name) if start <= now < end]


# --- section 2: from any phase alone, the pool's capacity ----------------------------------------


@pytest.mark.parametrize(
    ("clients", "start", "end", "mean", "ceiling", "capacity"),
    [
        (2, 3, 15, 382, 23.8, 19),
        (8, 15, 30, 377, 24.1, 20),
        (16, 30, 45, 380, 23.9, 19),
        (28, 45, 70, 381, 23.8, 18),
        (40, 70, 95, 368, 24.7, 17),
    ],
)
def test_each_phase_alone_tells_the_capacity(clients, start, end, mean, ceiling, capacity):
    memory, answers, at = watch(between("ramp", start, end))
    footprint = memory.snapshot(at).footprint
    assert footprint.basis == "live"
    assert footprint.mean * POOL == pytest.approx(mean, rel=0.02)
    assert 1 / footprint.mean == pytest.approx(ceiling, rel=0.02)
    assert answers[-1].capacities[Constraint.KV_CACHE] == pytest.approx(capacity, abs=1)


def test_the_calm_phase_foretells_the_plateau():
    _, calm, _ = watch(between("ramp", 0, 15))
    memory, _, at = watch(between("ramp", 0, 15))
    plateau = [sample.running for _, sample in between("ramp", 50, 95)]
    ceiling = 1 / memory.snapshot(at).footprint.mean
    assert ceiling == pytest.approx(sum(plateau) / len(plateau), rel=0.15)
    # Sixteen ran without a preemption, the plateau does not.
    assert 16 < calm[-1].sustainable < sum(plateau) / len(plateau)


# --- the time line -------------------------------------------------------------------------------


def test_the_ramp_is_exhausted_while_it_preempts_and_ok_before_and_after():
    samples = recording("ramp")
    _, answers, _ = watch(samples)
    timeline = list(zip(samples, answers, strict=True))
    for (now, _), seen in timeline:
        if 10 < now < 30 or 105 < now < 129:
            assert seen.state is HeadroomState.OK, now
        if 51 < now < 98:
            assert seen.state is HeadroomState.EXHAUSTED, now
            assert seen.binding is Constraint.KV_CACHE, now
    # Demand was above the capacity known from before, half a second before the first preemption.
    first = next(now for now, sample in samples if sample.preemptions)
    warned = next(
        now for (now, _), seen in timeline if seen.state is HeadroomState.EXHAUSTED and now > 30
    )
    assert warned <= first


def test_no_calm_sample_of_a_real_engine_shows_a_persistent_queue():
    for name, start, end in (("ramp", 3, 45), ("slots", 3, 30)):
        _, answers, _ = watch(between(name, start, end))
        assert "waiting" not in {seen.reason for seen in answers}


def test_sixteen_slots_are_inferred_once_they_bind_and_kept():
    samples = recording("slots")
    _, answers, _ = watch(samples)
    for (now, _), seen in zip(samples, answers, strict=True):
        if now < 33:
            assert seen.max_sequences == {}
        if now > 40:
            assert seen.max_sequences == {"inferred": 16.0}
            assert seen.capacities[Constraint.SLOTS] == 16
        if 40 < now < 72:
            assert (seen.state, seen.binding) == (HeadroomState.EXHAUSTED, Constraint.SLOTS)
        if now > 77:
            assert seen.state is HeadroomState.OK


def test_nothing_is_inferred_where_the_cache_holds_the_plateau():
    _, answers, _ = watch(recording("ramp"))
    assert all(seen.max_sequences == {} for seen in answers)


@pytest.mark.parametrize("name", ["ramp", "slots"])
def test_while_a_queue_stands_no_more_is_sustained_than_ran_lately(name):
    samples = recording(name)
    _, answers, _ = watch(samples)
    for at, seen in enumerate(answers):
        if seen.reason == "waiting":
            lately = [s.running for now, s in samples[: at + 1] if now > samples[at][0] - 5.0]
            assert seen.sustainable <= max(lately)


# --- section 4: the step time --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ramp", "slots"])
def test_the_step_time_is_in_the_published_range(name):
    memory, _, at = watch(recording(name))
    fit = memory.snapshot(at).fit
    assert 0.0010 <= fit.fixed <= 0.0015
    assert 0.00015 <= fit.per_sequence <= 0.00027
    assert knee(fit) == pytest.approx(4 * fit.fixed / fit.per_sequence)
    # Batch and prompts rose together: their cost cannot be told apart here.
    assert fit.per_prefill_token is None
    assert fit.batch_max == pytest.approx({"ramp": 26.4, "slots": 16.0}[name], abs=0.2)


def windows_of(name):
    start, seen = None, []
    for now, sample in recording(name):
        if not sample.running:
            start = None
        elif start is None:
            start = now, sample
        elif now - start[0] >= 2.0:
            seen.append((start[1], sample, now - start[0]))
            start = now, sample
    return seen


def test_every_window_of_a_busy_engine_counts():
    """The idle test must not reject what was busy: 95 windows of closed-loop load."""
    whole = [window(*ends) for name in ("ramp", "slots") for ends in windows_of(name)]
    assert len(whole) > 90
    assert sum(one is not None for one in whole) >= len(whole) - 1


def test_a_second_of_idleness_in_a_busy_window_is_noticed():
    for name in ("ramp", "slots"):
        for before, after, seconds in windows_of(name):
            assert window(before, after, seconds + 1.0) is None


def test_the_fit_of_one_half_predicts_the_other():
    windows = [window(*ends) for name in ("slots",) for ends in windows_of(name)]
    known = [one for one in windows if one is not None]
    meter = StepMeter()
    for one in known[::2]:
        meter.add(one)
    fit = meter.read()
    errors = [abs(step_seconds(fit, one.batch) / one.step - 1) for one in known[1::2]]
    assert sum(errors) / len(errors) < 0.10


# --- one traffic, three rhythms ------------------------------------------------------------------


def gauge_mean(histogram):
    return histogram.sum / histogram.milliseconds[-1]


@pytest.mark.parametrize("name", ["ramp", "slots"])
@pytest.mark.parametrize(("every", "offset"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_at_any_rhythm_the_integrals_and_the_plateau_are_the_same(name, every, offset):
    samples = recording(name)
    memory, answers, at = watch(samples)
    fewer, few_answers, few_at = watch(samples[offset::every])
    whole, part = memory.snapshot(at), fewer.snapshot(few_at)
    for field in ("demand", "effective_batch", "kv_occupancy"):
        assert gauge_mean(getattr(part, field)) == pytest.approx(
            gauge_mean(getattr(whole, field)), rel=0.04
        )
    assert part.footprint.mean == pytest.approx(whole.footprint.mean, rel=0.03)
    assert part.footprint.stddev == pytest.approx(whole.footprint.stddev, rel=0.15)
    assert part.fit.fixed == pytest.approx(whole.fit.fixed, rel=0.15)
    assert part.fit.per_sequence == pytest.approx(whole.fit.per_sequence, rel=0.15)
    assert few_answers[-1].max_sequences == answers[-1].max_sequences
    assert few_answers[-1].sustainable == pytest.approx(answers[-1].sustainable, abs=1)
    # Sixteen of 19 or 20 is low or just not: those two together.
    for states in ((HeadroomState.OK, HeadroomState.LOW), (HeadroomState.EXHAUSTED,)):
        few, many = (sum(seen.state_seconds[state] for state in states) for seen in (part, whole))
        assert few == pytest.approx(many, abs=2.5)


@pytest.mark.parametrize("name", ["ramp", "slots"])
def test_mean_batch_by_gauge_and_by_counters_agree(name):
    """Time-weighted running from gauges against generated tokens per step: no sampling in the latter."""
    for start, end in ((20, 29), (55, 68)):
        samples = between(name, start, end)
        memory, _, at = watch(samples)
        first, last = samples[0][1], samples[-1][1]
        per_step = (last.generation_tokens - first.generation_tokens) / (last.steps - first.steps)
        assert gauge_mean(memory.snapshot(at).effective_batch) == pytest.approx(per_step, rel=0.05)


@pytest.mark.parametrize("name", ["ramp", "slots"])
def test_all_time_is_integrated_and_nothing_else(name):
    samples = recording(name)
    memory, _, at = watch(samples)
    seen = memory.snapshot(at)
    observed = samples[-1][0] - samples[0][0]
    assert sum(seen.state_seconds.values()) == pytest.approx(observed)
    assert seen.demand.milliseconds[-1] == pytest.approx(observed * 1000, abs=1)


@pytest.mark.parametrize("name", ["ramp", "slots"])
def test_completions_from_tokens_and_gaps_follow_the_counter_of_finished_requests(name):
    for _, sample in recording(name):
        if sample.finished:
            finished = sum(sample.finished.values())
            # A sequence between admission and first token, or preempted, counts a moment late or early.
            assert abs(completed(sample) - finished) <= max(sample.running + sample.waiting, 1)
    last = recording(name)[-1][1]
    assert completed(last) == pytest.approx(sum(last.finished.values()), abs=8)
