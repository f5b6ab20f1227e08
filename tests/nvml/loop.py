"""
Runs the real reader over the fake library and waits for states, given as words: up, hung, down.

Prints each word when its state has come, then ends as a program does, whatever NVML is doing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from headroom_exporter.config import GpuConfig
from headroom_exporter.gpus.nvml import NvmlGpus
from headroom_exporter.gpus.reader import GpuReader

if TYPE_CHECKING:
    from headroom_exporter.samples import GpuState


def word(state: GpuState) -> str:
    if state.up:
        return "up"
    return "hung" if state.errors.get("hung") else "down"


async def main() -> None:
    config = GpuConfig(interval=0.02, timeout=0.2)
    reader = GpuReader(config, NvmlGpus())
    task = asyncio.create_task(reader.run())
    for wanted in sys.argv[1:]:
        while word(reader.state()) != wanted:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        print(wanted, flush=True)
    task.cancel()
    await asyncio.wait({task})


if __name__ == "__main__":
    asyncio.run(main())
