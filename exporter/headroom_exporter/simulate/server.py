"""A server that looks like vLLM to whoever reads its metrics, with simulated engines inside."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from headroom_exporter.simulate.dialects.speaker import speaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.load import Load

# Pages are exact whatever this is, since each request catches up first; it spreads the work.
_TICK_SECONDS = 0.1
# About a tenth of a second of work; a step of a real engine takes a millisecond or more.
_MAX_STEPS = 50_000
# A signal must not wait for a reader that keeps its connection open.
_SHUTDOWN_SECONDS = 0.1


class RealTimeRunner:
    """
    Lets virtual time follow a clock.

    Args:
        frontend: The server that is driven.
        load: What drives it.
        clock: Seconds.
        speed: Virtual seconds per second.

    Attributes:
        frontend: As given.
        dropped: Virtual seconds given up because the simulation could not keep pace, or the
            machine slept: the clock's time goes on, the load's does not.
    """

    def __init__(
        self,
        frontend: Frontend,
        load: Load,
        *,
        clock: Callable[[], float] = time.monotonic,
        speed: float = 1.0,
    ) -> None:
        self.frontend = frontend
        self.speed = speed
        self.dropped = 0.0
        self._load = load
        self._clock = clock
        self._offset = frontend.clock - clock() * speed

    def catch_up(self, max_steps: int = _MAX_STEPS) -> None:
        """Advance the server to the clock, by at most so many steps."""
        target = self._clock() * self.speed + self._offset
        if not self._load.drive(self.frontend, target, max_steps):
            behind = target - self.frontend.clock
            self.dropped += behind
            self._offset -= behind


def make_app(runner: RealTimeRunner, *, epoch: float) -> web.Application:
    """
    The routes an exporter reads, and those that put the engine to sleep (vLLM has these in its
    development mode).

    Args:
        runner: What is shown; it also runs between requests.
        epoch: Unix seconds of virtual time 0.

    Returns:
        An application with /metrics (all), /metrics/ (honours ``name[]``), /health, /version and
        /v1/models, each answered as vLLM 0.32 does; POST /sleep and /wake_up, GET /is_sleeping.
    """
    frontend = runner.frontend
    spoken = speaker(frontend, epoch=epoch, speed=runner.speed)

    async def read(request: web.Request) -> web.StreamResponse:
        _catch_up(runner, request)
        names = request.query.getall("name[]", [])
        made = spoken.answer(request.path, names)
        response = web.Response(body=made.body, headers={"Content-Type": made.content_type})
        if request.path == "/metrics/" and "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def sleep(request: web.Request) -> web.StreamResponse:
        _catch_up(runner, request)
        level = request.query.get("level", "1")
        if level not in ("0", "1", "2"):
            raise web.HTTPBadRequest(text=f"level {level!r}: must be 0, 1 or 2\n")
        frontend.sleep(int(level))
        return web.Response()

    async def wake_up(request: web.Request) -> web.StreamResponse:
        _catch_up(runner, request)
        frontend.wake()
        return web.Response()

    async def is_sleeping(request: web.Request) -> web.StreamResponse:
        _catch_up(runner, request)
        return web.json_response({"is_sleeping": frontend.sleep_level is not None})

    app = web.Application()
    for path in spoken.paths:
        app.router.add_get(path, read)
    app.router.add_post("/sleep", sleep)
    app.router.add_post("/wake_up", wake_up)
    app.router.add_get("/is_sleeping", is_sleeping)
    app.on_response_prepare.append(_mark)
    return app


def _catch_up(runner: RealTimeRunner, request: web.Request) -> None:
    """Come to this moment; if the server has died meanwhile, so does the connection."""
    runner.catch_up()
    if not runner.frontend.up:
        if request.transport is not None:
            request.transport.abort()
        raise web.HTTPServiceUnavailable


async def _mark(_: web.Request, response: web.StreamResponse) -> None:
    """Say what this is, where a machine does not mind."""
    response.headers["Server"] = "headroom-exporter simulated engine"


class _Listener:
    """Listens while the simulated process lives, and refuses connections while it does not."""

    def __init__(self, runner: RealTimeRunner, host: str | None, port: int, epoch: float) -> None:
        self.port = port
        self._runner = runner
        self._host = host
        self._epoch = epoch
        self._site: web.AppRunner | None = None

    async def follow(self) -> None:
        """Open or close as the server now is."""
        if self._runner.frontend.up and self._site is None:
            await self._open()
        elif not self._runner.frontend.up and self._site is not None:
            await self.close()

    async def _open(self) -> None:
        app = make_app(self._runner, epoch=self._epoch)
        self._site = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._site.setup()
        await web.TCPSite(self._site, self._host, self.port).start()
        self.port = self._site.addresses[0][1]

    async def close(self) -> None:
        """Close the port and every connection."""
        if self._site is not None:
            site, self._site = self._site, None
            await site.cleanup()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """
    A server that is being served.

    Attributes:
        url: ``http://host:port``.
        runner: What lets its time pass.
        ticking: The task that does; it ends only by a failure, such as a port that somebody took
            during a restart.
    """

    url: str
    runner: RealTimeRunner
    ticking: asyncio.Task[None]


@asynccontextmanager
async def serve(
    frontend: Frontend,
    load: Load,
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    speed: float = 1.0,
) -> AsyncIterator[Served]:
    """
    A simulated server while the block lasts.

    Args:
        frontend: The server.
        load: The load on it.
        host: Address to listen on; None for all of the machine.
        port: 0 for a free one.
        speed: Virtual seconds per second.

    Yields:
        Where and how it runs.

    Raises:
        OSError: the port is taken.
        Exception: whatever ended its ticking.
    """
    runner = RealTimeRunner(frontend, load, speed=speed)
    listener = _Listener(runner, host, port, time.time())
    try:
        await listener.follow()
        shown = f"[{host}]" if host and ":" in host else host or "localhost"
        async with _ticking(runner, listener) as ticking:
            yield Served(url=f"http://{shown}:{listener.port}", runner=runner, ticking=ticking)
    finally:
        await listener.close()


@asynccontextmanager
async def _ticking(
    runner: RealTimeRunner, listener: _Listener
) -> AsyncIterator[asyncio.Task[None]]:
    """Run the engine between requests, so that none of them finds much to catch up with."""

    async def tick() -> None:
        while True:
            runner.catch_up()
            await listener.follow()
            await asyncio.sleep(_TICK_SECONDS)

    task = asyncio.create_task(tick())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()  # it had ended by itself: to be seen
