"""The exporter and its world as processes: started, asked, sampled, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.process import cpu_seconds
from nvml import build as nvml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONMALLOC", "MALLOC_ARENA_MAX")
MIB = 2**20
PATIENCE = 90.0


def environment(code: Path, **more: str) -> dict[str, str]:
    """Ours without what would change memory; byte code ready, as in an installation."""
    kept = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    paths = os.pathsep.join(str(ROOT / part) for part in ("exporter", "tools", "tests"))
    return {**kept, "PYTHONPATH": paths, "PYTHONPYCACHEPREFIX": str(code), **more}


def compile_all(code: Path) -> None:
    """Import what the exporter may, once, so that its byte code is there."""
    modules = "headroom_exporter.app", "headroom_exporter.discovery.node", "headroom_exporter.cli"
    rest = "pynvml", "grpc", "aiohttp.web", "headroom_exporter.status.document"
    text = "\n".join(f"import {name}" for name in (*modules, *rest))
    subprocess.run([sys.executable, "-c", text], env=environment(code), check=True, timeout=120)


@contextlib.contextmanager
def started(
    arguments: Sequence[str], environ: dict[str, str], log: Path, **pipes: Any
) -> Iterator[subprocess.Popen[str]]:
    """A Python process whose output goes to a file; ended with the block, or with this process."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, *arguments],
            env=environ,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **pipes},
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str], seconds: float = 10.0) -> float:
    """SIGTERM, and SIGKILL where that is not enough. Returns the seconds it took."""
    began = time.monotonic()
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    return time.monotonic() - began


class World:
    """The world's end of its two pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        first = self._answer(PATIENCE)
        self.api: str = first["api"]
        self.engine: str = first["engine"]

    def tell(self, command: str) -> dict[str, Any]:
        """A command, and what the world says."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer(PATIENCE)

    def _answer(self, seconds: float) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None  # noqa: S101
        ready, _, _ = select.select([out], [], [], seconds)
        line = out.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the world does not answer; exit status {self._process.poll()}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def world(
    folder: Path, seed: int, pods: int, *, kind: str = "base", haste: float = 1.0
) -> Iterator[World]:
    """A world that stands, and ends with the block; ``kind`` and ``haste`` as in world.py."""
    environ = environment(folder / "code")
    arguments = ["-m", "soak.world", str(folder), str(seed), str(pods), kind, str(haste)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(arguments, environ, folder / "world.log", **pipes) as process:
        yield World(process)


@contextlib.contextmanager
def exporter(
    folder: Path, api: str, port: int, *, gpus: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """The exporter in node mode over that world, on fake GPUs or none."""
    library = nvml.build(folder / "nvml") if gpus else folder
    host, _, number = api.removeprefix("https://").partition(":")
    environ = environment(
        folder / "code",
        KUBERNETES_SERVICE_HOST=host,
        KUBERNETES_SERVICE_PORT=number,
        NODE_NAME="node-a",
        LD_LIBRARY_PATH=str(library),
        FAKE_NVML_SCRIPT=str(folder / "nvml.script"),
    )
    arguments = [
        *(str(Path(__file__).with_name("launcher.py")), str(folder), "run"),
        *("--config", str(folder / "etc" / "config.yaml"), "--log.format", "json"),
        *("--web.listen-address", f"127.0.0.1:{port}"),
    ]
    with started(arguments, environ, folder / "exporter.log") as process:
        yield process


def page(port: int, seconds: float = 10.0) -> str:
    """The exporter's page now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=seconds) as answer:
        text: str = answer.read().decode()
        return text


@dataclass(kw_only=True)
class Sample:
    """One look at a process. Bytes, seconds, counts; None where it could not be told."""

    at: float
    rss: float
    pss: float
    uss: float
    peak: float
    fds: int
    threads: int
    cpu: float
    log_lines: int
    series: int | None = None
    tasks: int | None = None
    objects: int | None = None
    own_fds: float | None = None
    kinds: dict[str, int] = field(default_factory=dict)


def look(pid: int, log: Path) -> Sample:
    """What the kernel says of a process."""
    status = _words(Path(f"/proc/{pid}/status"))
    rollup = _words(Path(f"/proc/{pid}/smaps_rollup"))
    return Sample(
        at=time.monotonic(),
        rss=1024.0 * rollup["Rss"],
        pss=1024.0 * rollup["Pss"],
        uss=1024.0 * (rollup["Private_Clean"] + rollup["Private_Dirty"]),
        peak=1024.0 * status["VmHWM"],
        fds=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=status["Threads"],
        cpu=cpu_seconds(pid),
        log_lines=log.read_bytes().count(b"\n") if log.exists() else 0,
    )


def _words(path: Path) -> dict[str, int]:
    """The lines ``Name: NUMBER``, with or without a unit."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
