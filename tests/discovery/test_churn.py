"""
Ten minutes of a busy node, sixty times as fast: 100 pods come and go at random, address and name reused,
while API server and kubelet fail in every way they know.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from discovery.fake_api import FakeApi, pod
from discovery.fake_engines import FakeEngines
from discovery.fake_kubelet import FakeKubelet, answer, holding
from discovery.harness import until
from headroom_exporter.app import Exporter
from headroom_exporter.config import Config, DiscoveryConfig, GpuConfig, KubeletConfig, PollConfig
from headroom_exporter.discovery import node
from headroom_exporter.discovery.kubelet import KubeletReader
from headroom_exporter.discovery.kubernetes import Clocks, Limits, PodWatch
from headroom_exporter.poll import EnginePoller
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEED = 60.0
MINUTES = 10
PODS, ENGINES = 100, 80
# Simulated seconds a pod is there, and is not, on average.
LIFE = 60.0
# Seconds of the event loop within which a change must show while all is well.
PROMPT = 1.5
# The longest pause after an outage is 45 simulated seconds.
RECOVERY = 45.0 / SPEED + PROMPT
MIB = 2**20


@dataclass
class Life:
    """One pod's while on the node."""

    name: str
    uid: str
    address: str
    began: float
    ended: float | None = None


@dataclass
class Node:
    """What is true, and the API server, kubelet and engines that tell of it."""

    api: FakeApi
    kubelet: FakeKubelet
    servers: FakeEngines
    chance: random.Random
    addresses: list[str] = field(
        default_factory=lambda: [f"127.0.2.{n}" for n in range(1, PODS + 20)]
    )
    living: dict[str, Life] = field(default_factory=dict)
    past: list[Life] = field(default_factory=list)
    births: int = 0
    # Seconds as the event loop lives them: on a machine that has other work they are longer.
    now: float = 0.0

    async def pulse(self) -> None:
        """Move ``now``, for ever."""
        while True:
            await asyncio.sleep(0.01)
            self.now += 0.01

    async def tick(self) -> None:
        """One simulated second."""
        changed = False
        for number in range(PODS):
            name = f"pod-{number}"
            if self.chance.random() < 1.0 / LIFE:
                changed = True
                await (self.end(name) if name in self.living else self.begin(name, number))
        if changed:
            self._tell_kubelet()

    async def begin(self, name: str, number: int) -> None:
        self.births += 1
        address = self.addresses.pop(self.chance.randrange(len(self.addresses)))
        uid = f"uid-{self.births}"
        await self.servers.start(address, uid)
        port = self.servers.port
        ports = {"vllm": port} if number < ENGINES - 10 else {"http": port}
        annotations = {}
        if ENGINES - 10 <= number < ENGINES:
            annotations = {"headroom-exporter/scrape": "true", "headroom-exporter/plan": "a: ["}
        make = functools.partial(pod, name, uid=uid, ports=ports, annotations=annotations)
        self.api.put(make(ip=None, phase="Pending"))
        self.api.put(make(ip=address))
        self.living[name] = Life(name, uid, address, self.now)

    async def end(self, name: str) -> None:
        life = self.living.pop(name)
        life.ended = self.now
        self.past = [old for old in self.past if life.ended - (old.ended or 0) < 60] + [life]
        await self.servers.stop(life.address)
        self.addresses.append(life.address)
        last = self.api.pods["chat", name]
        if self.chance.random() < 0.5:
            last["metadata"]["deletionTimestamp"] = "2026-11-21T08:00:00Z"
            self.api.put(last)
        if self.chance.random() < 0.5:
            last["status"]["phase"] = self.chance.choice(["Succeeded", "Failed"])
            self.api.put(last)
        self.api.delete(name)

    def _tell_kubelet(self) -> None:
        lent = [holding(name, f"GPU-{life.uid}") for name, life in self.living.items()]
        self.kubelet.says = answer(*lent)

    def wrong(self, exporter: Exporter) -> list[str]:
        """What is missed, shown after it left, or taken for another."""
        found, now = [], self.now
        lately = {life.uid: life for life in self.past if now - (life.ended or 0) <= PROMPT}
        true = {life.uid for life in self.living.values()} | set(lately)
        discovery = exporter.state.discovery
        assert discovery is not None
        shown = {each.name: each for each in exporter.state.engines}
        for name, who in discovery.pods.items():
            if who.uid not in true:
                found.append(f"{name} is shown as {who.uid}, which has left")
        for name, each in shown.items():
            if name not in discovery.pods:
                found.append(f"{name} has no pod")
            elif each.up and each.ranks[0].model_name != discovery.pods[name].uid:
                found.append(f"{name} shows figures of {each.ranks[0].model_name}")
        for name, life in self.living.items():
            engine = int(name.removeprefix("pod-")) < ENGINES
            if engine and now - life.began > PROMPT and f"chat/{name}" not in shown:
                found.append(f"{name} is missed")
            if not engine and f"chat/{name}" in shown:
                found.append(f"{name} is no engine")
        found += [
            f"{owner.uuid} is shown as {owner.pod}'s"
            for owner in discovery.gpu_pods
            if owner.uuid.removeprefix("GPU-") not in true
        ]
        return found


async def outages(node_: Node, second: int) -> bool:
    """Begin or end what goes wrong at this simulated second. Returns whether something is wrong now."""
    api, kubelet = node_.api, node_.kubelet
    if second == 60:
        api.refuse = 503
        api.drop_watches()
    elif second == 150:
        api.hang, api.refuse = True, None
    elif second == 190:
        api.hang = False
    elif second in (240, 255):
        api.drop_watches()
    elif second == 270:
        # Long enough away to be told that the version is too old, as an event this time.
        api.refuse_watch, api.gone_as_event = 500, True
        api.drop_watches()
    elif second == 330:
        api.refuse_watch = None
    elif second == 390:
        api.say(b'{"type": "ADDED", "object": {"metadata": {"name": "half a p')
        kubelet.says = b"\x0b"
    elif second == 420:
        kubelet.stop()
    elif second == 450:
        kubelet.start()
    elif second == 480:
        api.refuse = 401
        api.end_watches()
    elif second == 520:
        api.refuse = None
    if second % 60 == 0:
        api.bookmark()
    return any(
        first <= second < last
        for first, last in ((60, 190), (240, 256), (270, 330), (390, 391), (480, 520))
    )


def census() -> dict[str, int]:
    """What must not pile up."""
    gc.collect()
    kinds = (EngineTrack, EnginePoller)
    alive = [each for each in gc.get_objects() if isinstance(each, kinds)]
    return {
        "engines": len(alive),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": psutil.Process().num_fds(),
    }


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sixty times as fast; and quiet: each wrong plan is a line."""
    clocks = Clocks(sleep=lambda seconds: asyncio.sleep(seconds / SPEED))
    limits = Limits(request=30.0 / SPEED, idle=150.0 / SPEED)
    monkeypatch.setattr(node, "PodWatch", functools.partial(PodWatch, clocks=clocks, limits=limits))
    reader = functools.partial(KubeletReader, interval=10.0 / SPEED, deadline=0.5)
    monkeypatch.setattr(node, "KubeletReader", reader)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_leaked_missed_or_shown_after_it_left(seed: int, tmp_path: Path):
    socket = tmp_path / "kubelet.sock"
    config = Config(
        engines=(),
        discovery=DiscoveryConfig(kubelet=KubeletConfig(socket=str(socket))),
        poll=PollConfig(max_backoff=2.0),
        gpus=GpuConfig(enabled=False),
    )
    async with contextlib.AsyncExitStack() as stack:
        kubelet = stack.enter_context(FakeKubelet(socket))
        servers = await stack.enter_async_context(FakeEngines())
        api = FakeApi(watch_seconds=240.0 / SPEED, remembers=60)
        await stack.enter_async_context(api)
        node_ = Node(api, kubelet, servers, random.Random(seed))
        exporter = Exporter(config, place_of=lambda _: api.place())
        running = asyncio.create_task(exporter.run())
        pulse = asyncio.create_task(node_.pulse())
        try:
            await until(exporter.ready)
            empty = census()
            resident = await ten_minutes(node_, exporter)
            assert node_.births > 500
            print("resident MiB by minute:", [round(each / MIB, 1) for each in resident])
            assert resident[-1] - resident[3] < 8 * MIB, resident
            for name in list(node_.living):
                await node_.end(name)
            kubelet.says = answer()
            await until(lambda: exporter.state.engines == () and api.watchers == 1)
            await until(lambda: exporter.state.discovery.gpu_pods == ())
            assert exporter._tracks == exporter._engine_states == exporter._pollers == {}
            assert exporter._history._past == {}
            # Polls that were cancelled end, connections that were cut are noticed.
            await until(lambda: census()["engines"] == 0)
            await until(lambda: census()["descriptors"] <= empty["descriptors"] + 3)
            await until(lambda: census()["tasks"] <= empty["tasks"])
            assert threading.active_count() <= empty["threads"] + 2
            assert not running.done()
        finally:
            for task in (pulse, running):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def ten_minutes(node_: Node, exporter: Exporter) -> list[int]:
    """Live through it. Returns resident bytes at the end of each minute."""
    resident, well_since, most_up = [], 0.0, 0
    began = time.monotonic()
    for second in range(60 * MINUTES):
        if await outages(node_, second):
            well_since = node_.now + RECOVERY
        await node_.tick()
        await asyncio.sleep(max(0.0, began + (second + 1) / SPEED - time.monotonic()))
        if second % 5 == 0 and node_.now > well_since:
            assert node_.wrong(exporter) == [], f"at {second} simulated seconds"
        most_up = max(most_up, sum(each.up for each in exporter.state.engines))
        if second % 60 == 59:
            resident.append(psutil.Process().memory_info().rss)
    assert most_up > 20
    assert len(exporter.state.engines) <= len(node_.living) + 20
    return resident
