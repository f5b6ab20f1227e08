"""A watch under test, hasty, and waiting for what must come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from headroom_exporter.config import KubernetesConfig
from headroom_exporter.discovery.kubernetes import Limits, PodWatch
from headroom_exporter.fetch import make_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from discovery.fake_api import FakeApi

# Deadlines are in real seconds; what is never reached may be long.
HASTY = Limits(request=5.0, idle=60.0, least_pause=0.01, most_pause=0.05)


async def until(holds: Callable[[], Any], what: str = "", seconds: float = 10.0) -> None:
    """Wait until something holds, which it must."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what or "it did not come"
        await asyncio.sleep(0.005)


def engines(watch: PodWatch) -> dict[str, str]:
    """Engine name to address."""
    return {
        target.config.name: target.config.url
        for _, reading in watch.pods.values()
        for target in reading.targets
    }


@contextlib.asynccontextmanager
async def watching(
    api: FakeApi,
    rules: KubernetesConfig | None = None,
    *,
    namespace: str | None = None,
    limits: Limits = HASTY,
    changed: Callable[[], None] = lambda: None,
) -> AsyncIterator[PodWatch]:
    """A watch that runs."""
    async with make_session() as session:
        watch = PodWatch(
            api.place(), namespace, rules or KubernetesConfig(), session, changed, limits=limits
        )
        task = asyncio.create_task(watch.run())
        try:
            yield watch
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
