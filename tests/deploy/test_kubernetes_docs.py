"""docs/kubernetes.md, followed: what it tells a new user to write is built, checked and validated."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.kubernetes_schemas import documents, problems
from deploy.manifests import (
    COMPONENTS,
    EXAMPLES,
    NAME,
    ROOT,
    exporters,
    only,
    pod_specs,
    render,
    write,
)
from headroom_exporter.web.settings import WebSettings

PAGES = ("kubernetes.md", "gpus-in-containers.md")
TEXT = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def blocks(language):
    """Fenced blocks of a language, those inside of a list moved to the margin."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def block(*words, language="yaml"):
    """The one block that has all of the words."""
    (found,) = [each for each in blocks(language) if all(word in each for word in words)]
    return found


def deployment():
    return yaml.safe_load_all((EXAMPLES / "vllm-deployment/after/vllm.yaml").read_text())


def test_the_walk_through_gives_what_the_example_gives(tmp_path):
    """Steps 2 to 4: the files as the page shows them, beside the user's own Deployment."""
    plan, kustomization = block("concurrency:", "engines:"), block("vllm.yaml")
    label = [line[1:] for line in block("+", language="diff").splitlines() if line[0] == "+"]
    theirs = (EXAMPLES / "vllm-deployment/before/vllm.yaml").read_text(encoding="utf-8")
    # The user's Deployment has labels already: the one of the two lines that is new to it goes there.
    assert label[0].strip() == "labels:"
    theirs = theirs.replace("  labels:\n", f"  labels:\n{label[1]}\n", 1)
    folder = tmp_path / "inference"
    folder.mkdir()
    (tmp_path / "headroom-exporter").symlink_to(ROOT)
    (folder / "vllm.yaml").write_text(theirs, encoding="utf-8")
    (folder / "headroom.yaml").write_text(plan, encoding="utf-8")
    (folder / "kustomization.yaml").write_text(kustomization, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "headroom_exporter", "check", str(folder / "headroom.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("ok")

    manifests = render(folder)
    assert [each for manifest in manifests for each in problems(manifest)] == []
    example = render(EXAMPLES / "vllm-deployment" / "after")
    for kind in ("Deployment", "Service", "PodMonitor"):
        assert only(manifests, kind) == only(example, kind)


def built(tmp_path, patch_block, *components):
    """A labelled Deployment with components and the patches of a block of the page."""
    patches = yaml.safe_load(patch_block)["patches"]
    folder = write(tmp_path / "k", [*deployment()], ["sidecar", *components], patches=patches)
    manifests = render(folder)
    assert [each for manifest in manifests for each in problems(manifest)] == []
    return manifests


def test_the_label_for_prometheus_is_put_on_the_pod_monitor(tmp_path):
    manifests = built(tmp_path, block("kind: PodMonitor", "release: prometheus"))
    assert only(manifests, "PodMonitor")["metadata"]["labels"] == {"release": "prometheus"}


def test_the_patch_for_guaranteed_pods_makes_requests_equal_to_limits(tmp_path):
    manifests = built(tmp_path, block("initContainers:", "limits:"))
    ((_, container),) = [x for _, _, pod in pod_specs(manifests) for x in exporters(pod)]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["restartPolicy"] == "Always"


def test_the_engines_key_is_where_the_configuration_looks_for_it(tmp_path):
    manifests = built(tmp_path, block("engine-key"))
    ((pod, container),) = [
        (pod, c) for _, _, pod in pod_specs(manifests) for _, c in exporters(pod)
    ]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "engine-key"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "engine-key"]
    (item,) = volume["secret"]["items"]
    said = re.sub(r"\s+", " ", TEXT)
    assert f"`bearer_token_file: {mount['mountPath']}/{item['path']}`" in said
    # What is there stays: the plan, and the folder that hides the pod's own token.
    assert {"headroom-config", "headroom-no-token"} < {m["name"] for m in container["volumeMounts"]}


def test_the_issuer_is_the_users(tmp_path):
    manifests = built(tmp_path, block("issuerRef"), "tls")
    issuer = only(manifests, "Certificate")["spec"]["issuerRef"]
    assert issuer == {"kind": "ClusterIssuer", "name": "internal"}


def test_users_of_metrics_are_in_the_web_configuration_and_in_the_scrape(tmp_path):
    manifests = built(tmp_path, block("basic_auth_users"), "tls")
    web = yaml.safe_load(only(manifests, "Secret")["stringData"]["web.yml"])
    assert list(web["basic_auth_users"]) == ["prometheus"]
    (endpoint,) = only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert set(endpoint["basicAuth"]) == {"username", "password"}
    # Still over TLS: the patch repeats what the component says.
    theirs = yaml.safe_load((COMPONENTS / "tls" / "web-config.yaml").read_text())["stringData"]
    ours = yaml.safe_load(theirs["web.yml"])["tls_server_config"]
    assert web["tls_server_config"].items() <= ours.items()


def certificate():
    """A key and a certificate for the name that the component expects, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM), private


def project(manifests, volume, secrets, target):
    """Lay a projected volume out as a kubelet does: a dated folder, and links to what is in it."""
    dated = target / "..2026_11_21"
    for source in volume["projected"]["sources"]:
        kind = source.get("secret") or source["configMap"]
        if "secret" in source:
            content = secrets[kind["name"]]
        else:
            content = only(manifests, "ConfigMap", kind["name"])["data"]
        items = kind.get("items") or [{"key": key, "path": key} for key in content]
        for item in items:
            path = dated / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            value = content[item["key"]]
            path.write_bytes(value if isinstance(value, bytes) else value.encode())
    (target / "..data").symlink_to(dated.name)
    for name in {path.relative_to(dated).parts[0] for path in dated.rglob("*")}:
        (target / name).symlink_to(f"..data/{name}")


def test_the_exporter_takes_the_tls_configuration_from_the_mounted_volume(tmp_path):
    manifests = render(write(tmp_path / "k", [*deployment()], ["sidecar", "tls"]))
    ((pod, container),) = [
        (pod, c) for _, _, pod in pod_specs(manifests) for _, c in exporters(pod)
    ]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "headroom-config"]
    pem, key = certificate()
    secrets = {
        f"{NAME}-web": only(manifests, "Secret")["stringData"],
        only(manifests, "Certificate")["spec"]["secretName"]: {"tls.crt": pem, "tls.key": key},
    }
    mounted = tmp_path / "etc-headroom"
    mounted.mkdir()
    project(manifests, volume, secrets, mounted)
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    options = dict(zip(container["args"], container["args"][1:], strict=False))
    web = mounted / options["--web.config.file"].removeprefix(f"{mount['mountPath']}/")
    assert WebSettings(web).server_context() is not None
    assert (mounted / options["--config"].removeprefix(f"{mount['mountPath']}/")).is_file()


def test_the_rules_become_valid_prometheus_rules_by_the_shell_of_the_page(tmp_path):
    script = block("kind: PrometheusRule", language="sh").partition("kubectl ")[0]
    (tmp_path / "rules").symlink_to(ROOT / "rules")
    subprocess.run(["bash", "-eu", "-c", script], cwd=tmp_path, check=True)
    manifests = documents((tmp_path / "headroom-rules.yaml").read_text(encoding="utf-8"))
    assert [each for manifest in manifests for each in problems(manifest)] == []
    made = [group for manifest in manifests for group in manifest["spec"]["groups"]]
    files = [*ROOT.glob("rules/recording/*.yaml"), *ROOT.glob("rules/alerts/*.yaml")]
    theirs = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    assert {group["name"] for group in made} == {group["name"] for group in theirs}
    assert all(group in made for group in theirs)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_pages_lead_somewhere(page):
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_build_that_a_page_shows_names_the_base_without_which_it_stops():
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md"), ROOT / "README.md"]
    builds = [
        command
        for page in pages
        for command in re.findall(
            r"^docker (?:buildx )?build (?:.*\\\n)*.*",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    ]
    assert len(builds) >= 3
    assert [each for each in builds if "BASE_IMAGE=" not in each] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_component_that_the_pages_name_exists(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"components/([a-z-]+)", text))
    assert named
    assert all((COMPONENTS / each / "kustomization.yaml").exists() for each in named)
