"""Processes that are measured: start, read their CPU and memory from the kernel, end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCE_ROOT = Path(__file__).resolve().parents[2] / "exporter"
# Byte code is ready in an installation; here it would not be where writing it is switched off, and
# compiling leaves some MiB behind. So it goes to a directory of the measurement's own.
CODE_VARIABLE = "PYTHONPYCACHEPREFIX"
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONMALLOC", "MALLOC_ARENA_MAX")
STOP_SECONDS = 10.0
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one process: resident now, its highest so far, and with shared pages divided."""

    resident: float
    peak: float
    proportional: float


def cpu_seconds(pid: int) -> float:
    """
    CPU seconds a process has used, all threads, user and system.

    The process's own CPU clock, whose number is made from its id (clock_getcpuclockid(3)): it counts
    nanoseconds, where utime and stime of /proc/PID/stat count hundredths, too coarse for 1 % of a core.
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> Memory:
    """What /proc says of a process's memory."""
    status = _kilobytes(Path(f"/proc/{pid}/status"))
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(resident=status["VmRSS"], peak=status["VmHWM"], proportional=rollup["Pss"])


def _kilobytes(path: Path) -> dict[str, float]:
    """Lines such as ``VmRSS:  1234 kB``, in bytes."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = 1024.0 * int(words[0])
    return found


@contextlib.contextmanager
def started(
    arguments: Sequence[str], *, quiet: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """
    A Python process; it gets SIGTERM at the end of the block, or when this process dies.

    Args:
        arguments: Of the interpreter that runs this.
        quiet: File for what it prints; None: standard output is a pipe, errors go where ours go.
    """
    environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    environment["PYTHONPATH"] = str(SOURCE_ROOT)
    with contextlib.ExitStack() as stack:
        log = None if quiet is None else stack.enter_context(quiet.open("wb"))
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if log is None else log,
            stderr=None if log is None else subprocess.STDOUT,
            env=environment,
            text=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def first_line(process: subprocess.Popen[str]) -> str:
    """
    The first line a process prints: how ours say that they are ready.

    Raises:
        RuntimeError: it ended without one.
    """
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait(STOP_SECONDS)}")
    return line
