"""GPUs: what a source of readings is. ``nvml`` reads real ones, ``simulated`` invents them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headroom_exporter.samples import GpuSample


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """
    All devices, read once.

    Attributes:
        gpus: One record for each device that answered.
        lost: Index of each device that did not: off the bus, silent, or configured but not there.
    """

    gpus: tuple[GpuSample, ...]
    lost: tuple[str, ...] = ()
    driver_version: str | None = None


class GpuSource(Protocol):
    """
    Something that GPUs can be read from. All calls come from one thread and may block.

    ``open`` and ``read`` raise ``SourceError`` when there is nothing to read at all; a device that
    is missing is no error but an entry in ``lost``. ``close`` never raises and may be called twice.
    """

    def open(self) -> None:
        """Start the library and list the devices."""

    def read(self) -> GpuReading:
        """Read every device once."""

    def close(self) -> None:
        """Let go of the library; ``open`` may follow."""
