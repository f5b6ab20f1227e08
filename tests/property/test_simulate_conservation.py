"""Whatever happens to a simulated server, no request, token, slot or block is lost or made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.requests import Finished, Request
from simulation import TINY_CPU

SMALL = replace(
    TINY_CPU,
    num_gpu_blocks=14,
    block_tokens=4,
    max_num_seqs=6,
    max_num_batched_tokens=16,
    max_model_len=48,
    step_per_kv_token=1e-6,
)
requests = st.builds(
    Request,
    arrival=st.floats(0, 0.6),
    prompt_tokens=st.integers(1, 50),
    output_tokens=st.integers(1, 30),
    cached_tokens=st.one_of(st.just(0), st.integers(0, 60)),
    abort_after=st.one_of(st.none(), st.floats(0, 0.3)),
)
events = st.lists(
    st.builds(
        Event,
        at=st.floats(0, 0.8),
        action=st.sampled_from(["restart", "sleep", "wake"]),
        level=st.integers(0, 2),
    ),
    max_size=4,
)
servers = st.fixed_dictionaries(
    {
        "ranks": st.integers(1, 3),
        "limits": st.builds(
            Limits,
            max_num_queued_reqs=st.one_of(st.none(), st.integers(0, 12)),
            max_num_queued_tokens=st.one_of(st.none(), st.integers(0, 200)),
        ),
        "events": events,
        "start_seconds": st.floats(0.001, 0.3),
    }
)
workloads = st.lists(requests, min_size=1, max_size=30)


def play(server: dict, workload: list[Request]) -> tuple[Frontend, list[Finished]]:
    frontend = Frontend(SMALL, **server)
    for number, request in enumerate(workload):
        frontend.submit(replace(request, id=str(number)))
    ended: list[Finished] = []
    frontend.advance(1.2, ended.append)
    frontend.wake()
    frontend.advance(1e4, ended.append)
    return frontend, ended


@given(server=servers, workload=workloads)
@settings(deadline=None)
def test_every_request_ends_exactly_once_in_one_of_the_ways_there_are(server, workload):
    frontend, ended = play(server, workload)
    assert sorted(int(record.request.id) for record in ended) == list(range(len(workload)))
    assert frontend.unfinished == 0
    fates = Counter(record.reason for record in ended)
    assert fates.keys() <= {"stop", "length", "abort", "rejected", "refused", "lost"}
    assert fates["rejected"] == frontend.fates.rejected
    assert fates["refused"] == frontend.fates.refused
    assert fates["lost"] == frontend.fates.lost
    assert fates["refused"] <= sum(request.prompt_tokens >= 48 for request in workload)


@given(server=servers, workload=workloads)
@settings(deadline=None)
def test_at_the_end_nothing_is_held(server, workload):
    frontend, _ = play(server, workload)
    for engine in frontend.engines:
        assert (engine.running, engine.waiting, engine.used_blocks) == (0, 0, 0)
        assert engine.prefilling_tokens == 0


@given(server=servers, workload=workloads)
@settings(deadline=None)
def test_neither_slots_nor_blocks_of_a_rank_are_ever_exceeded(server, workload):
    frontend = Frontend(SMALL, **server)
    for request in workload:
        frontend.submit(request)
    while frontend.clock < 1.0:
        frontend.advance(frontend.clock + 0.004)
        for engine in frontend.engines:
            assert 0 <= engine.running <= SMALL.max_num_seqs
            assert 0 <= engine.used_blocks <= SMALL.usable_blocks
            assert engine.prefilling_tokens >= 0


@given(
    server=servers.map(lambda server: server | {"events": []}),
    workload=workloads,
)
@settings(deadline=None)
def test_tokens_and_requests_are_counted_as_vllm_counts_them(server, workload):
    # Without restarts, counters hold everything: tokens of the aborted too, but not their requests.
    frontend, ended = play(server, workload)
    counters = [engine.counters for engine in frontend.engines]
    reached = [record for record in ended if record.reason in ("stop", "length", "abort")]
    whole = [record for record in reached if record.reason != "abort"]
    begun = [record for record in reached if record.first_token is not None]
    assert sum(c.generation_tokens for c in counters) == sum(r.output_tokens for r in reached)
    assert sum(c.prompt_tokens for c in counters) == sum(r.request.prompt_tokens for r in begun)
    assert sum(sum(c.finished.values()) for c in counters) == len(whole)
    assert sum(c.first_token.count for c in counters) == len(begun)
    assert frontend.hung_up == len(reached) - len(whole)
    for counted in counters:
        computed = counted.prompt_tokens - counted.cached_prompt_tokens
        assert counted.step_tokens.sum == computed + counted.generation_tokens
        assert 0 <= counted.cached_prompt_tokens <= counted.prefix_hits <= counted.prefix_queries
        assert counted.request_computed_prompt.sum <= computed


@given(server=servers, workload=workloads)
@settings(deadline=None)
def test_the_integral_of_demand_is_the_time_requests_spent_inside(server, workload):
    frontend, ended = play(server, workload)
    inside = [record for record in ended if record.reason not in ("rejected", "refused")]
    # Those that found nobody there were never inside; they ended when they arrived.
    spent = sum(record.finished - record.request.arrival for record in inside)
    demand = frontend.integrals.running + frontend.integrals.waiting
    assert demand == pytest.approx(spent, abs=1e-6)


@given(server=servers, workload=workloads, cut=st.floats(0.001, 0.05))
@settings(deadline=None)
def test_how_time_is_cut_changes_nothing(server, workload, cut):
    _, expected = play(server, workload)
    frontend = Frontend(SMALL, **server)
    pending = sorted(
        (replace(request, id=str(number)) for number, request in enumerate(workload)),
        key=lambda request: request.arrival,
    )
    ended: list[Finished] = []
    while frontend.clock < 1.2:
        until = min(1.2, frontend.clock + cut)
        while pending and pending[0].arrival < until:
            frontend.submit(pending.pop(0))
        frontend.advance(until, ended.append)
    frontend.wake()
    frontend.advance(1e4, ended.append)

    def by_request(records: list[Finished]) -> list[Finished]:
        return sorted(records, key=lambda record: int(record.request.id))

    assert by_request(ended) == by_request(expected)
