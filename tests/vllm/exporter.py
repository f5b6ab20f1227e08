"""The exporter as its users start it: a process with a configuration file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Self

from vllm.scrape import Page, get, scrape
from vllm.server import free_port

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 10.0


class ExporterError(Exception):
    """The exporter ended, did not start, or ended badly; the text holds the end of its log."""


class Exporter:
    """
    ``python -m headroom_exporter run`` beside one engine; a context manager.

    Args:
        engine_url: What it polls.
        directory: For its configuration file and its log.
        poll: The ``poll`` section of the configuration.
        plan: One entry of ``plans``; None for no plan.
    """

    def __init__(
        self,
        engine_url: str,
        directory: Path,
        *,
        poll: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = directory / f"exporter-{port}.log"
        self._config = directory / f"exporter-{port}.yaml"
        # setpriv is of Debian's util-linux. Should the tests be killed, the exporter ends as well.
        self._command = ["setpriv", "--pdeathsig", "TERM"]
        self._command += [sys.executable, "-m", "headroom_exporter", "run"]
        self._command += ["--config", str(self._config)]
        self._command += ["--web.listen-address", f"127.0.0.1:{port}"]
        settings = {
            "engines": [{"name": "real", "url": engine_url}],
            "plans": [] if plan is None else [plan],
            "poll": poll or {},
            "gpus": {"enabled": False},
        }
        # JSON is YAML.
        self._config.write_text(json.dumps(settings), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait_ready()
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it; where nothing else failed, see that it ended well and never crashed."""
        status = self._stop()
        if kind is None:
            if status:
                raise ExporterError(f"ended with {status}\n{self.log_text[-4000:]}")
            if "Traceback" in self.log_text:
                raise ExporterError(f"a traceback in its log\n{self.log_text[-4000:]}")

    @property
    def pid(self) -> int:
        """Process id."""
        if self._process is None:
            raise ExporterError("not started")
        return self._process.pid

    @property
    def log_text(self) -> str:
        """Everything it wrote so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def scrape(self) -> Page:
        """Its /metrics now."""
        return scrape(self.url)

    def wait_for_counters(self, generated: float, seconds: float = 15.0) -> Page:
        """
        The first page on which ``headroom_generation_tokens_total`` has reached ``generated``.

        Raises:
            ExporterError: it has not within ``seconds``.
        """
        give_up = time.monotonic() + seconds
        while (page := self.scrape()).total("headroom_generation_tokens_total") < generated:
            if time.monotonic() > give_up:
                seen = page.total("headroom_generation_tokens_total")
                raise ExporterError(f"{generated} tokens generated, {seen} seen")
            time.sleep(0.2)
        return page

    def _wait_ready(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while True:
            if self._process is not None and self._process.poll() is not None:
                raise ExporterError(f"ended with {self._process.returncode}\n{self.log_text}")
            try:
                get(f"{self.url}/readyz")
            except OSError as error:
                if time.monotonic() > give_up:
                    raise ExporterError(f"not ready: {error}\n{self.log_text[-4000:]}") from error
                time.sleep(0.1)
            else:
                return

    def _stop(self) -> int:
        if self._process is None or self._log is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait() or 1
        finally:
            self._log.close()
