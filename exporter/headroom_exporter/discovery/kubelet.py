"""
Asks the kubelet which pod a GPU belongs to: its pod-resources service, gRPC over a unix socket.

gRPC's own threads and a call that hangs stay away from the event loop: one daemon thread does the calls, each
with a deadline. grpcio is an extra and is loaded there, once there is a socket to ask: it costs 8 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from headroom_exporter.discovery.health import Health
from headroom_exporter.discovery.pod_resources import Allocation, allocations
from headroom_exporter.errors import Malformed, NoData, SourceError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

METHOD = "/v1.PodResourcesLister/List"
# The driver's own list; the container runtime shows a container those of its GPUs.
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
INTERVAL_SECONDS = 10.0
# After a pod came or went the kubelet is asked soon, but not for each pod of a rollout.
LEAST_SECONDS = 1.0
CALL_SECONDS = 5.0
# As the kubelet's own client: https://github.com/kubernetes/kubernetes, pkg/kubelet/apis/podresources.
MAX_ANSWER_BYTES = 16 * 2**20
# Without an answer for this long, what it said is no longer shown.
FORGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """One answer: what is lent, and the driver's minor numbers with their GPUs' UUIDs."""

    lent: tuple[Allocation, ...] = ()
    minors: tuple[tuple[int, str], ...] = ()


Outcome: TypeAlias = "Devices | Exception"


class KubeletReader:
    """
    Asks again and again, and keeps the last answer.

    Args:
        socket: Path of the kubelet's socket.
        changed: Called when the answer is another one.
        interval: Seconds between questions.
        deadline: Seconds of one call.
    """

    def __init__(
        self,
        socket: str,
        changed: Callable[[], None],
        *,
        interval: float = INTERVAL_SECONDS,
        deadline: float = CALL_SECONDS,
        driver_gpus: Path = DRIVER_GPUS,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._changed = changed
        self._interval = interval
        self._deadline = deadline
        self._monotonic = monotonic
        self._asker = _Asker(socket, deadline, driver_gpus)
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._soon = asyncio.Event()
        self._answered_at: float | None = None
        self._devices = Devices()
        self.health = Health("kubelet", socket, wall)

    def devices(self) -> Devices:
        """The last answer; nothing once it is too old to be true."""
        at = self._answered_at
        fresh = at is not None and self._monotonic() - at <= FORGET_SECONDS
        return self._devices if fresh else Devices()

    def ask_soon(self) -> None:
        """A pod came or went."""
        self._soon.set()

    async def run(self) -> None:
        """Ask until cancelled, or until it is clear that there is nobody to ask."""
        thread = threading.Thread(
            target=_serve, args=(self._requests, self._asker), name="kubelet", daemon=True
        )
        thread.start()
        try:
            while await self.poll():
                await asyncio.sleep(min(LEAST_SECONDS, self._interval))
                rest = max(0.0, self._interval - LEAST_SECONDS)
                # Not wait_for: before Python 3.12 it loses a cancellation that comes just after the event,
                # and this would go on for ever beside its successor.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await self._soon.wait()
        finally:
            self._requests.put(None)

    async def poll(self) -> bool:
        """
        Ask once.

        Returns:
            Whether to ask again: not where grpcio is missing, for that does not change.
        """
        self._soon.clear()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        self._requests.put(_Request(loop, answer))
        # The call has a deadline of its own; whatever else may hang there must at least be said.
        done, _ = await asyncio.wait({answer}, timeout=2.0 * self._deadline)
        if not done:
            self.health.bad(Unreachable("the call does not return", kind="hung"))
            await asyncio.wait({answer})
        return self._take(answer.result())

    def _take(self, outcome: Outcome) -> bool:
        if isinstance(outcome, Devices):
            self._answered_at = self._monotonic()
            self.health.good()
            if outcome != self._devices:
                self._devices = outcome
                self._changed()
            return True
        if isinstance(outcome, SourceError):
            # A cluster without the extra, or without GPUs, is no reason to worry anyone.
            level = logging.INFO if isinstance(outcome, NoData) else logging.WARNING
            self.health.bad(outcome, level=level)
            return outcome.kind != "no_grpc"
        log.error("bug in discovery", extra={"source": "kubelet"}, exc_info=outcome)
        self.health.bad(SourceError(f"bug: {outcome!r}", kind="bug"))
        return True


@dataclass(frozen=True, slots=True)
class _Request:
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Outcome]


def _serve(requests: SimpleQueue[_Request | None], asker: _Asker) -> None:
    """Answer requests until told to end: all that runs in the thread."""
    while (request := requests.get()) is not None:
        try:
            outcome: Outcome = asker.ask()
        except Exception as error:  # noqa: BLE001 - handed to the loop, which tells bugs apart
            outcome = error
        # Fails when the loop has ended meanwhile: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            request.loop.call_soon_threadsafe(_answer, request.answer, outcome)
        del request, outcome
    asker.close()


def _answer(answer: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not answer.done():
        answer.set_result(outcome)


class _Asker:
    """The channel to the kubelet; used in one thread only."""

    def __init__(self, socket: str, deadline: float, driver_gpus: Path) -> None:
        self._socket = socket
        self._deadline = deadline
        self._driver_gpus = driver_gpus
        self._grpc: Any = None
        self._channel: Any = None
        self._list: Any = None

    def ask(self) -> Devices:
        """
        Ask once.

        Raises:
            NoData: There is no socket (kind ``no_socket``), it is not for us (``permission``), or grpcio is
                not installed (``no_grpc``).
            Unreachable: Nobody answers (``unreachable``), or not in time (``timeout``).
            Malformed: The kubelet refuses (``refused``), or what it says is no list.
        """
        self._look()
        if self._list is None:
            self._open()
        try:
            answer = self._list(b"", timeout=self._deadline)
        except self._grpc.RpcError as exc:
            raise self._failed(exc) from None
        return Devices(lent=allocations(answer), minors=_minors(self._driver_gpus))

    def _look(self) -> None:
        """Is there a socket? Without one grpcio need not even be loaded."""
        try:
            mode = os.stat(self._socket).st_mode  # noqa: PTH116 - no Path for each question
        except OSError as exc:
            why = f"{self._socket}: {exc.strerror or exc}"
            kind = "permission" if isinstance(exc, PermissionError) else "no_socket"
            raise NoData(f"{why}; GPUs stay without pods", kind=kind) from exc
        if not os.access(self._socket, os.W_OK):
            # The kubelet's sockets are root's; root without any capability is enough.
            why = f"{self._socket}: only root may connect"
            raise NoData(f"{why}; GPUs stay without pods", kind="permission")
        if not stat.S_ISSOCK(mode):
            raise NoData(f"{self._socket}: is no socket; GPUs stay without pods", kind="no_socket")

    def _open(self) -> None:
        # What gRPC has to say of a lost connection goes to standard error past our log.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            import grpc  # type: ignore[import-untyped]  # noqa: PLC0415
        except ImportError as exc:
            raise NoData(
                "grpcio is not installed (pip install 'headroom-exporter[kubelet]'); GPUs stay without pods",
                kind="no_grpc",
            ) from exc
        self._grpc = grpc
        self._channel = grpc.insecure_channel(
            f"unix:{self._socket}",
            options=[
                ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
                # A kubelet that restarts is back within seconds.
                ("grpc.initial_reconnect_backoff_ms", 500),
                ("grpc.max_reconnect_backoff_ms", 5000),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._list = self._channel.unary_unary(METHOD)

    def _failed(self, error: Any) -> SourceError:
        code = error.code()
        known = self._grpc.StatusCode
        if code == known.DEADLINE_EXCEEDED:
            return Unreachable(f"no answer within {self._deadline:g} s", kind="timeout")
        if code == known.UNAVAILABLE:
            return Unreachable(f"nobody answers at {self._socket}")
        if code == known.RESOURCE_EXHAUSTED:
            return Malformed("the answer is too large, or we ask too often", kind="too_large")
        return Malformed(f"the kubelet says {code.name}", kind="refused")

    def close(self) -> None:
        """Close the channel; never raises."""
        if self._channel is not None:
            self._channel.close()
            self._channel = self._list = None


def _minors(folder: Path) -> tuple[tuple[int, str], ...]:
    """Minor number and UUID of each GPU, where the driver's /proc is shown to us."""
    found = []
    try:
        for gpu in sorted(folder.iterdir())[:64]:
            text = (gpu / "information").read_text(errors="replace")[:4096]
            minor = re.search(r"^Device Minor:\s*([0-9]{1,4})\s*$", text, re.MULTILINE)
            uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]{36})\s*$", text, re.MULTILINE)
            if minor and uuid:
                found.append((int(minor[1]), uuid[1]))
    except OSError:
        return ()
    return tuple(found)
