"""A scenario on its stage: traffic, servers, cards, and recordings that are kept as long as they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from headroom_exporter.config import PlanConfig
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Limits

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


scenarios = load("scoreboard.scenarios")
stage = load("scoreboard.stage")

STEADY = "synthetic:poisson?rate=2&duration=600&prompt_p95=600&prompt_max=1000&output_max=200"


def scenario(*servers, **changes):
    made = servers or (scenarios.Server(traffic=scenarios.Traffic(source=STEADY)),)
    values = {
        "name": "tiny",
        "story": "Tiny.",
        "kind": "calm",
        "split": "tune",
        "profile": "tiny-cpu",
        "plan": PlanConfig(concurrency=8, ttft_p95_seconds=2.0, tpot_p95_seconds=0.25),
        "servers": made,
        "seconds": 120.0,
    }
    return scenarios.Scenario(**values | changes)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Recordings of this test go here."""
    monkeypatch.setattr(stage, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


# --- traffic ---------------------------------------------------------------------------------------


def arrivals(source: str, seconds: float = 900.0, **options):
    return list(stage.arrivals(scenarios.Traffic(source=source, **options), seconds))


def test_traffic_comes_in_order_and_ends_with_the_scenario():
    found = arrivals("azure2023_conv")
    times = [request.arrival for request in found]
    assert all(one <= two for one, two in pairwise(times))
    assert 0 <= times[0] < 10
    assert 890 < times[-1] < 900


def test_nothing_comes_before_its_time():
    found = arrivals("azure2023_conv", after=600.0)
    begun = arrivals("azure2023_conv", 300.0)
    assert [each.arrival for each in found] == pytest.approx([each.arrival + 600 for each in begun])


def test_one_of_so_many_requests_is_kept():
    whole, third = arrivals("azure2023_conv"), arrivals("azure2023_conv", keep_every=3)
    assert third in [whole[first::3] for first in range(3)]


def test_a_rate_is_multiplied():
    half = arrivals("azure2023_conv", scale=0.5)
    assert len(half) == pytest.approx(len(arrivals("azure2023_conv")) / 2, rel=0.15)


def test_a_cut_begins_at_zero_and_ends_where_it_should():
    cut = arrivals("azure2023_conv", 9000.0, start=600.0, end=900.0)
    whole = [each for each in arrivals("azure2023_conv") if each.arrival >= 600]
    assert [each.arrival for each in cut] == pytest.approx([each.arrival - 600 for each in whole])


def test_cached_prompts_count_only_where_a_scenario_says_so():
    assert sum(each.cached_tokens for each in arrivals("mooncake_conversation")) == 0
    assert (
        sum(each.cached_tokens for each in arrivals("mooncake_conversation", use_cached=True)) > 0
    )


# --- servers ---------------------------------------------------------------------------------------


def only(**options):
    server = scenarios.Server(traffic=scenarios.Traffic(source=STEADY), **options)
    (made,) = stage._run(scenario(server)).servers
    return made


def test_a_server_is_as_its_description_says():
    made = only(ranks=2, max_num_seqs=7, limits=Limits(max_num_queued_reqs=3), name="x")
    assert made.name == "x"
    assert [engine.profile.max_num_seqs for engine in made.frontend.engines] == [7, 7]
    made.frontend.advance(1.0)
    for request in list(made.arrivals)[:20]:
        made.frontend.submit(replace(request, arrival=1.0))
    made.frontend.advance(1.01)
    assert made.frontend.fates.rejected == 17


def test_a_restart_takes_as_long_as_it_says():
    made = only(events=(Event(at=10, action="restart"),), start_seconds=90.0)
    ups = {}
    for at in (9.0, 11.0, 99.0, 101.0):
        made.frontend.advance(at)
        ups[at] = made.frontend.up
    assert ups == {9.0: True, 11.0: False, 99.0: False, 101.0: True}


def test_what_is_hidden_is_hidden():
    made = only(hidden=("vllm:num_requests_running",))
    assert made.hidden == {"vllm:num_requests_running"}


def test_a_slow_card_slows_every_server():
    both = [scenarios.Server(name=name, traffic=scenarios.Traffic(source=STEADY)) for name in "ab"]
    run = stage._run(scenario(*both, gpu_slow=((10.0, 2.5), (50.0, 1.0))))
    factors = []
    for at in (5.0, 20.0, 60.0):
        for server in run.servers:
            server.frontend.advance(at)
        factors.append([server.frontend.slowdown for server in run.servers])
    assert factors == [[1, 1], [2.5, 2.5], [1, 1]]


def slowed(run, at: float) -> bool:
    (card,) = run.gpus(at).gpus
    return card.clock_events["hw_thermal_slowdown"]


def test_a_slow_card_says_so_while_it_is_slow():
    run = stage._run(scenario(gpu_slow=((10.0, 2.5), (50.0, 1.0))))
    assert [slowed(run, at) for at in (0, 9.9, 10, 49, 50, 80)] == [0, 0, 1, 1, 0, 0]
    assert not slowed(stage._run(scenario()), 100.0)


def test_a_card_is_busy_while_its_server_computes():
    run = stage._run(scenario())
    (server,) = run.servers
    idle = run.gpus(0.0)
    server.frontend.advance(10.0)
    assert run.gpus(10.0).gpus[0].utilization == 0.0
    for number in range(40):
        request = next(server.arrivals)
        server.frontend.submit(replace(request, arrival=10.0 + number / 100, output_tokens=200))
    server.frontend.advance(11.0)
    assert run.gpus(11.0).gpus[0].utilization == pytest.approx(1.0, abs=0.05)
    server.frontend.advance(1000.0)
    assert 0 < run.gpus(1000.0).gpus[0].utilization < 0.1
    # vLLM takes its memory at the start.
    assert run.gpus(1001.0).gpus[0].memory_used == idle.gpus[0].memory_used > 0


# --- recordings ------------------------------------------------------------------------------------


def test_a_scenario_is_played_once(kept, monkeypatch):
    first = stage.stage(scenario())
    assert first.samples.is_file()
    assert first.engine_samples.is_file()
    assert first.felt["llm-0"].requests > 100
    monkeypatch.setattr(stage, "play", None)
    assert stage.stage(scenario()) == first
    assert len(list(kept.iterdir())) == 1


def test_another_scenario_of_the_same_name_is_played_anew(kept):
    stage.stage(scenario())
    other = stage.stage(scenario(plan=PlanConfig(concurrency=9)))
    assert len(list(kept.iterdir())) == 2
    assert other.samples.is_file()


def test_a_recording_is_known_again_by_another_process():
    code = (
        "from scoreboard.scenarios import SCENARIOS\nfrom scoreboard.stage import _fingerprint\n"
        "print([_fingerprint(each) for each in SCENARIOS if each.servers[0].hidden][:2])"
    )
    path = os.pathsep.join([str(ROOT / "tools"), str(ROOT / "exporter")])
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert len(said.pop()) > 20


@pytest.mark.parametrize(
    ("path", "matters"),
    [
        ("simulate/engine.py", True),
        ("simulate/data/profiles.json", True),
        ("derive/memory.py", True),
        ("backtest/truth.py", True),
        ("backtest/score.py", False),
        ("web/server.py", False),
        ("cli.py", False),
    ],
)
def test_a_recording_holds_until_what_it_was_made_with_changes(path, matters):
    assert (stage.PACKAGE / path).is_file()
    assert stage._recorded_with(Path(path)) == matters


def test_a_recording_holds_until_its_traffic_changes(tmp_path, monkeypatch):
    traffic = scenarios.Traffic(source="cut")
    made = scenario(scenarios.Server(traffic=traffic))
    monkeypatch.setattr(stage, "TRAFFIC", tmp_path)
    found = set()
    for content in (b"one", b"two"):
        (tmp_path / "cut.csv.gz").write_bytes(content)
        found.add(stage._fingerprint(made))
    assert len(found) == 2
