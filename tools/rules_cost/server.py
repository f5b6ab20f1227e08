"""A real Prometheus that scrapes the fleet and evaluates the rules as shipped, each at its own interval."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from headroom_exporter.backtest.prometheus import program
from headroom_exporter.errors import HeadroomError
from rules_cost.fleet import JOB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rules_cost.fleet import Member

START_SECONDS = 120.0
STOP_SECONDS = 60.0
ANSWER_SECONDS = 120.0
_LISTENING = re.compile(r'"Listening on" address=(\S+):(\d+)')
_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Prometheus:
    """
    A Prometheus that runs.

    Args:
        process: It.
        address: Host and port.
        rules: Directory whose rule files it loads.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], address: tuple[str, int], rules: Path
    ) -> None:
        self._process = process
        self._address = address
        self._rules = rules

    def load(self, files: Sequence[Path]) -> None:
        """Have it load rule files; it begins to evaluate them within their interval."""
        for number, file in enumerate(files):
            shutil.copy(file, self._rules / f"{number}-{file.name}")
        self._process.send_signal(signal.SIGHUP)

    def groups(self) -> list[dict[str, Any]]:
        """The groups of rules, with what their last evaluation took."""
        groups: list[dict[str, Any]] = self._data("rules")["groups"]
        return groups

    def number(self, expr: str) -> float:
        """The one value of an instant query; 0 where it has none."""
        result = self._data(f"query?{urlencode({'query': expr})}")["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def counts(self, expr: str) -> dict[str, int]:
        """The values of an instant query whose answer has one label, by that label's text."""
        result = self._data(f"query?{urlencode({'query': expr})}")["result"]
        return {"".join(one["metric"].values()): int(one["value"][1]) for one in result}

    def own(self) -> dict[str, float]:
        """Its own metrics; where a name has several series, their sum."""
        found: dict[str, float] = {}
        for name, value in _SAMPLE.findall(self._get("/metrics").decode()):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def _data(self, what: str) -> Any:
        answer = json.loads(self._get(f"/api/v1/{what}"))
        if answer["status"] != "success":
            raise HeadroomError(f"{what}: Prometheus refuses it: {answer['error']}")
        return answer["data"]

    def _get(self, path: str) -> bytes:
        connection = HTTPConnection(*self._address, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, HTTPException) as error:
            ended = f"ended with {code}" if (code := self._process.poll()) is not None else "runs"
            raise HeadroomError(
                f"{path}: Prometheus does not answer ({ended}): {error!r}"
            ) from error
        finally:
            connection.close()


@contextmanager
def running(folder: Path, members: Sequence[Member], port: int) -> Iterator[Prometheus]:
    """
    Run a Prometheus over ``folder/data``, without rules at first; it ends with the block.

    Args:
        folder: Gets its configuration and log.
        members: Whom it scrapes.
        port: Where their pages are, on the loopback address.

    Raises:
        HeadroomError: it is not installed, or does not start; its log is in the text.
    """
    rules, log = folder / "rules", folder / "prometheus.log"
    rules.mkdir()
    _configure(folder, members, port)
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=15d",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield Prometheus(process, _address(process, log), rules)
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configure(folder: Path, members: Sequence[Member], port: int) -> None:
    targets = [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {**one.target, "__metrics_path__": f"/{one.place}"},
        }
        for one in members
    ]
    (folder / "targets.json").write_text(json.dumps(targets), encoding="utf-8")
    # JSON is YAML.
    settings = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "30s"},
        "rule_files": [str(folder / "rules" / "*.yaml")],
        "scrape_configs": [
            {"job_name": JOB, "file_sd_configs": [{"files": [str(folder / "targets.json")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    """Wait until it is ready, and read from its log which port the system gave it."""
    end = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        text = log.read_text(encoding="utf-8", errors="replace")
        listening = _LISTENING.search(text)
        if listening is not None and "Server is ready" in text:
            return listening[1], int(listening[2])
        if ended or time.monotonic() > end:
            raise HeadroomError(f"prometheus did not start; its log ends: {text[-2000:].strip()}")
        time.sleep(0.05)
