"""Which pods are engines, where, and what a pod's owner can and cannot do."""

from __future__ import annotations

import copy
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.fake_api import pod
from headroom_exporter.config import KubernetesConfig
from headroom_exporter.discovery.pods import (
    FINISHED,
    MAX_PLAN_CHARACTERS,
    NOT_OURS,
    PodReading,
    identity,
    read_pod,
)

RULES = KubernetesConfig()
SELECTING = KubernetesConfig(label_selector="app=vllm")
A = "headroom-exporter/"


def reading(each: dict, rules: KubernetesConfig = RULES) -> PodReading:
    who = identity(each)
    assert who is not None
    return read_pod(each, who, rules)


def urls(each: dict, rules: KubernetesConfig = RULES) -> dict[str, str]:
    return {t.config.name: t.config.url for t in reading(each, rules).targets}


def annotated(ports: dict | None = None, **annotations: str) -> dict:
    return pod("a", ports=ports, annotations={A + key: text for key, text in annotations.items()})


# --- who is an engine ----------------------------------------------------------------------------


def test_a_port_of_a_known_name_makes_an_engine():
    assert urls(pod("a", ports={"vllm": 8080, "ssh": 22})) == {"chat/a": "http://10.0.0.7:8080"}
    assert urls(pod("a", ports={"http": 8080})) == {}
    assert urls(pod("a", ports={"http": 8080}), KubernetesConfig(port_names=("http",)))


def test_an_annotation_asks_for_it_and_forbids_it():
    assert urls(annotated(scrape="true")) == {"chat/a": "http://10.0.0.7:8000"}
    assert urls(annotated({"vllm": 8000}, scrape="false")) == {}
    assert urls(annotated({"vllm": 8000}, scrape="false"), SELECTING) == {}


def labelled() -> dict:
    return pod("a", ports={"vllm": 8000}, labels={A + "sidecar": "true"})


def with_container(key: str, **more: str) -> dict:
    each = pod("a", ports={"vllm": 8000})
    each["spec"].setdefault(key, []).append({"name": "headroom-exporter", **more})
    return each


@pytest.mark.parametrize("rules", [RULES, SELECTING], ids=["by port", "by selector"])
@pytest.mark.parametrize(
    "each",
    [
        labelled(),
        with_container("initContainers", restartPolicy="Always"),
        with_container("containers"),
    ],
    ids=["label", "native sidecar", "container"],
)
def test_a_pod_with_a_sidecar_is_left_to_it_unless_its_annotation_asks(each, rules):
    each = copy.deepcopy(each)
    assert reading(each, rules) is NOT_OURS
    each["metadata"]["annotations"][A + "scrape"] = "true"
    assert urls(each, rules) == {"chat/a": "http://10.0.0.7:8000"}


def test_what_only_looks_like_a_sidecar_is_none():
    ended = with_container("initContainers")
    other = pod("a", ports={"vllm": 8000}, labels={A + "sidecar": "false"})
    assert [bool(urls(each)) for each in (ended, other)] == [True, True]


def test_with_a_selector_every_pod_that_comes_is_an_engine():
    assert urls(pod("a"), SELECTING) == {"chat/a": "http://10.0.0.7:8000"}


@pytest.mark.parametrize(
    ("ports", "url"),
    [
        ({"x": 9000}, "http://10.0.0.7:9000"),  # the only one
        ({None: 9000}, "http://10.0.0.7:9000"),
        ({"x": 9000, "y": 9001}, "http://10.0.0.7:8000"),  # nobody says which
        ({"vllm": 9000, "y": 9001}, "http://10.0.0.7:9000"),
    ],
)
def test_the_port_is_the_known_one_else_the_only_one_else_8000(ports, url):
    assert urls(pod("a", ports=ports), SELECTING) == {"chat/a": url}


def test_a_pod_may_hold_several_engines():
    assert urls(annotated({"dp0": 8000, "dp1": 8001}, port="dp0, 8001", scrape="true")) == {
        "chat/a:8000": "http://10.0.0.7:8000",
        "chat/a:8001": "http://10.0.0.7:8001",
    }
    rules = KubernetesConfig(port_names=("x", "y"))
    assert list(urls(pod("a", ports={"x": 1, "y": 2}), rules)) == ["chat/a:1", "chat/a:2"]
    # The same port twice is one engine.
    assert list(urls(annotated(port="8000,8000", scrape="true"))) == ["chat/a"]


def test_a_native_sidecars_port_counts_and_an_init_containers_does_not():
    each = pod("a")
    ports = [{"name": "vllm", "containerPort": 8100}]
    each["spec"]["initContainers"] = [{"name": "i", "ports": ports}]
    assert urls(each) == {}
    each["spec"]["initContainers"][0]["restartPolicy"] = "Always"
    assert urls(each) == {"chat/a": "http://10.0.0.7:8100"}
    ports[0]["protocol"] = "UDP"
    assert urls(each) == {}


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ({"phase": "Pending"}, False),
        ({"phase": "Running", "ip": None}, False),
        ({"phase": "Succeeded"}, False),
        ({"phase": "Failed"}, False),
        ({"deleting": True}, True),
    ],
)
def test_a_pod_counts_while_it_runs_with_an_address(more, there):
    assert bool(urls(pod("a", ports={"vllm": 8000}, **more))) == there


def test_what_is_finished_is_told_from_what_is_not_ours():
    assert reading(pod("a", phase="Succeeded")) is FINISHED
    assert reading(pod("a")) is NOT_OURS


def test_the_identity_goes_with_it():
    (target,) = reading(pod("a", namespace="ns", uid="u-1", ports={"vllm": 1})).targets
    assert (target.pod.namespace, target.pod.name, target.pod.uid) == ("ns", "a", "u-1")
    assert target.config.kind == "auto"
    assert target.plan is None


def test_an_ipv6_address_is_bracketed():
    each = pod("a", ip="fd00:10::7", ports={"vllm": 8000})
    assert urls(each) == {"chat/a": "http://[fd00:10::7]:8000"}


def test_https_checks_no_certificate_since_none_is_made_out_to_a_pods_address():
    (target,) = reading(annotated({"vllm": 8443}, scheme="https")).targets
    assert target.config.url == "https://10.0.0.7:8443"
    assert target.config.insecure_skip_verify
    assert target.config.bearer_token_file is None
    (plain,) = reading(pod("a", ports={"vllm": 8000})).targets
    assert not plain.config.insecure_skip_verify


# --- what is wrong -------------------------------------------------------------------------------


def complaints(each: dict, rules: KubernetesConfig = SELECTING) -> list[tuple[str, str]]:
    return [(c.kind, c.text) for c in reading(each, rules).complaints]


@pytest.mark.parametrize(
    ("key", "value", "said", "watched"),
    [
        ("scrape", "yes", """'yes': must be "true" or "false\"""", True),
        ("port", "8000/../", "'8000/../': must be port numbers or names", False),
        ("port", "0", "'0': must be port numbers", False),
        ("port", "65536", "'65536': must be", False),
        ("port", "grpc", "'grpc': must be port numbers or names", False),
        ("port", "", "'': must be", False),
        ("port", "@evil.example:80", "'@evil.example:80': must be", False),
        ("port", ",".join(map(str, range(1, 18))), "must be at most 16 ports", False),
        ("port", "1" * 200, "must be text of at most 128 characters", False),
        ("scheme", "ftp", "'ftp': must be one of http, https", False),
        ("scheme", "http://evil.example/?", "must be one of http, https", False),
        ("kind", "gpt", "'gpt': must be one of auto, ", True),
    ],
)
def test_a_wrong_annotation_is_named_with_what_is_allowed(key, value, said, watched):
    each = annotated({"x": 9000}, **{key: value})
    ((kind, text),) = complaints(each)
    assert kind == "annotation"
    assert text.startswith(f"pod chat/a: annotation headroom-exporter/{key}: ")
    assert said in text
    assert len(text) < 250
    assert bool(urls(each, SELECTING)) == watched


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "224.0.0.1", "0.0.0.0",
     "::", "evil.example", "10.0.0.7/x", "10.0.0.7:80", 167772167],
)  # fmt: skip
def test_nobody_is_asked_at_what_is_no_address_of_a_pod(address):
    each = pod("a", ip=address, ports={"vllm": 8000})
    assert urls(each) == {}
    ((kind, text),) = complaints(each)
    assert kind == "address"
    assert "not an address of a pod" in text


@pytest.mark.parametrize("name", ["A", "a b", "", "a" * 254, "x\n", "../x", None, 7])
def test_a_name_that_kubernetes_does_not_allow_is_nobody(name):
    each = pod("a")
    each["metadata"]["name"] = name
    assert identity(each) is None


# --- plans ---------------------------------------------------------------------------------------


def test_a_pod_carries_its_plan():
    text = "concurrency: 12\nslo: {tpot_p95_seconds: 0.05}\n"
    (target,) = reading(annotated({"vllm": 1}, plan=text)).targets
    assert (target.plan.concurrency, target.plan.tpot_p95_seconds) == (12.0, 0.05)
    assert target.plan.name == "annotation"
    (named,) = reading(annotated({"vllm": 1}, plan="name: mine")).targets
    assert named.plan.name == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurrency: -1", "concurrency: -1: must be a number above 0"),
        ("max_seqs: 1", "max_seqs: unknown key; did you mean max_num_seqs?"),
        ("match: {engine: x}", "match: unknown key"),
        ("[", "not YAML"),
        ("a: 1\n---\nb: 1", "must be a single YAML document"),
        ("x" * (MAX_PLAN_CHARACTERS + 1), "must be text of at most 8192 characters"),
        ("[1]", "must be a mapping"),
    ],
)
def test_a_wrong_plan_is_named_and_the_pod_is_watched_without_it(text, said):
    found = reading(annotated({"vllm": 8000}, plan=text))
    (target,) = found.targets
    assert target.plan is None
    (complaint,) = found.complaints
    assert complaint.kind == "plan"
    assert complaint.text.startswith("pod chat/a: annotation headroom-exporter/plan: ")
    assert said in complaint.text


def test_two_pods_with_one_wrong_plan_are_told_apart():
    for name in ("a", "b"):
        each = pod(name, ports={"vllm": 1}, annotations={A + "plan": "concurrency: 0"})
        assert reading(each).complaints[0].text.startswith(f"pod chat/{name}: ")


# --- whatever it holds ---------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(max_size=8), deeper),
    max_leaves=6,
)
VALUES = JUNK | st.sampled_from(["8000", "true", "http", "https", "vllm", "10.0.0.9", "::1"])


@given(
    st.dictionaries(st.sampled_from(["scrape", "port", "scheme", "kind", "plan"]), VALUES), VALUES
)
def test_no_annotation_points_anywhere_but_at_the_pods_own_address(annotations, address):
    each = pod("a", ip="10.0.0.7", ports={"vllm": 8000})
    each["metadata"]["annotations"] = {A + key: value for key, value in annotations.items()}
    for target in reading(each).targets:
        parts = urlsplit(target.config.url)
        assert (parts.hostname, parts.path, parts.query, parts.username) == (
            "10.0.0.7",
            "",
            "",
            None,
        )
        assert parts.scheme in ("http", "https")
        assert 0 < parts.port < 65536
        assert target.config.bearer_token_file is None
        assert target.config.ca_file is None
    each["status"]["podIP"] = address
    for target in reading(each).targets:
        assert ip_address(urlsplit(target.config.url).hostname) == ip_address(address)


@given(JUNK, JUNK, JUNK)
def test_no_pod_is_too_odd_to_be_read(metadata, spec, status):
    each = pod("a", ports={"vllm": 8000})
    assert isinstance(reading({**each, "spec": spec}), PodReading)
    assert isinstance(reading({**each, "status": status}), PodReading)
    assert isinstance(reading({**each, "spec": {"containers": [spec, metadata]}}), PodReading)
    each["metadata"]["annotations"] = metadata
    assert isinstance(reading(each), PodReading)
    identity({"metadata": metadata})
