"""The kustomize components and examples, rendered by the real kustomize and held against schemas."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.kubernetes_schemas import is_validated, pods, problems
from deploy.manifests import (
    COMPONENTS,
    EXAMPLES,
    KUSTOMIZE,
    NAME,
    exporters,
    only,
    pod_specs,
    render,
    rendered_text,
    run_kustomize,
    without_exporter,
    write,
)
from deploy.pod_security import violations
from headroom_exporter import __version__, cli

LABEL = "headroom-exporter/sidecar"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "after").is_dir())
# Who adds labels to pods that no manifest shows: (label, value), by KServe's controller.
KSERVE = {
    "app.kubernetes.io/name": "llama-8b",
    "app.kubernetes.io/part-of": "llminferenceservice",
    "kserve.io/component": "workload",
}
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"

each_example = pytest.mark.parametrize("name", NAMES)


def before(name):
    return render(EXAMPLES / name / "before")


def after(name):
    return render(EXAMPLES / name / "after")


def key(manifest):
    return manifest["kind"], manifest["metadata"]["name"]


def is_labelled(manifest):
    return (manifest["metadata"].get("labels") or {}).get(LABEL) == "true"


def sidecar_of(manifests):
    """(pod spec, our container) of the one pod that has it."""
    ((pod, container),) = [
        (pod, container) for _, _, pod in pod_specs(manifests) for _, container in exporters(pod)
    ]
    return pod, container


def alone(pod):
    """The pod with none but our container and volumes: what we answer for."""
    theirs = without_exporter(pod)
    names = {"initContainers", "containers", "volumes"}
    return {
        **{k: v for k, v in theirs.items() if k not in names},
        "initContainers": [c for kind, c in exporters(pod) if kind == "initContainers"],
        "containers": [c for kind, c in exporters(pod) if kind == "containers"],
        "volumes": [v for v in pod["volumes"] if v["name"].startswith("headroom-")],
    }


# --- the examples ------------------------------------------------------------------------------


def test_there_is_an_example_for_each_platform_that_is_promised():
    assert {"vllm-deployment", "vllm-production-stack", "kserve", "llm-d", "leaderworkerset"} <= {
        *NAMES
    }


@each_example
def test_an_example_is_valid_before_and_after(name):
    found = [each for manifest in (*before(name), *after(name)) for each in problems(manifest)]
    assert found == []


@each_example
def test_kinds_that_no_schema_here_knows_are_named_in_the_readme(name):
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    unknown = {manifest["kind"] for manifest in after(name) if not is_validated(manifest)}
    named = set(re.findall(r"Not validated here, for want of a schema: `(\w+)`", readme))
    assert named == unknown


@each_example
def test_before_knows_nothing_of_the_exporter(name):
    assert "headroom" not in rendered_text(EXAMPLES / name / "before")


@each_example
def test_the_sidecar_is_in_labelled_workloads_and_nowhere_else(name):
    having = {key(m) for m, _, pod in pod_specs(after(name)) if exporters(pod)}
    assert having == {key(m) for m in after(name) if is_labelled(m)}
    assert having
    sidecar_of(after(name))  # in one pod of it


@each_example
def test_nothing_else_of_a_pod_changes(name):
    old = {(*key(m), where): pod for m, where, pod in pod_specs(before(name))}
    new = {(*key(m), where): without_exporter(pod) for m, where, pod in pod_specs(after(name))}
    assert new == old


@each_example
def test_only_three_kinds_of_things_are_new(name):
    new = {key(m) for m in after(name)} - {key(m) for m in before(name)}
    assert new == {("ConfigMap", NAME), ("PodMonitor", NAME)}
    for old in before(name):
        (now,) = [m for m in after(name) if key(m) == key(old)]
        assert now["spec"].get("selector") == old["spec"].get("selector")


@each_example
def test_it_is_a_native_sidecar_after_the_other_init_containers(name):
    pod, container = sidecar_of(after(name))
    assert pod["initContainers"][-1] is container
    assert container["restartPolicy"] == "Always"


@each_example
def test_nothing_of_it_can_restart_or_hold_up_the_engine(name):
    _, container = sidecar_of(after(name))
    assert not container.keys() & {
        *("readinessProbe", "startupProbe", "livenessProbe", "lifecycle"),
    }
    # Nor does it end by a wrong configuration: the pod is not ready without it.
    assert cli._parser().parse_args(container["args"]).tolerant


@each_example
def test_it_passes_the_restricted_pod_security_standard(name):
    pod, container = sidecar_of(after(name))
    assert violations(alone(pod)) == []
    # Beyond the standard.
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["runAsUser"] == 65532
    assert container["securityContext"]["runAsGroup"] == 65532


@each_example
def test_the_service_accounts_token_is_masked_for_it_alone(name):
    pod, container = sidecar_of(after(name))
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == TOKEN]
    assert mount["readOnly"] is True
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert set(volume) == {"name", "emptyDir"}
    others = [c for c in pod["containers"] for m in c.get("volumeMounts") or () if m == mount]
    assert others == []
    assert "automountServiceAccountToken" not in pod


@each_example
def test_its_needs_are_requested_and_bounded_without_throttling(name):
    _, container = sidecar_of(after(name))
    resources = container["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}
    assert "nvidia.com/gpu" not in str(resources)


@each_example
def test_the_pod_monitor_finds_pods_and_port(name):
    monitor = only(after(name), "PodMonitor")
    _, container = sidecar_of(after(name))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in container["ports"]]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert [m for m in after(name) if wanted <= labels_of_pods(m).items()]
    for manifest in after(name):
        if wanted <= labels_of_pods(manifest).items():
            assert is_labelled(manifest)
    assert monitor["metadata"]["namespace"] == "inference"
    # Whoever may label a pod must not publish under another's namespace.
    assert "honorLabels" not in endpoint


def labels_of_pods(manifest):
    """Labels of the pods that have the exporter, or would."""
    if manifest["kind"] == "LLMInferenceService":
        return KSERVE
    spec = manifest.get("spec") or {}
    template = (spec.get("leaderWorkerTemplate") or {}).get("leaderTemplate")
    template = template or spec.get("template") or {}
    return (template.get("metadata") or {}).get("labels") or {}


@each_example
def test_the_configuration_passes_the_exporters_own_check(name, tmp_path):
    text = only(after(name), "ConfigMap")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    done = check(tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(text)["plans"]


def check(path):
    return subprocess.run(
        [sys.executable, "-m", "headroom_exporter", "check", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


@each_example
def test_the_configured_engine_is_a_port_of_the_pod(name):
    config = yaml.safe_load(only(after(name), "ConfigMap")["data"]["config.yaml"])
    pod, _ = sidecar_of(after(name))
    ports = {p["containerPort"] for c in pod["containers"] for p in c.get("ports") or ()}
    # KServe's preset brings the port: container "main", 8000.
    ports |= {8000} if name == "kserve" else set()
    for engine in config["engines"]:
        url = urlsplit(engine["url"])
        assert url.hostname == "127.0.0.1"
        assert url.port in ports


@each_example
def test_a_changed_plan_restarts_nothing(name):
    pod, container = sidecar_of(after(name))
    assert only(after(name), "ConfigMap")["metadata"]["name"] == NAME
    (volume,) = [v for v in pod["volumes"] if v["name"] == "headroom-config"]
    assert volume["configMap"] == {"name": NAME}
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "headroom-config"]
    assert "subPath" not in mount  # such a file never changes again
    config = container["args"][container["args"].index("--config") + 1]
    assert config == f"{mount['mountPath']}/config.yaml"


def differences(name):
    """The diff of every file that a user has and that is changed."""
    found = []
    layered = (EXAMPLES / name / "after" / "engines").exists()
    for old in sorted((EXAMPLES / name / "before").glob("*.yaml")):
        new = EXAMPLES / name / "after" / old.name
        if new.exists() and not (layered and old.name == "kustomization.yaml"):
            texts = (path.read_text(encoding="utf-8").splitlines() for path in (old, new))
            lines = difflib.unified_diff(*texts, n=2, lineterm="")
            found += [f"--- before/{old.name}", f"+++ after/{old.name}", *list(lines)[2:]]
    return found


@each_example
def test_the_readme_shows_the_very_lines_that_change(name):
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"```diff\n(.*?)\n```", readme, flags=re.DOTALL))
    assert shown.splitlines() == differences(name)
    files = [
        p.read_text(encoding="utf-8").strip() for p in EXAMPLES.glob(f"{name}/after/**/*.yaml")
    ]
    assert all(each in files for each in re.findall(r"```yaml\n(.*?)\n```", readme, re.DOTALL))


@each_example
def test_the_readme_names_what_it_was_taken_from(name):
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert "Looked at: " in readme
    config = yaml.safe_load((EXAMPLES / name / "after" / "headroom.yaml").read_text())
    assert all(engine["url"] in readme for engine in config["engines"])


# --- the example with an alert -----------------------------------------------------------------


def test_the_simulated_example_is_valid_and_runs_where_restricted_is_enforced():
    manifests = render(EXAMPLES / "simulated")
    assert [each for manifest in manifests for each in problems(manifest)] == []
    namespace = only(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, container = sidecar_of(manifests)
    assert violations(pod) == []
    # The engine is of the same image, and stays when its traffic is over.
    assert pod["containers"][0]["image"] == container["image"]
    assert "--at-end=loop" in pod["containers"][0]["args"]


def test_the_simulated_examples_configuration_passes_the_check(tmp_path):
    text = only(render(EXAMPLES / "simulated"), "ConfigMap")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    done = check(tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr


# --- the components ----------------------------------------------------------------------------


def workload(kind="Deployment", *, labelled=True, **pod):
    pod = {"containers": [{"name": "engine", "image": "engine"}], **pod}
    metadata = {"name": "one", **({"labels": {LABEL: "true"}} if labelled else {})}
    template = {"metadata": {"labels": {"app": "one"}}, "spec": pod}
    if kind == "LeaderWorkerSet":
        worker = {"spec": {"containers": [{"name": "worker", "image": "engine"}]}}
        return {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": kind,
            "metadata": metadata,
            "spec": {
                "leaderWorkerTemplate": {"leaderTemplate": template, "workerTemplate": worker}
            },
        }
    if kind == "LLMInferenceService":
        return {
            "apiVersion": "serving.kserve.io/v1alpha2",
            "kind": kind,
            "metadata": metadata,
            "spec": {"template": pod},
        }
    service = {"serviceName": "one"} if kind == "StatefulSet" else {}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": {**service, "selector": {"matchLabels": {"app": "one"}}, "template": template},
    }


KINDS = ("Deployment", "StatefulSet", "LeaderWorkerSet", "LLMInferenceService")


def built(tmp_path, kind, *components, **more):
    resources = more.pop("resources", None) or [workload(kind)]
    manifests = render(write(tmp_path / "k", resources, components, **more))
    assert [each for manifest in manifests for each in problems(manifest)] == []
    return manifests


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("component", ["sidecar", "sidecar-container"])
def test_every_kind_gets_container_volumes_and_label(tmp_path, kind, component):
    manifests = built(tmp_path, kind, component)
    pod, container = sidecar_of(manifests)
    assert container["image"] == f"headroom-exporter:{__version__}"
    assert {v["name"] for v in pod["volumes"]} == {"headroom-config", "headroom-no-token"}
    if kind != "LLMInferenceService":
        assert labels_of_pods(only(manifests, kind))[LABEL] == "true"


@pytest.mark.parametrize("kind", KINDS)
def test_init_containers_and_volumes_that_are_there_stay(tmp_path, kind):
    theirs = {
        "initContainers": [{"name": "load", "image": "load"}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
    }
    manifests = built(tmp_path, kind, "sidecar", resources=[workload(kind, **theirs)])
    pod, _ = sidecar_of(manifests)
    assert [c["name"] for c in pod["initContainers"]] == ["load", NAME]
    assert without_exporter(pod) == {**theirs, "containers": pod["containers"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_workload_without_the_label_is_left_alone(tmp_path, kind):
    theirs = workload(kind, labelled=False)
    manifests = built(tmp_path, kind, "sidecar", "gpu-visibility", "tls", resources=[theirs])
    assert only(manifests, kind) == theirs


def test_a_leader_has_it_and_a_worker_not(tmp_path):
    manifests = built(tmp_path, "LeaderWorkerSet", "sidecar")
    having = {
        where: bool(exporters(pod)) for where, pod in pods(only(manifests, "LeaderWorkerSet"))
    }
    assert having == {
        "spec.leaderWorkerTemplate.leaderTemplate.spec": True,
        "spec.leaderWorkerTemplate.workerTemplate.spec": False,
    }


def test_a_leader_worker_set_without_a_leader_template_is_no_valid_one_afterwards(tmp_path):
    """Said in the component: better refused by the API server than a set without its leader's engine."""
    bare = workload("LeaderWorkerSet")
    del bare["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    manifests = render(write(tmp_path / "k", [bare], ["sidecar"]))
    assert any("'containers'" in each for each in problems(only(manifests, "LeaderWorkerSet")))


def test_the_template_itself_is_not_applied(tmp_path):
    assert "PodTemplate" not in {m["kind"] for m in built(tmp_path, "Deployment", "sidecar")}


def test_the_plain_container_is_the_same_container(tmp_path):
    _, native = sidecar_of(built(tmp_path / "a", "Deployment", "sidecar"))
    pod, plain = sidecar_of(built(tmp_path / "b", "Deployment", "sidecar-container"))
    assert native == {**plain, "restartPolicy": "Always"}
    assert exporters(pod) == [("containers", plain)]
    assert violations(alone(pod)) == []


def test_the_plain_container_is_for_clusters_that_know_no_sidecar(tmp_path):
    old = ("1.25.0",)
    plain = built(tmp_path / "a", "Deployment", "sidecar-container")
    native = built(tmp_path / "b", "Deployment", "sidecar")
    assert [p for m in plain for p in problems(m, versions=old)] == []
    assert any("restartPolicy" in p for m in native for p in problems(m, versions=old))


@pytest.mark.parametrize("component", ["gpu-visibility", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_for_the_native_sidecar_fails_aloud_with_the_plain_one(tmp_path, kind, component):
    components = ["sidecar-container", component]
    code, _, error = run_kustomize(write(tmp_path / "k", [workload(kind)], components))
    assert code != 0
    assert "unable to find field" in error


@pytest.mark.parametrize("component", ["gpu-visibility", "tls"])
def test_what_comes_before_the_sidecar_fails_aloud(tmp_path, component):
    code, _, error = run_kustomize(write(tmp_path / "k", [workload()], [component, "sidecar"]))
    assert code != 0
    assert NAME in error


def test_a_forgotten_config_map_is_an_error_of_kustomize(tmp_path):
    folder = write(tmp_path / "k", [workload()], ["sidecar"], configMapGenerator=None)
    code, _, error = run_kustomize(folder)
    assert code != 0
    assert "nothing selected by ConfigMap" in error
    assert NAME in error


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_and_namespace_reach_what_the_pod_refers_to(tmp_path, kind):
    components = ("sidecar", "tls")
    manifests = built(tmp_path, kind, *components, namePrefix="x-", namespace="inference")
    pod, _ = sidecar_of(manifests)
    (volume,) = [v for v in pod["volumes"] if v["name"] == "headroom-config"]
    config, web, pair = volume["projected"]["sources"]
    assert config["configMap"]["name"] == only(manifests, "ConfigMap")["metadata"]["name"]
    assert web["secret"]["name"] == only(manifests, "Secret")["metadata"]["name"] == f"x-{NAME}-web"
    # cert-manager writes it, under the name that the Certificate says.
    assert pair["secret"]["name"] == only(manifests, "Certificate")["spec"]["secretName"]
    assert {m["metadata"].get("namespace") for m in manifests} == {"inference"}


def test_the_image_is_set_as_any_other(tmp_path):
    images = [{"name": NAME, "newName": "registry.example/h", "newTag": "9"}]
    _, container = sidecar_of(built(tmp_path, "Deployment", "sidecar", images=images))
    assert container["image"] == "registry.example/h:9"


def test_without_gpu_visibility_nothing_of_nvidia_is_in_the_pod(tmp_path):
    manifests = built(tmp_path, "Deployment", "sidecar")
    assert not re.search("nvidia", yaml.safe_dump(manifests), flags=re.IGNORECASE)


@pytest.mark.parametrize("kind", KINDS)
def test_gpu_visibility_shows_the_cards_and_claims_none(tmp_path, kind):
    pod, container = sidecar_of(built(tmp_path, kind, "sidecar", "gpu-visibility"))
    assert pod["runtimeClassName"] == "nvidia"
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "utility",
    }
    assert "nvidia.com" not in str(container["resources"])
    assert violations(alone(pod)) == []
    # The engine's own environment decides what the engine sees.
    assert "env" not in pod["containers"][0]


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "LeaderWorkerSet"])
def test_gpu_visibility_by_nri_needs_an_annotation_and_no_runtime_class(tmp_path, kind):
    manifests = built(tmp_path, kind, "sidecar", "gpu-visibility-nri")
    spec = only(manifests, kind)["spec"]
    template = spec.get("template") or spec["leaderWorkerTemplate"]["leaderTemplate"]
    key = f"nvidia.cdi.k8s.io/container.{NAME}"
    assert template["metadata"]["annotations"] == {key: "nvidia.com/gpu=all"}
    assert "runtimeClassName" not in template["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_tls_is_served_and_scraped_under_one_name(tmp_path, kind):
    manifests = built(tmp_path, kind, "sidecar", "tls")
    pod, container = sidecar_of(manifests)
    given = cli._parser().parse_args(container["args"])
    assert (str(given.web_config), given.tolerant) == ("/etc/headroom/web/web.yml", True)
    certificate = only(manifests, "Certificate")["spec"]
    (endpoint,) = only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] in certificate["dnsNames"]
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == certificate["secretName"]
    assert endpoint["port"] == "headroom"
    assert violations(alone(pod)) == []


def test_tls_replaces_nothing_of_the_plain_scrape_but_the_scheme(tmp_path):
    plain = only(built(tmp_path / "a", "Deployment", "sidecar"), "PodMonitor")
    safe = only(built(tmp_path / "b", "Deployment", "sidecar", "tls"), "PodMonitor")
    (endpoint,) = safe["spec"]["podMetricsEndpoints"]
    rest = {k: v for k, v in endpoint.items() if k not in ("scheme", "tlsConfig")}
    assert [rest] == plain["spec"]["podMetricsEndpoints"]


def test_users_are_added_to_the_web_configuration_by_a_patch(tmp_path):
    patch = {
        "target": {"kind": "Secret", "name": f"{NAME}-web"},
        "patch": yaml.safe_dump(
            [{"op": "replace", "path": "/stringData/web.yml", "value": "basic_auth_users: {}\n"}]
        ),
    }
    manifests = built(tmp_path, "Deployment", "sidecar", "tls", patches=[patch])
    assert only(manifests, "Secret")["stringData"] == {"web.yml": "basic_auth_users: {}\n"}


# --- the files ---------------------------------------------------------------------------------


def test_every_component_is_used_by_a_test_or_a_component():
    found = {path.parent.name for path in COMPONENTS.glob("*/kustomization.yaml")}
    assert found == {
        *("parts", "sidecar", "sidecar-container", "gpu-visibility", "gpu-visibility-nri", "tls"),
    }


def test_no_file_lies_about_unused():
    for folder in COMPONENTS.iterdir():
        text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
        unused = {p.name for p in folder.iterdir() if p.name not in text}
        assert unused == {"kustomization.yaml"}, folder


def test_examples_name_no_real_registry_for_the_exporters_image():
    for path in KUSTOMIZE.rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "newName" in line:
                assert "registry.example/" in line, path
