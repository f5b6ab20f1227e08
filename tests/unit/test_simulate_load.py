"""Load: scripted rates, clients, lengths, repetition; and requests from a stream."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import quantiles

import pytest

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.lengths import LengthDistribution
from headroom_exporter.simulate.load import Phase, Script, ScriptedLoad, TraceLoad
from headroom_exporter.simulate.requests import Finished, Request
from simulation import TINY_CPU

PROMPTS = LengthDistribution(p50=60, p95=120, largest=300)
OUTPUTS = LengthDistribution(p50=80, p95=160, largest=300)


def script(*phases: Phase, **rest) -> Script:
    return Script(phases=phases, prompt=PROMPTS, output=OUTPUTS, **rest)


def play(what: Script, until: float, cut: float | None = None) -> SimulatedEngine:
    engine, load = SimulatedEngine(TINY_CPU), ScriptedLoad(what)
    if cut is not None:
        while engine.clock < until:
            assert load.drive(engine, min(until, engine.clock + cut))
    assert load.drive(engine, until)
    return engine


def finished(engine: SimulatedEngine) -> int:
    return sum(engine.counters.finished.values())


def test_lengths_have_the_quantiles_they_were_given_and_stay_in_range():
    rng = Random(1)
    lengths = LengthDistribution(p50=500, p95=2000, largest=3000)
    drawn = [lengths.draw(rng) for _ in range(20_000)]
    cuts = quantiles(drawn, n=20)
    assert cuts[9] == pytest.approx(500, rel=0.03)
    assert cuts[18] == pytest.approx(2000, rel=0.05)
    assert min(drawn) >= 1
    assert max(drawn) == 3000


@pytest.mark.parametrize(("p50", "p95", "largest"), [(0, 5, 9), (10, 5, 20), (1, 2, 0)])
def test_impossible_lengths_are_refused(p50, p95, largest):
    with pytest.raises(ConfigError, match="p50"):
        LengthDistribution(p50=p50, p95=p95, largest=largest)


def test_a_script_needs_phases_that_last():
    with pytest.raises(ConfigError, match="phases"):
        script()
    with pytest.raises(ConfigError, match="longer than 0"):
        script(Phase(seconds=0, rate=1))


def test_an_open_loop_has_its_rate():
    engine = play(script(Phase(seconds=300, rate=5.0)), 300)
    assert finished(engine) + engine.unfinished == pytest.approx(1500, rel=0.08)


def test_a_rate_ramps_linearly():
    engine = SimulatedEngine(TINY_CPU)
    load = ScriptedLoad(script(Phase(seconds=400, rate=0.0, rate_end=8.0), seed=1))
    load.drive(engine, 200)
    first_half = finished(engine) + engine.unfinished
    load.drive(engine, 400)
    all_of_it = finished(engine) + engine.unfinished
    # A quarter of the area under the ramp lies in its first half.
    assert first_half == pytest.approx(400, rel=0.12)
    assert all_of_it == pytest.approx(1600, rel=0.08)


def test_a_closed_loop_keeps_so_many_requests_in_flight():
    what = script(Phase(seconds=5, clients=3), Phase(seconds=5, clients=7), Phase(seconds=9))
    engine, load = SimulatedEngine(TINY_CPU), ScriptedLoad(what)
    for until, clients in ((2, 3), (4.9, 3), (6, 7), (9.9, 7)):
        load.drive(engine, until)
        assert engine.running + engine.waiting == clients
    load.drive(engine, 15)
    assert engine.unfinished == 0


def test_clients_think_between_requests():
    busy = play(script(Phase(seconds=60, clients=1)), 60)
    idle = play(script(Phase(seconds=60, clients=1), think=1.0), 60)
    assert busy.integrals.running == pytest.approx(60, rel=0.01)
    assert idle.integrals.running < 15


def test_the_same_seed_gives_the_same_run_however_time_is_cut():
    what = script(
        Phase(seconds=3, rate=10.0), Phase(seconds=3, clients=6, rate=5.0), seed=7, repeat=True
    )
    one, two = play(what, 20), play(what, 20, cut=0.173)
    assert one.counters.finished == two.counters.finished
    assert one.counters.duration.counts == two.counters.duration.counts
    assert one.counters.generation_tokens == two.counters.generation_tokens
    other = play(replace(what, seed=8), 20)
    assert other.counters.generation_tokens != one.counters.generation_tokens


def test_a_script_ends_or_repeats():
    once = play(script(Phase(seconds=10, rate=5.0)), 40)
    again = play(script(Phase(seconds=10, rate=5.0), repeat=True), 40)
    assert once.unfinished == 0
    assert finished(again) > 3 * finished(once)


def test_work_in_one_call_is_bounded():
    engine = SimulatedEngine(TINY_CPU)
    load = ScriptedLoad(script(Phase(seconds=1000, clients=4)))
    assert not load.drive(engine, 900, max_steps=500)
    assert engine.steps == 500
    assert load.drive(engine, engine.clock + 1)


def test_clients_that_are_turned_away_ask_again_later():
    what = script(Phase(seconds=60, clients=5))
    frontend = Frontend(
        TINY_CPU,
        limits=Limits(max_num_queued_reqs=2),
        events=[Event(at=20.0, action="restart")],
        start_seconds=10.0,
    )
    load = ScriptedLoad(what)
    assert load.drive(frontend, 19.9)
    assert frontend.unfinished == 5  # two inside, three about to ask again
    # Each of the three asks once a second.
    assert 20 <= frontend.fates.rejected <= 3 * 20
    assert load.drive(frontend, 29.0)
    assert 5 * 8 <= frontend.fates.lost <= 5 * 10
    load.drive(frontend, 35.0)
    assert sum(engine.running for engine in frontend.engines) == 2


def stream(count: int, gap: float):
    return (
        Request(arrival=number * gap, prompt_tokens=50, output_tokens=20, id=str(number))
        for number in range(count)
    )


def test_a_stream_is_played_in_order_and_to_its_end_however_time_is_cut():
    def run(cut: float) -> list[Finished]:
        ended: list[Finished] = []
        engine, load = SimulatedEngine(TINY_CPU), TraceLoad(stream(200, 0.05), ended.append)
        while not load.over or engine.unfinished:
            assert load.drive(engine, engine.clock + cut)
        assert load.submitted == 200
        return ended

    assert run(0.173) == run(1000.0)
    assert [record.request.id for record in run(1000.0)][:3] == ["0", "1", "2"]


def test_a_stream_is_read_no_further_than_a_minute_ahead():
    read = 0

    def endless():
        nonlocal read
        while True:
            yield Request(arrival=float(read), prompt_tokens=50, output_tokens=20)
            read += 1

    engine, load = SimulatedEngine(TINY_CPU), TraceLoad(endless())
    load.drive(engine, 1000.0)
    assert read == 1000
    assert not load.drive(engine, 100_000.0, max_steps=100)
    assert read <= 1000 + 61


def test_an_empty_stream_is_over():
    load = TraceLoad(iter(()))
    engine = SimulatedEngine(TINY_CPU)
    assert load.over
    assert load.drive(engine, 10.0)
    assert engine.clock == 10.0
