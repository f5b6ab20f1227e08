"""The simulated engine: conservation, order, limits and the moments at which it counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.requests import Finished, Request
from simulation import TINY_CPU

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile

SMALL = replace(
    TINY_CPU,
    num_gpu_blocks=14,
    block_tokens=4,
    max_num_seqs=6,
    max_num_batched_tokens=16,
    max_model_len=48,
    step_per_kv_token=1e-6,
)


def ask(arrival: float, prompt: int, output: int, name: str = "") -> Request:
    return Request(arrival=arrival, prompt_tokens=prompt, output_tokens=output, id=name)


def run(profile: Profile, requests: list[Request]) -> tuple[SimulatedEngine, list[Finished]]:
    engine = SimulatedEngine(profile)
    for request in requests:
        engine.submit(request)
    finished: list[Finished] = []
    assert engine.advance(1e6, finished.append)
    return engine, finished


workloads = st.lists(
    st.builds(
        ask,
        arrival=st.floats(0, 0.5),
        prompt=st.integers(1, 40),
        output=st.integers(1, 30),
    ),
    min_size=1,
    max_size=30,
)


@given(requests=workloads)
@settings(deadline=None)
def test_every_request_finishes_once_and_every_token_is_generated_once(requests):
    named = [replace(request, id=str(number)) for number, request in enumerate(requests)]
    engine, finished = run(SMALL, named)
    assert sorted(record.request.id for record in finished) == sorted(each.id for each in named)
    assert engine.unfinished == 0
    assert engine.used_blocks == 0
    assert engine.counters.generation_tokens == sum(record.output_tokens for record in finished)
    assert engine.counters.prompt_tokens == sum(request.prompt_tokens for request in named)
    assert engine.counters.preemptions == sum(record.preemptions for record in finished)
    assert sum(engine.counters.finished.values()) == len(named)
    for record in finished:
        room = SMALL.max_model_len - record.request.prompt_tokens
        assert record.output_tokens == min(record.request.output_tokens, room)


@given(requests=workloads)
@settings(deadline=None)
def test_neither_slots_nor_blocks_are_ever_exceeded(requests):
    engine = SimulatedEngine(SMALL)
    for request in requests:
        engine.submit(request)
    while engine.unfinished:
        engine.advance(engine.clock + 0.001)
        assert engine.running <= SMALL.max_num_seqs
        assert 0 <= engine.used_blocks <= SMALL.usable_blocks
        gauges = engine.gauges
        assert gauges is None or (
            gauges.running <= SMALL.max_num_seqs and 0 <= gauges.kv_usage <= 1
        )


@given(requests=workloads)
@settings(deadline=None)
def test_first_scheduled_in_the_order_of_arrival(requests):
    ordered = sorted(requests, key=lambda request: request.arrival)
    named = [replace(request, id=str(number)) for number, request in enumerate(ordered)]
    _, finished = run(SMALL, named)
    by_arrival = sorted(finished, key=lambda record: int(record.request.id))
    scheduled = [record.scheduled for record in by_arrival]
    assert scheduled == sorted(scheduled)
    for record in finished:
        assert record.request.arrival <= record.scheduled < record.first_token <= record.finished


@given(requests=workloads)
@settings(deadline=None)
def test_the_integral_of_demand_is_the_sum_of_durations(requests):
    # Little's law, which holds exactly once everything has finished.
    engine, finished = run(SMALL, requests)
    durations = sum(record.finished - record.request.arrival for record in finished)
    assert engine.integrals.running + engine.integrals.waiting == pytest.approx(durations)
    assert engine.counters.duration.sum == pytest.approx(durations)


@given(requests=workloads, cuts=st.lists(st.floats(0.0001, 0.05), min_size=1, max_size=20))
@settings(deadline=None)
def test_how_time_is_cut_into_advances_changes_nothing(requests, cuts):
    whole, expected = run(SMALL, requests)
    engine = SimulatedEngine(SMALL)
    pending = sorted(requests, key=lambda request: request.arrival)
    finished: list[Finished] = []
    turn = 0
    while pending or engine.unfinished:
        until = engine.clock + cuts[turn % len(cuts)]
        turn += 1
        while pending and pending[0].arrival < until:
            engine.submit(pending.pop(0))
        engine.advance(until, finished.append, max_steps=None if turn % 3 else 10_000)
    assert finished == expected
    assert engine.counters.step_tokens.counts == whole.counters.step_tokens.counts
    assert engine.counters.token_interval.counts == whole.counters.token_interval.counts
    assert engine.counters.token_interval.sum == pytest.approx(whole.counters.token_interval.sum)


@given(requests=workloads)
@settings(deadline=None)
def test_histograms_agree_with_the_counters(requests):
    engine, finished = run(SMALL, requests)
    counters = engine.counters
    assert counters.step_tokens.sum == counters.prompt_tokens + counters.generation_tokens
    assert counters.step_tokens.count <= engine.steps
    assert counters.first_token.count == len(finished)
    assert counters.token_interval.count == counters.generation_tokens - len(finished)
    assert counters.token_interval.sum == pytest.approx(counters.decode_time.sum)
    assert counters.inference_time.sum == pytest.approx(
        counters.prefill_time.sum + counters.decode_time.sum
    )
    assert counters.request_preemptions.sum == counters.preemptions


def test_a_lone_request_takes_the_time_its_steps_take():
    engine, (record,) = run(TINY_CPU, [ask(1.0, 100, 5)])
    # 1.2 ms + 0.2 ms for one sequence; the prompt's step adds 0.06 ms for each token.
    assert record.scheduled == 1.0
    assert record.first_token == pytest.approx(1.0 + 0.0014 + 100 * 0.00006)
    assert record.finished == pytest.approx(record.first_token + 4 * 0.0014)
    assert engine.steps == 5
    assert engine.counters.step_tokens.count == 5
    assert engine.counters.step_tokens.sum == 105


def test_resident_cache_and_hidden_decoding_enter_the_step_time():
    profile = replace(
        TINY_CPU, step_per_kv_token=1e-6, decode_beside_prefill=0.3, step_per_prefill_token=1e-4
    )
    assert profile.step_seconds(10, 2000, 0) == pytest.approx(0.0012 + 0.002 + 0.002)
    assert profile.step_seconds(10, 2000, 100) == pytest.approx(0.01 + 0.3 * 0.0052)
    assert profile.step_seconds(10, 2000, 1) == pytest.approx(0.0052)  # never below decoding


def test_gauges_are_unknown_until_the_first_step_ends_and_stay_while_idle():
    engine = SimulatedEngine(TINY_CPU)
    engine.advance(1.0)
    assert engine.gauges is None
    engine.submit(ask(1.0, 100, 2))
    engine.advance(1.001)
    assert engine.gauges is None  # the step is under way
    engine.advance(1.0075)
    assert engine.gauges is not None
    assert (engine.gauges.running, engine.gauges.waiting) == (1, 0)
    assert engine.gauges.kv_usage == pytest.approx(1 / 71)
    engine.advance(60.0)
    assert (engine.gauges.running, engine.gauges.kv_usage) == (0, 0.0)


def test_arrivals_during_a_step_are_not_in_the_gauges_of_that_step():
    engine = SimulatedEngine(replace(TINY_CPU, max_num_seqs=1, max_num_batched_tokens=2048))
    engine.submit(ask(0.0, 1000, 50))
    engine.submit(ask(0.001, 10, 5))
    engine.advance(0.0615)  # the prompt's step took 61.4 ms
    assert engine.gauges is not None
    assert engine.gauges.waiting == 0
    engine.advance(0.064)
    assert engine.gauges.waiting == 1


def test_slots_bind_when_the_pool_is_large():
    profile = replace(TINY_CPU, max_num_seqs=4, num_gpu_blocks=512)
    requests = [ask(0.0, 100, 200) for _ in range(12)]
    engine = SimulatedEngine(profile)
    for request in requests:
        engine.submit(request)
    engine.advance(0.3)
    assert (engine.running, engine.waiting) == (4, 8)
    assert engine.gauges is not None
    assert engine.gauges.kv_usage < 0.05
    engine.advance(1e3)
    assert engine.counters.preemptions == 0
    assert engine.integrals.running / engine.integrals.busy == pytest.approx(4.0, rel=0.01)


def test_the_pool_binds_when_slots_are_many():
    engine = SimulatedEngine(TINY_CPU)

    def again(record: Finished) -> None:
        engine.submit(replace(record.request, arrival=record.finished))

    for number in range(40):
        engine.submit(ask(0.001 * number, 150 + 3 * number, 150 + 4 * number))
    engine.advance(60.0, again)
    mean_running = engine.integrals.running / engine.clock
    # The pool over the mean footprint of a sequence, about three blocks of the 71.
    assert 20 < mean_running < 28
    assert engine.integrals.kv_usage / engine.clock > 0.95
    assert engine.counters.preemptions > 300
    assert engine.integrals.waiting / engine.clock == pytest.approx(40 - mean_running, rel=0.01)


def test_a_waiting_prompt_is_admitted_only_when_all_of_it_fits():
    profile = replace(SMALL, max_num_batched_tokens=8, max_num_seqs=2)
    engine = SimulatedEngine(profile)
    engine.submit(ask(0.0, 36, 10))  # 9 of 13 blocks and soon 10; its prompt takes 9 ms
    engine.submit(ask(0.009, 20, 2))  # 5 blocks; the first step's share of it would be 2
    engine.advance(0.015)
    assert (engine.running, engine.waiting) == (1, 1)
    engine.advance(1.0)
    assert engine.counters.preemptions == 0
    assert engine.unfinished == 0


def test_the_last_admitted_is_preempted_and_its_tokens_are_not_generated_again():
    profile = replace(SMALL, max_num_batched_tokens=64, max_model_len=52)
    requests = [ask(0.0, 20, 30, "old"), ask(0.0, 20, 30, "young")]
    engine, finished = run(profile, requests)
    old, young = sorted(finished, key=lambda record: record.request.id)
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert old.finished < young.finished
    assert engine.counters.generation_tokens == 60
    assert engine.counters.prompt_tokens == 40
    assert engine.counters.prefix_queries == 40


def test_a_preempted_prompt_is_cheap_only_while_its_blocks_are_still_there():
    # Both hold 6 of 13 blocks when they need a seventh; of the young one's the old takes one.
    profile = replace(SMALL, max_num_batched_tokens=64)
    requests = [ask(0.0, 20, 10, "old"), ask(0.0, 20, 15, "young")]
    _, with_cache = run(profile, requests)
    _, without = run(replace(profile, prefix_caching=False), requests)
    saved = max(r.finished for r in without) - max(r.finished for r in with_cache)
    assert saved == pytest.approx(5 * 4 * profile.step_per_prefill_token, rel=0.02)


def test_a_preemption_is_counted_when_its_request_gives_the_next_token():
    profile = replace(SMALL, max_num_batched_tokens=64, max_model_len=52)
    engine = SimulatedEngine(profile)
    for name in ("old", "young"):
        engine.submit(ask(0.0, 20, 30, name))
    while not engine.waiting or engine.steps == 0:
        engine.advance(engine.clock + 0.0005)
    assert engine.counters.preemptions == 0
    engine.advance(10.0)
    assert engine.counters.preemptions == 1


@given(requests=workloads)
@settings(deadline=None)
def test_a_slow_gpu_is_one_whose_every_cost_is_higher_in_proportion(requests):
    # Twice, because doubling is exact: not a bit may differ.
    costs = ("step_fixed", "step_per_sequence", "step_per_kv_token", "step_per_prefill_token")
    dear = replace(SMALL, **{cost: 2 * getattr(SMALL, cost) for cost in costs})
    expected_engine, expected = run(dear, requests)
    engine = SimulatedEngine(SMALL, slowdown=2.0)
    for request in requests:
        engine.submit(request)
    finished: list[Finished] = []
    engine.advance(1e6, finished.append)
    assert finished == expected
    mine, theirs = engine.counters.token_interval, expected_engine.counters.token_interval
    assert (mine.counts, mine.sum) == (theirs.counts, theirs.sum)


# --- why the head of the queue waits -------------------------------------------------------------


def blocked_at(profile: Profile, requests: list[Request], *times: float) -> list[str | None]:
    engine = SimulatedEngine(profile)
    for request in requests:
        engine.submit(request)
    found = []
    for at in times:
        engine.advance(at)
        found.append(engine.blocked)
    return found


def test_nothing_is_blocked_where_nothing_waits():
    # During a step whoever arrives is not looked at before its end.
    requests = [ask(1.0, 100, 5), ask(1.001, 100, 5)]
    assert blocked_at(TINY_CPU, requests, 0.5, 1.005, 2.0) == [None, None, None]


def test_slots_block_when_all_are_taken_even_if_the_cache_is_full_too():
    profile = replace(SMALL, max_num_seqs=1, max_num_batched_tokens=64)
    # 5 blocks of 13, then 10: the second prompt fits beside the first, then does not.
    small, large = ask(0.0, 20, 3), ask(0.0, 40, 3)
    assert blocked_at(profile, [small, small], 0.003) == ["slots"]
    assert blocked_at(profile, [large, large], 0.003) == ["slots"]
    assert blocked_at(profile, [large, large], 0.003, 1.0) == ["slots", None]


def test_the_cache_blocks_when_the_heads_whole_prompt_does_not_fit():
    profile = replace(SMALL, max_num_batched_tokens=64)
    requests = [ask(0.0, 32, 10), ask(0.0, 24, 1), ask(0.0, 4, 1)]
    # 8 of 13 blocks are held and the head needs 6; the small one behind it would fit.
    assert blocked_at(profile, requests, 0.003) == ["kv_cache"]
    assert blocked_at(profile, [requests[0], requests[2]], 0.003) == [None]


def test_prefill_blocks_while_other_prompts_take_the_steps_tokens():
    # 16 tokens a step: the first prompt takes two steps, and the second waits beside free slots and cache.
    requests = [ask(0.0, 32, 2), ask(0.0, 8, 2)]
    assert blocked_at(SMALL, requests, 0.001, 0.1) == ["prefill", None]


def test_the_cache_blocks_after_a_preemption():
    profile = replace(SMALL, max_num_batched_tokens=64, max_model_len=52)
    engine = SimulatedEngine(profile)
    for name in ("old", "young"):
        engine.submit(ask(0.0, 20, 30, name))
    while not engine.waiting or engine.steps == 0:
        assert engine.blocked is None
        engine.advance(engine.clock + 0.0005)
    assert engine.blocked == "kv_cache"


def test_a_long_prompt_is_cut_by_the_token_budget_beside_running_sequences():
    engine = SimulatedEngine(replace(TINY_CPU, max_num_batched_tokens=128))
    engine.submit(ask(0.0, 10, 100))
    engine.submit(ask(0.002, 600, 1))
    finished: list[Finished] = []
    engine.advance(1.0, finished.append)
    long = next(record for record in finished if record.request.prompt_tokens == 600)
    # 127 tokens a step beside the one that decodes: five steps.
    assert long.first_token - long.scheduled == pytest.approx(
        5 * (0.0012 + 2 * 0.0002) + 600 * 0.00006
    )


def test_steps_without_output_are_not_counted():
    engine, _ = run(replace(TINY_CPU, max_num_batched_tokens=128), [ask(0.0, 600, 1)])
    assert engine.steps == 5
    assert engine.counters.step_tokens.count == 1
    assert engine.counters.step_tokens.sum == 601


def test_output_ends_where_the_models_length_does():
    engine, (record,) = run(SMALL, [ask(0.0, 40, 30)])
    assert record.output_tokens == 8
    assert record.reason == "length"
    assert engine.counters.finished["length"] == 1


def test_work_is_bounded_on_request():
    engine = SimulatedEngine(TINY_CPU)
    engine.submit(ask(0.0, 100, 1000))
    assert not engine.advance(100.0, max_steps=10)
    assert engine.steps == 10
    assert engine.clock < 0.1
    assert engine.advance(100.0)
    assert engine.clock == 100.0


@pytest.mark.parametrize(("prompt", "output"), [(0, 5), (2048, 5), (10, 0)])
def test_impossible_lengths_are_refused(prompt, output):
    with pytest.raises(ValueError, match="the prompt must be 1 to 2047"):
        SimulatedEngine(TINY_CPU).submit(ask(0.0, prompt, output))


@pytest.mark.parametrize(
    "change",
    [
        {"max_num_batched_tokens": 10},
        {"max_model_len": 71 * 128 + 1},
        {"step_fixed": 0.0},
    ],
)
def test_a_profile_that_no_engine_would_start_with_is_refused(change):
    with pytest.raises(ConfigError, match="tiny-cpu"):
        replace(TINY_CPU, **change)
