"""docs/node-mode.md names every kind, annotation and metric, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from headroom_exporter import discovery
from headroom_exporter.catalog import BY_NAME
from headroom_exporter.config import Config, DiscoveryConfig
from headroom_exporter.config.file import parse, parse_plan
from headroom_exporter.discovery import kubelet, node, pods
from headroom_exporter.discovery.api import Gone
from headroom_exporter.errors import Unreachable

DOC = (Path(__file__).parents[2] / "docs" / "node-mode.md").read_text(encoding="utf-8")
SOURCES = sorted(Path(discovery.__file__).parent.glob("*.py"))
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)


def test_every_kind_of_error_is_documented_and_none_besides():
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    kinds = set(re.findall(r'kind="(\w+)"|count\("(\w+)"\)', text))
    used = {first or second for first, second in kinds} | {Gone.kind, Unreachable.kind}
    # Chosen by an expression.
    used |= {"idle", "dropped", "no_socket", "too_many", "duplicate"}
    table = DOC.partition("| source | kind | |")[2].partition("\n\n")[0]
    said = {
        kind for row in table.splitlines() for kind in re.findall(r"`(\w+)`", row.rsplit("|", 2)[0])
    }
    assert said == used


def test_every_annotation_and_label_is_documented_and_none_besides():
    keys = {pods.SCRAPE, pods.PORT, pods.SCHEME, pods.KIND, pods.PLAN}
    assert set(re.findall(r"^\| `(headroom-exporter/\w+)`", DOC, re.MULTILINE)) == keys
    assert set(re.findall(r"headroom-exporter/\w+", DOC)) == keys | {pods.SIDECAR}


def test_every_metric_it_names_is_ours_and_none_of_node_mode_is_missing():
    named = set(re.findall(r"\bheadroom_\w+", DOC))
    assert named - set(BY_NAME) == set()
    ours = {name for name in BY_NAME if name.startswith("headroom_discovery_")}
    assert ours | {"headroom_gpu_pod_info"} <= named


def test_the_examples_work():
    minimal, pod, role, _ = EXAMPLES
    assert parse(minimal, "doc") == Config(engines=(), discovery=DiscoveryConfig())
    annotations = yaml.safe_load(pod)["metadata"]["annotations"]
    who = pods.identity({"metadata": {"namespace": "a", "name": "b", "uid": "c"}})
    given = {
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
        "metadata": {"annotations": annotations},
    }
    found = pods.read_pod(given, who, DiscoveryConfig().kubernetes)
    assert found.complaints == ()
    assert found.targets[0].plan == parse_plan(annotations[pods.PLAN], "doc")
    assert yaml.safe_load(role)["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]


def test_the_numbers_are_the_codes():
    assert f"At most {node.MAX_ENGINES} engines" in DOC
    assert f"several with commas: one engine each, {pods.MAX_PORTS} at most" in DOC
    assert f"at most {pods.MAX_PLAN_CHARACTERS} characters" in DOC
    assert f"every {kubelet.INTERVAL_SECONDS:g} seconds" in DOC
    assert kubelet.FORGET_SECONDS == 60.0
    assert f"else {pods.DEFAULT_PORT}" in DOC
