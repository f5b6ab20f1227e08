"""Values: what is wrong is refused by name, the schema knows every key, the README tells what each means."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml
from helm_python import HelmError

from deploy import helm
from deploy.chart_scenes import SCENES
from headroom_exporter.config import table
from headroom_exporter.config.checks import KINDS

SCHEMA = json.loads((helm.CHART / "values.schema.json").read_text(encoding="utf-8"))
TOOL = helm.ROOT / "tools" / "chart_files.py"
PLAN = "config.plans"

# Key -> (what somebody wrote there, what the message must hold beside the key). A key in [] is a list's item.
BROKEN = [
    ("mode", "sidecar", "'node', 'none'"),
    ("mode", None, "missing property 'mode'"),
    ("monitoring", None, "missing property 'monitoring'"),
    ("monitoring.kind", None, "missing property 'kind'"),
    ("replicas", 3, "replicas"),
    ("image", "headroom-exporter:1", "want object"),
    ("image.repository", "", "image/repository"),
    ("image.repository", "https://example.com/x", "image/repository"),
    ("image.tag", "a b", "image/tag"),
    ("image.tag", 1.2, "want string"),
    ("image.digest", "sha256:abc", "image/digest"),
    ("image.pullPolicy", "always", "image/pullPolicy"),
    ("image.pullSecrets", ["registry"], "image/pullSecrets/0"),
    ("image.name", "x", "name"),
    ("fullnameOverride", "Not_A_Name", "fullnameOverride"),
    ("commonLabels", {"app.kubernetes.io/name": "x"}, "commonLabels"),
    ("commonLabels", {"a": 1}, "commonLabels/a"),
    ("podLabels", {"app.kubernetes.io/component": "x"}, "podLabels"),
    ("podAnnotations", {"a": True}, "podAnnotations/a"),
    ("nodeSelector", {"gpu": True}, "nodeSelector/gpu"),
    ("tolerations", [{"key": "a", "Effect": "NoSchedule"}], "tolerations/0"),
    ("tolerations", [{"effect": "Never"}], "tolerations/0/effect"),
    ("affinity", {"nodeAfinity": {}}, "nodeAfinity"),
    ("updateStrategy.type", "Recreate", "updateStrategy/type"),
    ("terminationGracePeriodSeconds", -1, "terminationGracePeriodSeconds"),
    ("podSecurityContext.runAsUser", "65532", "podSecurityContext/runAsUser"),
    ("securityContext.readOnlyRootFileSystem", True, "readOnlyRootFileSystem"),
    ("resources.limits", {"memory": "lots"}, "resources/limits/memory"),
    ("resources.limit", {}, "limit"),
    ("probes.kind", "exec", "probes/kind"),
    ("probes.enabled", False, "enabled"),
    ("extraArgs", "--log.level=debug", "extraArgs"),
    ("extraEnv", {"A": "b"}, "extraEnv"),
    ("extraEnv", [{"name": "A-B", "value": "c"}], "extraEnv/0/name"),
    ("log.level", "trace", "log/level"),
    ("log.format", "text", "log/format"),
    ("gpuMapping.enabled", "yes", "gpuMapping/enabled"),
    ("gpuMapping.path", "kubelet.sock", "gpuMapping/path"),
    ("gpuMapping.path", "/var/lib/kubelet/", "gpuMapping/path"),
    ("gpus.visibleDevices", "0, 1", "gpus/visibleDevices"),
    ("gpus.visibleDevices", 0, "gpus/visibleDevices"),
    ("web.tlsSecret", {"name": "x"}, "web/tlsSecret"),
    ("web.tls", True, "tls"),
    ("serviceAccount.name", "a b", "serviceAccount/name"),
    ("rbac.rules", [], "rules"),
    ("monitoring.kind", "PodMonitor", "monitoring/kind"),
    ("monitoring.enabled", True, "enabled"),
    ("monitoring.interval", "1m", "monitoring/interval"),
    ("monitoring.interval", 15, "monitoring/interval"),
    ("monitoring.tlsConfig", {"ca": {"secret": {"name": "x"}}}, "key"),
    ("monitoring.basicAuth", {"username": "me"}, "monitoring/basicAuth/username"),
    ("monitoring.relabelings", [{"source_labels": ["a"]}], "source_labels"),
    ("monitoring.sidecars.namespaces", "all", "monitoring/sidecars/namespaces"),
    ("rules.kind", "configmap", "rules/kind"),
    ("rules.groups.pages", False, "pages"),
    ("rules.groups.headroom-pages", "off", "rules/groups/headroom-pages"),
    ("rules.alerts.HeadroomEngineGone", {"enabled": False}, "HeadroomEngineGone"),
    ("rules.alerts.HeadroomEngineDown", False, "rules/alerts/HeadroomEngineDown"),
    ("rules.alerts.HeadroomEngineDown.for", "soon", "rules/alerts/HeadroomEngineDown/for"),
    ("rules.alerts.HeadroomEngineDown.for", "", "rules/alerts/HeadroomEngineDown/for"),
    ("rules.alerts.HeadroomEngineDown.expr", "up == 0", "expr"),
    ("rules.alertLabels", {"on-call": "me"}, "'on-call' not allowed"),
    ("rules.labels", {"a/b/c": "me"}, "'a/b/c' not allowed"),
    ("rules.thresholds.exhaustedBudgetRatio", 1, "rules/thresholds/exhaustedBudgetRatio"),
    ("rules.thresholds.exhaustedBudgetRatio", 0, "rules/thresholds/exhaustedBudgetRatio"),
    ("rules.thresholds.busyUseRatio", "80%", "rules/thresholds/busyUseRatio"),
    ("rules.thresholds.floorRatio", 0.2, "floorRatio"),
    ("rules.runbookBaseUrl", "wiki", "rules/runbookBaseUrl"),
    ("dashboards.boards.cluster", True, "cluster"),
    ("dashboards.labelValue", 1, "dashboards/labelValue"),
    ("networkPolicy.enginePorts", ["vllm"], "networkPolicy/enginePorts/0"),
    ("networkPolicy.enginePorts", [70000], "networkPolicy/enginePorts/0"),
    ("networkPolicy.enginePorts", [], "networkPolicy/enginePorts"),
    ("networkPolicy.apiServerCidrs", ["10.0.0.1"], "networkPolicy/apiServerCidrs/0"),
    ("networkPolicy.scrapers", [{"namespace": "monitoring"}], "networkPolicy/scrapers/0"),
    # The exporter's own configuration.
    ("config.engine", [], "engine"),
    ("config.discovery.kubernetes.namespace", "chat", "namespace"),
    ("config.discovery.kubernetes.node", "gpu-node-7", "node"),
    ("config.discovery.kubernetes.namespaces", "chat", "namespaces"),
    ("config.discovery.kubernetes.namespaces", ["chat", "chat"], "namespaces"),
    ("config.discovery.kubernetes.port_names", ["VLLM"], "port_names/0"),
    ("config.discovery.kubelet", {"socket": "/x"}, "kubelet"),
    ("config.poll", {"interval": "fast"}, "config/poll/interval"),
    ("config.poll", {"max_back_off": "5s"}, "max_back_off"),
    ("config.engines", [{"url": "10.0.0.7:8000"}], "config/engines/0/url"),
    ("sidecar.config", {"engines": []}, "sidecar/config/engines"),
    (PLAN, [{"headroom": {"floor_ratio": 1.7}}], "config/plans/0/headroom/floor_ratio"),
    (PLAN, [{"headroom": {"spike_factor": 0.5}}], "config/plans/0/headroom/spike_factor"),
    (PLAN, [{"concurrency": "32"}], "config/plans/0/concurrency"),
    (PLAN, [{"max_num_seqs": 64.5}], "config/plans/0/max_num_seqs"),
    (PLAN, [{"slo": {"ttft_p95": 1}}], "ttft_p95"),
    (PLAN, {"name": "chat"}, "config/plans"),
    ("sidecar.config", {"discovery": {"kubernetes": {}}}, "discovery"),
    ("sidecar.resources", {"limits": {"memory": True}}, "sidecar/resources/limits/memory"),
    ("sidecar.readinessProbe", True, "readinessProbe"),
]
LOGIN = {"username": {"name": "login", "key": "u"}, "password": {"name": "login", "key": "p"}}
# Values that are right one by one and not together: refused by the templates.
AT_ODDS = [
    ({"mode": "none", "monitoring": {"kind": "serviceMonitor"}}, "monitoring.kind"),
    ({"mode": "none", "gpuMapping": {"enabled": True}}, "gpuMapping.enabled"),
    ({"mode": "none", "networkPolicy": {"enabled": True}}, "networkPolicy.enabled"),
    ({"config": {"discovery": None}}, "config.discovery"),
    (
        {
            "config": {"discovery": None, "engines": [{"url": "http://a:1"}]},
            "gpuMapping": {"enabled": True},
        },
        "gpuMapping.enabled",
    ),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ({"monitoring": {"sidecars": {"enabled": True}}}, "monitoring.sidecars.enabled"),
    (
        {"mode": "none", "monitoring": {"kind": "podMonitor", "basicAuth": LOGIN}},
        "monitoring.sidecars.namespaces",
    ),
    (
        {"monitoring": {"kind": "podMonitor", "sidecars": {"enabled": True}, "basicAuth": LOGIN}},
        "monitoring.sidecars.namespaces",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "said"), BROKEN, ids=[f"{key}={value}"[:70] for key, value, _ in BROKEN]
)
def test_a_broken_value_is_refused_by_name(key, value, said):
    with pytest.raises(HelmError) as refused:
        helm.texts(helm.nested(key, value))
    # Of what is wrong the path, and of what is unknown the name; and no second complaint to hide behind.
    lines = [line for line in str(refused.value).splitlines() if line.startswith("- at ")]
    assert lines, refused.value
    assert said in str(refused.value)
    assert key.split(".")[0] in str(refused.value)


@pytest.mark.parametrize(("given", "key"), AT_ODDS, ids=[key for _, key in AT_ODDS])
def test_values_at_odds_are_refused_by_name(given, key):
    with pytest.raises(HelmError, match=rf"{re.escape(key)}: "):
        helm.texts(given)


def test_lint_refuses_what_rendering_refuses():
    assert any("/log/level" in each for each in helm.lint({"log": {"level": "trace"}}))


# --- the schema -------------------------------------------------------------------------------------


def objects(schema, where=""):
    """Every (path, object schema) in a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield where, schema
        for key, part in schema.items():
            yield from objects(part, f"{where}/{key}")
    elif isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from objects(part, f"{where}/{index}")


# As they are in Kubernetes, whose own schema is its business.
HANDED_ON = {
    "/properties/global",
    "/definitions/env/properties/valueFrom",
    *(
        f"/properties/affinity/properties/{each}"
        for each in ("nodeAffinity", "podAffinity", "podAntiAffinity")
    ),
}


def test_the_schema_is_one_and_closed_everywhere():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    for where, each in objects(SCHEMA):
        if where in HANDED_ON:
            continue
        # False, or the schema of a map's values.
        assert "additionalProperties" in each, where
        assert each["additionalProperties"] is not True, where


def test_the_schema_has_no_definition_that_nothing_uses():
    text = json.dumps(SCHEMA)
    for name in SCHEMA["definitions"]:
        assert f'"#/definitions/{name}"' in text, name


def resolved(schema):
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def leaves(schema, prefix=""):
    """Every key that the schema knows by name, as docs/configuration.md writes them."""
    schema = resolved(schema)
    if "properties" in schema:
        for key, part in schema["properties"].items():
            yield from leaves(part, f"{prefix}.{key}" if prefix else key)
    elif schema.get("type") == "array" and "properties" in resolved(schema["items"]):
        yield from leaves(schema["items"], f"{prefix}[]")
    else:
        yield prefix


def test_every_value_is_in_the_schema_and_the_other_way_round():
    root = {
        key: part for key, part in SCHEMA["properties"].items() if key not in {"global", "enabled"}
    }
    default = helm.default_values()
    assert list(root) == list(default)
    for key in (
        "monitoring",
        "rules",
        "dashboards",
        "networkPolicy",
        "sidecar",
        "gpus",
        "web",
        "log",
    ):
        assert list(resolved(root[key])["properties"]) == list(default[key]), key
    rules = resolved(root["rules"])["properties"]
    for key in ("groups", "thresholds"):
        assert list(rules[key]["properties"]) == list(default["rules"][key])


def test_the_schema_knows_every_alert_and_no_other():
    shipped = {
        rule["alert"]
        for path in (helm.ROOT / "rules" / "alerts").glob("*.yaml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }
    assert set(SCHEMA["properties"]["rules"]["properties"]["alerts"]["properties"]) == shipped


def exporters_keys(level, prefix=""):
    for key, spec in level.items():
        if isinstance(spec, table.Each) and isinstance(spec.item, table.Record):
            yield from exporters_keys(spec.item.keys, f"{prefix}{key}[].")
        elif isinstance(spec, table.Record | table.Group):
            yield from exporters_keys(spec.keys, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_schema_knows_every_key_of_the_exporters_configuration():
    known = set(exporters_keys(table.CONFIG.keys))
    # The chart sets the node by NODE_NAME, and the socket by gpuMapping.
    chart = {each for each in known if not each.startswith("discovery.kubelet.")} - {
        "discovery.kubernetes.node"
    }
    assert set(leaves(SCHEMA["properties"]["config"])) == chart
    sidecar = {each for each in known if not each.startswith("discovery.")}
    assert set(leaves(SCHEMA["properties"]["sidecar"]["properties"]["config"])) == sidecar


def test_the_schema_takes_every_kind_of_engine():
    pattern = SCHEMA["definitions"]["engine"]["properties"]["kind"]["pattern"]
    assert all(re.search(pattern, kind) for kind in KINDS)


@pytest.mark.parametrize("scene", SCENES)
def test_an_older_helms_validator_agrees(scene):
    """Helm 3 before 3.18 reads draft 7 with another library; Python's is a third opinion."""
    merged = helm.loaded().merge_values(yaml.safe_load(SCENES[scene]))
    assert [each.message for each in jsonschema.Draft7Validator(SCHEMA).iter_errors(merged)] == []


# --- what the tool writes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("chart_files", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_that_the_tool_writes_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def run_in(tool, folder, monkeypatch, *arguments):
    monkeypatch.setattr(tool, "ROOT", folder)
    monkeypatch.setattr(tool, "CHART", folder / "deploy" / "helm" / "headroom-exporter")
    monkeypatch.setattr(sys, "argv", ["chart_files.py", *arguments])
    return tool.main()


@pytest.fixture
def repository(tmp_path):
    """What the tool reads, copied."""
    import shutil

    for part in ("rules", "grafana/dashboards", "deploy/alertmanager", "deploy/helm"):
        shutil.copytree(helm.ROOT / part, tmp_path / part)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("rules/alerts/pages.yaml", "for: 30s", "for: 31s"),
        ("grafana/dashboards/headroom-fleet.json", "Fleet", "Float"),
        ("deploy/alertmanager/alertmanager.yml", "pager", "beeper"),
        ("deploy/helm/headroom-exporter/values.yaml", "# What runs.", "# What walks."),
        ("deploy/helm/headroom-exporter/Chart.yaml", 'appVersion: "', 'appVersion: "9'),
    ],
)
def test_what_is_out_of_date_is_found_and_written(
    repository, tool, monkeypatch, capsys, path, old, new
):
    changed = repository / path
    text = changed.read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, new), encoding="utf-8")
    assert run_in(tool, repository, monkeypatch, "--check") == 1
    assert "is out of date" in capsys.readouterr().err
    assert run_in(tool, repository, monkeypatch) == 0
    assert run_in(tool, repository, monkeypatch, "--check") == 0


def test_a_copy_without_a_source_is_removed(repository, tool, monkeypatch, capsys):
    stray = repository / "deploy/helm/headroom-exporter/files/rules/alerts/old.yaml"
    stray.write_text("groups: []\n", encoding="utf-8")
    assert run_in(tool, repository, monkeypatch, "--check") == 1
    assert "old.yaml: has no source" in capsys.readouterr().err
    assert run_in(tool, repository, monkeypatch) == 0
    assert not stray.exists()


def test_a_value_without_a_comment_is_refused(tool):
    with pytest.raises(tool.ChartError, match=r"a\.c has no comment"):
        tool.value_rows("# All of it.\na:\n  # One.\n  b: 1\n\n  c: 2\n")


def test_the_table_says_key_default_and_meaning(tool):
    text = "# All\n# of it.\na:\n  # One | two.\n  b: {x: 1}\n# List.\nc: [1]\n"
    assert tool.value_rows(text) == [
        ("a", "", "All of it."),
        ("a.b", '`{"x": 1}`', "One | two."),
        ("c", "`[1]`", "List."),
    ]
    assert "One \\| two." in tool.table(text)


def test_the_readme_tells_every_value():
    readme = (helm.CHART / "README.md").read_text(encoding="utf-8")
    for key in ("mode", "config.plans", "rules.thresholds.forecastDays", "sidecar.config"):
        assert f"| `{key}` |" in readme
