"""The simulated server: queue limits, ranks, clients that leave, sleep and restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.events import Event, parse_event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.requests import Finished, Request
from simulation import TINY_CPU


def ask(arrival: float, prompt: int = 100, output: int = 100, **rest) -> Request:
    return Request(arrival=arrival, prompt_tokens=prompt, output_tokens=output, **rest)


def run(frontend: Frontend, requests: list[Request], until: float = 100.0) -> list[Finished]:
    for request in requests:
        frontend.submit(request)
    ended: list[Finished] = []
    assert frontend.advance(until, ended.append)
    return ended


def reasons(ended: list[Finished]) -> list[str]:
    return [record.reason for record in sorted(ended, key=lambda record: record.request.arrival)]


# --- queue limits --------------------------------------------------------------------------------


def test_requests_beyond_the_queue_limit_are_turned_away_at_once():
    frontend = Frontend(TINY_CPU, limits=Limits(max_num_queued_reqs=3))
    ended = run(frontend, [ask(0.001 * n) for n in range(5)] + [ask(50.0)])
    assert reasons(ended) == ["stop", "stop", "stop", "rejected", "rejected", "stop"]
    turned_away = [record for record in ended if record.reason == "rejected"]
    assert all(record.finished == record.request.arrival for record in turned_away)
    assert {(record.scheduled, record.first_token) for record in turned_away} == {(None, None)}
    assert frontend.rejections == {"max_num_queued_reqs": 2, "max_num_queued_tokens": 0}


def test_the_limit_counts_running_requests_too_as_vllm_does():
    frontend = Frontend(TINY_CPU, limits=Limits(max_num_queued_reqs=1))
    ended = run(frontend, [ask(0.0, output=1000), ask(1.0)])
    assert reasons(ended) == ["stop", "rejected"]


def test_the_token_limit_counts_prompts_that_have_given_no_token():
    frontend = Frontend(TINY_CPU, limits=Limits(max_num_queued_tokens=1000))
    # The first prompt takes 62 ms to compute; while it is queued, 1,000 tokens are there.
    ended = run(frontend, [ask(0.0, prompt=1000), ask(0.01), ask(0.05), ask(0.07)])
    assert reasons(ended) == ["stop", "rejected", "rejected", "stop"]
    assert frontend.rejections == {"max_num_queued_reqs": 0, "max_num_queued_tokens": 2}


def test_limits_are_those_of_the_server_not_of_a_rank():
    frontend = Frontend(TINY_CPU, ranks=2, limits=Limits(max_num_queued_reqs=3))
    run(frontend, [ask(0.0) for _ in range(5)], until=0.1)
    assert [engine.running for engine in frontend.engines] == [2, 1]
    assert frontend.fates.rejected == 2


def test_a_prompt_too_long_for_the_model_is_refused_and_counted_nowhere_on_the_page():
    frontend = Frontend(TINY_CPU)
    ended = run(frontend, [ask(0.0, prompt=2048), ask(0.0, prompt=2047)])
    assert sorted(reasons(ended)) == ["length", "refused"]
    assert frontend.fates.refused == 1
    assert sum(frontend.engines[0].counters.finished.values()) == 1


# --- ranks ---------------------------------------------------------------------------------------


def test_requests_go_to_the_rank_with_the_fewest():
    frontend = Frontend(TINY_CPU, ranks=3)
    long = [ask(0.001 * n, output=1500) for n in range(2)]
    short = [ask(0.01 + 0.001 * n, output=200) for n in range(7)]
    run(frontend, [*long, *short], until=0.05)
    assert [engine.running for engine in frontend.engines] == [3, 3, 3]


def test_ranks_have_their_own_slots_pools_and_counters():
    profile = replace(TINY_CPU, max_num_seqs=4)
    frontend = Frontend(profile, ranks=2)
    run(frontend, [ask(0.0, output=1000) for _ in range(10)], until=0.5)
    assert [(engine.running, engine.waiting) for engine in frontend.engines] == [(4, 1), (4, 1)]
    first, second = (engine.counters.generation_tokens for engine in frontend.engines)
    assert first == second > 0


def test_a_queue_on_a_full_rank_weighs_more_than_its_length():
    profile = replace(TINY_CPU, num_gpu_blocks=18)
    frontend = Frontend(profile, ranks=2)
    # One prompt fills rank 0 (16 of 17 blocks) and one waits there; rank 1 runs three small ones.
    for request in [ask(0.0, prompt=2000, output=40), ask(0.0, prompt=10, output=1500)]:
        frontend.submit(request)
    frontend.advance(0.001)
    full, free = frontend.engines
    full.submit(ask(0.0, prompt=2000, output=40))
    for _ in range(2):
        free.submit(ask(0.0, prompt=10, output=1500))
    frontend.advance(0.13)
    assert (full.unfinished, full.waiting, free.unfinished) == (2, 1, 3)
    frontend.submit(ask(0.13, prompt=10, output=1500))
    frontend.advance(0.135)
    assert free.unfinished == 4


def test_one_rank_behaves_as_the_engine_alone():
    from headroom_exporter.simulate.engine import SimulatedEngine

    requests = [ask(0.01 * n, prompt=50 + 9 * n, output=100 + n) for n in range(80)]
    alone: list[Finished] = []
    engine = SimulatedEngine(TINY_CPU)
    for request in requests:
        engine.submit(request)
    engine.advance(100.0, alone.append)
    assert run(Frontend(TINY_CPU), requests) == alone
    # Limits that never bind make every arrival a step of its own, and change nothing.
    assert run(Frontend(TINY_CPU, limits=Limits(max_num_queued_reqs=1000)), requests) == alone


# --- clients that leave --------------------------------------------------------------------------


def test_a_client_that_leaves_frees_its_slot_and_blocks_and_is_counted_nowhere():
    frontend = Frontend(replace(TINY_CPU, max_num_seqs=1))
    ended = run(frontend, [ask(0.0, output=1500, abort_after=0.5), ask(0.1)])
    gone, other = sorted(ended, key=lambda record: record.request.arrival)
    assert (gone.reason, other.reason) == ("abort", "stop")
    assert gone.finished == pytest.approx(0.5, abs=0.002)
    assert other.scheduled == gone.finished
    counters = frontend.engines[0].counters
    assert sum(counters.finished.values()) == 1
    # Its tokens were generated all the same.
    assert counters.generation_tokens == gone.output_tokens + 100
    assert 300 < gone.output_tokens < 360
    assert (frontend.hung_up, frontend.engines[0].used_blocks) == (1, 0)


def test_a_client_may_leave_the_queue_or_before_its_prompt_is_computed():
    frontend = Frontend(replace(TINY_CPU, max_num_seqs=1))
    ended = run(
        frontend,
        [
            ask(0.0, prompt=2000, output=20),
            ask(0.01, abort_after=0.05),  # still in the queue
            ask(0.02, prompt=2000, abort_after=0.2),  # while its prompt is computed
        ],
    )
    assert reasons(ended) == ["stop", "abort", "abort"]
    queued, computing = ended[0], ended[2]
    assert (queued.scheduled, queued.first_token) == (None, None)
    assert computing.scheduled is not None
    assert computing.first_token is None
    assert frontend.engines[0].used_blocks == 0
    assert frontend.engines[0].prefilling_tokens == 0


def test_gauges_come_down_when_every_client_has_left():
    # vLLM 0.32 makes one more, empty step for them.
    frontend = Frontend(TINY_CPU)
    run(frontend, [ask(0.0, output=1500, abort_after=0.5) for _ in range(30)], until=10.0)
    gauges = frontend.engines[0].gauges
    assert gauges is not None
    assert (gauges.running, gauges.waiting, gauges.kv_usage) == (0, 0, 0.0)


# --- sleep ---------------------------------------------------------------------------------------


def test_sleep_gives_requests_up_and_keeps_what_arrives_until_it_is_woken():
    frontend = Frontend(
        TINY_CPU, events=[Event(at=0.2, action="sleep"), Event(at=5.0, action="wake")]
    )
    ended = run(frontend, [ask(0.0, output=1500), ask(0.1, output=1500), ask(1.0)])
    assert reasons(ended) == ["abort", "abort", "stop"]
    kept = next(record for record in ended if record.reason == "stop")
    assert kept.scheduled == 5.0
    counters = frontend.engines[0].counters
    # Here the engine ended them, not their clients, and it says so.
    assert (counters.finished["abort"], counters.finished["stop"]) == (2, 1)
    assert counters.duration.count == 3
    assert frontend.hung_up == 0


def test_an_engine_asleep_moves_nothing():
    frontend = Frontend(TINY_CPU)
    run(frontend, [ask(0.0, output=1500)], until=0.5)
    frontend.sleep(2)
    before = frontend.steps
    frontend.submit(ask(1.0))
    frontend.advance(50.0)
    gauges = frontend.engines[0].gauges
    assert gauges is not None
    assert (frontend.steps, gauges.running, gauges.kv_usage) == (before, 0, 0.0)
    assert frontend.unfinished == 1
    frontend.wake()
    frontend.advance(60.0)
    assert frontend.unfinished == 0


# --- restarts ------------------------------------------------------------------------------------


def test_a_restart_loses_what_runs_waits_and_arrives_meanwhile():
    frontend = Frontend(TINY_CPU, events=[Event(at=0.5, action="restart")], start_seconds=10.0)
    ended = run(frontend, [ask(0.0, output=1500), ask(5.0), ask(11.0)], until=10.4)
    assert reasons(ended) == ["lost", "lost"]
    assert (frontend.up, frontend.fates.lost) == (False, 2)
    more: list[Finished] = []
    frontend.advance(50.0, more.append)
    assert reasons(more) == ["stop"]
    assert (frontend.up, frontend.started) == (True, 10.5)
    counters = frontend.engines[0].counters
    assert (counters.generation_tokens, sum(counters.finished.values())) == (100, 1)


def test_totals_that_are_not_the_processs_go_on_over_a_restart():
    frontend = Frontend(TINY_CPU, events=[Event(at=0.5, action="restart")], start_seconds=1.0)
    run(frontend, [ask(0.0, output=1500), ask(0.0, output=1500, abort_after=0.2), ask(2.0)])
    assert frontend.hung_up == 1
    assert frontend.steps > frontend.engines[0].steps == 100
    integrals = frontend.integrals
    assert integrals.running == pytest.approx(0.5 + 0.2 + 0.147, abs=0.005)


def test_a_second_restart_during_a_start_begins_the_start_anew():
    events = [Event(at=1.0, action="restart"), Event(at=5.0, action="restart")]
    frontend = Frontend(TINY_CPU, events=events, start_seconds=10.0)
    frontend.advance(14.9)
    assert not frontend.up
    frontend.advance(15.0)
    assert (frontend.up, frontend.started) == (True, 15.0)


def test_a_restart_wakes_an_engine_that_slept():
    events = [Event(at=1.0, action="sleep", level=2), Event(at=2.0, action="restart")]
    frontend = Frontend(TINY_CPU, events=events, start_seconds=1.0)
    assert reasons(run(frontend, [ask(5.0)])) == ["stop"]


# --- a slow GPU ----------------------------------------------------------------------------------


def slow(at: float, factor: float) -> Event:
    return Event(at=at, action="slow", factor=factor)


def test_every_step_that_begins_after_the_gpu_became_slow_takes_so_many_times_as_long():
    (record,) = run(Frontend(TINY_CPU, events=[slow(0.5, 3.0)]), [ask(0.0, output=1000)])
    # The prompt's step ends at 7.4 ms, the others take 1.4 ms; the 352nd begins at 0.4988 and is
    # under way when the GPU becomes slow: it ends as it would have.
    assert record.finished == pytest.approx(0.0074 + 352 * 0.0014 + 647 * 3 * 0.0014)


def test_prompts_are_slow_too_and_a_factor_of_one_ends_it():
    frontend = Frontend(TINY_CPU, events=[slow(1.0, 2.0), slow(10.0, 1.0)])
    ended = run(frontend, [ask(at) for at in (0.0, 1.0, 9.9, 20.0)])
    to_first = [record.first_token - record.request.arrival for record in ended]
    assert to_first == pytest.approx([0.0074, 0.0148, 0.0148, 0.0074])
    lasted = [record.finished - record.first_token for record in ended]
    # The third: (100 - 14.8) / 2.8 = 30.4, so 31 slow steps before 10 s.
    assert lasted == pytest.approx([99 * 0.0014, 99 * 0.0028, (2 * 31 + 68) * 0.0014, 99 * 0.0014])


def test_a_slow_gpu_is_slow_for_every_rank():
    frontend = Frontend(TINY_CPU, ranks=3, events=[slow(0.5, 2.0)])
    ended = run(frontend, [ask(1.0) for _ in range(3)])
    assert [engine.steps for engine in frontend.engines] == [100, 100, 100]
    assert [record.finished for record in ended] == pytest.approx([1.0 + 2 * 0.1460] * 3)


@pytest.mark.parametrize("becomes_slow", [0.5, 3.0], ids=["before", "while nothing listens"])
def test_a_restart_does_not_make_the_gpu_fast_again(becomes_slow):
    events = [slow(becomes_slow, 2.0), Event(at=2.0, action="restart")]
    frontend = Frontend(TINY_CPU, events=events, start_seconds=5.0)
    (record,) = run(frontend, [ask(10.0)])
    assert record.finished - 10.0 == pytest.approx(2 * 0.1460)
    assert frontend.slowdown == 2.0


# --- events as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("restart@600", Event(at=600.0, action="restart")),
        ("sleep@1.5", Event(at=1.5, action="sleep", level=1)),
        ("sleep:2@7", Event(at=7.0, action="sleep", level=2)),
        ("wake@0", Event(at=0.0, action="wake")),
        ("slow:1.5@600", Event(at=600.0, action="slow", factor=1.5)),
        ("slow:1@7", Event(at=7.0, action="slow", factor=1.0)),
    ],
)
def test_events_are_understood(text, event):
    assert parse_event(text) == event


@pytest.mark.parametrize(
    "text",
    [
        *("", "restart", "restart@", "boom@5", "sleep:3@5", "wake:2@5", "sleep@-1", "sleep@nan"),
        *("slow@5", "slow:@5", "slow:0@5", "slow:-1@5", "slow:inf@5", "slow:nan@5", "slow:x@5"),
        *("slow:2@", "slow:2@inf", "restart:2@5"),
    ],
)
def test_events_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match=r"must be restart@SECONDS.*slow:FACTOR@SECONDS"):
        parse_event(text)


@pytest.mark.parametrize("factor", [0.0, -2.0, float("inf"), float("nan")])
def test_a_slowdown_in_which_time_would_stand_still_is_no_event(factor):
    with pytest.raises(ConfigError, match=r"event slow at 5: factor .* must be above 0"):
        Event(at=5.0, action="slow", factor=factor)


def test_a_server_has_at_least_one_rank():
    with pytest.raises(ConfigError, match="ranks 0"):
        Frontend(TINY_CPU, ranks=0)
