"""The ``discovery`` section of the configuration file, and a plan on its own."""

from __future__ import annotations

import pytest

from headroom_exporter.config import Config, DiscoveryConfig, KubernetesConfig, PlanConfig
from headroom_exporter.config.file import parse, parse_plan, to_yaml
from headroom_exporter.errors import ConfigError


@pytest.mark.parametrize(
    "text", ["discovery: {kubernetes: {}}", "discovery: {}", "discovery:\n  kubernetes:"]
)
def test_the_section_being_there_is_node_mode_without_an_engine_on_localhost(text):
    found = parse(text, "f.yaml")
    assert found == Config(engines=(), discovery=DiscoveryConfig())
    assert parse(to_yaml(found), "again") == found


def test_without_the_section_nothing_changes():
    assert parse("discovery:", "f.yaml") == Config()
    assert "discovery" not in to_yaml(Config())


def test_engines_beside_it_stay():
    found = parse("discovery: {}\nengines: [{name: a}]", "f.yaml")
    assert [engine.name for engine in found.engines] == ["a"]
    assert parse("discovery: {}\nengines: []", "f.yaml").engines == ()


def test_every_key_is_read():
    text = (
        "discovery: {kubernetes: {node: ip-10-0-0-1.ec2.internal, namespaces: [a, b-1],"
        " label_selector: ' app in (x, y) ', port_names: [http, vllm]}}"
    )
    found = parse(text, "f.yaml").discovery
    assert found is not None
    assert found.kubernetes == KubernetesConfig(
        node="ip-10-0-0-1.ec2.internal",
        namespaces=("a", "b-1"),
        label_selector="app in (x, y)",
        port_names=("http", "vllm"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engines: []", "engines: must not be empty; leave the key out for the default"),
        ("discovery: true", "discovery: true: must be a mapping of kubernetes, kubelet"),
        ("discovery: {kubernetes: {node: 'a,spec.x=y'}}", "node: 'a,spec.x=y': must be a node's name"),
        ("discovery: {kubernetes: {node: 'a/../b'}}", "node: 'a/../b': must be a node's name"),
        ("discovery: {kubernetes: {namespaces: ['a/pods?x=']}}", "namespaces[0]: 'a/pods?x=': must be a"),
        ("discovery: {kubernetes: {namespaces: [a, a]}}", "namespaces[1]: 'a': must not be listed twice"),
        ("discovery: {kubernetes: {port_names: [Vllm]}}", "port_names[0]: 'Vllm': must be a port's name"),
        ('discovery: {kubernetes: {label_selector: "a\\nb"}}', "label_selector: 'a\\nb': must be a label"),
        ("discovery: {kubernetes: {labels: x}}", "kubernetes.labels: unknown key"),
        ("discovery: {kubelet: {socket: a.sock}}", "socket: 'a.sock': must be an absolute path"),
        (f"discovery: {{kubelet: {{socket: /{'x' * 107}}}}}", "must be an absolute path of at most 107"),
        ("discovery: {kubelet: {enabled: 1}}", "kubelet.enabled: 1: must be true or false"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")


def test_a_plan_can_stand_alone():
    assert parse_plan("", "s") == PlanConfig(name="annotation")
    assert parse_plan("name: x\nmax_num_seqs: 64", "s") == PlanConfig(name="x", max_num_seqs=64.0)
    with pytest.raises(ConfigError, match=r"^s: match: unknown key"):
        parse_plan("match: {engine: x}", "s")
    with pytest.raises(ConfigError, match=r"^s: headroom.floor_ratio: 2: must be"):
        parse_plan("headroom: {floor_ratio: 2}", "s")
