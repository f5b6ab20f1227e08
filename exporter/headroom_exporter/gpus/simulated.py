"""Invented GPUs for the demo and for tests: figures that follow the simulated engine's load."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.gpus import GpuReading
from headroom_exporter.samples import GpuSample

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30
# An engine takes its share of the memory when it starts and keeps it, however full its cache is.
ENGINE_SHARE = 0.9
RESERVED_SHARE = 1 / 80


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCard:
    """
    What is invented.

    Attributes:
        name: Shown with the word "Simulated" before it.
        memory_bytes: All of it.
        idle_watts: Power with nothing to do.
        limit_watts: Power at full load.
    """

    name: str = "GPU"
    memory_bytes: int = 80 * GIB
    idle_watts: float = 75.0
    limit_watts: float = 700.0


RTX_4090 = SimulatedCard(name="RTX 4090", memory_bytes=24 * GIB, idle_watts=25.0, limit_watts=450.0)


class SimulatedGpus:
    """
    GPUs whose power, temperature and utilisation follow a load.

    Args:
        load: How busy the engine is now, 0 to 1.
        card: What they are.
        count: How many of it.
        monotonic: Clock over which power adds up to energy.
    """

    def __init__(
        self,
        load: Callable[[], float],
        *,
        card: SimulatedCard | None = None,
        count: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._card = card or SimulatedCard()
        self._count = count
        self._monotonic = monotonic
        self._joules = 0.0
        self._read_at = monotonic()

    def open(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to let go of."""

    def read(self) -> GpuReading:
        """Every GPU as the load has it now."""
        load = min(max(self._load(), 0.0), 1.0)
        idle, limit = self._card.idle_watts, self._card.limit_watts
        now, power = self._monotonic(), idle + load * (limit - idle)
        self._joules += power * (now - self._read_at)
        self._read_at = now
        gpus = tuple(self._gpu(index, load, power) for index in range(self._count))
        return GpuReading(gpus=gpus, driver_version="simulated")

    def _gpu(self, index: int, load: float, power: float) -> GpuSample:
        total = self._card.memory_bytes
        engine, reserved = int(total * ENGINE_SHARE), int(total * RESERVED_SHARE)
        return GpuSample(
            index=str(index),
            uuid=f"GPU-simulated-{index}",
            name=f"Simulated {self._card.name}",
            memory_total=total,
            memory_used=engine,
            memory_free=total - reserved - engine,
            memory_reserved=reserved,
            utilization=min(1.0, 3 * load),
            memory_utilization=0.8 * load,
            power=power,
            power_limit=self._card.limit_watts,
            energy=self._joules,
            temperature=35.0 + 40.0 * load,
            clock_events=MappingProxyType({"sw_power_cap": load > 0.95, "hw_slowdown": False}),
            memory_by_owner=MappingProxyType({"engine": engine, "other": 0}),
        )
