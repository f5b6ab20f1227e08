"""
Node mode put together: watches of pods, the kubelet's devices, and what of it is polled and shown.
"""

from __future__ import annotations

import asyncio
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.discovery.health import together
from headroom_exporter.discovery.kubelet import KubeletReader
from headroom_exporter.discovery.kubernetes import PodWatch
from headroom_exporter.discovery.pod_resources import gpu_pods
from headroom_exporter.samples import DiscoverySource, DiscoveryState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    import aiohttp

    from headroom_exporter.config import DiscoveryConfig
    from headroom_exporter.discovery.api import Place
    from headroom_exporter.discovery.pods import Target
    from headroom_exporter.samples import GpuPod, GpuSample

log = logging.getLogger(__name__)

# Eight GPUs of seven MIG instances are 56 engines; each costs some 200 series, a connection and memory.
MAX_ENGINES = 64


class Discovery:
    """
    What runs on this node.

    Args:
        config: What to look for.
        place: On which node.
        session: HTTP client of the whole exporter.
        changed: Called when ``targets`` may have changed.
    """

    def __init__(
        self,
        config: DiscoveryConfig,
        place: Place,
        session: aiohttp.ClientSession,
        changed: Callable[[], None],
    ) -> None:
        rules = config.kubernetes
        self._changed = changed
        self._watches = [
            PodWatch(place, namespace, rules, session, self._note)
            for namespace in rules.namespaces or (None,)
        ]
        # Only where every pod of the node is seen is one that is not seen gone.
        self._sees_all = not rules.namespaces and not rules.label_selector
        self._kubelet: KubeletReader | None = None
        if config.kubelet.enabled:
            self._kubelet = KubeletReader(config.kubelet.socket, changed)
        self._dropped: dict[str, str] = {}
        self._said_unmapped: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watch in self._watches:
                tasks.create_task(watch.run(), name="discovery kubernetes")
            if self._kubelet is not None:
                tasks.create_task(self._kubelet.run(), name="discovery kubelet")

    def settled(self) -> bool:
        """Whether the API server has answered everything once, or failed to."""
        return all(watch.health.settled for watch in self._watches)

    def knows(self) -> bool:
        """Whether ``targets`` is worth more than what was known before: something was really listed."""
        return self.settled() and any(watch.listed for watch in self._watches)

    def _note(self) -> None:
        if self._kubelet is not None:
            self._kubelet.ask_soon()
        # A part of the namespaces would look as if the engines of the others were gone.
        if self.knows():
            self._changed()

    # --- engines ---

    def targets(self, polled: Collection[str], taken: Collection[str]) -> dict[str, Target]:
        """
        The engines to poll by name, in order of their names.

        Args:
            polled: Engines that are polled now: when there are too many, they stay and new ones wait.
            taken: Names of the configuration file, which are not to be had.
        """
        found = {
            target.config.name: target
            for watch in self._watches
            for _, reading in watch.pods.values()
            for target in reading.targets
        }
        dropped = {name: "duplicate" for name in found if name in taken}
        free = sorted(
            (name for name in found if name not in dropped), key=lambda n: (n not in polled, n)
        )
        dropped |= dict.fromkeys(free[MAX_ENGINES:], "too_many")
        self._say_dropped(dropped)
        return {name: found[name] for name in sorted(free[:MAX_ENGINES])}

    def _say_dropped(self, dropped: dict[str, str]) -> None:
        """Count and log engines that are newly left out."""
        for name, kind in dropped.items():
            if self._dropped.get(name) != kind:
                self._watches[0].health.count(kind)
                log.warning("engine is not polled", extra={"engine": name, "kind": kind})
        self._dropped = dropped

    # --- state ---

    def state(self, targets: Mapping[str, Target], gpus: Iterable[GpuSample]) -> DiscoveryState:
        """
        What a scrape shows of it.

        Args:
            targets: Engines that are polled.
            gpus: What NVML shows.
        """
        sources: dict[str, DiscoverySource] = {
            "kubernetes": together([watch.health.state() for watch in self._watches])
        }
        if self._kubelet is not None:
            lent = self._lent(self._kubelet, gpus)
            sources["kubelet"] = self._kubelet.health.state()
        else:
            lent = ()
        pods = {name: each.pod for name, each in targets.items() if each.pod is not None}
        return DiscoveryState(
            sources=MappingProxyType(sources), pods=MappingProxyType(pods), gpu_pods=lent
        )

    def _lent(self, kubelet: KubeletReader, gpus: Iterable[GpuSample]) -> tuple[GpuPod, ...]:
        devices = kubelet.devices()
        owners, unmapped = gpu_pods(devices.lent, gpus, dict(devices.minors))
        for device in sorted(unmapped - self._said_unmapped):
            kubelet.health.count("unmapped")
            log.info("GPU of a pod cannot be told", extra={"device": device})
        self._said_unmapped = unmapped
        return tuple(owner for owner in owners if self._is_there(owner))

    def _is_there(self, owner: GpuPod) -> bool:
        """Whether the pod still is: the kubelet also lists what has finished and is not yet deleted."""
        key = (owner.namespace, owner.pod)
        known = [watch.pods[key] for watch in self._watches if key in watch.pods]
        if known:
            return not known[0][1].finished
        return not (self._sees_all and self._watches[0].health.up)
