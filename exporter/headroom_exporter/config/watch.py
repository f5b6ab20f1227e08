"""Notices when the configuration file says something else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

# How often the file is looked at; the kubelet takes up to a minute to swap a ConfigMap anyway.
WATCH_SECONDS = 5.0


async def follow(path: Path, changed: Callable[[], Awaitable[object]]) -> None:
    """Call ``changed`` whenever the file's content did; a ConfigMap is swapped by a symbolic link."""
    last = _content(path)
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        now = _content(path)
        if now is not None and now != last:
            last = now
            await changed()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
