"""The node: pods that come and go with their engines, an API server and a kubelet that fail."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from discovery.fake_api import NODE, FakeApi, pod
from discovery.fake_kubelet import FakeKubelet, answer, holding
from soak.engines import FAULTS, RARE, RARE_SHARE, FaultyEngine

if TYPE_CHECKING:
    from bench.engines import Fleet

# Seconds, on average: between two outages, and how long a pod is there, or away.
API_CALM, POD_LIFE = 45.0, 240.0
ENGINE_CALM, ENGINE_FAULT = 60.0, 10.0
TICK = 0.5

__all__ = ["NODE", "Cluster"]


class Cluster:
    """
    Pods ``chat/pod-N`` with one engine each, half of them with a plan of their own.

    Attributes:
        engines: By pod name, of pods that are there.
        outside: Engines of the configuration file, by name.
        faults: How often each thing went wrong.
        wild: Whether things go wrong.
    """

    def __init__(
        self, api: FakeApi, kubelet: FakeKubelet, fleet: Fleet, seed: int, haste: float
    ) -> None:
        self._api, self._kubelet, self._fleet, self._haste = api, kubelet, fleet, haste
        self._chance = random.Random(f"cluster {seed}")  # noqa: S311
        self._free = [f"127.0.{block}.{n}" for block in (4, 5) for n in range(1, 200)]
        self._until: dict[FaultyEngine, float] = {}
        self._births = 0
        self.engines: dict[str, FaultyEngine] = {}
        self.outside: dict[str, FaultyEngine] = {}
        self.faults: dict[str, int] = {}
        self.wild = False

    def _count(self, what: str) -> None:
        self.faults[what] = self.faults.get(what, 0) + 1

    # --- pods ---

    async def begin(self, name: str) -> None:
        """A pod starts: a new engine at a new address."""
        self._births += 1
        address = self._free.pop(self._chance.randrange(len(self._free)))
        engine = await FaultyEngine(self._fleet, address, self._chance).open()
        self.engines[name] = engine
        plan = "max_num_seqs: 16\nconcurrency: 8\nrequest_rate: 2\nslo: {ttft_p95_seconds: 1}"
        annotations = {"headroom-exporter/plan": plan} if self._chance.random() < 0.5 else {}
        made = pod(
            name,
            uid=f"uid-{self._births}",
            ip=address,
            ports={"vllm": engine.port},
            annotations=annotations,
        )
        self._api.put(made)
        self._tell_kubelet()

    async def end(self, name: str) -> None:
        """A pod is deleted, and its engine with it."""
        engine = self.engines.pop(name)
        self._until.pop(engine, None)
        await engine.close()
        self._free.append(engine.address)
        self._api.delete(name)
        self._tell_kubelet()

    def _tell_kubelet(self) -> None:
        lent = [holding(name, f"GPU-{number}") for number, name in enumerate(sorted(self.engines))]
        self._kubelet.says = answer(*lent[:8])

    async def stranger(self, name: str, address: str) -> None:
        """An engine that the configuration file names."""
        self.outside[name] = await FaultyEngine(self._fleet, address, self._chance).open()

    # --- misery ---

    async def engines_fail(self, pods: list[str]) -> None:
        """Pods come and go, and engines break and heal, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(TICK)
            if not self.wild:
                continue
            for name in pods:
                if self._chance.random() < self._haste * TICK / POD_LIFE:
                    self._count("pod ends" if name in self.engines else "pod begins")
                    await (self.end(name) if name in self.engines else self.begin(name))
            pods_own = set(self.engines.values())
            for engine in [*self.engines.values(), *self.outside.values()]:
                if engine.mode != "ok":
                    if clock() > self._until.get(engine, 0.0):
                        await engine.heal()
                elif self._chance.random() < self._haste * TICK / ENGINE_CALM:
                    rare = engine in pods_own and self._chance.random() < RARE_SHARE
                    fault = RARE if rare else self._chance.choice(FAULTS)
                    self._count(f"engine {fault}")
                    self._until[engine] = clock() + self._chance.expovariate(
                        self._haste / ENGINE_FAULT
                    )
                    await engine.fail(fault)

    async def api_fails(self) -> None:
        """The API server fails in one way after the other, for ever."""
        ways = (
            *(
                "refuse",
                "refuse_watch",
                "hang",
                "unauthorized",
                "drop",
                "end",
                "gone",
                "gone_event",
            ),
            *("half_line", "error", "kubelet_stops", "kubelet_garbage", "kubelet_slow"),
        )
        while True:
            await asyncio.sleep(self._chance.expovariate(self._haste / API_CALM))
            if self.wild:
                way = self._chance.choice(ways)
                self._count(f"node {way}")
                try:
                    self._break(way)
                    await asyncio.sleep(self._chance.uniform(1.0, 40.0 / self._haste))
                finally:
                    self._mend()

    def _break(self, way: str) -> None:
        api, kubelet = self._api, self._kubelet
        if way in ("refuse", "unauthorized"):
            api.refuse = 503 if way == "refuse" else 401
            api.drop_watches()
        elif way == "refuse_watch":
            api.refuse_watch = 500
            api.drop_watches()
        elif way == "hang":
            api.hang = True
            api.drop_watches()
        elif way in ("gone", "gone_event"):
            api.gone_as_event = way == "gone_event"
            api.compact()
            api.drop_watches()
        elif way == "drop":
            api.drop_watches()
        elif way == "end":
            api.end_watches()
        elif way == "half_line":
            api.say(b'{"type": "ADDED", "object": {"metadata": {"name": "half')
        elif way == "error":
            api.error(410)
        elif way == "kubelet_stops":
            kubelet.stop()
        elif way == "kubelet_garbage":
            kubelet.says = b"\x0b\xff\x00"
        elif way == "kubelet_slow":
            kubelet.delay = 8.0

    def _mend(self) -> None:
        api, kubelet = self._api, self._kubelet
        api.refuse = api.refuse_watch = None
        api.hang = api.gone_as_event = False
        kubelet.delay = 0.0
        if not kubelet.socket.exists():
            kubelet.start()
        self._tell_kubelet()

    async def calm(self, pods: list[str]) -> None:
        """All is well: every pod is there, every engine the vLLM it first was."""
        self.wild = False
        self._mend()
        for name in pods:
            if name not in self.engines:
                await self.begin(name)
        for engine in [*self.engines.values(), *self.outside.values()]:
            await engine.heal()
            engine.kind = "vllm"

    async def bookmarks(self) -> None:
        """What a real server sends each minute."""
        while True:
            await asyncio.sleep(20.0)
            self._api.bookmark()

    async def close(self) -> None:
        """Nothing listens any more."""
        for engine in [*self.engines.values(), *self.outside.values()]:
            await engine.close()
