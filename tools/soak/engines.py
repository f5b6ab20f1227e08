"""Inference servers that can go wrong: each an address and port of its own, a mode, and a page."""

from __future__ import annotations

import asyncio
import contextlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import random

    from bench.engines import Fleet

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "engines"
# What else may come to live at an address: engine kind to its page.
STRANGERS = {
    "sglang": "sglang/generated-0.5.23-dp2.prom",
    "trtllm": "trtllm/synthesised-main.prom",
    "tgi": "tgi/synthesised-3.x.prom",
    "llamacpp": "llamacpp/captured-0c1e570-np4-busy.prom",
    "lmdeploy": "lmdeploy/generated-0.16.0.prom",
    "dynamo": "dynamo/captured-worker-vllm-0.13.prom",
}
# Below the exporter's limit of 8 MiB, and beyond it.
BIG_BYTES, HUGE_BYTES = 7_500_000, 40_000_000
FAULTS = (
    "refuse",
    "hang",
    "garbage",
    "not_http",
    "half",
    "status",
    "slow",
    "big",
    "short_lines",
    "huge",
    "packed",
    "redirect",
    "long_head",
)
# What it tells is remembered for an hour: now and then, or nothing else would be measured.
RARE, RARE_SHARE = "many_labels", 0.01


@cache
def stranger(kind: str) -> bytes:
    """A page of another engine."""
    return (FIXTURES / STRANGERS[kind]).read_bytes()


class FaultyEngine:
    """
    One server.

    Attributes:
        mode: ``ok`` or one of FAULTS.
        kind: ``vllm`` or one of STRANGERS.
        model: Its model's name; vLLM alone.
    """

    def __init__(self, fleet: Fleet, address: str, chance: random.Random) -> None:
        self.address, self.port = address, 0
        self.mode, self.kind, self.model = "ok", "vllm", "tiny"
        self._fleet, self._chance = fleet, chance
        self._offset = chance.randrange(500)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> Self:
        """Listen; again on the same port if it did before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.address, self.port)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Nothing listens, and connections are cut."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def fail(self, mode: str) -> None:
        """Begin a fault."""
        self.mode = mode
        if mode == "refuse":
            await self.close()

    async def heal(self) -> None:
        """Be an engine again; after a restart perhaps another one."""
        if self.mode == "refuse" and self._chance.random() < 0.5:
            self.become(self._chance.choice(["vllm", "vllm", *STRANGERS]))
        self.mode = "ok"
        await self.open()

    def become(self, kind: str) -> None:
        """Another engine, or another model, at the same address."""
        self.kind = kind
        self.model = f"model-{self._chance.randrange(10**9)}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError),
        ):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not await self._answer(head.split(b" ", 2)[1].decode(), writer):
                    return

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, rightly or not. Returns whether the connection goes on."""
        status, body = self._right(target)
        if self.mode in ("ok", "refuse"):
            await _write(writer, _head(status, len(body)) + body)
            return True
        goes_on: bool = await getattr(self, f"_{self.mode}")(body, writer)
        return goes_on

    def _right(self, target: str) -> tuple[int, bytes]:
        if self.kind == "vllm":
            status, body = self._fleet.answer(target, self._offset)
            return status, body.replace(b'"tiny"', f'"{self.model}"'.encode())
        found = target == "/metrics"
        return (200, stranger(self.kind)) if found else (404, b"")

    # --- what can go wrong: each gets the right body; returns whether the connection goes on ---

    async def _hang(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        while self.mode == "hang" and not writer.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return False

    async def _garbage(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        body = self._chance.randbytes(self._chance.randrange(1, 200_000))
        await _write(writer, _head(200, len(body)) + body)
        return True

    async def _not_http(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, self._chance.randbytes(3000))
        return False

    async def _half(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(200, len(body)) + body[: len(body) // 2])
        return False

    async def _status(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(self._chance.choice([500, 503, 429, 401, 404]), 4) + b"no\r\n")
        return True

    async def _slow(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        seconds = self._chance.choice([0.5, 3.0, 20.0])
        await _write(writer, _head(200, len(body)))
        for part in range(10):
            await asyncio.sleep(seconds / 10)
            size = -(-len(body) // 10)
            await _write(writer, body[part * size : (part + 1) * size])
        return True

    async def _big(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        filler = b'other_total{a="%d"} 1\n' * 10
        page = body + filler * ((BIG_BYTES - len(body)) // len(filler))
        await _write(writer, _head(200, len(page)) + page)
        return True

    async def _short_lines(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        page = body + b"ab\n" * ((BIG_BYTES - len(body)) // 3)
        await _write(writer, _head(200, len(page)) + page)
        return True

    async def _huge(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(200, HUGE_BYTES))
        for _ in range(HUGE_BYTES // 100_000):
            await _write(writer, body[:100_000].ljust(100_000, b"#"))
        return True

    async def _many_labels(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        """Thousands of ranks and models, others each time."""
        first = self._chance.randrange(10**9)
        lines = [
            f'vllm:{name}{{engine="{first + n}",model_name="m-{first + n}"}} {n}\n'
            for n in range(2000)
            for name in ("num_requests_running", "kv_cache_usage_perc", "generation_tokens_total")
        ]
        page = "".join(lines).encode()
        await _write(writer, _head(200, len(page)) + page)
        return True

    async def _packed(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(200, len(body), "Content-Encoding: gzip\r\n") + body)
        return True

    async def _redirect(self, _: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(302, 0, "Location: http://127.0.0.1:1/\r\n"))
        return True

    async def _long_head(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, _head(200, len(body), f"X-Long: {'x' * 100_000}\r\n") + body)
        return False


def _head(status: int, length: int, more: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} So\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
