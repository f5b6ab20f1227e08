"""
Exporter, Prometheus and Alertmanager with the shipped files, their time compressed.

``FACTOR`` seconds of the shipped files are one here. The engine and the exporter live at the clock's own
pace, so that a request per second is one and a planned second is one; what is shorter are the windows,
the waits and the intervals.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from pager.compress import compress_file, document, shorter
from pager.processes import Process, program
from pager.webhook import Webhook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pager.shapes import Shapes

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = tuple(sorted((REPOSITORY / "rules").glob("*/*.yaml")))
SHIPPED_RULES = tuple(file for file in RULES if file.parent.name != "tests")
SHIPPED_PROMETHEUS = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"
SHIPPED_ALERTMANAGER = REPOSITORY / "deploy" / "alertmanager" / "alertmanager.yml"

# 30 s between evaluations become 1 s, 15 s between scrapes half a second.
FACTOR = 30
# How far back Prometheus looks for a sample by default.
LOOKBACK = "5m"
TOKEN = "secret-of-the-{receiver}"
POLL = {
    "interval": "100ms",
    "fallback_interval": "500ms",
    "full_interval": "500ms",
    "max_backoff": "1s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One engine that the exporter polls."""

    name: str
    url: str


def exporter(directory: Path, engines: Sequence[Watched], plan: Mapping[str, Any]) -> Process:
    """``headroom-exporter run`` with one plan for all engines, without GPUs."""
    settings = {
        "engines": [{"name": engine.name, "url": engine.url} for engine in engines],
        "plans": [plan],
        "poll": POLL,
        "gpus": {"enabled": False},
    }
    config = directory / "exporter.yaml"
    # JSON is YAML.
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "headroom_exporter", "run", "--config", str(config)]
    return Process(
        [*command, "--web.listen-address", "127.0.0.1:0"],
        directory / "exporter.log",
        listening=r"msg=listening address=(\S+)",
        ready="/readyz",
    )


def alertmanager(directory: Path, webhook: Webhook) -> Process:
    """The shipped routes and inhibitions; only the receivers' addresses and the pace are others."""
    settings = document(yaml.safe_load(SHIPPED_ALERTMANAGER.read_text(encoding="utf-8")), FACTOR)
    for receiver in settings["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url"] = f"{webhook.url}/{receiver['name']}"
            token = directory / hook["http_config"]["authorization"]["credentials_file"]
            token.parent.mkdir(exist_ok=True)
            token.write_text(TOKEN.format(receiver=receiver["name"]), encoding="utf-8")
    config = directory / "alertmanager.yml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return Process(
        [
            program("prometheus-alertmanager"),
            f"--config.file={config}",
            f"--storage.path={directory / 'alertmanager'}",
            "--web.listen-address=127.0.0.1:0",
            # No gossip: one instance, and no address but loopback.
            "--cluster.listen-address=",
        ],
        directory / "alertmanager.log",
        listening=r'msg="Listening on" address=(\S+)',
        ready="/-/ready",
    )


class Prometheus(Process):
    """A Process that answers queries."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, lookback: str) -> None:
        directory.mkdir()
        config = directory / "prometheus.yml"
        config.write_text(json.dumps(settings), encoding="utf-8")
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--web.listen-address=127.0.0.1:0",
            f"--query.lookback-delta={lookback}",
        ]
        super().__init__(
            command,
            directory / "prometheus.log",
            listening=r'msg="Listening on" address=(\S+)',
            ready="/-/ready",
        )

    def api(self, path: str, **parameters: str) -> Any:
        """
        The ``data`` of an answer of its API.

        Raises:
            OSError: the answer was an error.
        """
        query = urllib.parse.urlencode(parameters)
        answer = json.loads(self.get(f"/api/v1/{path}?{query}"))
        return answer["data"]

    def query(self, promql: str) -> dict[str, float]:
        """Values of an instant vector by engine."""
        found = self.api("query", query=promql)["result"]
        return {each["metric"].get("engine", ""): float(each["value"][1]) for each in found}

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health, group after group."""
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]


def compressed_prometheus(directory: Path, target: str, alertmanager_address: str) -> Prometheus:
    """The shipped scrape configuration and rules, FACTOR times as fast."""
    rules = [directory.parent / "rules" / file.parent.name / file.name for file in SHIPPED_RULES]
    for source, made in zip(SHIPPED_RULES, rules, strict=True):
        compress_file(source, made, FACTOR)
    shipped = yaml.safe_load(SHIPPED_PROMETHEUS.read_text(encoding="utf-8"))
    settings = document(shipped, FACTOR)
    settings["rule_files"] = [str(file) for file in rules]
    _scrape(settings, target)
    settings["alerting"]["alertmanagers"] = [
        {"static_configs": [{"targets": [alertmanager_address]}]}
    ]
    return Prometheus(directory, settings, lookback=shorter(LOOKBACK, FACTOR))


def shipped_prometheus(directory: Path, target: str, shapes: Shapes) -> Prometheus:
    """The shipped scrape configuration and rules as they are; its alerts go nowhere."""
    settings = yaml.safe_load(SHIPPED_PROMETHEUS.read_text(encoding="utf-8"))
    settings["rule_files"] = [str(file) for file in SHIPPED_RULES]
    _scrape(settings, target)
    settings["scrape_configs"][0]["static_configs"] += shapes.targets()
    del settings["alerting"]
    return Prometheus(directory, settings, lookback=LOOKBACK)


def _scrape(settings: dict[str, Any], target: str) -> None:
    (job,) = settings["scrape_configs"]
    (static,) = job["static_configs"]
    static["targets"] = [target]


class PagerPath:
    """
    Everything between an engine and the webhook; a context manager.

    Args:
        directory: For configurations, data and logs.
        engines: What the exporter polls.
        plan: One entry of its ``plans``.
    """

    def __init__(
        self, directory: Path, engines: Sequence[Watched], plan: Mapping[str, Any]
    ) -> None:
        self._directory = directory
        self._engines = engines
        self._plan = plan
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.webhook = stack.enter_context(Webhook())
            self.alertmanager = stack.enter_context(alertmanager(self._directory, self.webhook))
            self.exporter = stack.enter_context(
                exporter(self._directory, self._engines, self._plan)
            )
            self.prometheus = stack.enter_context(
                compressed_prometheus(
                    self._directory / "compressed",
                    self.exporter.address,
                    self.alertmanager.address,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
