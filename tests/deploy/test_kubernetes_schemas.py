"""The harness itself: what is wrong is found, what is right is not."""

from __future__ import annotations

import copy

import pytest
import yaml

from deploy.kubernetes_schemas import NEWEST, OLDEST, documents, is_validated, pods, problems

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine, labels: {app: engine}}
spec:
  replicas: 1
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine}}
    spec:
      initContainers:
        - {name: side, image: side, restartPolicy: Always, ports: [{name: headroom, containerPort: 9890}]}
      containers:
        - name: engine
          image: engine
          resources: {limits: {nvidia.com/gpu: 1, memory: 1Gi}}
          readinessProbe: {httpGet: {path: /health, port: http}}
          volumeMounts: [{name: cache, mountPath: /cache}]
      volumes: [{name: cache, emptyDir: {}}]
"""
MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: headroom}
spec:
  selector: {matchLabels: {app: engine}}
  podMetricsEndpoints: [{port: headroom, interval: 15s}]
"""
RULES = """
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: rules}
spec:
  groups:
    - name: one
      rules: [{alert: A, expr: up == 0, labels: {severity: critical}}, {record: b, expr: 1}]
"""
SCALED = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: scale}
spec:
  scaleTargetRef: {name: engine}
  triggers: [{type: prometheus, metadata: {query: up, threshold: "1"}}]
"""
SETS = """
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: set}
spec:
  leaderWorkerTemplate:
    size: 2
    workerTemplate:
      spec: {containers: [{name: engine, image: engine}]}
"""
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: headroom}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
"""
SERVICE_MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: headroom}
spec: {selector: {}, endpoints: [{port: headroom}]}
"""


def changed(text, path, value):
    """The manifest with one value set, or taken away where it is None."""
    manifest = copy.deepcopy(yaml.safe_load(text))
    here = manifest
    *steps, last = path
    for step in steps:
        here = here[step]
    if value is None:
        del here[last]
    else:
        here[last] = value
    return manifest


@pytest.mark.parametrize("text", [DEPLOYMENT, MONITOR, SERVICE_MONITOR, RULES, SCALED, SETS, ROLE])
def test_what_is_right_has_no_problem(text):
    assert problems(yaml.safe_load(text)) == []


POD = ("spec", "template", "spec")
BROKEN = [
    (DEPLOYMENT, ("spec", "replica"), 1, "'replica' was unexpected"),
    (DEPLOYMENT, ("spec", "selector"), None, "'selector' is a required property"),
    (DEPLOYMENT, ("spec", "replicas"), "one", "spec.replicas"),
    (DEPLOYMENT, (*POD, "initContainers", 0, "restartpolicy"), "x", "'restartpolicy' was unexp"),
    (DEPLOYMENT, (*POD, "volumes"), None, "no volume 'cache' to mount"),
    (DEPLOYMENT, (*POD, "initContainers", 0, "name"), "engine", "two containers 'engine'"),
    (
        DEPLOYMENT,
        (*POD, "initContainers", 0, "ports", 0, "name"),
        "headroom_port",
        "is no port name",
    ),
    (DEPLOYMENT, ("metadata", "labels", "app"), "a b", "'a b' is no label value"),
    (DEPLOYMENT, ("metadata", "labels", "app"), True, "metadata.labels.app"),
    (DEPLOYMENT, ("metadata", "name"), "Engine_1", "is no DNS name"),
    (DEPLOYMENT, ("apiVersion",), "apps/v1beta9", "no schema for apps/v1beta9 Deployment"),
    (MONITOR, ("metadata", "label"), {}, "'label' was unexpected"),
    (MONITOR, ("spec", "podMetricsEndpoints", 0, "ports"), "x", "'ports' was unexpected"),
    (MONITOR, ("spec", "podMetricsEndpoints", 0, "interval"), "fast", "interval"),
    (MONITOR, ("spec", "selector"), None, "'selector' is a required property"),
    (
        MONITOR,
        ("apiVersion",),
        "monitoring.coreos.com/v2",
        "no schema for monitoring.coreos.com/v2",
    ),
    (SERVICE_MONITOR, ("spec", "endpoints", 0, "scheme"), "ftp", "'ftp' is not one of"),
    (RULES, ("spec", "groups", 0, "rules", 0, "severity"), "x", "'severity' was unexpected"),
    (RULES, ("spec", "groups", 0, "rules", 0, "expr"), None, "'expr' is a required property"),
    (SCALED, ("spec", "triggers", 0, "metadata", "threshold"), 1, "1 is not of type 'string'"),
    (SETS, ("spec", "leaderWorkerTemplate", "workerTemplate", "spec", "image"), "x", "'image'"),
    (ROLE, ("rules", 0, "verb"), ["get"], "'verb' was unexpected"),
]


@pytest.mark.parametrize(("text", "path", "value", "said"), BROKEN)
def test_what_is_wrong_is_named(text, path, value, said):
    found = problems(changed(text, path, value))
    assert any(said in each for each in found), found


def test_two_rule_groups_of_one_name_are_found():
    manifest = yaml.safe_load(RULES)
    manifest["spec"]["groups"] *= 2
    assert any("two items with {'name': 'one'}" in each for each in problems(manifest))


def test_a_sidecar_is_no_part_of_a_release_before_its_field():
    found = problems(yaml.safe_load(DEPLOYMENT), versions=("1.27.0",))
    assert any("restartPolicy" in each for each in found), found


def test_a_list_is_taken_apart():
    wrong = changed(DEPLOYMENT, ("spec", "replica"), 1)
    whole = {"apiVersion": "v1", "kind": "List", "items": [wrong, yaml.safe_load(ROLE)]}
    assert problems(whole) == problems(wrong) != []


def test_what_is_no_manifest_is_said_to_be_none():
    assert problems({"kind": "Pod"})
    assert problems("text")


def test_a_key_given_twice_is_refused():
    with pytest.raises(yaml.YAMLError, match="'name' stands there twice"):
        documents("metadata: {name: a, name: b}")


def test_empty_documents_are_left_out():
    assert documents("---\n# nothing\n---\nkind: A\n---\n") == [{"kind": "A"}]


def test_kinds_without_a_schema_are_said_to_have_none():
    assert not is_validated(yaml.safe_load(SETS))
    assert is_validated(yaml.safe_load(MONITOR))


def test_pods_are_found_wherever_they_are():
    assert [where for where, _ in pods(yaml.safe_load(SETS))] == [
        "spec.leaderWorkerTemplate.workerTemplate.spec"
    ]


def test_the_releases_span_native_sidecars_to_the_newest_known():
    assert OLDEST == "1.29.0"
    assert NEWEST != OLDEST
