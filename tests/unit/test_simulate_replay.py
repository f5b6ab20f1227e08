"""Replays: which pages are read when, what the State says, and that memory stays flat."""

from __future__ import annotations

import gc
import itertools
from functools import partial

import pytest

from headroom_exporter import demo
from headroom_exporter.config import PollConfig
from headroom_exporter.samples import HeadroomState
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
