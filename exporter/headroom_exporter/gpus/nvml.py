"""
NVIDIA GPUs through nvidia-ml-py: the only file that imports ``pynvml``.

Every figure is asked for on its own, so that a card without a sensor, an old driver without a
symbol or a missing permission costs that one figure. What cannot be had is remembered until the
devices are listed again, which happens every minute: new MIG instances and new permissions are
found then, and nothing is asked in vain each second.

A GPU in MIG mode appears as its instances (``0:0``, ``0:1``: GPU, then MIG device as in
``nvidia-smi -L``), which have memory and processes of their own, and as itself (``0``) with what
only the board has: power, energy, temperature, clocks, ECC, remapped rows. Its memory and
utilisation are left out there, and the board's figures on the instances, so that a sum over
``gpu`` counts everything once.
"""

from __future__ import annotations

import ctypes
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from headroom_exporter.errors import Lost, NoData, Unreachable
from headroom_exporter.gpus import GpuReading
from headroom_exporter.gpus.figures import read_board, read_own
from headroom_exporter.gpus.owners import is_engine
from headroom_exporter.samples import GpuSample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIBRARY = "libnvidia-ml.so.1"
RELIST_SECONDS = 60.0

# NVML's return codes (nvml.h, nvmlReturn_t), as numbers because the module is imported late.
NO_PERMISSION = 4
# This card, driver or user has no answer: INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION,
# FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED.
ABSENT = frozenset({2, 3, NO_PERMISSION, 13, 25, 26})
# GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND.
GONE = frozenset({15, 16, 28})
# Codes that are about the library as a whole, and the word each is counted under.
WHOLE_LIBRARY = {
    1: "uninitialized",
    9: "driver_not_loaded",
    # The driver was replaced under us; the old library stays loaded until the process restarts.
    18: "version_mismatch",
}

# Name of a pynvml function, then what follows the handle.
Question: TypeAlias = tuple[Any, ...]

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Device:
    """
    A GPU or a MIG instance.

    ``parts`` says which figures it has: ``own``, ``board`` or both, see figures.py. ``handle`` is
    None when it was already lost while listing. ``selectors`` are the words in a configuration
    that choose it; those of its GPU choose a MIG instance, too.
    """

    index: str
    handle: Any
    uuid: str = ""
    name: str | None = None
    parts: frozenset[str] = frozenset({"own", "board"})
    mig: bool = False
    selectors: frozenset[str] = frozenset()
    absent: set[Question] = field(default_factory=set)
    answered: bool = False
    failed: bool = False


class NvmlGpus:
    """
    The GPUs of this machine, or what of them a container may see. Not thread-safe.

    Args:
        devices: Indices (``0``, of a MIG instance ``0:1``) or UUIDs; empty for all. A GPU in MIG
            mode brings its instances with it.
        monotonic: Clock for listing the devices again.
        engine_process: Whether a process is an inference server's, None when it cannot be told.
    """

    def __init__(
        self,
        devices: tuple[str, ...] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
        engine_process: Callable[[int], bool | None] = is_engine,
    ) -> None:
        self._wanted = frozenset(devices)
        self._monotonic = monotonic
        self._engine_process = engine_process
        self._nvml: Any = None
        self._devices: tuple[_Device, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._driver: str | None = None
        self._list_at = 0.0

    def open(self) -> None:
        """
        Load and initialise NVML, list the devices.

        Raises:
            NoData: there is no NVML library here (kind ``no_library``).
            Unreachable: it cannot be initialised, such as when no driver is loaded.
        """
        nvml = _load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            _raise_unreachable(error, "nvml_init")
        self._nvml = nvml
        try:
            self._driver = self._text("nvmlSystemGetDriverVersion")
            self._list()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Shut NVML down. The library itself stays loaded: there is no way back from dlopen."""
        nvml, self._nvml, self._devices = self._nvml, None, ()
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                _log.debug("NVML did not shut down", extra={"error": str(error)})

    def read(self) -> GpuReading:
        """
        Read every device once.

        Returns:
            Records of the devices that answered and the indices of those that did not.

        Raises:
            NoData: no device is visible (kind ``no_device``).
            Unreachable: NVML as a whole fails; ``open`` again.
        """
        if self._nvml is None:
            raise Unreachable("NVML is not open", kind="uninitialized")
        if self._monotonic() >= self._list_at:
            self._list()
        gpus: list[GpuSample] = []
        lost: list[str] = []
        for device in self._devices:
            try:
                sample = self._read(device)
            except Lost:
                lost.append(device.index)
            else:
                # A board in MIG mode that a container may not ask is nothing to show.
                if device.answered:
                    gpus.append(sample)
        lost.extend(self._missing)
        if not gpus and not lost:
            raise NoData("NVML shows no GPU here", kind="no_device")
        return GpuReading(gpus=tuple(gpus), lost=tuple(lost), driver_version=self._driver)

    # --- which devices ---------------------------------------------------------------------------

    def _list(self) -> None:
        """List the devices and forget what they could not answer."""
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            _raise_unreachable(error, "nvml_list")
        found = [device for index in range(count) for device in self._gpu(index)]
        self._devices = tuple(
            device for device in found if not self._wanted or self._wanted & device.selectors
        )
        # Named in the configuration and not there counts as lost: somebody waits for it.
        there = frozenset[str]().union(*(device.selectors for device in found))
        self._missing = tuple(sorted(self._wanted - there))
        self._list_at = self._monotonic() + RELIST_SECONDS

    def _gpu(self, index: int) -> Iterator[_Device]:
        """One GPU and its MIG instances; nothing when it is not ours to see."""
        gpu = _Device(index=str(index), handle=None, selectors=frozenset({str(index)}))
        instances: list[_Device] = []
        try:
            gpu.handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self._describe(gpu)
            instances.extend(self._instances(gpu))
        except self._nvml.NVMLError as error:
            _raise_if_whole_library(error)
            # The count includes GPUs of other containers, see nvmlDeviceGetCount_v2.
            if error.value == NO_PERMISSION:
                return
        except Lost:
            gpu.handle = None
        yield gpu
        yield from instances

    def _describe(self, device: _Device) -> None:
        device.uuid = self._text("nvmlDeviceGetUUID", device) or ""
        device.name = self._text("nvmlDeviceGetName", device)
        device.selectors |= {device.index, device.uuid}

    def _instances(self, gpu: _Device) -> Iterator[_Device]:
        """MIG instances of a GPU; marks the GPU as a mere board when it is in MIG mode."""
        mode = self._ask(gpu, ("nvmlDeviceGetMigMode",))
        if mode is None or mode[0] != 1:
            return
        gpu.parts = frozenset({"board"})
        for number in range(self._ask(gpu, ("nvmlDeviceGetMaxMigDeviceCount",)) or 0):
            # NOT_FOUND where no instance sits, NO_PERMISSION where it is another container's.
            handle = self._ask(gpu, ("nvmlDeviceGetMigDeviceHandleByIndex", number))
            if handle is not None:
                instance = _Device(
                    index=f"{gpu.index}:{number}",
                    handle=handle,
                    parts=frozenset({"own"}),
                    mig=True,
                    selectors=gpu.selectors,
                )
                self._describe(instance)
                yield instance

    # --- one device ------------------------------------------------------------------------------

    def _read(self, device: _Device) -> GpuSample:
        """
        Read one device once.

        Raises:
            Lost: it fell off the bus or answers nothing at all.
        """
        if device.handle is None:
            raise Lost(f"GPU {device.index} was lost when the devices were listed")
        device.answered = device.failed = False
        sample = GpuSample(index=device.index, uuid=device.uuid, name=device.name, mig=device.mig)
        ask = partial(self._ask, device)
        if "own" in device.parts:
            sample = read_own(ask, sample, self._engine_process)
        if "board" in device.parts:
            sample = read_board(ask, sample)
        if not device.answered and (device.failed or "own" in device.parts):
            raise Lost(f"GPU {device.index} answers nothing")
        return sample

    # --- one question ----------------------------------------------------------------------------

    def _ask(self, device: _Device, *questions: Question) -> Any:
        """
        The answer to the first question, newest first, that card and driver know; else None.

        Raises:
            Lost: the device fell off the bus.
            Unreachable: NVML as a whole fails.
        """
        for question in questions:
            if question in device.absent:
                continue
            # An nvidia-ml-py that does not know the name is like a driver without the symbol.
            call = getattr(self._nvml, question[0], None)
            if call is None:
                device.absent.add(question)
                continue
            try:
                answer = call(device.handle, *question[1:])
            except self._nvml.NVMLError as error:
                _raise_if_whole_library(error)
                if error.value in GONE:
                    raise Lost(f"GPU {device.index}: {error}") from error
                if error.value not in ABSENT:
                    device.failed = True
                    return None
                device.absent.add(question)
            else:
                device.answered = True
                return answer
        return None

    def _text(self, function: str, device: _Device | None = None) -> str | None:
        """A string, of a device or of the system; None when it cannot be had or read."""
        try:
            if device is not None:
                return self._ask(device, (function,)) or None
            return getattr(self._nvml, function)() or None
        except UnicodeDecodeError:
            return None
        except self._nvml.NVMLError:
            return None


def _load() -> Any:
    """The ``pynvml`` module, imported only where the library is: elsewhere it would cost 2 MiB."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoData(f"no NVML here: {error}", kind="no_library") from None
    import pynvml  # noqa: PLC0415

    return pynvml


def _raise_unreachable(error: Any, kind: str) -> NoReturn:
    kinds = {**WHOLE_LIBRARY, NO_PERMISSION: "no_permission"}
    raise Unreachable(f"NVML: {error}", kind=kinds.get(error.value, kind)) from error


def _raise_if_whole_library(error: Any) -> None:
    if error.value in WHOLE_LIBRARY:
        _raise_unreachable(error, "nvml")
