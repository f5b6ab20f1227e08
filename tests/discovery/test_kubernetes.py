"""The watch of pods against a server that speaks the real protocol, and breaks it."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from discovery.fake_api import FakeApi, pod
from discovery.harness import HASTY, engines, until, watching
from headroom_exporter.config import KubernetesConfig
from headroom_exporter.discovery import kubernetes
from headroom_exporter.discovery.api import find_place, read
from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from headroom_exporter.discovery.kubernetes import PodWatch

PORTS = {"vllm": 8000}


def vllm(name: str, **more) -> dict:
    return pod(name, ports=PORTS, **more)


def errors(watch: PodWatch) -> dict[str, float]:
    return dict(watch.health.state().errors)


# --- following -----------------------------------------------------------------------------------


async def test_pods_are_listed_and_then_followed():
    async with FakeApi() as api:
        api.put(vllm("a", ip="10.0.0.1"))
        api.put(vllm("other-node", node="node-b"))
        async with watching(api) as watch:
            await until(lambda: engines(watch) == {"chat/a": "http://10.0.0.1:8000"})
            await until(lambda: api.watchers)
            api.put(vllm("b", ip="10.0.0.2", phase="Pending"))
            api.put(vllm("b", ip="10.0.0.2"))
            await until(lambda: "chat/b" in engines(watch))
            api.put(vllm("a", ip="10.0.0.1", deleting=True))
            api.put(vllm("c", ip="10.0.0.3"))
            await until(lambda: "chat/c" in engines(watch))
            assert "chat/a" in engines(watch), "a pod that is being deleted still serves"
            api.delete("a")
            await until(lambda: sorted(engines(watch)) == ["chat/b", "chat/c"])
            assert watch.health.up
            assert errors(watch) == {}
        assert [each.watch for each in api.asked] == [False, True]


async def test_what_is_asked_is_restricted_to_the_node_and_costs_the_server_little():
    async with FakeApi() as api:
        rules = KubernetesConfig(label_selector="app=vllm")
        async with watching(api, rules, namespace="chat") as watch:
            await until(lambda: api.watchers)
            assert watch.health.settled
        listed, watched = api.asked
        assert listed.path == watched.path == "/api/v1/namespaces/chat/pods"
        both = {"fieldSelector": "spec.nodeName=node-a", "labelSelector": "app=vllm"}
        assert listed.query == {**both, "limit": "50", "resourceVersion": "0"}
        seconds = int(watched.query.pop("timeoutSeconds"))
        assert 240 <= seconds <= 360
        marks = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": "100"}
        assert watched.query == {**both, **marks}


async def test_a_pod_whose_label_no_longer_matches_is_said_to_be_deleted_and_goes():
    async with FakeApi() as api:
        api.put(vllm("a"))
        async with watching(api, KubernetesConfig(label_selector="app=vllm")) as watch:
            await until(lambda: api.watchers)
            gone = api.pods["chat", "a"]
            api.say(json.dumps({"type": "DELETED", "object": gone}).encode())
            await until(lambda: engines(watch) == {})


async def test_a_pod_that_gets_a_sidecar_is_left_to_it():
    label = {"headroom-exporter/sidecar": "true"}
    async with FakeApi() as api:
        api.put(vllm("a", labels=label))
        api.put(vllm("b"))
        async with watching(api) as watch:
            await until(lambda: list(engines(watch)) == ["chat/b"])
            await until(lambda: api.watchers)
            api.put(vllm("b", labels=label))
            await until(lambda: not engines(watch))
            api.put(vllm("b", labels=label, annotations={"headroom-exporter/scrape": "true"}))
            await until(lambda: list(engines(watch)) == ["chat/b"])


async def test_a_long_list_that_is_not_from_the_cache_comes_in_pages():
    async with FakeApi(page=7) as api:
        for number in range(30):
            api.put(vllm(f"p-{number}", ip=f"10.0.0.{number + 1}"))
        async with watching(api) as watch:
            await until(lambda: len(engines(watch)) == 30)
            await until(lambda: api.watchers)
            api.asked.clear()
            api.error(410)
            await until(lambda: len(api.asked) >= 6)
            assert len(engines(watch)) == 30
        lists = [each.query for each in api.asked if not each.watch]
        assert len(lists) == 5
        assert "resourceVersion" not in lists[0]
        assert all("continue" in query for query in lists[1:])


async def test_pages_that_grew_too_old_begin_anew_and_lose_nothing():
    async with FakeApi(page=7) as api:
        for number in range(30):
            api.put(vllm(f"p-{number}", ip=f"10.0.0.{number + 1}"))
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.expired_tokens = True
            api.error(410)
            await until(lambda: errors(watch).get("gone") == 2)
            assert len(engines(watch)) == 30
            await until(lambda: api.watchers)
            assert len(engines(watch)) == 30
            assert watch.health.up


async def test_a_list_that_is_too_large_comes_in_pages_instead():
    async with FakeApi(page=5) as api:
        for number in range(40):
            api.put(vllm(f"p-{number}", ip=f"10.0.0.{number + 1}"))
        async with watching(api, limits=replace(HASTY, body=20_000)) as watch:
            await until(lambda: len(engines(watch)) == 40)
            assert errors(watch)["too_large"] == 1
            await until(lambda: api.watchers)
            assert watch.health.up


# --- watches end ---------------------------------------------------------------------------------


async def test_a_watch_that_ends_goes_on_where_it_was_and_no_one_is_told():
    async with FakeApi() as api:
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.put(vllm("a", ip="10.0.0.1"))
            await until(lambda: engines(watch))
            api.end_watches()
            api.put(vllm("b", ip="10.0.0.2"))
            await until(lambda: len(engines(watch)) == 2)
            assert errors(watch) == {}
        assert [each.watch for each in api.asked][:3] == [False, True, True]
        assert api.asked[2].query["resourceVersion"] == "101"


async def test_a_bookmark_moves_the_place_to_go_on_from():
    async with FakeApi() as api:
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.move_on()
            api.bookmark()
            api.compact()
            await asyncio.sleep(0.05)
            api.end_watches()
            await until(lambda: len(api.asked) == 3)
            await until(lambda: api.watchers)
            assert errors(watch) == {}
        assert api.asked[2].query["resourceVersion"] == "110"


async def test_a_connection_that_is_cut_is_resumed_and_what_was_missed_comes():
    async with FakeApi() as api:
        api.put(vllm("a", ip="10.0.0.1"))
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.drop_watches()
            api.delete("a")
            api.put(vllm("b", ip="10.0.0.2"))
            await until(lambda: list(engines(watch)) == ["chat/b"])
            assert errors(watch)["dropped"] >= 1
            assert watch.health.up, "a cut connection is no outage"
        assert sum(not each.watch for each in api.asked) == 1, "nothing is listed anew for it"


async def test_a_watch_that_fell_silent_is_given_up():
    async with FakeApi() as api:
        async with watching(api, limits=replace(HASTY, idle=0.1)) as watch:
            await until(lambda: errors(watch).get("idle", 0) >= 2)
            assert watch.health.up
        assert sum(not each.watch for each in api.asked) == 1


@pytest.mark.parametrize("as_event", [False, True])
async def test_a_version_that_is_too_old_is_answered_by_listing(as_event):
    async with FakeApi(gone_as_event=as_event) as api:
        api.put(vllm("a", ip="10.0.0.1"))
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.refuse_watch = 503
            api.drop_watches()
            await until(lambda: not watch.health.up)
            api.delete("a")
            api.put(vllm("b", ip="10.0.0.2"))
            api.compact()
            api.refuse_watch = None
            await until(lambda: list(engines(watch)) == ["chat/b"])
            assert watch.health.up


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"[]",
        b"{}",
        b'{"type": "ADDED"}',
        b'{"type": "ADDED", "object": {"metadata": {"name": "x"}}}',
        b'{"type": "RENAMED", "object": {"metadata": {"resourceVersion": "7"}}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"type": "ERROR", "object": {"code": 500}}',
        b'{"type": "ADDED", "object": "' + b"x" * 300_000,
    ],
)
async def test_garbage_on_the_watch_costs_a_new_list_and_nothing_else(line):
    async with FakeApi() as api:
        api.put(vllm("a"))
        async with watching(api, limits=replace(HASTY, line=250_000)) as watch:
            await until(lambda: api.watchers)
            api.say(line)
            await until(lambda: len(api.asked) >= 4)
            await until(lambda: watch.health.up and api.watchers)
            assert list(engines(watch)) == ["chat/a"]
            assert sum(errors(watch).values()) == 1
        assert [each.watch for each in api.asked][:4] == [False, True, False, True]


async def test_one_odd_pod_costs_only_itself():
    async with FakeApi() as api:
        api.put(vllm("a", ip="10.0.0.1"))
        api.put({**vllm("b"), "status": "odd"})
        odd = vllm("c")
        odd["metadata"]["uid"] = ["odd"]
        api.put(odd)
        api.put(vllm("d", ip="10.0.0.4"))
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            assert list(engines(watch)) == ["chat/a", "chat/d"]
            assert errors(watch) == {"malformed": 1}


# --- outages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "unauthorized"), (403, "forbidden"), (429, "status"), (500, "status")],
)
async def test_a_refusal_is_said_once_and_what_is_known_stands(status, kind, caplog):
    caplog.set_level(logging.INFO)
    async with FakeApi() as api:
        api.put(vllm("a"))
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.refuse = status
            api.drop_watches()
            await until(lambda: not watch.health.up)
            last = watch.health.last_success
            await until(lambda: errors(watch).get(kind, 0) >= 3)
            assert not watch.health.up
            assert watch.health.last_success == last
            assert list(engines(watch)) == ["chat/a"]
            api.refuse = None
            await until(lambda: watch.health.up)
            assert watch.health.last_success > last
    said = [record.getMessage() for record in caplog.records if "discovery" in record.getMessage()]
    failed = "discovery source failed, what it said before stands"
    assert said == ["discovery source is up", failed, "discovery source is up"]


async def test_a_server_that_never_answers_is_unreachable_and_the_first_failure_is_told():
    told = []
    async with FakeApi(hang=True) as api:
        limits = replace(HASTY, request=0.1)
        async with watching(api, limits=limits, changed=lambda: told.append(1)) as watch:
            await until(lambda: errors(watch).get("timeout", 0) >= 2)
            assert watch.health.settled
            assert not watch.listed
            assert told == [1]
            api.hang = False
            await until(lambda: watch.health.up)


async def test_a_server_that_is_not_there_is_asked_more_and_more_seldom():
    async with FakeApi() as api:
        place = api.place()
    limits = kubernetes.Limits()
    from headroom_exporter.fetch import make_session

    async with make_session() as session:
        watch = kubernetes.PodWatch(place, None, KubernetesConfig(), session, lambda: None)
        pauses = [await watch.step() for _ in range(12)]
        assert errors(watch) == {"unreachable": 12}
    assert pauses[0] <= 1.5
    assert max(pauses) <= 1.5 * limits.most_pause
    assert min(pauses[-3:]) >= 0.5 * limits.most_pause
    assert len(set(pauses)) == 12, "nodes must not come back in step"


# --- credentials ---------------------------------------------------------------------------------


async def test_the_token_is_read_at_each_request(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("first\n")
    async with FakeApi(token="first", token_file=token) as api:
        async with watching(api) as watch:
            await until(lambda: api.watchers)
            api.token = "second"
            token.write_text("second")
            api.end_watches()
            await until(lambda: len(api.asked) == 3)
            await until(lambda: api.watchers)
            assert errors(watch) == {}
            token.unlink()
            api.end_watches()
            await until(lambda: errors(watch).get("credentials"))
            token.write_text("two\nlines")
            count = errors(watch)["credentials"]
            await until(lambda: errors(watch)["credentials"] > count + 1)
        assert [each.token for each in api.asked] == ["first", "first", "second"]


def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    authority, secret = tmp_path / "ca.crt", tmp_path / "key"
    authority.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, secret)
    return authority, context


async def test_the_servers_certificate_is_checked_by_the_clusters_authority(tmp_path: Path):
    authority, context = certificate(tmp_path)
    good = authority.read_bytes()
    other, _ = certificate(tmp_path)
    stranger = other.read_bytes()
    authority.write_bytes(stranger)
    async with FakeApi(tls=context, ca_file=authority) as api, watching(api) as watch:
        await until(lambda: errors(watch).get("unreachable"))
        assert api.asked == []
        authority.write_text("no certificate")
        await until(lambda: errors(watch).get("credentials"))
        authority.write_bytes(good)
        await until(lambda: watch.health.up)


# --- where we are --------------------------------------------------------------------------------

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.mark.parametrize(
    ("environ", "config", "said"),
    [
        ({**IN_POD}, KubernetesConfig(), "discovery.kubernetes.node: '': must be a node's name"),
        ({**IN_POD, "NODE_NAME": "a,b"}, KubernetesConfig(), "'a,b': must be a node's name"),
        ({"NODE_NAME": "n"}, KubernetesConfig(), "KUBERNETES_SERVICE_HOST"),
        (
            {"NODE_NAME": "n", **IN_POD, "KUBERNETES_SERVICE_HOST": "h/?x"},
            KubernetesConfig(),
            "must be",
        ),
    ],
)
def test_outside_a_cluster_node_mode_is_refused(environ, config, said, monkeypatch):
    for name in ("NODE_NAME", *IN_POD):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        find_place(config)
    assert said in str(caught.value)


def test_in_a_pod_the_surroundings_say_where(monkeypatch):
    for name, value in {**IN_POD, "NODE_NAME": "n-1.x"}.items():
        monkeypatch.setenv(name, value)
    place = find_place(KubernetesConfig())
    assert (place.node, place.cluster.url) == ("n-1.x", "https://10.96.0.1:443")
    assert str(place.cluster.token_file).endswith("/serviceaccount/token")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    named = find_place(KubernetesConfig(node="n-2"))
    assert (named.node, named.cluster.url) == ("n-2", "https://[fd00::1]:443")


# --- memory --------------------------------------------------------------------------------------


def test_only_what_is_needed_of_a_pod_is_kept():
    annotations = {"headroom-exporter/port": "1", "secret": "x" * 1000}
    labels = {"headroom-exporter/sidecar": "true", "team": "secret"}
    each = vllm("a", annotations=annotations, labels=labels)
    kept = json.dumps(read(json.dumps(each).encode()))
    assert "headroom-exporter/port" in kept
    assert "headroom-exporter/sidecar" in kept
    assert "containerPort" in kept
    for word in ("secret", "SECRET", "never kept", "fieldsV1", "image", "conditions", "volumes"):
        assert word not in kept
