"""deploy/autoscaling: the manifests, the rule they read, and the loop that they close."""

from __future__ import annotations

import logging
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.hpa import DEFAULT_BEHAVIOUR, Autoscaler, Goal, wanted
from deploy.kubernetes_schemas import documents, problems
from deploy.scaling import SCENES, START_SECONDS, TRIGGERS, Outcome, behaviour, day
from headroom_exporter.config import PlanConfig
from pager.processes import program

ROOT = Path(__file__).resolve().parents[2]
AUTOSCALING = ROOT / "deploy" / "autoscaling"
METRIC = "model:headroom_replicas_wanted:sum2m"


def manifest(name: str) -> dict[str, Any]:
    (found,) = documents((AUTOSCALING / name).read_text(encoding="utf-8"))
    made: dict[str, Any] = found
    return made


# --- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scaledobject.yaml", "hpa.yaml"])
def test_the_manifest_is_what_its_api_takes(name):
    assert problems(manifest(name)) == []


def test_a_misspelt_key_of_the_scaled_object_is_found():
    broken = manifest("scaledobject.yaml")
    broken["spec"]["fallback"]["replica"] = broken["spec"]["fallback"].pop("replicas")
    assert problems(broken)


def test_both_autoscalers_are_one():
    keda, plain = manifest("scaledobject.yaml")["spec"], manifest("hpa.yaml")["spec"]
    (trigger,), (metric,) = keda["triggers"], plain["metrics"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == plain["behavior"]
    assert keda["minReplicaCount"] == plain["minReplicas"]
    assert keda["maxReplicaCount"] == plain["maxReplicas"]
    assert keda["scaleTargetRef"]["name"] == plain["scaleTargetRef"]["name"]
    target = metric["external"]["target"]
    assert trigger["metricType"] == target["type"] == "AverageValue"
    assert float(trigger["metadata"]["threshold"]) * 1000 == int(target["averageValue"][:-1])
    (label,) = metric["external"]["metric"]["selector"]["matchLabels"].items()
    assert f'{label[0]}="{label[1]}"' in trigger["metadata"]["query"]


def test_no_value_is_no_zero_and_nobody_scales_to_none():
    spec = manifest("scaledobject.yaml")["spec"]
    assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert spec["minReplicaCount"] >= 1
    assert "idleReplicaCount" not in spec
    fallback = spec["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher"
    assert spec["minReplicaCount"] <= fallback["replicas"] <= spec["maxReplicaCount"]
    assert manifest("hpa.yaml")["spec"]["minReplicas"] >= 1


def test_with_the_tolerance_a_replica_comes_before_the_floor_is_reached():
    (trigger,) = manifest("scaledobject.yaml")["spec"]["triggers"]
    goal = Goal(kind="AverageValue", value=float(trigger["metadata"]["threshold"]))
    for replicas in (1, 2, 5, 20):
        # Exactly as many as there are: the floor is just kept.
        assert wanted(float(replicas), goal, replicas, replicas) > replicas


def test_the_model_in_the_selector_is_a_value_that_kubernetes_allows():
    (metric,) = manifest("hpa.yaml")["spec"]["metrics"]
    for value in metric["external"]["metric"]["selector"]["matchLabels"].values():
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)


def test_the_adapter_offers_the_metric_under_the_name_that_is_asked_for(tmp_path):
    loaded = yaml.safe_load((AUTOSCALING / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = loaded["externalRules"]
    (metric,) = manifest("hpa.yaml")["spec"]["metrics"]
    assert (
        re.sub(rule["name"]["matches"], rule["name"]["as"], METRIC)
        == (metric["external"]["metric"]["name"])
    )
    assert rule["seriesQuery"].startswith(f"{METRIC}{{")
    query = rule["metricsQuery"]
    for name, value in {
        "Series": METRIC,
        "LabelMatchers": 'namespace="inference",model="Llama-3.1-8B-Instruct"',
        "GroupBy": "namespace",
    }.items():
        query = query.replace(f"<<.{name}>>", value)
    assert is_promql(query, tmp_path)
    assert not is_promql(query + "}", tmp_path)


def is_promql(expr: str, folder: Path) -> bool:
    """Whether promtool parses it, as the expression of a rule."""
    file = folder / "rule.yaml"
    rule = {"groups": [{"name": "one", "rules": [{"record": "a:b", "expr": expr}]}]}
    file.write_text(yaml.safe_dump(rule), encoding="utf-8")
    done = subprocess.run([program("promtool"), "check", "rules", str(file)], capture_output=True)
    return done.returncode == 0


# --- the rule ------------------------------------------------------------------------------------


def test_the_rules_are_right_and_do_what_their_tests_say():
    for arguments in (("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")):
        done = subprocess.run(
            [program("promtool"), *arguments], cwd=AUTOSCALING, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_trigger_asks_for_what_the_rules_record(tmp_path):
    text = (AUTOSCALING / "rules.yaml").read_text(encoding="utf-8")
    (trigger,) = manifest("scaledobject.yaml")["spec"]["triggers"]
    assert trigger["metadata"]["query"].startswith(f"{METRIC}{{")
    assert f"record: {METRIC}\n" in text
    assert is_promql(trigger["metadata"]["query"], tmp_path)


def test_without_a_plan_the_floor_is_the_exporters_default():
    text = (AUTOSCALING / "rules.yaml").read_text(encoding="utf-8")
    assert f"+ {1 - PlanConfig(name='any').floor_ratio:g}" in text


# --- the model of the autoscaler -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "replicas", "expected"),
    [
        (1.7, 2, 2),  # 0.94 of the goal: within the tolerance
        (1.98, 2, 2),  # 1.1
        (2.0, 2, 3),
        (4.6, 2, 6),
        (1.63, 2, 2),  # 0.906
        (1.6, 2, 2),  # 0.89, but ceil(1.78) is 2
        (0.9, 2, 1),
        (0.0, 2, 0),
    ],
)
def test_a_sum_is_shared_by_all_and_rounded_up(metric, replicas, expected):
    assert wanted(metric, Goal(kind="AverageValue", value=0.9), replicas, replicas) == expected


def test_a_ratio_multiplies_those_that_are_ready():
    goal = Goal(kind="Value", value=0.6)
    assert wanted(0.9, goal, 4, 4) == 6
    assert wanted(0.9, goal, 4, 2) == 3
    assert wanted(0.64, goal, 4, 4) == 4


def scaler(least: int = 1, most: int = 20, goal: float = 1.0) -> Autoscaler:
    return Autoscaler(Goal(kind="AverageValue", value=goal), least, most, behaviour())


def run(autoscaler: Autoscaler, metrics: list[float | None], replicas: int) -> list[int]:
    sizes = []
    for step, metric in enumerate(metrics):
        replicas = autoscaler.sync(step * 15.0, metric, replicas, replicas)
        sizes.append(replicas)
    return sizes


def test_nothing_changes_where_there_is_no_value():
    assert run(scaler(), [None] * 200, 7) == [7] * 200


def test_a_burst_of_less_than_a_minute_adds_nobody():
    assert run(scaler(), [2.0] * 10 + [9.0] * 3 + [2.0] * 10, 2) == [2] * 23


def test_a_lasting_want_is_met_within_the_policies():
    sizes = run(scaler(), [2.0] * 4 + [12.0] * 20, 2)
    # A minute of wanting it, then at most doubled or two more in any minute.
    assert sizes[:7] == [2] * 7
    assert sizes[7:] == sorted(sizes[7:])
    assert max(after - before for before, after in zip(sizes, sizes[4:], strict=False)) <= 6
    assert sizes[-1] == 12


def test_replicas_go_one_by_one_and_only_after_a_quarter_of_an_hour():
    sizes = run(scaler(), [8.0] * 4 + [2.0] * 240, 8)
    first = next(step for step, size in enumerate(sizes) if size < 8)
    assert first * 15 >= 900
    changes = [step for step in range(1, len(sizes)) if sizes[step] != sizes[step - 1]]
    assert all(sizes[step - 1] - sizes[step] == 1 for step in changes)
    assert all((after - before) * 15 >= 300 for before, after in pairwise(changes))
    assert sizes[-1] == 2


def test_the_defaults_of_kubernetes_go_all_at_once():
    plain = Autoscaler(Goal(kind="AverageValue", value=1.0), 1, 20, DEFAULT_BEHAVIOUR)
    sizes = run(plain, [8.0] * 4 + [2.0] * 40, 8)
    assert sizes[-1] == 2
    assert set(sizes) == {8, 2}


# --- the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swing(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """
    Traffic that grows to seven times its least and comes back, on the cache-bound fleet.

    In three hours with two minutes of loading: as steep as seven and a half hours with five.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        folder = tmp_path_factory.mktemp("swing")
        return day(
            SCENES["l4-floor"], TRIGGERS["ours"], hours=3.0, folder=folder, start_seconds=120.0
        )
    finally:
        logging.disable(before)


@pytest.mark.timeout(900)
def test_the_fleet_goes_up_and_down_once(swing):
    sizes = [size for _, size in swing.played.replicas]
    assert sizes[0] == 2
    assert max(sizes) >= 5
    assert sizes[-1] <= 3
    assert swing.played.turns == 1


@pytest.mark.timeout(900)
def test_nobody_is_woken_and_no_user_waits_while_scaling_keeps_up(swing):
    assert swing.pages == {}
    assert swing.late_minutes == 0


@pytest.mark.timeout(900)
def test_it_costs_less_than_a_fleet_of_the_peaks_size(swing):
    most = max(size for _, size in swing.played.replicas)
    assert swing.played.replica_seconds < 0.75 * most * 3 * 3600


@pytest.mark.timeout(900)
def test_the_loop_saw_what_a_real_prometheus_records(swing):
    seen = {at: value for at, value in swing.played.metrics if value is not None}
    both = seen.keys() & swing.wanted.keys()
    assert len(both) > 0.98 * len(swing.played.metrics)
    assert {
        at: (seen[at], swing.wanted[at])
        for at in both
        if swing.wanted[at] != pytest.approx(seen[at], rel=0.01, abs=0.01)
    } == {}


def test_the_document_names_the_files_and_numbers_that_are_shipped():
    text = " ".join((ROOT / "docs" / "autoscaling.md").read_text(encoding="utf-8").split())
    for name in re.findall(r"\(\.\./deploy/autoscaling/([\w.-]+)\)", text):
        assert (AUTOSCALING / name).is_file()
    spec = manifest("scaledobject.yaml")["spec"]
    down = behaviour()["scaleDown"]
    assert f"target {float(spec['triggers'][0]['metadata']['threshold']):g}" in text
    assert f"at least {spec['fallback']['replicas']}" in text
    assert f"stabilisation {down['stabilizationWindowSeconds'] // 60} min" in text
    assert f"| least | {spec['minReplicaCount']} |" in text
    assert f"{START_SECONDS / 60:g}" == "5"
    assert "five minutes from asking to serving" in text
