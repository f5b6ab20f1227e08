"""Who asks the exporter: one who scrapes twice a second, one who hangs, one who talks nonsense, a visitor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    import random

ACCEPTS = (
    "text/plain;version=0.0.4",
    "application/openmetrics-text;version=1.0.0",
)
# Connections of the one who hangs.
MOST_HANGING = 6


class Scrapers:
    """
    All of them.

    Attributes:
        scrapes: Good answers of the steady scraper.
        failures: Its others, by what was wrong.
        seconds: How long each good one took.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port, self._chance = port, chance
        self.scrapes = 0
        self.failures: dict[str, int] = {}
        self.seconds: list[float] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for each in (self._steady(), self._hanging(), self._nonsense(), self._visitor()):
                tasks.create_task(each)

    async def _steady(self) -> None:
        url = f"http://127.0.0.1:{self._port}/metrics"
        timeout = aiohttp.ClientTimeout(total=10.0)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                began = time.monotonic()
                headers = {
                    "Accept": ACCEPTS[self.scrapes % 2],
                    "Accept-Encoding": "gzip" if self.scrapes % 4 > 1 else "identity",
                }
                try:
                    async with session.get(url, headers=headers) as answer:
                        text = await answer.text()
                    self._count(answer.status, text)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self._fail(type(error).__name__)
                self.seconds.append(time.monotonic() - began)
                await asyncio.sleep(max(0.0, began + 0.5 - time.monotonic()))

    def _count(self, status: int, text: str) -> None:
        if status != 200:
            self._fail(str(status))
        elif "headroom_build_info" not in text or not text.endswith("\n"):
            self._fail("half")
        else:
            self.scrapes += 1

    def _fail(self, what: str) -> None:
        self.failures[what] = self.failures.get(what, 0) + 1

    async def _hanging(self) -> None:
        """Half requests, and whole ones whose answers nobody reads."""
        writers: list[asyncio.StreamWriter] = []
        asks = (b"GET /metrics HTT", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 20, b"")
        try:
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1)
                    writer.write(self._chance.choice(asks))
                    writers.append(writer)
                if len(writers) > MOST_HANGING:
                    writers.pop(0).transport.abort()
                await asyncio.sleep(self._chance.uniform(2.0, 12.0))
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _nonsense(self) -> None:
        random_bytes = self._chance.randbytes
        while True:
            line = self._chance.choice(
                [
                    random_bytes(self._chance.randrange(1, 5000)),
                    b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
                    + b"x" * 9999,
                    b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n",
                    b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
                    b"GET /api/v1/history?engine=%ff&since=nan HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"GET /metrics?name[]=" + b"%00" * 500 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
                ]
            )
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                with contextlib.closing(writer):
                    writer.write(line)
                    async with asyncio.timeout(2.0):
                        await reader.read(1000)
            await asyncio.sleep(self._chance.uniform(0.2, 2.0))

    async def _visitor(self) -> None:
        """The status page as a browser asks for it."""
        base = f"http://127.0.0.1:{self._port}"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0)) as session:
            while True:
                for path in ("/", "/api/v1/state"):
                    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                        async with session.get(base + path) as answer:
                            await answer.read()
                await asyncio.sleep(3.0)
