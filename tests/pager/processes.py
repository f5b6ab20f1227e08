"""A program as a child process that says where it listens; it ends with its block."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A busy machine with two cores.
START_SECONDS = 60.0
STOP_SECONDS = 20.0

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "setpriv": "util-linux",
}


def program(name: str) -> str:
    """
    Where a program is.

    Raises:
        FileNotFoundError: nowhere; the text names the Debian package that holds it.
    """
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing: install the Debian package {PACKAGES[name]}")
    return found


class ProcessError(Exception):
    """It ended, did not start, or ended badly; the text holds the end of its log."""


class Process:
    """
    A context manager around one program that listens on a port of the system's choosing.

    Args:
        command: Program and arguments; it is told to listen on ``127.0.0.1:0``.
        log_path: Takes what it writes.
        listening: Finds host:port in that; its only group.
        ready: Path that answers 200 once it can be used.
    """

    def __init__(
        self, command: Sequence[str], log_path: Path, *, listening: str, ready: str
    ) -> None:
        # Should the tests be killed, the program ends as well.
        self._command = [program("setpriv"), "--pdeathsig", "TERM", *command]
        self._listening = re.compile(listening)
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.log_path = log_path
        self.address = ""

    def __enter__(self) -> Self:
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._end(self._process)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it; where nothing else failed, see that it ended well."""
        if self._process is None:
            return
        status = self._end(self._process)
        if kind is None and status:
            raise ProcessError(f"{self._command} ended with {status}\n{self.log_text[-4000:]}")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.address}"

    @property
    def log_text(self) -> str:
        """Everything it wrote so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> str:
        """The body of a 200; anything else raises OSError (urllib's errors are such)."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if process.poll() is not None or time.monotonic() > end:
                raise ProcessError(f"{self._command} did not start\n{self.log_text[-4000:]}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        found = self._listening.search(self.log_text)
        if found is None:
            return False
        self.address = found[1]
        try:
            self.get(self._ready)
        except OSError:
            return False
        return True

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 1
        finally:
            if self._log is not None:
                self._log.close()
