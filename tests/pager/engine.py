"""A simulated engine in a thread, whose load is turned up and down while it runs."""

from __future__ import annotations

import asyncio
import threading
from random import Random
from typing import TYPE_CHECKING, Self

from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.requests import Finished, Request
from headroom_exporter.simulate.server import serve

if TYPE_CHECKING:
    from headroom_exporter.simulate.load import Target
    from headroom_exporter.simulate.profiles import Profile

START_SECONDS = 30.0
# How often it is seen that somebody joined the crowd, in virtual seconds.
LOOK_SECONDS = 0.05


class Crowd:
    """
    A closed loop: each client sends its next request when its last was answered.

    Attributes:
        clients: How many there are to be; surplus ones leave when they are answered. Any thread may
            set it.
    """

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self._asking = 0
        self._random = Random(1)

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        """Part of the Load protocol: see there."""
        limit = None if max_steps is None else target.steps + max_steps
        while target.clock < until:
            while self._asking < self.clients:
                self._asking += 1
                self._submit(target, target.clock)
            stop = min(until, target.clock + LOOK_SECONDS)
            steps = None if limit is None else limit - target.steps
            if not target.advance(stop, lambda record: self._answered(target, record), steps):
                return False
        return True

    def _answered(self, target: Target, record: Finished) -> None:
        if self._asking > self.clients:
            self._asking -= 1
        else:
            self._submit(target, record.finished)

    def _submit(self, target: Target, arrival: float) -> None:
        # Of the lengths that the real vLLM gets in tests/vllm.
        target.submit(
            Request(
                arrival=arrival,
                prompt_tokens=self._random.randint(100, 250),
                output_tokens=self._random.randint(150, 300),
            )
        )


class Engine:
    """
    A context manager: it serves between entry and ``stop`` or exit, at the clock's own pace.

    Args:
        profile: What is simulated.
        clients: The crowd's size at first.
        port: 0 for a free one.
    """

    def __init__(self, profile: Profile, *, clients: int, port: int = 0) -> None:
        self.crowd = Crowd(clients)
        self.port = port
        self._profile = profile
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise TimeoutError(f"no engine on port {self.port} within {START_SECONDS} s")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._thread.is_alive() and self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        async with serve(Frontend(self._profile), self.crowd, port=self.port) as served:
            self.port = int(served.url.rpartition(":")[2])
            self._ready.set()
            await self._ending.wait()
