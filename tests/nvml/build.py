"""
Builds the fake NVML library and runs programs beside it.

The dynamic linker reads LD_LIBRARY_PATH once, when a program starts, and pynvml asks it for
libnvidia-ml.so.1: so the code under test runs in a program of its own (play.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SOURCE_ROOT = HERE.parent.parent / "exporter"
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path, *defines: str) -> Path:
    """Compile the library into ``folder``; ``OLD_DRIVER`` leaves out what old drivers lack."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler `cc` for the fake NVML library: install Debian's `gcc`")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"),
        *(f"-Wl,-soname,{LIBRARY}", *(f"-D{define}" for define in defines)),
        *("-o", str(folder / LIBRARY), str(HERE / "fake_nvml.c")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the fake NVML library does not compile (libc6-dev?):\n{done.stderr}")
    return folder


class Machine:
    """
    A machine with a driver: a program with the real pynvml over the fake library.

    Args:
        library: Folder with the library.
        folder: For the script and the list of calls.
        devices: As in the configuration.
    """

    def __init__(self, library: Path, folder: Path, *devices: str) -> None:
        self.script_path = folder / "script"
        self.calls_path = folder / "calls"
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_SCRIPT": str(self.script_path),
            "FAKE_NVML_CALLS": str(self.calls_path),
            "PYTHONPATH": str(SOURCE_ROOT),
        }
        self.script()
        self._devices = devices
        self._program: subprocess.Popen[str] | None = None

    def script(self, *lines: str) -> None:
        """Replace the script, all at once: the library reads it at any moment."""
        fresh = self.script_path.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self.script_path)

    def calls(self) -> list[str]:
        """Calls since the last time this was asked."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        self.calls_path.unlink(missing_ok=True)
        return lines

    def do(self, command: str) -> Any:
        """One line to play.py and its answer."""
        if self._program is None:
            self._program = self.start("play.py", *self._devices)
        program = self._program
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(command + "\n")
        program.stdin.flush()
        return json.loads(program.stdout.readline())

    def read(self) -> Any:
        """Open where needed and read: ``gpus`` by index, ``lost``, ``driver_version``."""
        return self.do("read")

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Another program of this folder on this machine."""
        return subprocess.Popen(
            [sys.executable, str(HERE / program), *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def run(self, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The same, killed at the end if it still runs."""
        with self.start(program, *arguments) as started:
            try:
                yield started
            finally:
                started.kill()

    def close(self) -> None:
        """End the program; a call that still hangs is let go first."""
        self.script()
        if self._program is None:
            return
        try:
            self._program.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._program.kill()
            raise
