"""A replay in virtual time and the served engine, read over HTTP, give the exporter the same State."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.config import EngineConfig, Lengths, PlanConfig, PollConfig
from headroom_exporter.fetch import make_session
from headroom_exporter.poll import FULL, Clocks, EnginePoller
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.lengths import LengthDistribution
from headroom_exporter.simulate.load import Phase, Script, ScriptedLoad
from headroom_exporter.simulate.replay import Replica, replay
from headroom_exporter.simulate.server import RealTimeRunner, make_app
from headroom_exporter.track import EngineTrack
from simulation import TINY_CPU

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineState

EPOCH = 1.7e9
POLL = PollConfig(interval=0.5, fallback_interval=1.5, full_interval=3.0)
PLAN = PlanConfig(
    name="p",
    concurrency=12,
    max_num_seqs=48,
    prompt_tokens=Lengths(p50=150, p95=600),
    output_tokens=Lengths(p50=150, p95=500),
    request_rate=5.0,
)
LENGTHS = LengthDistribution(p50=150, p95=600, largest=1500)

phases = st.lists(
    st.builds(
        Phase,
        seconds=st.floats(1, 6),
        clients=st.integers(0, 40),
        rate=st.floats(0, 30),
        rate_end=st.one_of(st.none(), st.floats(0, 30)),
    ),
    min_size=1,
    max_size=3,
)
scripts = st.builds(
    lambda phases, seed: Script(
        phases=tuple(phases), prompt=LENGTHS, output=LENGTHS, seed=seed, repeat=True
    ),
    phases=phases,
    seed=st.integers(0, 99),
)
servers = st.fixed_dictionaries(
    {
        "ranks": st.integers(1, 2),
        "api_servers": st.sampled_from([1, 1, 2]),
        "limits": st.sampled_from([Limits(), Limits(max_num_queued_reqs=10)]),
        "events": st.lists(
            st.builds(Event, at=st.floats(1, 15), action=st.sampled_from(["sleep", "wake"])),
            max_size=2,
        ),
    }
)


def in_virtual_time(server: dict, script: Script, seconds: float) -> list[EngineState]:
    replica = Replica(name="e", frontend=Frontend(TINY_CPU, **server), load=ScriptedLoad(script))
    moments = replay([replica], seconds, poll=POLL, plan_of=lambda _e, _m: PLAN, epoch=EPOCH)
    return [moment.state.engines[0] for moment in moments]


async def over_http(server: dict, script: Script, seconds: float) -> list[EngineState]:
    """The exporter's own client on a real server; only the clock is turned by hand."""
    now = 0.0
    runner = RealTimeRunner(Frontend(TINY_CPU, **server), ScriptedLoad(script), clock=lambda: now)
    async with TestServer(make_app(runner, epoch=EPOCH)) as served, make_session() as session:
        config = EngineConfig(name="e", url=f"http://127.0.0.1:{served.port}")
        track = EngineTrack(config, POLL, lambda _e, _m: PLAN)
        clocks = Clocks(monotonic=lambda: now, wall=lambda: EPOCH + now)
        poller = EnginePoller(config, POLL, track, lambda: None, session, clocks)
        states = []
        while now < seconds:
            await poller.tick()
            states.append(track.state())
            now += POLL.fallback_interval if track.poll_mode == FULL else POLL.interval
    return states


@given(server=servers, script=scripts)
@settings(deadline=None, max_examples=12)
def test_both_paths_give_the_same_states(server, script):
    virtual = in_virtual_time(server, script, 20.0)
    served = asyncio.run(over_http(server, script, 20.0))
    assert virtual == served
    assert virtual[-1].up
    assert len(virtual[-1].ranks) == server["ranks"]
    assert virtual[-1].poll_mode == ("filtered" if server["api_servers"] == 1 else "full")


@given(script=scripts)
@settings(deadline=None, max_examples=10)
def test_a_replay_gives_the_same_states_each_time_restarts_included(script):
    server = {"events": [Event(at=7.0, action="restart")], "start_seconds": 5.0}
    once = in_virtual_time(server, script, 30.0)
    again = in_virtual_time(server, script, 30.0)
    assert once == again
    down = [state for state in once if not state.up]
    assert down
    assert {kind for state in down for kind in state.errors} == {"refused"}
    assert once[-1].up


@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=10)
def test_replicas_of_one_replay_do_not_touch_each_other(seed):
    script = Script(
        phases=(Phase(seconds=20, rate=10.0),), prompt=LENGTHS, output=LENGTHS, seed=seed
    )
    other = replace(script, seed=seed + 100)
    together = [
        moment.state.engines
        for moment in replay(
            [
                Replica(name="a", frontend=Frontend(TINY_CPU), load=ScriptedLoad(script)),
                Replica(name="b", frontend=Frontend(TINY_CPU), load=ScriptedLoad(other)),
            ],
            10.0,
            poll=POLL,
        )
    ]
    for index, (name, own) in enumerate((("a", script), ("b", other))):
        replica = Replica(name=name, frontend=Frontend(TINY_CPU), load=ScriptedLoad(own))
        alone = [moment.state.engines[0] for moment in replay([replica], 10.0, poll=POLL)]
        assert [engines[index] for engines in together] == alone
