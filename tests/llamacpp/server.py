"""A real llama.cpp server as a child process: start, wait until it answers, end it."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.request
from typing import IO, TYPE_CHECKING, Self

from vllm.server import ServerError, free_port

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 20.0
MODEL_NAME = "tiny"


class LlamaServer:
    """
    ``llama-server`` on one thread; a context manager. ``kill`` and ``start`` restart it on its port.

    Args:
        build: Directory that holds the binary.
        model: GGUF file.
        logs: Directory for the log files, one for each start.
        arguments: Added to the command line: slots, context, --metrics.
    """

    def __init__(self, build: Path, model: Path, logs: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._logs = logs
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        # setpriv is of Debian's util-linux. Should the tests be killed, the server ends as well.
        self._command = ["setpriv", "--pdeathsig", "KILL", str(build / "llama-server")]
        self._command += ["--model", str(model), "--alias", MODEL_NAME, "--no-webui"]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port)]
        # A second thread waits for the first by spinning: beside other work on two cores it only costs.
        self._command += ["--threads", "1", *arguments]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log_text(self) -> str:
        """Everything the latest start wrote so far."""
        path = self._logs / f"llama-{self.port}-{self._starts}.log"
        return path.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """
        Start and wait for /health.

        Raises:
            ServerError: it ended, or did not answer in time.
        """
        give_up = time.monotonic() + START_SECONDS
        self._starts += 1
        self._log = (self._logs / f"llama-{self.port}-{self._starts}.log").open("wb")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise ServerError(f"not ready\n{self.log_text[-4000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL it, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait(STOP_SECONDS)
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
