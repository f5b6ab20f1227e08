"""Replays: which pages are read when, what the State says, and that memory stays flat."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from functools import partial
from math import inf

import pytest

from headroom_exporter import demo
from headroom_exporter.config import PollConfig
from headroom_exporter.errors import ConfigError
from headroom_exporter.samples import GpuSample, GpuState, HeadroomState, RankState
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.generators import parse
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.replay import Moment, Replica, replay
from headroom_exporter.simulate.trace import read
from headroom_exporter.simulate.traffic import repeat
from simulation import TINY_CPU


def busy(**options) -> Replica:
    text = "synthetic:poisson?rate=6&duration=1e6&prompt_p95=800&prompt_max=1500&output_max=500"
    load = TraceLoad(parse(text).requests())
    return Replica(name="sim", frontend=Frontend(TINY_CPU, **options), load=load)


def test_the_state_is_known_from_the_first_poll_and_agrees_with_the_engine():
    replica = busy()
    moments = list(replay([replica], 60.0, epoch=1.7e9))
    assert [moment.at for moment in moments] == [float(second) for second in range(60)]
    engine = moments[-1].state.engines[0]
    assert (engine.kind, engine.version, engine.poll_mode) == ("vllm", "0.32.0", "filtered")
    assert engine.max_model_length == 2048
    assert engine.last_success == 1.7e9 + 59
    (rank,) = engine.ranks
    gauges = replica.frontend.engines[0].gauges
    assert gauges is not None
    assert rank.sample is not None
    assert rank.sample.running == gauges.running > 0
    assert rank.sample.kv_usage == gauges.kv_usage
    assert rank.sample.kv_capacity_tokens == TINY_CPU.pool_tokens
    assert rank.derived is not None
    assert rank.derived.state in HeadroomState


def test_full_pages_come_in_the_slow_rhythm():
    prompts = []
    for moment in replay([busy()], 30.0, poll=PollConfig(interval=1.0, full_interval=10.0)):
        sample = moment.state.engines[0].ranks[0].sample
        assert sample is not None
        prompts.append(sample.histograms["request_prompt_tokens"].count)
    # Histograms move with the full page only.
    moved = [at for at in range(1, 30) if prompts[at] != prompts[at - 1]]
    assert moved == [10, 20]


def test_several_api_servers_are_read_whole_and_more_slowly():
    moments = list(replay([busy(api_servers=2)], 30.0))
    assert moments[-1].state.engines[0].poll_mode == "full"
    gaps = {after.at - before.at for before, after in itertools.pairwise(moments)}
    assert gaps == {2.0}


def test_a_restart_shows_as_down_then_as_an_engine_that_begins_at_zero():
    replica = busy(events=[Event(at=20.5, action="restart")], start_seconds=30.0)
    by_time = {moment.at: moment.state.engines[0] for moment in replay([replica], 120.0)}
    before, down = by_time[20.0], by_time[21.0]
    assert before.up
    assert not down.up
    assert down.errors == {"refused": 1.0}
    # A refused connection means nobody is there: what was known of it is gone.
    assert down.ranks[0].sample is None
    after = [state for at, state in by_time.items() if at > 60]
    assert all(state.up for state in after)
    sample = after[0].ranks[0].sample
    assert sample is not None
    assert before.ranks[0].sample is not None
    assert 0 < sample.generation_tokens < before.ranks[0].sample.generation_tokens + 1e6
    asked = [at for at in by_time if 21 <= at < 52]
    assert asked == sorted(asked)
    assert len(asked) < 10  # the pauses grow


def test_memory_does_not_grow_with_time():
    moments = replay([busy()], 1e9)
    counted = []
    for moment in moments:
        if moment.at in (500.0, 1000.0, 1500.0):  # windows of five minutes have filled
            gc.collect()
            counted.append(len(gc.get_objects()))
        if moment.at >= 1500:
            break
    moments.close()
    assert counted[2] - counted[1] < 200
    assert counted[1] - counted[0] < 1000


async def test_it_says_so_where_a_loop_runs_already():
    with pytest.raises(RuntimeError, match="inside an event loop"):
        next(replay([busy()], 10.0))


# --- restarts of the exporter --------------------------------------------------------------------


def only(moment: Moment) -> RankState:
    return moment.state.engines[0].ranks[0]


def running(moments: list[Moment]) -> dict[float, tuple[float | None, float | None]]:
    samples = {moment.at: only(moment).sample for moment in moments}
    return {at: (each.running, each.generation_tokens) for at, each in samples.items() if each}


def test_while_the_exporter_is_gone_nothing_is_polled_and_the_servers_go_on():
    replica = busy()
    moments = list(replay([replica], 60.0, restarts=[(20.0, 15.5)]))
    times = [moment.at for moment in moments]
    assert times == [*map(float, range(20)), *(35.5 + second for second in range(25))]
    whole = running(list(replay([busy()], 60.0, poll=PollConfig(interval=0.5))))
    assert running(moments) == {at: whole[at] for at in times}
    assert replica.frontend.started == 0.0


def test_a_new_exporter_remembers_nothing_of_the_one_before():
    moments = list(replay([busy()], 400.0, epoch=1.7e9, restarts=[(300.0, 10.0)]))
    last, first = moments[299], moments[300]
    assert (last.at, first.at) == (299.0, 310.0)
    assert only(last).memory.demand.milliseconds[-1] == 299_000
    assert only(first).memory.demand.milliseconds[-1] == 0
    assert sum(only(last).memory.state_seconds.values()) == pytest.approx(299.0)
    assert sum(only(first).memory.state_seconds.values()) == 0
    assert only(last).memory.fit != only(first).memory.fit
    # It learns as the first one did at its beginning, and knows that it began later.
    assert only(moments[-1]).memory.demand.milliseconds[-1] == 89_000
    assert last.state.reload.at == 1.7e9
    assert first.state.reload.at == 1.7e9 + 310.0
    # What nobody observed is not a gap that the new one knows of.
    assert first.state.engines[0].unobserved_seconds == 0.0
    assert first.state.engines[0].version == "0.32.0"


def test_a_new_exporter_has_counted_no_errors():
    replica = busy(events=[Event(at=5.5, action="restart")], start_seconds=10.0)
    moments = list(replay([replica], 60.0, restarts=[(30.0, 1.0)]))
    before, after = [moment for moment in moments if moment.at < 31], moments[-1]
    assert before[-1].state.engines[0].errors["refused"] >= 1
    assert after.state.engines[0].errors == {}
    assert after.state.engines[0].up


@pytest.mark.parametrize(
    ("restarts", "seen"),
    [
        ([(5.0, 0.0)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([(2.5, 0.0)], [0, 1, 2, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]),
        ([(0.0, 7.0)], [7, 8, 9]),
        ([(7.0, 1.0), (2.0, 1.0)], [0, 1, 3, 4, 5, 6, 8, 9]),
        ([(2.0, 6.0), (3.0, 2.0)], [0, 1, 8, 9]),  # one outage within another
        ([(2.0, 3.0), (4.0, 4.0)], [0, 1, 8, 9]),
        ([(8.0, 100.0)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([(99.0, 1.0)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([(0.0, 99.0)], []),
    ],
)
def test_there_are_moments_only_while_there_is_an_exporter(restarts, seen):
    moments = replay([busy()], 10.0, restarts=restarts)
    assert [moment.at for moment in moments] == seen


def test_the_servers_come_to_their_end_though_no_exporter_sees_it():
    replica = busy()
    list(replay([replica], 50.0, restarts=[(10.0, 100.0)]))
    assert replica.frontend.clock == 50.0
    unseen = busy()
    list(replay([unseen], 50.0, restarts=[(0.0, 100.0)]))
    assert unseen.frontend.steps == replica.frontend.steps > 1000


@pytest.mark.parametrize("restart", [(-1.0, 5.0), (5.0, -1.0), (float("nan"), 5.0), (5.0, inf)])
def test_a_restart_at_no_time_is_refused(restart):
    with pytest.raises(ConfigError, match="must be virtual seconds"):
        next(replay([busy()], 10.0, restarts=[restart]))


# --- GPUs ----------------------------------------------------------------------------------------


def card(*reasons: str, at: float = 0.0) -> GpuState:
    events = dict.fromkeys(reasons, True)
    gpu = GpuSample(index="0", uuid="GPU-0", clock_events=events)
    return GpuState(up=True, gpus=(gpu,), read_at=at)


def test_each_moment_shows_the_gpus_as_they_were_then():
    asked: list[float] = []

    def gpus(at: float) -> GpuState:
        asked.append(at)
        return card(at=at)

    moments = list(replay([busy(), busy()], 20.0, gpus=gpus))
    assert asked == [moment.at for moment in moments] == list(range(20))
    assert [moment.state.gpu.read_at for moment in moments] == asked


def test_without_gpus_none_are_looked_at():
    (moment,) = replay([busy()], 0.5)
    assert moment.state.gpu == GpuState(up=None)


def windows(reason: str, begin: float, end: float) -> dict[float, float]:
    """On how many windows the step-time fit rests, with a reason that holds for a while."""
    moments = replay([busy()], 200.0, gpus=lambda at: card(reason) if begin <= at < end else card())
    fits = {moment.at: only(moment).memory.fit for moment in moments}
    return {at: fit.windows for at, fit in fits.items() if fit is not None}


def test_step_times_are_learnt_anew_when_a_gpu_becomes_slow_and_when_it_recovers():
    found = windows("hw_thermal_slowdown", 100.0, 150.0)
    assert found[100.0] > 20
    assert found[101.0] <= 1
    assert found[150.0] > 10
    assert found[151.0] <= 1
    # A burst's power cap is no such change.
    capped = windows("sw_power_cap", 100.0, 150.0)
    assert min(capped[at] for at in (100.0, 101.0, 150.0, 151.0)) > 20


def test_the_fit_follows_a_gpu_that_slows_down_sooner_if_it_says_so():
    def steps(at: float, **options) -> float:
        replica = busy(events=[Event(at=300.0, action="slow", factor=2.0)])
        *_, last = replay([replica], at, **options)
        fit = only(last).memory.fit
        assert fit is not None
        assert fit.fixed is not None
        assert fit.per_sequence is not None
        return fit.fixed + 10 * fit.per_sequence

    healthy = steps(300.0)
    told = steps(360.0, gpus=lambda at: card("hw_slowdown") if at >= 300 else card())
    assert told / healthy == pytest.approx(2.0, rel=0.1)
    assert steps(360.0) / healthy < 1.7


# --- what a server does not publish --------------------------------------------------------------

HIDDEN = {
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:num_requests_running": "running",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:iteration_tokens_total": "steps",
    "vllm:cache_config_info": "kv_capacity_tokens",
}


@pytest.mark.parametrize("servers", [1, 2], ids=["filtered", "full"])
@pytest.mark.parametrize("family", HIDDEN)
def test_what_a_server_hides_is_unknown_and_the_rest_goes_on(family, servers):
    replica = replace(busy(api_servers=servers), hidden=frozenset({family}))
    moments = list(replay([replica], 30.0))
    missing = set()
    for moment in moments[2:]:
        sample = only(moment).sample
        assert sample is not None
        missing |= {field for field in HIDDEN.values() if getattr(sample, field) is None}
        assert sample.generation_tokens
    assert missing == {HIDDEN[family]}
    assert moments[-1].state.engines[0].poll_mode == ("filtered" if servers == 1 else "full")
    assert moments[-1].state.engines[0].errors == {}


def test_a_server_may_stop_publishing():
    hidden = frozenset({"vllm:kv_cache_usage_perc", "vllm:cache_config_info"})
    moments = list(replay([replace(busy(), hidden=hidden, hidden_from=15.0)], 40.0))
    samples = {moment.at: only(moment).sample for moment in moments}
    assert all(samples[at].kv_usage is not None for at in range(15))
    assert all(samples[at].kv_usage is None for at in range(15, 40))
    # The facts of the last full page hold until the next.
    assert samples[19.0].kv_capacity_tokens == TINY_CPU.pool_tokens
    assert samples[20.0].kv_capacity_tokens is None


def test_hiding_what_no_page_has_is_an_error():
    with pytest.raises(ConfigError, match="replica sim: hidden 'vllm:kv_cache_usage'"):
        replace(busy(), hidden=frozenset({"vllm:kv_cache_usage"}))


# --- the demo's traffic --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_moments() -> list[Moment]:
    load = TraceLoad(repeat(partial(read, demo.TRACE), demo.TRACE_SECONDS))
    replica = Replica(name="demo", frontend=Frontend(find(demo.PROFILE)), load=load)
    poll = PollConfig(interval=0.5, full_interval=5.0)
    seconds = 3 * demo.TRACE_SECONDS
    return list(replay([replica], seconds, poll=poll, plan_of=lambda _e, _m: demo.PLAN))


def states(moments: list[Moment], begin: float, end: float) -> list[HeadroomState]:
    found = []
    for moment in moments:
        derived = moment.state.engines[0].ranks[0].derived
        assert derived is not None
        if begin <= moment.at < end:
            found.append(derived.state)
    return found


@pytest.mark.parametrize("cycle", [0, 1, 2])
def test_the_demo_outgrows_its_plan_within_two_minutes_and_recovers_each_time(demo_moments, cycle):
    begin = cycle * demo.TRACE_SECONDS
    first = states(demo_moments, begin, begin + 28)
    crowded = states(demo_moments, begin + 50, begin + 80)
    last = states(demo_moments, begin + 125, begin + demo.TRACE_SECONDS)
    assert first.count(HeadroomState.OK) > 0.8 * len(first)
    assert set(crowded) == {HeadroomState.EXHAUSTED}
    assert last.count(HeadroomState.EXHAUSTED) == 0
    assert last.count(HeadroomState.OK) > 0.7 * len(last)


def test_the_demo_goes_beyond_its_plan_and_into_preemption(demo_moments):
    ranks = [moment.state.engines[0].ranks[0] for moment in demo_moments]
    demand = [rank.derived.demand for rank in ranks if rank.derived and rank.derived.demand]
    assert max(demand) > 1.5 * demo.PLAN.concurrency
    assert ranks[-1].sample is not None
    assert ranks[-1].sample.preemptions > 0
