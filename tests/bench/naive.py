"""
The loop one would write first: fetch the whole page, parse all of it, as often as the exporter polls.

    python naive.py SECONDS ADDRESS...      prints a line, then polls until SIGTERM

Same HTTP client, same parser, same rate as the exporter; it keeps the values and does nothing with them.
"""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, tuple[tuple[str, str], ...]]


async def poll(session: aiohttp.ClientSession, address: str, interval: float) -> None:
    """One engine, for ever."""
    values: dict[Key, float] = {}
    while True:
        began = time.monotonic()
        async with session.get(f"{address}/metrics") as answer:
            text = await answer.text()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name, tuple(sample.labels.items())] = sample.value
        await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))


async def main(interval: float, addresses: list[str]) -> None:
    """All engines at once."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        print("polling", flush=True)
        for address in addresses:
            tasks.create_task(poll(session, address, interval))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
