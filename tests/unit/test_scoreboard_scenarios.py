"""Scenarios and baselines of the scoreboard: all are there, none is silent by a wrong name."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from headroom_exporter.backtest.prometheus import check_rules
from headroom_exporter.catalog import BY_NAME
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.exposition import Page
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.replay import Replica
from headroom_exporter.simulate.wire import family_names

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


scenarios = load("scoreboard.scenarios")
baselines = load("scoreboard.baselines")
stage = load("scoreboard.stage")

SCENARIOS = scenarios.SCENARIOS
KINDS = {"calm", "heal", "ramp", "sudden", "lasting", "other"}
# Of the list that the project was given.
LISTED = [
    *(f"B{number:02}" for number in (2, 5, 7, 10, 21, 22, 24, 27, 31, 34, 36, 38)),
    *(f"B{number}" for number in (47, 51, 60, 61, 62, 64, 69)),
    *("N1", "N2"),
]
TRACES = ("azure2023", "azure2024", "mooncake", "servegen")


def servers():
    return [server for scenario in SCENARIOS for server in scenario.servers]


def streams() -> dict[str, tuple]:
    """Traffic of every server with the scenario's length; what is equal once."""
    return {
        f"{scenario.name}/{server.name}": (server.traffic, scenario.seconds)
        for scenario in SCENARIOS
        for server in scenario.servers
    }


# --- scenarios -------------------------------------------------------------------------------------


def test_there_are_at_least_24_scenarios_with_names_of_their_own():
    names = [scenario.name for scenario in SCENARIOS]
    assert len(names) >= 24
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_each_split_has_at_least_a_third():
    splits = [scenario.split for scenario in SCENARIOS]
    assert set(splits) == {scenarios.TUNE, scenarios.HELD}
    assert min(map(splits.count, set(splits))) * 3 >= len(splits)


@pytest.mark.parametrize("kind", sorted(KINDS - {"other"}))
def test_each_kind_has_scenarios_that_were_tuned_on_and_others_that_were_not(kind):
    splits = {scenario.split for scenario in SCENARIOS if scenario.kind == kind}
    assert splits == {scenarios.TUNE, scenarios.HELD}


def test_kinds_are_known_words():
    assert {scenario.kind for scenario in SCENARIOS} <= KINDS


def test_at_least_two_gpu_profiles_and_three_public_traces_are_used():
    assert len({find(scenario.profile).name for scenario in SCENARIOS}) >= 2
    sources = [server.traffic.source for server in servers()]
    used = {trace for trace in TRACES if any(source.startswith(trace) for source in sources)}
    assert len(used) >= 3


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_can_be_put_on_stage(scenario):
    assert scenario.story.endswith(".")
    assert scenario.plan.ttft_p95_seconds is not None
    assert scenario.plan.tpot_p95_seconds is not None
    names = [server.name for server in scenario.servers]
    assert len(set(names)) == len(names) >= 1
    assert set().union(*(server.hidden for server in scenario.servers)) <= family_names()
    moments = [event.at for server in scenario.servers for event in server.events]
    moments += [at for at, _ in (*scenario.exporter_down, *scenario.gpu_slow)]
    assert all(0 <= at < scenario.seconds for at in moments)
    # Two servers that share an iterator or an engine would share their fate.
    made = stage._run(scenario).servers
    assert len({id(server.frontend) for server in made}) == len(made)
    for server in made:
        Replica(name=server.name, frontend=server.frontend, load=None, hidden=server.hidden)


@pytest.mark.parametrize(
    "source", sorted({server.traffic.source for server in servers()}), ids=lambda text: text[:40]
)
def test_traffic_is_a_file_that_is_here_or_can_be_made(source):
    if source.startswith(generators.PREFIX):
        assert generators.parse(source).duration > 0
    else:
        assert (stage.TRAFFIC / f"{source}.csv.gz").is_file()


def test_made_up_traffic_lasts_as_long_as_its_scenario():
    for name, (traffic, seconds) in streams().items():
        if traffic.source.startswith(generators.PREFIX):
            assert generators.parse(traffic.source).duration >= seconds, name


def test_recorded_traffic_lasts_as_long_as_its_scenario():
    recorded = {
        key: name
        for name, key in streams().items()
        if not key[0].source.startswith(generators.PREFIX)
    }
    for (traffic, seconds), name in recorded.items():
        last = max(request.arrival for request in stage.arrivals(traffic, seconds))
        assert 0.9 * seconds < last < seconds, name


def test_no_two_scenarios_play_the_same_traffic_from_the_same_seed_but_on_purpose():
    seen: dict[str, set[str]] = {}
    for scenario in SCENARIOS:
        for server in scenario.servers:
            if server.traffic.source.startswith(generators.PREFIX):
                seen.setdefault(server.traffic.source, set()).add(scenario.name)
    shared = {frozenset(names) for names in seen.values() if len(names) > 1}
    # One steady stream under four mishaps.
    assert shared == {
        frozenset({"engine-restart", "engine-gone", "missing-gauges", "exporter-restart-calm"})
    }


def test_every_alert_that_a_scenario_expects_exists():
    files = sorted((ROOT / "rules" / "alerts").glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    expected = {alert for scenario in SCENARIOS for alert in scenario.expects}
    assert expected
    assert expected <= alerts


@pytest.mark.parametrize(
    ("what", "holds"),
    {
        "calm days": lambda each: each.kind == "calm" and each.seconds == 86_400,
        "a ramp that outgrows the plan": lambda each: each.kind == "ramp",
        "spikes that heal": lambda each: each.kind == "heal",
        "sudden spikes": lambda each: each.kind == "sudden",
        "prompt-length drift": lambda each: "prompt_growth=4" in each.servers[0].traffic.source,
        "slots bound": lambda each: each.servers[0].max_num_seqs is not None,
        "a hot replica among eight": lambda each: len(each.servers) == 8,
        "engine restart": lambda each: any(
            event.action == "restart" for event in each.servers[0].events
        ),
        "missing metrics": lambda each: each.servers[0].hidden,
        "exporter restart": lambda each: each.exporter_down,
        "GPU throttling": lambda each: each.gpu_slow,
        "two ranks": lambda each: each.servers[0].ranks == 2,
        "rejections": lambda each: each.servers[0].limits is not None,
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_there_is_a_scenario_of_each_sort_that_was_asked_for(what, holds):
    assert any(holds(scenario) for scenario in SCENARIOS)


# --- baselines -------------------------------------------------------------------------------------

BASELINES = baselines.BASELINES


def test_every_listed_baseline_is_there_once():
    assert [baseline.id for baseline in BASELINES] == LISTED


@pytest.mark.parametrize(
    ("name", "threshold", "seconds"),
    [
        *(("B02", 0.90, 300), ("B05", 0.9, 180), ("B07", 0.95, 300), ("B10", 0.95, 300)),
        *(("B21", 5, 300), ("B22", 0, 120), ("B27", 50, 120), ("B31", 0, 120)),
        *(("B36", 5, 600), ("B38", 2, 300), ("B47", 15, 0), ("B51", 0.95, 300)),
        *(("B69", 2.5, 0), ("N1", 0.95, 600), ("N2", 0.95, 300)),
    ],
)
def test_a_baseline_has_its_published_threshold_and_time(name, threshold, seconds):
    (baseline,) = (each for each in BASELINES if each.id == name)
    assert (baseline.threshold, baseline.seconds) == (threshold, seconds)
    assert baseline.above == (name != "B47")


def expressions() -> dict[str, str]:
    """Every baseline on every scenario; what is the same once."""
    found = {
        baseline.value(scenario, 100_000): baseline.id
        for scenario in SCENARIOS
        for baseline in BASELINES
    }
    return found | {baselines.CONCURRENCY: "concurrency"}


def test_prometheus_can_read_every_baseline_on_every_scenario(tmp_path):
    rules = [
        {"record": f"b:{name}:{number}", "expr": expr}
        for number, (expr, name) in enumerate(expressions().items())
    ]
    assert len(rules) > len(BASELINES) / 2
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "baselines", "rules": rules}]}))
    check_rules([file])


def sample_names() -> set[str]:
    page = Page(Frontend(find("tiny-cpu")), epoch=0.0).render()
    return {re.split(r"[{ ]", line)[0] for line in page.split("\n") if not line.startswith("#")}


def test_every_metric_of_a_baseline_exists_and_is_recorded():
    text = " ".join(expressions())
    upstream = set(re.findall(r"vllm:\w+", text))
    assert upstream
    assert upstream <= sample_names()
    assert upstream <= stage.ENGINE_NAMES
    own = set(re.findall(r"headroom_\w+", text))
    assert own
    assert own <= set(BY_NAME)


def test_every_name_that_is_recorded_of_an_engine_exists():
    assert sample_names() >= stage.ENGINE_NAMES
