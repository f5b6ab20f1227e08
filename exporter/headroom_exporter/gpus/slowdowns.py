"""When the GPUs begin or end to slow themselves down: then step times learnt before are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from headroom_exporter.samples import GpuSample

# Power capping is left out: it comes and goes with every burst.
SLOWDOWN_REASONS = frozenset(
    {"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake", "sw_thermal_slowdown"}
)


class SlowdownWatch:
    """
    Remembers which slowdowns hold. One for each exporter process.

    Attributes:
        active: What held when GPUs were last seen, each as index and reason; empty before.
    """

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: frozenset[str] = frozenset()

    def changed(self, gpus: Collection[GpuSample]) -> bool:
        """
        Take readings in.

        Args:
            gpus: One for each GPU; with none nothing is known, so nothing changes.

        Returns:
            Whether other slowdowns hold than before.
        """
        if not gpus:
            return False
        before, self.active = self.active, _active(gpus)
        return self.active != before


def _active(gpus: Iterable[GpuSample]) -> frozenset[str]:
    return frozenset(
        f"{gpu.index} {reason}"
        for gpu in gpus
        for reason, limits in (gpu.clock_events or {}).items()
        if limits and reason in SLOWDOWN_REASONS
    )
