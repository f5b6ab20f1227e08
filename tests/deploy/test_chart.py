"""What the chart installs, rendered by Helm's own engine, and held against schemas and our promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from deploy import helm
from deploy.chart_scenes import SCENES, values
from deploy.kubernetes_schemas import OLDEST, is_validated, pods, problems
from deploy.manifests import exporters, only, without_exporter
from deploy.pod_security import violations
from headroom_exporter import __version__, cli
from headroom_exporter.config.file import parse
from headroom_exporter.discovery.pods import PodIdentity, engine_names

each_scene = pytest.mark.parametrize("scene", SCENES)
GPUS = {"gpuMapping": {"enabled": True}}


@each_scene
def test_every_manifest_is_what_kubernetes_takes(scene):
    found = helm.manifests(SCENES[scene])
    assert [line for each in found for line in problems(each)] == []
    assert all(is_validated(each) for each in found)


@each_scene
def test_lint_has_nothing_to_say(scene):
    assert helm.lint(values(scene)) == []


@each_scene
def test_no_two_objects_have_one_name(scene):
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in helm.manifests(SCENES[scene])
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("release", ["a", "headroom-exporter", "x" * 53])
def test_names_stay_names_whatever_the_release_is_called(release):
    found = helm.manifests(SCENES["everything"], release=release)
    assert [line for each in found for line in problems(each)] == []
    # Of a DaemonSet the controller's labels, and of a Service a DNS label, end at 63.
    assert all(
        len(each["metadata"]["name"]) <= 63 for each in found if each["kind"] != "ClusterRole"
    )


def test_the_charts_versions_are_the_packages():
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert chart["kubeVersion"] == f">={OLDEST}-0"


def test_nothing_is_left_in_the_release_that_a_secret_cannot_hold(tmp_path):
    # Helm keeps the packed chart in a Secret, base64 twice over; a Secret holds 1 MiB.
    packed = helm.helm.package(helm.CHART, destination=tmp_path)
    assert (tmp_path / packed).stat().st_size * 16 / 9 < 1024 * 1024 / 2


# --- the DaemonSet ----------------------------------------------------------------------------------


def daemon_set(given=None):
    return only(helm.manifests(given), "DaemonSet")


def pod(given=None):
    return daemon_set(given)["spec"]["template"]["spec"]


def container(given=None):
    (found,) = pod(given)["containers"]
    return found


@pytest.mark.parametrize(
    "scene", ["default", "service monitor", "users", "no discovery", "openshift"]
)
def test_every_pod_passes_the_restricted_standard(scene):
    for manifest in helm.manifests(SCENES[scene]):
        for _, spec in pods(manifest):
            found = violations(spec)
            if scene == "openshift":
                # The platform's admission adds a user; nothing else may be missing.
                assert spec["securityContext"]["runAsNonRoot"] is True
            assert found == []


def test_mapping_gpus_breaks_the_standard_in_nothing_but_the_host_path_and_the_user():
    controls = {each.partition(":")[0] for each in violations(pod(GPUS))}
    assert controls == {
        "HostPath Volumes",
        "Volume Types",
        "Running as Non-root",
        "Running as Non-root user",
    }


def test_mapping_gpus_runs_as_the_sockets_owner_without_any_capability():
    spec = pod(GPUS)
    assert spec["securityContext"]["runAsUser"] == 0
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    (volume,) = (each for each in spec["volumes"] if "hostPath" in each)
    (mount,) = (
        each for each in spec["containers"][0]["volumeMounts"] if each["name"] == volume["name"]
    )
    assert volume["hostPath"] == {"path": "/var/lib/kubelet/pod-resources", "type": "Directory"}
    assert mount["readOnly"] is True
    kubelet = config(GPUS)["discovery"]["kubelet"]
    assert kubelet == {"enabled": True, "socket": f"{mount['mountPath']}/kubelet.sock"}


def test_without_the_mapping_there_is_no_host_path_and_the_kubelet_is_not_asked():
    assert not [each for each in pod()["volumes"] if "hostPath" in each]
    assert config()["discovery"]["kubelet"] == {"enabled": False}


def test_it_knows_its_node():
    (env,) = (each for each in container()["env"] if each["name"] == "NODE_NAME")
    assert env["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_its_selector_finds_its_pods_and_not_the_tests():
    for scene in ("default", "everything"):
        found = helm.manifests({**values(scene), "web": {}})
        daemon, service = only(found, "DaemonSet"), only(found, "Service")
        wanted = daemon["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= daemon["spec"]["template"]["metadata"]["labels"].items()
        assert service["spec"]["selector"] == wanted
        assert not wanted.items() <= only(found, "Pod")["metadata"]["labels"].items()


def test_its_selector_does_not_change_with_version_or_labels():
    changed = {"commonLabels": {"a": "b"}, "podLabels": {"c": "d"}, "image": {"tag": "other"}}
    assert daemon_set(changed)["spec"]["selector"] == daemon_set()["spec"]["selector"]


@pytest.mark.parametrize(
    ("given", "image"),
    [
        ({}, f"headroom-exporter:{__version__}"),
        ({"repository": "r.example.com/x", "tag": "1"}, "r.example.com/x:1"),
        ({"digest": "sha256:" + "a" * 64}, "headroom-exporter@sha256:" + "a" * 64),
        (
            {"tag": "1", "digest": "sha256:" + "a" * 64},
            "headroom-exporter:1@sha256:" + "a" * 64,
        ),
    ],
)
def test_the_image_is_named_by_tag_or_digest(given, image):
    assert container({"image": given})["image"] == image


def test_its_arguments_are_flags_that_the_exporter_has():
    shown = subprocess.run(
        [sys.executable, "-m", "headroom_exporter", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    verb, *flags = container(SCENES["everything"])["args"]
    assert verb == "run"
    for flag in flags:
        assert flag.partition("=")[0] in shown, flag


@pytest.mark.parametrize(
    ("given", "probe"),
    [
        ({}, {"httpGet": {"path": "/healthz", "port": "headroom"}}),
        (
            {"web": {"tlsSecret": "tls"}},
            {"httpGet": {"path": "/healthz", "port": "headroom", "scheme": "HTTPS"}},
        ),
        ({"probes": {"kind": "tcp"}}, {"tcpSocket": {"port": "headroom"}}),
    ],
)
def test_it_is_asked_for_its_health_in_the_way_it_answers(given, probe):
    assert probe.items() <= container(given)["livenessProbe"].items()


def test_ready_is_asked_at_the_path_for_it():
    assert container()["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert "livenessProbe" not in container({"probes": {"kind": "none"}})
    assert "readinessProbe" not in container({"probes": {"kind": "none"}})


def test_no_gpu_is_claimed_and_the_driver_is_asked_for_management_only():
    found = container({"gpus": {"visibleDevices": "all", "runtimeClassName": "nvidia"}})
    env = {each["name"]: each.get("value") for each in found["env"]}
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert "nvidia.com/gpu" not in json.dumps(found["resources"])
    assert not [each for each in container()["env"] if each["name"].startswith("NVIDIA")]
    assert "runtimeClassName" not in pod()


# --- its configuration ------------------------------------------------------------------------------


def config(given=None):
    found = helm.manifests(given)
    name = only(found, "DaemonSet")["metadata"]["name"]
    return yaml.safe_load(only(found, "ConfigMap", name)["data"]["config.yaml"])


def exporter_check(text, folder):
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "headroom_exporter", "check", str(folder / "config.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("scene", ["default", "everything", "sidecars", "no discovery"])
def test_every_configuration_passes_the_exporters_own_check(scene, tmp_path):
    checked = 0
    for manifest in helm.manifests(SCENES[scene]):
        if manifest["kind"] == "ConfigMap" and "config.yaml" in manifest["data"]:
            done = exporter_check(manifest["data"]["config.yaml"], tmp_path)
            assert (done.returncode, done.stderr) == (0, f"{tmp_path}/config.yaml: ok\n")
            checked += 1
    assert checked


@each_scene
def test_nothing_is_mounted_to_be_written(scene):
    for manifest in helm.manifests(SCENES[scene]):
        for _, spec in pods(manifest):
            for each in spec["containers"]:
                assert all(mount["readOnly"] for mount in each.get("volumeMounts") or ())


def test_numbers_of_a_plan_survive_helm():
    text = only(helm.manifests(SCENES["everything"]), "ConfigMap", "headroom-exporter")
    written = yaml.safe_dump(values("everything")["config"])
    assert parse(text["data"]["config.yaml"], "x").plans == parse(written, "x").plans
    assert parse(written, "x").plans[0].kv_cache_tokens == 24_000_000


def test_the_configuration_is_mounted_as_a_directory_so_that_changes_arrive():
    (mount,) = (each for each in container()["volumeMounts"] if each["name"] == "config")
    assert (mount["mountPath"], "subPath" in mount) == ("/etc/headroom", False)


def files(spec, volume):
    """Path below /etc/headroom -> (Secret or ConfigMap, its key, mode)."""
    (found,) = (each["projected"] for each in spec["volumes"] if each["name"] == volume)
    return {
        item["path"]: (source["name"], item["key"], item.get("mode"))
        for each in found["sources"]
        for source in each.values()
        for item in source["items"]
    }


def test_tls_alone_gets_a_web_configuration_that_names_the_mounted_certificate(tmp_path):
    found = helm.manifests({"web": {"tlsSecret": "tls"}})
    name = only(found, "DaemonSet")["metadata"]["name"]
    assert files(pod({"web": {"tlsSecret": "tls"}}), "config") == {
        "config.yaml": (name, "config.yaml", None),
        "web/web.yml": (name, "web.yml", None),
        "web/tls.crt": ("tls", "tls.crt", None),
        "web/tls.key": ("tls", "tls.key", 0o440),
    }
    web = yaml.safe_load(only(found, "ConfigMap", name)["data"]["web.yml"])
    assert web == {"tls_server_config": {"cert_file": "tls.crt", "key_file": "tls.key"}}
    assert (
        "--web.config.file=/etc/headroom/web/web.yml"
        in container({"web": {"tlsSecret": "t"}})["args"]
    )


def test_a_web_configuration_of_ones_own_is_taken_as_it_is():
    given = {"web": {"tlsSecret": "tls", "configSecret": "web"}}
    found = files(pod(given), "config")
    assert found["web/web.yml"] == ("web", "web.yml", 0o440)
    assert found["web/tls.crt"] == ("tls", "tls.crt", None)
    maps = [each for each in helm.manifests(given) if each["kind"] == "ConfigMap"]
    assert not [each for each in maps if "web.yml" in each["data"]]


# --- rights -----------------------------------------------------------------------------------------

PODS_READ = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]


@each_scene
def test_no_scene_gives_a_right_but_to_read_pods(scene):
    for manifest in helm.manifests(SCENES[scene]):
        if manifest["kind"] in {"Role", "ClusterRole"}:
            assert manifest["rules"] == PODS_READ
        assert manifest["kind"] != "Secret"


def rights(given):
    """(kind, namespace) of every role, after checking that its binding leads from the account to it."""
    found = helm.manifests(given)
    account = pod(given)["serviceAccountName"]
    roles = [each for each in found if each["kind"] in {"Role", "ClusterRole"}]
    bindings = [each for each in found if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert len(roles) == len(bindings)
    for role, binding in zip(roles, bindings, strict=True):
        assert binding["kind"] == role["kind"] + "Binding"
        assert binding["metadata"].get("namespace") == role["metadata"].get("namespace")
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (
            role["kind"],
            role["metadata"]["name"],
        )
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": helm.NAMESPACE}
        ]
    return [(role["kind"], role["metadata"].get("namespace")) for role in roles]


def test_it_reads_pods_of_the_cluster_or_of_the_named_namespaces_alone():
    named = {"config": {"discovery": {"kubernetes": {"namespaces": ["chat", "search"]}}}}
    assert rights({}) == [("ClusterRole", None)]
    assert rights(named) == [("Role", "chat"), ("Role", "search")]
    assert rights({"rbac": {"create": False}}) == []
    assert rights(SCENES["no discovery"]) == []


def test_two_releases_of_one_name_in_two_namespaces_do_not_share_a_cluster_role():
    names = {
        only(helm.manifests({}, namespace=each), "ClusterRole")["metadata"]["name"]
        for each in ("a", "b")
    }
    assert len(names) == 2


def test_only_who_watches_pods_has_a_token():
    found = helm.manifests({})
    assert only(found, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod()["automountServiceAccountToken"] is True
    assert pod(SCENES["no discovery"])["automountServiceAccountToken"] is False
    assert only(found, "Pod")["spec"]["automountServiceAccountToken"] is False


def test_without_an_exporter_there_is_nobody_to_have_rights():
    kinds = {each["kind"] for each in helm.manifests(SCENES["sidecars"])}
    assert kinds == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert helm.manifests(SCENES["minimal"]) == []


# --- network ----------------------------------------------------------------------------------------


def test_the_policy_is_about_the_daemon_sets_pods_and_lets_scrapes_in():
    given = {"networkPolicy": {"enabled": True}}
    found = helm.manifests(given)
    policy = only(found, "NetworkPolicy")["spec"]
    assert policy["podSelector"] == only(found, "DaemonSet")["spec"]["selector"]
    (ingress,) = policy["ingress"]
    (port,) = container(given)["ports"]
    assert ingress["ports"] == [{"port": port["containerPort"], "protocol": "TCP"}]
    assert {"namespaceSelector": {}} in ingress["from"]
    test_labels = only(found, "Pod")["metadata"]["labels"]
    assert any(
        "podSelector" in peer and peer["podSelector"]["matchLabels"].items() <= test_labels.items()
        for peer in ingress["from"]
    )


def test_the_policy_lets_out_to_engines_the_api_server_and_dns_and_nowhere_else():
    policy = only(helm.manifests(SCENES["everything"]), "NetworkPolicy")["spec"]
    engines, api_server, dns, extra = policy["egress"]
    assert [port["port"] for port in engines["ports"]] == [8000, 8001]
    assert engines["to"] == [{"namespaceSelector": {}}]
    assert api_server == {
        "ports": [{"port": 6443, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}, {"ipBlock": {"cidr": "fd00::1/128"}}],
    }
    assert {port["port"] for port in dns["ports"]} == {53}
    assert extra == values("everything")["networkPolicy"]["extraEgress"][0]


# --- scraping ---------------------------------------------------------------------------------------


def endpoints(kind, **more):
    """What the node's monitor scrapes."""
    found = helm.manifests({"monitoring": {"kind": kind, **more}})
    spec = only(found, kind[0].upper() + kind[1:])["spec"]
    (endpoint,) = spec.get("podMetricsEndpoints") or spec["endpoints"]
    return found, spec, endpoint


@pytest.mark.parametrize(
    ("kind", "target"), [("podMonitor", "DaemonSet"), ("serviceMonitor", "Service")]
)
def test_a_monitor_finds_its_target_and_port(kind, target):
    found, spec, endpoint = endpoints(kind)
    labels = only(found, target)["metadata"]["labels"]
    if target == "DaemonSet":
        labels = only(found, target)["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert spec["jobLabel"] in labels
    assert spec["namespaceSelector"] == {"matchNames": [helm.NAMESPACE]}
    assert endpoint["port"] == container()["ports"][0]["name"]
    assert endpoint["port"] == only(found, "Service")["spec"]["ports"][0]["name"]
    annotations = only(found, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    assert not [key for key in annotations if key.startswith("prometheus.io/")]


def test_both_monitors_scrape_alike():
    assert endpoints("podMonitor")[2] == endpoints("serviceMonitor")[2]


@pytest.mark.parametrize("ports", [[8000], [8000, 8001]])
def test_series_of_a_found_engine_get_its_namespace_and_pod(ports):
    who = PodIdentity(namespace="chat-1", name="llama-8b.x-0", uid="u")
    rules = endpoints("podMonitor")[2]["metricRelabelings"]
    for engine in engine_names(who, ports):
        labels = {
            rule["targetLabel"]: re.fullmatch(rule["regex"], engine).expand(
                rule["replacement"].replace("$", "\\")
            )
            for rule in rules
            if rule["sourceLabels"] == ["engine"]
        }
        assert labels == {"namespace": "chat-1", "pod": "llama-8b.x-0"}


@pytest.mark.parametrize("engine", ["", "llama-8b", "127.0.0.1:8000", "[::1]:8000"])
def test_series_of_other_engines_keep_theirs(engine):
    for rule in endpoints("podMonitor")[2]["metricRelabelings"]:
        assert re.fullmatch(rule["regex"], engine) is None


def test_without_pod_labels_nothing_is_relabelled():
    assert "metricRelabelings" not in endpoints("podMonitor", podLabels=False)[2]


def test_annotations_name_port_path_and_scheme():
    for web, scheme in (({}, "http"), ({"tlsSecret": "tls"}, "https")):
        template = daemon_set({"web": web})["spec"]["template"]["metadata"]
        assert {
            key.removeprefix("prometheus.io/"): value
            for key, value in template["annotations"].items()
            if key.startswith("prometheus.io/")
        } == {"scrape": "true", "port": "9890", "path": "/metrics", "scheme": scheme}


# --- boards -----------------------------------------------------------------------------------------


def boards(given):
    return {
        each["metadata"]["name"]: each
        for each in helm.manifests(given)
        if each["kind"] == "ConfigMap" and any(key.endswith(".json") for key in each["data"])
    }


def test_every_board_is_the_shipped_one_and_fits_into_a_config_map():
    shipped = {
        path.name: path.read_text(encoding="utf-8")
        for path in (helm.ROOT / "grafana" / "dashboards").glob("*.json")
    }
    found = boards({"dashboards": {"enabled": True}})
    data = {key: text for each in found.values() for key, text in each["data"].items()}
    assert data.keys() == shipped.keys()
    for name, text in data.items():
        assert json.loads(text) == json.loads(shipped[name])
    for each in found.values():
        assert len(json.dumps(each).encode()) < 1024 * 1024


def test_boards_carry_what_grafanas_sidecar_looks_for():
    for each in boards({"dashboards": {"enabled": True}}).values():
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Headroom"}
    for each in boards(SCENES["everything"]).values():
        assert each["metadata"]["labels"]["board"] == "yes"
        assert each["metadata"]["annotations"] == {"grafana_folder": "GPU: plan"}
        assert each["metadata"]["namespace"] == "observability"
    for each in boards(SCENES["service monitor"]).values():
        assert "annotations" not in each["metadata"]


def test_boards_are_chosen_one_by_one():
    given = {"dashboards": {"enabled": True, "boards": {"plan": False, "engine": False}}}
    assert list(boards(given)) == ["headroom-exporter-fleet"]
    assert boards({}) == {}


# --- the sidecar's templates ------------------------------------------------------------------------

EXAMPLE = "vllm-with-sidecar"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return helm.with_chart_as_dependency(EXAMPLE, tmp_path_factory.mktemp("example"))


def in_example(example, given=None):
    return helm.manifests(
        {"headroom-exporter": given or {}}, path=example, release="llama", namespace="inference"
    )


def sidecar(found):
    """(pod spec, container) of the example."""
    spec = only(found, "Deployment")["spec"]["template"]["spec"]
    ((kind, each),) = exporters(spec)
    assert kind == "initContainers"
    return spec, each


def test_the_example_takes_the_chart_from_beside_it(example):
    chart = yaml.safe_load((helm.EXAMPLES / EXAMPLE / "Chart.yaml").read_text(encoding="utf-8"))
    (dependency,) = chart["dependencies"]
    path = dependency["repository"].removeprefix("file://")
    assert (helm.EXAMPLES / EXAMPLE / path).resolve() == helm.CHART
    assert helm.dependencies(example) == {"headroom-exporter": "ok"}
    assert helm.lint(path=example) == []


SIDECARS = {
    "as shipped": {},
    "with TLS": {"web": {"tlsSecret": "tls"}},
    "with users": {"web": {"configSecret": "web"}},
    "without a configuration": {"sidecar": {"config": None}},
    "scraped by annotations": {"monitoring": {"kind": "annotations"}},
    "with everything": {
        "sidecar": {
            "visibleDevices": "all",
            "extraEnv": [{"name": "A", "value": "b"}],
            "extraArgs": ["--log.level=debug"],
            "livenessProbe": True,
            "hideServiceAccountToken": False,
        },
    },
}


@pytest.mark.parametrize("given", SIDECARS.values(), ids=SIDECARS)
def test_the_example_is_what_kubernetes_takes(example, given):
    found = in_example(example, given)
    assert [line for each in found for line in problems(each)] == []


@pytest.mark.parametrize("given", SIDECARS.values(), ids=SIDECARS)
def test_the_sidecar_is_native_restricted_and_cannot_hold_up_the_engine(example, given):
    spec, each = sidecar(in_example(example, given))
    assert each["restartPolicy"] == "Always"
    assert not {"startupProbe", "readinessProbe"} & each.keys()
    assert violations({"initContainers": [each], "containers": [], "volumes": []}) == []
    engine = without_exporter(spec)
    (vllm,) = engine["containers"]
    assert vllm["name"] == "vllm"
    assert [mount["name"] for mount in vllm["volumeMounts"]] == ["shm"]


def test_the_sidecar_has_no_probe_unless_one_is_asked_for(example):
    assert "livenessProbe" not in sidecar(in_example(example))[1]
    asked = sidecar(in_example(example, SIDECARS["with everything"]))[1]["livenessProbe"]
    assert asked["periodSeconds"] * asked["failureThreshold"] >= 300


def test_the_token_is_hidden_from_the_sidecar_alone(example):
    spec, each = sidecar(in_example(example))
    (mount,) = (
        mount
        for mount in each["volumeMounts"]
        if mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    )
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == mount["name"])
    assert volume == {"name": mount["name"], "emptyDir": {}}
    shown = sidecar(in_example(example, SIDECARS["with everything"]))[1]
    assert "serviceaccount" not in json.dumps(shown)


def test_the_sidecars_configuration_is_mounted_and_passes_the_exporters_check(example, tmp_path):
    found = in_example(example)
    spec, each = sidecar(found)
    (name, key, _), *rest = files(spec, "headroom-config").values()
    assert not rest
    text = only(found, "ConfigMap", name)["data"][key]
    assert exporter_check(text, tmp_path).returncode == 0
    assert "--config=/etc/headroom/config.yaml" in each["args"]
    # It must not end by a wrong one: the pod is not ready without it.
    assert "--config.tolerate-invalid" in each["args"]
    assert cli._parser().parse_args(each["args"]).tolerant


def test_the_sidecar_reads_its_key_without_a_group_of_its_own(example):
    spec, each = sidecar(in_example(example, SIDECARS["with TLS"]))
    found = files(spec, "headroom-config")
    assert found["web/tls.key"] == ("tls", "tls.key", 0o444)
    assert "--web.config.file=/etc/headroom/web/web.yml" in each["args"]
    assert found["web/web.yml"][0] == found["config.yaml"][0]


def test_the_sidecar_without_a_configuration_watches_localhost(example):
    found = in_example(example, SIDECARS["without a configuration"])
    assert not [each for each in sidecar(found)[1]["args"] if "config" in each]
    assert not [each for each in found if each["kind"] == "ConfigMap"]


def test_the_pod_monitor_finds_the_sidecars_pod_and_port(example):
    found = in_example(example)
    monitor = only(found, "PodMonitor")["spec"]
    template = only(found, "Deployment")["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["namespaceSelector"] == {"matchNames": ["inference"]}
    (port,) = sidecar(found)[1]["ports"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == port["name"]
    # Whoever may label a pod must not publish under another's namespace.
    assert "honorLabels" not in endpoint


def test_the_sidecars_pod_asks_to_be_scraped_where_annotations_are_the_way(example):
    found = in_example(example, SIDECARS["scraped by annotations"])
    annotations = only(found, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9890"
    assert annotations["headroom-exporter/scrape"] == "false"
    assert not [each for each in found if each["kind"] == "PodMonitor"]


# --- what people read -------------------------------------------------------------------------------


@each_scene
def test_the_notes_have_no_hole_in_them(scene):
    notes = helm.texts(SCENES[scene])["NOTES.txt"]
    assert "<no value>" not in notes
    assert "%!" not in notes
    assert ("ATTENTION" in notes) == (scene not in {"minimal", "everything", "sidecars"})


def test_the_readmes_example_of_values_renders_to_valid_manifests():
    readme = (helm.CHART / "README.md").read_text(encoding="utf-8")
    example = readme.split("```yaml\n")[1].split("```")[0]
    found = helm.manifests(example)
    assert [line for each in found for line in problems(each)] == []
    assert {"DaemonSet", "PodMonitor", "PrometheusRule"} <= {each["kind"] for each in found}


def test_the_readmes_relabelling_is_what_the_monitors_do():
    readme = (helm.CHART / "README.md").read_text(encoding="utf-8")
    (block,) = (each for each in readme.split("```yaml\n") if each.startswith("honor_labels"))
    job = yaml.safe_load(block.split("```")[0])
    (endpoint,) = only(helm.manifests({"monitoring": {"kind": "podMonitor"}}), "PodMonitor")[
        "spec"
    ]["podMetricsEndpoints"]
    assert job["honor_labels"] is endpoint["honorLabels"]
    assert job["metric_relabel_configs"] == [
        {
            "source_labels": each["sourceLabels"],
            "regex": each["regex"],
            "target_label": each["targetLabel"],
            "replacement": each["replacement"],
        }
        for each in endpoint["metricRelabelings"]
    ]
