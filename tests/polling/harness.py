"""A server on loopback that can be wrong in any way HTTP allows, and a poller with a clock set by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, generate_latest

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.expose import StateCollector
from headroom_exporter.poll import Clocks, EnginePoller
from headroom_exporter.samples import EngineState, GpuState, ReloadState, State
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    import ssl

    import aiohttp

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm"
REAL_PAGE = (PAGES / "0.32.0" / "metrics.txt").read_bytes()
POLL = PollConfig(interval=1.0, fallback_interval=2.0, full_interval=10.0, timeout=10.0)
# For servers that never answer: the deadline is in real seconds.
HASTY = replace(POLL, timeout=0.3)


# --- the engine's side ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def names(self) -> list[str]:
        """Sample names asked for with ``name[]``."""
        return parse_qs(urlsplit(self.target).query).get("name[]", [])


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """
    HTTP by hand on a loopback port.

    Args:
        answer: Writes the answer; ``raise ConnectionError`` in it closes the connection.
        tls: Speak HTTPS with this context.
    """

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self._tls = tls
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self._asking: set[asyncio.StreamReader] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Listen, on the same port as before where there was one."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections from now on."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._serve(await _request(reader), reader, writer)
        except asyncio.CancelledError:
            pass  # closed by the test
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.requests.append(request)
        self._asking.add(reader)
        # Who hung up does not wait any more, whatever is still being written for them.
        waiting = sum(not r.at_eof() and r.exception() is None for r in self._asking)
        self.most_in_flight = max(self.most_in_flight, waiting)
        try:
            await self.answer(request, writer)
            await writer.drain()
        finally:
            self._asking.discard(reader)

    def paths(self) -> list[str]:
        """Paths of the requests so far, in order."""
        return [request.path for request in self.requests]


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return Request(head[0].split(" ")[1], {name.lower(): value for name, value in headers.items()})


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer; ``Content_Type="…"`` gives a header."""
    given = {
        "Content-Length": str(len(body)),
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def raw(data: bytes, *, close: bool = False) -> Answer:
    """Always these bytes; then, with ``close``, the end of the connection."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            raise ConnectionError

    return answer


@dataclass
class FakeVllm:
    """
    A vLLM as seen from outside: /metrics, the filtered page, /version, /v1/models.

    Attributes:
        page: The full page; set it to what it says now.
        filter: ``works``, ``ignored`` (the full page whatever was asked), ``empty`` (200 without a
            body: several API servers), ``missing`` (404), ``slow`` (never answers).
    """

    page: bytes = REAL_PAGE
    filter: str = "works"
    version: bytes = b'{"version": "0.32.0"}'
    models: bytes = b'{"data": [{"id": "tiny", "max_model_len": 2048}]}'

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(await self._answer(request))

    async def _answer(self, request: Request) -> bytes:
        match request.path:
            case "/metrics":
                return http(self.page)
            case "/metrics/":
                return await self._filtered(request)
            case "/version":
                return http(self.version)
            case "/v1/models":
                return http(self.models)
        return http(b"", "404 Not Found")

    async def _filtered(self, request: Request) -> bytes:
        match self.filter:
            case "ignored":
                return http(self.page)
            case "empty":
                return http(b"")
            case "missing":
                return http(b'{"detail":"Not Found"}', "404 Not Found")
            case "slow":
                await asyncio.sleep(3600)
        wanted = set(request.names)
        lines = self.page.splitlines(keepends=True)
        return http(b"".join(line for line in lines if sample_name(line) in wanted))


def sample_name(line: bytes) -> str:
    return line.decode("utf-8", "replace").partition("{")[0].partition(" ")[0]


def edited(page: bytes, **values: str | None) -> bytes:
    """
    A page with other values: ``num_requests_running="3"``; None takes the series out.

    Every series of a name that begins with ``vllm:`` and the key is meant, whatever its labels.
    """
    lines = []
    for line in page.splitlines(keepends=True):
        key = sample_name(line).removeprefix("vllm:")
        if key not in values:
            lines.append(line)
        elif (value := values[key]) is not None:
            lines.append(line.rpartition(b" ")[0] + f" {value}\n".encode())
    return b"".join(lines)


# --- our side ------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Monotonic and Unix seconds that only move when told; sleeping moves them."""

    now: float = 5_000.0
    pauses: list[float] = field(default_factory=list)
    # How many sleeps until the loop is cancelled.
    sleeps_left: int = 10**9

    def clocks(self) -> Clocks:
        return Clocks(
            monotonic=lambda: self.now, wall=lambda: 1_790_000_000 + self.now, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.sleeps_left -= 1
        if self.sleeps_left <= 0:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


class Polled:
    """One poller, its track, and the page of a scrape."""

    def __init__(
        self,
        server: Server,
        session: aiohttp.ClientSession,
        *,
        name: str = "e",
        poll: PollConfig = POLL,
        plan: PlanConfig | None = None,
        config: EngineConfig | None = None,
    ) -> None:
        given = config or EngineConfig(name=name)
        self.config = replace(given, url=server.url) if given.url.endswith(":8000") else given
        self.clock = Clock()
        self.plan = plan
        self.published = 0
        self.track = EngineTrack(self.config, poll, lambda _e, _m: plan)
        self.poller = EnginePoller(
            self.config, poll, self.track, self._published, session, self.clock.clocks()
        )

    def _published(self) -> None:
        self.published += 1

    async def ticks(self, count: int = 1, *, every: float = 1.0) -> None:
        """So many polls, ``every`` seconds of the clock apart."""
        for _ in range(count):
            self.clock.now += every
            await self.poller.tick()

    async def run(self, sleeps: int) -> list[float]:
        """The loop itself, cancelled at its n-th pause; returns the pauses."""
        self.clock.sleeps_left = sleeps
        with contextlib.suppress(asyncio.CancelledError):
            await self.poller.run()
        return self.clock.pauses

    @property
    def state(self) -> EngineState:
        return self.track.state()

    def text(self) -> str:
        """The page of a scrape now."""
        state = State(
            engines=(self.state,),
            gpu=GpuState(up=None),
            reload=ReloadState(successful=True, at=1_790_000_000.0),
        )
        registry = CollectorRegistry()
        registry.register(
            StateCollector(lambda: state, lambda _e, _m: self.plan, clock=lambda: self.clock.now)
        )
        return generate_latest(registry).decode()

    def values(self, name: str) -> list[float]:
        """Values of all series of one name on that page."""
        return [
            float(line.rpartition(" ")[2])
            for line in self.text().splitlines()
            if line.partition("{")[0].partition(" ")[0] == name
        ]

    def up(self) -> float:
        (value,) = self.values("headroom_engine_up")
        return value


@contextlib.asynccontextmanager
async def polled(
    answer: Answer, session: aiohttp.ClientSession, **more: object
) -> AsyncIterator[tuple[Server, Polled]]:
    """A server and a poller on it."""
    async with Server(answer) as server:
        yield server, Polled(server, session, **more)  # type: ignore[arg-type]
