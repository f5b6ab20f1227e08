"""
GPUs beside asyncio: one daemon thread that may hang in the driver, and the loop that asks it.

NVML calls are known to hang in the kernel. A thread of an executor would then keep the process
from exiting; a daemon thread does not. It takes one request at a time from a queue; while one is
unanswered no second is queued, and the state says that the GPUs are not up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from headroom_exporter.errors import NoData, SourceError
from headroom_exporter.gpus import GpuReading, GpuSource
from headroom_exporter.samples import GpuState

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.config import GpuConfig

# Longest pause between attempts; also the pause where there is no GPU, library or driver to ask.
MOST_PAUSE_SECONDS = 60.0
# Starting NVML anew takes up to seconds on a big machine and disturbs the healthy devices: a lost
# one gets that attempt no sooner than this after the last.
LEAST_REOPEN_SECONDS = 10.0

_log = logging.getLogger(__name__)

Outcome: TypeAlias = "GpuReading | Exception"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One read to do in the thread; ``reopen`` starts the library anew before it."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Outcome]
    reopen: bool


class GpuReader:
    """
    Reads GPUs again and again and keeps the latest state.

    Args:
        config: Whether, how often and how patiently.
        source: What is read; its methods are only called in the reader's own thread.
        monotonic: Clock for ``read_at`` and for the pauses between attempts.
    """

    def __init__(
        self,
        config: GpuConfig,
        source: GpuSource,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._source = source
        self._monotonic = monotonic
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._errors: dict[str, float] = {}
        self._failures = 0
        self._losses = 0
        self._reopen_at = 0.0
        self._logged: tuple[Any, ...] = ()
        # Not read yet is not up; None is kept for "switched off".
        self._state = GpuState(up=False if config.enabled else None)

    def state(self) -> GpuState:
        """The latest state; any thread may ask."""
        return self._state

    def start(self) -> None:
        """Start the thread, once; does nothing when GPUs are switched off."""
        if self._config.enabled and self._thread is None:
            self._thread = threading.Thread(
                target=_serve, args=(self._requests, self._source), name="gpus", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Let the thread close the source and end; a call that hangs is not waited for."""
        self._requests.put(None)

    async def run(self) -> None:
        """Read every interval until cancelled; returns at once when GPUs are switched off."""
        if not self._config.enabled:
            return
        self.start()
        try:
            while True:
                asked_at = self._monotonic()
                pause = await self.poll()
                await asyncio.sleep(max(0.0, asked_at + pause - self._monotonic()))
        finally:
            self.stop()

    async def poll(self) -> float:
        """
        Read once and set the state. Needs ``start``.

        When the read hangs, the state says so after the configured timeout, and this returns only
        once the call did. What it then brings is too old to show.

        Returns:
            Seconds from the start of this read to the start of the next.
        """
        answer = self._ask()
        done, _ = await asyncio.wait({answer}, timeout=self._config.timeout)
        if done:
            return self._take(answer.result())
        self._fail("hung", f"a call to NVML takes longer than {self._config.timeout:g} s")
        await asyncio.wait({answer})
        return 0.0

    def _ask(self) -> asyncio.Future[Outcome]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        reopen = bool(self._losses) and self._monotonic() >= self._reopen_at
        if reopen:
            self._schedule_reopen()
        self._requests.put(_Request(loop=loop, answer=answer, reopen=reopen))
        return answer

    def _take(self, outcome: Outcome) -> float:
        """Turn an answer into the state. Returns as ``poll``."""
        if isinstance(outcome, GpuReading):
            self._succeed(outcome)
            return self._config.interval
        self._failures += 1
        if isinstance(outcome, SourceError):
            self._fail(outcome.kind, str(outcome))
        else:
            self._fail("bug", repr(outcome), bug=outcome)
        if isinstance(outcome, NoData):
            return max(MOST_PAUSE_SECONDS, self._config.interval)
        return self._backoff(self._failures, self._config.interval)

    def _succeed(self, reading: GpuReading) -> None:
        self._failures = 0
        if not reading.lost:
            self._losses = 0
        else:
            self._count("lost")
            if not self._losses:
                self._schedule_reopen()
        up = bool(reading.gpus)
        self._state = GpuState(
            up=up,
            driver_version=reading.driver_version,
            gpus=reading.gpus,
            lost=reading.lost,
            read_at=self._monotonic() if up else self._state.read_at,
            errors=MappingProxyType(dict(self._errors)),
        )
        extra = {
            "gpus": [gpu.index for gpu in reading.gpus],
            "driver_version": reading.driver_version,
        }
        if reading.lost:
            extra["lost"] = list(reading.lost)
            self._log_change((up, reading.lost), logging.WARNING, "GPU lost", extra)
        else:
            self._log_change((up, len(reading.gpus)), logging.INFO, "reading GPUs", extra)

    def _fail(self, kind: str, message: str, *, bug: Exception | None = None) -> None:
        """Nothing could be read: the state keeps no figures, only when they were last good."""
        self._count(kind)
        self._state = GpuState(
            up=False,
            read_at=self._state.read_at,
            errors=MappingProxyType(dict(self._errors)),
        )
        # A machine without GPUs is no reason to worry anyone.
        level = logging.INFO if kind in ("no_library", "no_device") else logging.WARNING
        self._log_change(
            (False, kind),
            logging.ERROR if bug else level,
            "GPUs cannot be read",
            {"kind": kind, "error": message},
            bug,
        )

    def _schedule_reopen(self) -> None:
        self._losses += 1
        self._reopen_at = self._monotonic() + self._backoff(self._losses, LEAST_REOPEN_SECONDS)

    @staticmethod
    def _backoff(failures: int, first: float) -> float:
        """Seconds to wait: ``first``, then twice as long each time, up to the longest pause."""
        # The exponent is bounded because a float is.
        return max(first, min(MOST_PAUSE_SECONDS, first * 2.0 ** min(failures - 1, 30)))

    def _count(self, kind: str) -> None:
        self._errors[kind] = self._errors.get(kind, 0.0) + 1.0

    def _log_change(
        self,
        key: tuple[Any, ...],
        level: int,
        message: str,
        extra: dict[str, Any],
        bug: Exception | None = None,
    ) -> None:
        """One line for each change of state."""
        if key != self._logged:
            self._logged = key
            _log.log(level, message, extra=extra, exc_info=bug)


def _serve(requests: SimpleQueue[_Request | None], source: GpuSource) -> None:
    """Answer requests until told to end: all that runs in the thread."""
    is_open = False
    while (request := requests.get()) is not None:
        if is_open and request.reopen:
            source.close()
            is_open = False
        outcome = _read(source, is_open=is_open)
        is_open = isinstance(outcome, GpuReading)
        # Fails when the loop has ended meanwhile: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            request.loop.call_soon_threadsafe(request.answer.set_result, outcome)
    source.close()


def _read(source: GpuSource, *, is_open: bool) -> Outcome:
    try:
        if not is_open:
            source.open()
        return source.read()
    except Exception as error:  # noqa: BLE001 - handed to the loop, which tells bugs apart
        source.close()
        return error
