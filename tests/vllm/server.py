"""A real vLLM as a child process: start, wait until it answers, read its log, end all of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

MODEL_NAME = "tiny"
LAUNCHER = Path(__file__).with_name("launch.py")
# Tokens of one block on the CPU; the engine says so in vllm:cache_config_info.
BLOCK_TOKENS = 128
START_SECONDS = 180.0
STOP_SECONDS = 20.0
TRACKER_SECONDS = 5.0

ENVIRONMENT = {
    # No request leaves the machine.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # GiB kept for the KV cache; --num-gpu-blocks-override then says how much of it is used.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The model is so small that more threads only wait for each other.
    "OMP_NUM_THREADS": "1",
    # The engine core computes in its own process. The default for the CPU, a worker process beside
    # it, has the two spin on a shared ring: with two ranks on two cores nobody else gets a turn,
    # and an answer of /metrics takes seconds. Needs --distributed-executor-backend uni.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Its processes talk over loopback, not over the address the machine has on a network.
    "VLLM_HOST_IP": "127.0.0.1",
}
# What belongs to the tests' interpreter must not reach vLLM's.
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PROMETHEUS_MULTIPROC_DIR", "VIRTUAL_ENV")


class ServerError(Exception):
    """The server ended or did not become ready; the text holds the end of its log."""


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def session_members(session: int) -> list[int]:
    """Process ids that belong to a session, zombies left out: the engine cores and helpers too."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name, which may hold anything) state ppid pgrp session ...
                state, _, _, found = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(found) == session and state != "Z":
                    members.append(int(entry.name))
    return members


def is_resource_tracker(pid: int) -> bool:
    """Whether a process is the one Python keeps for removing leaked shared memory."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def send_kill(pids: Iterable[int]) -> None:
    """SIGKILL each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class VllmServer:
    """
    One API server (or several behind one port) with its engine cores, in a session of its own.

    A context manager: it starts on entry and whatever is left of it is killed on exit. Between the
    two, ``kill`` and ``start`` restart it on the same port.

    Args:
        interpreter: Python of the environment that holds vLLM.
        model: Directory made by ``model.py``.
        logs: Directory for the log files, one for each start.
        max_num_seqs: Slots of each data-parallel rank.
        num_gpu_blocks: KV blocks of each rank, one of them reserved.
        hide_slots: Say max_num_seqs in a file instead of on the command line, so that nobody who
            reads the command line knows it.
        extra_arguments: Added to the command line as they are.
    """

    def __init__(
        self,
        interpreter: Path,
        model: Path,
        logs: Path,
        *,
        max_num_seqs: int,
        num_gpu_blocks: int,
        hide_slots: bool = False,
        data_parallel_size: int = 1,
        api_server_count: int = 1,
        max_model_len: int = 2048,
        extra_arguments: tuple[str, ...] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.started_in = float("nan")
        self._interpreter = interpreter
        self._logs = logs
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._scratch: Path | None = None
        self._slots = max_num_seqs if hide_slots else None
        self._several_engines = data_parallel_size > 1
        self._arguments = [
            *("--model", str(model), "--served-model-name", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--max-model-len", str(max_model_len), "--seed", "0", "--enforce-eager"),
            *("--num-gpu-blocks-override", str(num_gpu_blocks)),
            *("--data-parallel-size", str(data_parallel_size)),
            *("--api-server-count", str(api_server_count)),
            *("--distributed-executor-backend", "uni"),
            *("--disable-access-log-for-endpoints", "/metrics,/metrics/,/health"),
            *(() if hide_slots else ("--max-num-seqs", str(max_num_seqs))),
            *extra_arguments,
        ]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the leader: also its session and process group."""
        if self._process is None:
            raise ServerError("not started")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Log of the latest start."""
        return self._logs / f"vllm-{self.port}-{self._starts}.log"

    @property
    def log_text(self) -> str:
        """Everything the latest start wrote so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def kv_cache_tokens(self) -> list[int]:
        """``KV cache size: 9,216 tokens`` of the start-up log, one number for each rank."""
        found = re.findall(r"KV cache size: ([\d,]+) tokens", self.log_text)
        return [int(number.replace(",", "")) for number in found]

    @property
    def processes(self) -> list[int]:
        """Process ids of the server and all its children that are alive."""
        return [] if self._process is None else session_members(self._process.pid)

    def start(self, deadline_seconds: float = START_SECONDS) -> None:
        """
        Start and wait for /health.

        Raises:
            ServerError: it ended, or it did not answer within ``deadline_seconds``.
        """
        begun = time.monotonic()
        self._starts += 1
        # Not the caller's directory: the paths of vLLM's sockets must stay below 108 bytes.
        self._scratch = Path(tempfile.mkdtemp(prefix="vllm-"))
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            # setpriv is of Debian's util-linux. Should the tests be killed, the server is told to
            # end as well.
            ["setpriv", "--pdeathsig", "TERM", *self._command(self._scratch)],
            cwd=self._scratch,
            env=self._environment(self._scratch),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait_ready(begun + deadline_seconds)
        if self._several_engines:
            self._put_engines_last()
        self.started_in = time.monotonic() - begun

    def _put_engines_last(self) -> None:
        """
        Let the engine cores compute only when nobody else wants the processor.

        Two of them keep two cores busy, and then the API servers and the client wait seconds for
        a turn (seen: 1 s of delay for 10 ms of work). With a GPU they would not compete at all.
        """
        for pid in self.processes:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::EngineCore"):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))

    def stop(self) -> None:
        """Ask it to end; kill what is left after ``STOP_SECONDS``."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """
        SIGKILL the whole session at once and wait until nothing of it is left.

        Python's resource tracker alone is spared: it then removes the shared memory and semaphores
        of the killed, and ends. Nobody else would remove them.

        Raises:
            ServerError: something outlives SIGKILL.
        """
        if self._process is not None:
            session = self._process.pid
            send_kill(pid for pid in session_members(session) if not is_resource_tracker(pid))
            self._process.wait(STOP_SECONDS)
            self._reap(session)
        if self._log is not None:
            self._log.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._process = self._log = self._scratch = None

    def _reap(self, session: int) -> None:
        """Give the tracker its time, then kill what is left, and see that it went."""
        begun = time.monotonic()
        while members := session_members(session):
            waited = time.monotonic() - begun
            if waited > STOP_SECONDS:
                raise ServerError(f"processes {members} of session {session} do not end")
            if waited > TRACKER_SECONDS:
                send_kill(members)
            else:
                send_kill(pid for pid in members if not is_resource_tracker(pid))
            time.sleep(0.05)

    def _command(self, scratch: Path) -> list[str]:
        """``python .../vllm serve ...``: the command line that vLLM's own console script has."""
        script = scratch / "vllm"
        script.symlink_to(LAUNCHER)
        command = [str(self._interpreter), str(script), "serve", *self._arguments]
        if self._slots is not None:
            settings = scratch / "settings.yaml"
            settings.write_text(f"max-num-seqs: {self._slots}\n", encoding="utf-8")
            command += ["--config", str(settings)]
        return command

    def _environment(self, scratch: Path) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        return {
            **inherited,
            **ENVIRONMENT,
            # Sockets, the multiprocess metric files and caches go away with the server.
            "TMPDIR": str(scratch),
            "HOME": str(scratch),
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "XDG_CONFIG_HOME": str(scratch / "config"),
        }

    def _wait_ready(self, deadline: float) -> None:
        process = self._process
        while process is not None:
            if process.poll() is not None:
                raise ServerError(f"ended with {process.returncode}\n{self._log_tail()}")
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise ServerError(f"not ready in time\n{self._log_tail()}")
            time.sleep(0.25)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _log_tail(self) -> str:
        return self.log_text[-4000:]
