"""
Which NVML questions make which figures, in which units, within which bounds.

NVML marks "not available" by all bits set (NVML_VALUE_NOT_AVAILABLE), and broken sensors answer
anything: a number outside its bounds is None.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from headroom_exporter.gpus.owners import memory_by_owner
from headroom_exporter.samples import GpuProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headroom_exporter.samples import GpuSample

# Far above any board: 1 PiB, 100 kW, 30 years of a kilowatt.
MOST_BYTES = 2**50
MOST_WATTS = 100_000.0
MOST_JOULES = 1e12
MOST_ECC_ERRORS = 2**48
MOST_CLOCK_EVENTS = 2**63 - 1
CELSIUS = (-50, 200)

# nvml.h, nvmlClocksEventReasons. "GPU idle" is left out: it says that nothing runs, not that
# something is held back. So is the display's setting: no inference server drives one.
CLOCK_EVENTS = {
    0x002: "applications_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake",
}

# Arguments of the questions, from nvml.h.
MEMORY_V2 = 0x02000028
TEMPERATURE_GPU = 0
UNCORRECTED, SINCE_DRIVER_LOAD = 1, 0


class Ask(Protocol):
    """Puts questions to one device: pynvml functions, each with what follows the handle."""

    def __call__(self, *questions: tuple[Any, ...]) -> Any:
        """The answer to the first that card and driver know, or None. Raises ``Lost``."""


def read_own(
    ask: Ask, sample: GpuSample, engine_process: Callable[[int], bool | None]
) -> GpuSample:
    """
    Memory, utilisation and processes: what a MIG instance has for itself.

    Source:
        nvmlDeviceGetMemoryInfo_v2; version 1 has no ``reserved`` and counts it as used.
        nvmlDeviceGetUtilizationRates (percent); GPUs in MIG mode have none.
    """
    memory = ask(("nvmlDeviceGetMemoryInfo", MEMORY_V2), ("nvmlDeviceGetMemoryInfo",))
    total = _whole(getattr(memory, "total", None), 1, MOST_BYTES)
    most = MOST_BYTES if total is None else total
    used = _whole(getattr(memory, "used", None), 0, most)
    rates = ask(("nvmlDeviceGetUtilizationRates",))
    processes = _processes(ask, most)
    return replace(
        sample,
        memory_total=total,
        memory_used=used,
        memory_free=_whole(getattr(memory, "free", None), 0, most),
        memory_reserved=_whole(getattr(memory, "reserved", None), 0, most),
        utilization=_scaled(getattr(rates, "gpu", None), 100, 1.0),
        memory_utilization=_scaled(getattr(rates, "memory", None), 100, 1.0),
        processes=processes,
        memory_by_owner=memory_by_owner(processes, used, engine_process),
    )


def read_board(ask: Ask, sample: GpuSample) -> GpuSample:
    """
    Power, energy, temperature, clock events, memory errors: what a GPU has once.

    Source:
        nvmlDeviceGetPowerUsage, nvmlDeviceGetEnforcedPowerLimit (milliwatts),
        nvmlDeviceGetTotalEnergyConsumption (millijoules), nvmlDeviceGetTotalEccErrors
        (uncorrected, volatile), nvmlDeviceGetRemappedRows.
    """
    limit = _scaled(ask(("nvmlDeviceGetEnforcedPowerLimit",)), 1000, MOST_WATTS)
    errors = ask(("nvmlDeviceGetTotalEccErrors", UNCORRECTED, SINCE_DRIVER_LOAD))
    _, _, pending, failed = ask(("nvmlDeviceGetRemappedRows",)) or (None,) * 4
    return replace(
        sample,
        power=_scaled(ask(("nvmlDeviceGetPowerUsage",)), 1000, MOST_WATTS),
        power_limit=limit or None,  # a limit of 0 W limits nothing
        energy=_scaled(ask(("nvmlDeviceGetTotalEnergyConsumption",)), 1000, MOST_JOULES),
        temperature=_temperature(ask),
        clock_events=_clock_events(ask),
        ecc_uncorrectable=_whole(errors, 0, MOST_ECC_ERRORS),
        row_remap_pending=_flag(pending),
        row_remap_failed=_flag(failed),
    )


def _temperature(ask: Ask) -> float | None:
    # The older function goes away with CUDA 14.
    answer = ask(
        ("nvmlDeviceGetTemperatureV", TEMPERATURE_GPU),
        ("nvmlDeviceGetTemperature", TEMPERATURE_GPU),
    )
    celsius = _whole(answer, *CELSIUS)
    return None if celsius is None else float(celsius)


def _clock_events(ask: Ask) -> Mapping[str, bool] | None:
    # The same bits under the name that drivers before 535 had for it.
    answer = ask(
        ("nvmlDeviceGetCurrentClocksEventReasons",),
        ("nvmlDeviceGetCurrentClocksThrottleReasons",),
    )
    reasons = _whole(answer, 0, MOST_CLOCK_EVENTS)
    if reasons is None:
        return None
    return MappingProxyType({word: bool(reasons & bit) for bit, word in CLOCK_EVENTS.items()})


def _processes(ask: Ask, most: int) -> tuple[GpuProcess, ...] | None:
    """
    Compute processes.

    A process with a context holds memory, so 0 means that the driver could not look it up: seen in
    containers (https://github.com/NVIDIA/open-gpu-kernel-modules/pull/614).
    """
    found = ask(
        ("nvmlDeviceGetComputeRunningProcesses_v3",),
        ("nvmlDeviceGetComputeRunningProcesses_v2",),
    )
    if found is None:
        return None
    return tuple(
        GpuProcess(pid=process.pid, memory=_whole(process.usedGpuMemory, 1, most))
        for process in found
    )


def _whole(value: int | None, least: int, most: int) -> int | None:
    """A whole number within its bounds, else None."""
    return value if value is not None and least <= value <= most else None


def _scaled(value: int | None, divisor: int, most: float) -> float | None:
    """A number in base units, 0 to ``most``, else None."""
    return value / divisor if value is not None and 0 <= value <= most * divisor else None


def _flag(value: int | None) -> bool | None:
    return bool(value) if value in (0, 1) else None
