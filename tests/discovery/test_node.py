"""The exporter in node mode: engines that come and go, whose GPUs they hold, and what a scrape says."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as read_text

from discovery.fake_api import FakeApi, pod
from discovery.fake_engines import FakeEngines
from discovery.fake_kubelet import FakeKubelet, answer, claiming, holding
from discovery.harness import HASTY, until
from headroom_exporter.app import Exporter
from headroom_exporter.config import (
    Config,
    DiscoveryConfig,
    EngineConfig,
    GpuConfig,
    KubeletConfig,
    KubernetesConfig,
    PlanConfig,
    PollConfig,
)
from headroom_exporter.discovery import node
from headroom_exporter.discovery.kubelet import KubeletReader
from headroom_exporter.discovery.kubernetes import PodWatch
from headroom_exporter.errors import ConfigError
from headroom_exporter.gpus import GpuReading
from headroom_exporter.samples import GpuSample
from headroom_exporter.status.landing import landing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UUIDS = [f"GPU-{digit * 8}-1111-2222-3333-444444444444" for digit in "ab"]
POLL = PollConfig(interval=0.1, fallback_interval=0.1, full_interval=0.1, max_backoff=0.1)
NO_KUBELET = KubeletConfig(enabled=False)
CONFIG = Config(
    engines=(),
    discovery=DiscoveryConfig(kubelet=NO_KUBELET),
    poll=POLL,
    gpus=GpuConfig(enabled=False),
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PodWatch", functools.partial(PodWatch, limits=HASTY))
    monkeypatch.setattr(node, "KubeletReader", functools.partial(KubeletReader, interval=0.05))


@contextlib.asynccontextmanager
async def running(api: FakeApi, config: Config = CONFIG, **more) -> AsyncIterator[Exporter]:
    exporter = Exporter(config, place_of=lambda _: api.place(), **more)
    task = asyncio.create_task(exporter.run())
    try:
        yield exporter
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def vllm(name: str, ip: str, port: int = 8000, **more) -> dict:
    return pod(name, ip=ip, ports={"vllm": port}, **more)


def up(exporter: Exporter) -> dict[str, str]:
    """Engines that are up, with the model each serves."""
    return {
        engine.name: engine.ranks[0].model_name
        for engine in exporter.state.engines
        if engine.up and engine.ranks
    }


def names(exporter: Exporter) -> list[str]:
    return [engine.name for engine in exporter.state.engines]


def series(exporter: Exporter, name: str) -> list[dict[str, str]]:
    text = generate_latest(exporter.registry()).decode()
    return [s.labels for f in read_text(text) for s in f.samples if s.name == name]


def value(exporter: Exporter, name: str, **labels: str) -> float | None:
    return exporter.registry().get_sample_value(name, labels)


# --- engines -------------------------------------------------------------------------------------


async def test_pods_become_engines_and_are_forgotten_with_all_that_was_known_of_them():
    async with FakeEngines() as servers, FakeApi() as api:
        await servers.start("127.0.1.1", "one")
        await servers.start("127.0.1.2", "two")
        api.put(vllm("a", "127.0.1.1", servers.port))
        async with running(api) as exporter:
            await until(lambda: up(exporter) == {"chat/a": "one"})
            api.put(vllm("b", "127.0.1.2", servers.port))
            await until(lambda: up(exporter) == {"chat/a": "one", "chat/b": "two"})
            assert series(exporter, "headroom_engine_pod_info") == [
                {"engine": f"chat/{n}", "namespace": "chat", "pod": n, "uid": f"uid-{n}"}
                for n in ("a", "b")
            ]
            assert landing(exporter).count(": up") == 2
            assert len(exporter.status_api().state()["engines"]) == 2
            api.delete("a")
            await until(lambda: names(exporter) == ["chat/b"])
            assert 'engine="chat/a"' not in generate_latest(exporter.registry()).decode()
            assert list(exporter._tracks) == list(exporter._pollers) == ["chat/b"]
            assert [key[0] for key in exporter._history._past] == ["chat/b"]


@pytest.mark.parametrize("unseen", [False, True])
async def test_another_pod_of_the_same_name_starts_from_nothing(unseen):
    """A StatefulSet's pod comes back with its name, perhaps with its address, perhaps during an outage."""
    async with FakeEngines() as servers, FakeApi() as api:
        await servers.start("127.0.1.1", "one")
        api.put(vllm("a-0", "127.0.1.1", servers.port, uid="first"))
        async with running(api) as exporter:
            await until(lambda: up(exporter))
            track = exporter._tracks["chat/a-0"]
            api.put(vllm("a-0", "127.0.1.1", servers.port, uid="first", labels={"x": "y"}))
            api.put(vllm("z", "127.0.1.9", servers.port))
            await until(lambda: "chat/z" in names(exporter))
            assert exporter._tracks["chat/a-0"] is track, "a change of no concern to us"
            if unseen:
                api.refuse_watch = 500
                api.drop_watches()
                await until(lambda: not api.watchers)
            api.delete("a-0")
            api.put(vllm("a-0", "127.0.1.1", servers.port, uid="second"))
            api.compact()
            api.refuse_watch = None
            await until(lambda: exporter._tracks.get("chat/a-0") not in (None, track))
            assert {s["uid"] for s in series(exporter, "headroom_engine_pod_info")} == {
                "second",
                "uid-z",
            }


async def test_a_pods_own_plan_goes_before_the_files_and_may_change():
    plans = (PlanConfig(name="file", match_engine="chat/*", concurrency=4),)
    async with FakeApi() as api:
        api.put(vllm("a", "127.0.1.1", annotations={"headroom-exporter/plan": "concurrency: 9"}))
        api.put(vllm("b", "127.0.1.2", annotations={"headroom-exporter/plan": "concurrency: x"}))
        async with running(api, replace(CONFIG, plans=plans)) as exporter:
            await until(lambda: len(names(exporter)) == 2)
            assert exporter.plan_of("chat/a", "m").concurrency == 9
            assert exporter.plan_of("chat/b", "m").name == "file"
            labels = {"source": "kubernetes", "kind": "plan"}
            assert value(exporter, "headroom_discovery_errors_total", **labels) == 1
            track = exporter._tracks["chat/a"]
            api.put(
                vllm("a", "127.0.1.1", annotations={"headroom-exporter/plan": "concurrency: 3"})
            )
            await until(lambda: exporter.plan_of("chat/a", "m").concurrency == 3)
            assert exporter._tracks["chat/a"] is track, "a new plan does not cost the memory"
            api.put(vllm("a", "127.0.1.1"))
            await until(lambda: exporter.plan_of("chat/a", "m").name == "file")


async def test_engines_of_the_file_are_polled_beside_the_pods_and_keep_their_names(caplog):
    config = replace(
        CONFIG, engines=(EngineConfig(name="chat/a"), EngineConfig(name="z", url="http://h"))
    )
    async with FakeApi() as api:
        api.put(vllm("a", "127.0.1.1"))
        api.put(vllm("b", "127.0.1.2"))
        async with running(api, config) as exporter:
            await until(lambda: names(exporter) == ["chat/a", "z", "chat/b"])
            assert exporter._tracks["chat/a"]._config.url == "http://127.0.0.1:8000"
            labels = {"source": "kubernetes", "kind": "duplicate"}
            assert value(exporter, "headroom_discovery_errors_total", **labels) == 1
    assert "engine is not polled" in caplog.text


async def test_beyond_a_node_full_of_engines_those_that_are_polled_stay(monkeypatch):
    monkeypatch.setattr(node, "MAX_ENGINES", 3)
    async with FakeApi() as api:
        for name in "def":
            api.put(vllm(name, "127.0.1.1"))
        async with running(api) as exporter:
            await until(lambda: names(exporter) == ["chat/d", "chat/e", "chat/f"])
            for name in "abc":
                api.put(vllm(name, "127.0.1.1"))
            labels = {"source": "kubernetes", "kind": "too_many"}
            await until(lambda: value(exporter, "headroom_discovery_errors_total", **labels) == 3)
            assert names(exporter) == ["chat/d", "chat/e", "chat/f"]
            api.delete("e")
            await until(lambda: names(exporter) == ["chat/a", "chat/d", "chat/f"])


async def test_several_namespaces_have_a_watch_each_and_one_refusal_is_not_the_others():
    rules = KubernetesConfig(namespaces=("chat", "search"))
    config = replace(CONFIG, discovery=DiscoveryConfig(kubernetes=rules, kubelet=NO_KUBELET))
    async with FakeApi() as api:
        for namespace in ("chat", "search", "other"):
            api.put(vllm("a", "127.0.1.1", namespace=namespace))
        async with running(api, config) as exporter:
            await until(lambda: names(exporter) == ["chat/a", "search/a"])
            assert value(exporter, "headroom_discovery_up", source="kubernetes") == 1
        paths = {each.path for each in api.asked}
        assert paths == {f"/api/v1/namespaces/{n}/pods" for n in ("chat", "search")}


# --- ready, outages, reload ----------------------------------------------------------------------


async def test_it_is_ready_once_the_pods_are_listed_and_asked():
    async with FakeEngines() as servers, FakeApi(hang=True) as api:
        await servers.start("127.0.1.1", "one")
        api.put(vllm("a", "127.0.1.1", servers.port))
        async with running(api) as exporter:
            await asyncio.sleep(0.1)
            exporter._note_ready()
            assert not exporter.ready()
            api.hang = False
            await until(exporter.ready)
            assert up(exporter)


async def test_it_is_ready_on_a_node_without_engines_and_when_nobody_may_be_asked():
    for refuse in (None, 403):
        async with FakeApi(refuse=refuse) as api, running(api) as exporter:
            await until(exporter.ready)
            healthy = value(exporter, "headroom_discovery_up", source="kubernetes")
            assert healthy == float(refuse is None)
            assert names(exporter) == []


async def test_during_an_outage_engines_are_polled_on_and_it_is_said():
    async with FakeEngines() as servers, FakeApi() as api:
        await servers.start("127.0.1.1", "one")
        api.put(vllm("a", "127.0.1.1", servers.port))
        async with running(api) as exporter:
            await until(lambda: up(exporter))
            api.refuse = 503
            api.drop_watches()
            await until(lambda: value(exporter, "headroom_discovery_up", source="kubernetes") == 0)
            last = "headroom_discovery_last_success_timestamp_seconds"
            assert value(exporter, last, source="kubernetes") > 0
            asked = servers.asked["one"]
            await until(lambda: servers.asked["one"] > asked + 2)
            assert up(exporter) == {"chat/a": "one"}


def written(path: Path, discovery: str) -> None:
    path.write_text(
        "poll: {interval: 100ms}\ngpus: {enabled: false}\n"
        f"discovery: {{kubelet: {{enabled: false}}, {discovery}}}\n"
    )


async def test_a_reload_changes_what_is_looked_for_and_keeps_what_stays(tmp_path):
    from headroom_exporter.config.file import load

    file = tmp_path / "c.yaml"
    written(file, "kubernetes: {}")
    async with FakeApi() as api:
        api.put(vllm("a", "127.0.1.1"))
        api.put(pod("b", ip="127.0.1.2", ports={"http": 1}))
        async with running(api, load(file), path=file) as exporter:
            await until(lambda: names(exporter) == ["chat/a"])
            track = exporter._tracks["chat/a"]
            written(file, "kubernetes: {port_names: [vllm, http]}")
            assert await exporter.reload() is None
            assert names(exporter) == ["chat/a"]
            await until(lambda: names(exporter) == ["chat/a", "chat/b"])
            assert exporter._tracks["chat/a"] is track
            # While the API server refuses, new rules cost nothing that is known.
            api.refuse = 403
            written(file, "kubernetes: {port_names: [http]}")
            assert await exporter.reload() is None
            await until(lambda: value(exporter, "headroom_discovery_up", source="kubernetes") == 0)
            assert names(exporter) == ["chat/a", "chat/b"]
            api.refuse = None
            await until(lambda: names(exporter) == ["chat/b"])
            file.write_text("engines: [{name: own}]\ngpus: {enabled: false}\n")
            assert await exporter.reload() is None
            assert names(exporter) == ["own"]
            assert value(exporter, "headroom_discovery_up", source="kubernetes") is None
            await until(lambda: api.watchers == 0)


async def test_a_reload_into_node_mode_outside_a_cluster_is_refused(tmp_path, monkeypatch):
    for name in ("NODE_NAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "c.yaml"
    file.write_text("discovery: {kubernetes: {}}")
    exporter = Exporter(Config(), path=file)
    assert "discovery.kubernetes.node" in str(await exporter.reload())
    assert exporter.config == Config()
    with pytest.raises(ConfigError):
        Exporter(Config(engines=(), discovery=DiscoveryConfig()))


# --- GPUs ----------------------------------------------------------------------------------------


class Cards:
    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> GpuReading:
        return GpuReading(gpus=tuple(GpuSample(index=str(i), uuid=u) for i, u in enumerate(UUIDS)))


def gpu_pods(exporter: Exporter) -> list[tuple[str | None, str, str]]:
    found = series(exporter, "headroom_gpu_pod_info")
    return [(each.get("gpu"), each["uuid"], each["pod"]) for each in found]


async def test_gpus_belong_to_the_pods_that_are_there(tmp_path):
    socket = tmp_path / "kubelet.sock"
    discovery = DiscoveryConfig(kubelet=KubeletConfig(socket=str(socket)))
    config = replace(CONFIG, discovery=discovery, gpus=GpuConfig(interval=0.1))
    with FakeKubelet(socket) as kubelet:
        kubelet.says = answer(
            holding("a", UUIDS[0]),
            holding("job", UUIDS[0], "GPU-elsewhere"),
            holding("late", UUIDS[1]),
            claiming("a", "gpu-0-mig-9-0-4"),
        )
        async with FakeApi() as api:
            api.put(vllm("a", "127.0.1.1"))
            api.put(pod("job"))
            async with running(api, config, gpu_source=Cards()) as exporter:
                both = [
                    ("0", UUIDS[0], "a"),
                    ("0", UUIDS[0], "job"),
                    (None, "GPU-elsewhere", "job"),
                ]
                # An empty label is none; the parser of prometheus_client shows it.
                await until(
                    lambda: [(g or None, u, p) for g, u, p in gpu_pods(exporter)] == both,
                    "the pod that the API server does not know is not shown",
                )
                assert value(exporter, "headroom_discovery_up", source="kubelet") == 1
                labels = {"source": "kubelet", "kind": "unmapped"}
                assert value(exporter, "headroom_discovery_errors_total", **labels) == 1
                # The kubelet lists what has finished until it is deleted.
                api.put(pod("job", phase="Succeeded"))
                await until(lambda: gpu_pods(exporter) == [("0", UUIDS[0], "a")])
                api.delete("a")
                await until(lambda: gpu_pods(exporter) == [])
                assert value(exporter, "headroom_discovery_errors_total", **labels) == 1


async def test_where_not_every_pod_is_seen_the_kubelets_word_is_enough(tmp_path):
    socket = tmp_path / "kubelet.sock"
    discovery = DiscoveryConfig(
        kubernetes=KubernetesConfig(namespaces=("chat",)),
        kubelet=KubeletConfig(socket=str(socket)),
    )
    with FakeKubelet(socket) as kubelet:
        kubelet.says = answer(holding("train", UUIDS[0], namespace="other"))
        async with FakeApi() as api, running(api, replace(CONFIG, discovery=discovery)) as exporter:
            await until(lambda: [each[2] for each in gpu_pods(exporter)] == ["train"])


async def test_without_a_kubelet_engines_are_polled_and_it_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    discovery = DiscoveryConfig(kubelet=KubeletConfig(socket=str(tmp_path / "none")))
    async with FakeApi() as api:
        api.put(vllm("a", "127.0.1.1"))
        async with running(api, replace(CONFIG, discovery=discovery)) as exporter:
            await until(lambda: names(exporter) == ["chat/a"])
            await until(
                lambda: value(
                    exporter, "headroom_discovery_errors_total", source="kubelet", kind="no_socket"
                )
            )
            assert value(exporter, "headroom_discovery_up", source="kubelet") == 0
