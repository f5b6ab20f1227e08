"""deploy/prometheus/agent.yml and edge.yml: what leaves an edge suffices for whoever evaluates or looks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml

from deploy.hasty_rules import hasten
from pager.processes import Process, program
from pager.shapes import PAGES, Shapes

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
LISTENING = r'msg="Listening on" address=(\S+)'
sys.path.insert(0, str(ROOT / "tools"))

import keep_list  # noqa: E402 - after the path


def settings(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))
    return loaded


def kept(name: str) -> re.Pattern[str]:
    """The names that a configuration sends, as Prometheus reads them: the whole name must match."""
    (write,) = settings(name)["remote_write"]
    (relabelling,) = write["write_relabel_configs"]
    assert relabelling["source_labels"] == ["__name__"]
    assert relabelling["action"] == "keep"
    return re.compile(relabelling["regex"])


def selected_in(text: str) -> set[str]:
    """
    Names that look like ours in a text, strings left out: found otherwise than the tool does it.
    """
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    return set(re.findall(r"\b(?:\w+:)?headroom_\w+(?::\w+)?", bare))


def test_both_configurations_hold_what_the_tool_would_write():
    assert keep_list.main(["--check"]) == 0


def test_a_stale_list_is_found(tmp_path, monkeypatch):
    stale = tmp_path / "agent.yml"
    text = (PROMETHEUS / "agent.yml").read_text(encoding="utf-8")
    stale.write_text(text.replace("headroom_engine_up|", "", 1), encoding="utf-8")
    monkeypatch.setattr(keep_list, "FILES", (stale,))
    assert keep_list.main(["--check"]) == 1
    assert keep_list.main([]) == 0
    assert stale.read_text(encoding="utf-8") == text


def test_an_agent_sends_every_metric_that_a_rule_reads():
    pattern = kept("agent.yml")
    recorded, needed = set(), set()
    for file in (
        *sorted((ROOT / "rules").glob("[ar]*/*.yaml")),
        ROOT / "deploy/autoscaling/rules.yaml",
    ):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                needed |= selected_in(rule["expr"])
                # Texts of alerts ask Prometheus too.
                needed |= selected_in(" ".join(_asked(rule)))
                recorded.add(rule.get("record", ""))
    missing = {name for name in needed - recorded if not pattern.fullmatch(name)}
    assert missing == set()
    assert len(needed - recorded) > 25
    assert pattern.fullmatch("up")


def _asked(rule: dict[str, Any]) -> list[str]:
    """What the templates of an alert's texts query."""
    texts = " ".join(rule.get("annotations", {}).values())
    return re.findall(r'printf "([^"]*)', texts)


@pytest.mark.parametrize("name", ["agent.yml", "edge.yml"])
def test_every_board_finds_what_it_asks_for(name):
    """The agent's recorded series are made where the data goes; the edge sends its own."""
    pattern = kept(name)
    asked = set()
    for file in (ROOT / "grafana" / "dashboards").glob("*.json"):
        asked |= selected_in(file.read_text(encoding="utf-8").replace('\\"', ""))
        text = file.read_text(encoding="utf-8")
        for expr in re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', text):
            asked |= selected_in(expr.replace('\\"', '"'))
    recorded = {found for found in asked if ":" in found}
    missing = {found for found in asked if not pattern.fullmatch(found)}
    assert missing == (recorded if name == "agent.yml" else set())
    assert len(recorded) > 10


def test_an_edge_sends_every_series_that_rules_record_and_the_alerts():
    pattern = kept("edge.yml")
    for file in (
        *(ROOT / "rules").glob("recording/*.yaml"),
        ROOT / "deploy/autoscaling/rules.yaml",
    ):
        for record in re.findall(r"record: (\S+)", file.read_text(encoding="utf-8")):
            assert pattern.fullmatch(record), record
    assert pattern.fullmatch("ALERTS")
    assert not pattern.fullmatch("headroom_scrape_duration_seconds")


def test_the_edge_is_a_configuration_that_prometheus_accepts_with_all_rules(tmp_path):
    # What it names beside itself: a token that is not ours to ship.
    root = tmp_path / "deploy" / "prometheus"
    (root / "secrets").mkdir(parents=True)
    (root / "secrets" / "remote-write-token").write_text("token", encoding="utf-8")
    (root / "edge.yml").write_bytes((PROMETHEUS / "edge.yml").read_bytes())
    (tmp_path / "rules").symlink_to(ROOT / "rules")
    (tmp_path / "deploy" / "autoscaling").symlink_to(ROOT / "deploy" / "autoscaling")
    done = subprocess.run(
        [program("promtool"), "check", "config", str(root / "edge.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 rule files found" in done.stdout


def test_the_agent_is_a_configuration_that_prometheus_accepts_in_agent_mode(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "remote-write-token").write_text("token", encoding="utf-8")
    config = tmp_path / "agent.yml"
    config.write_bytes((PROMETHEUS / "agent.yml").read_bytes())
    done = subprocess.run(
        [program("promtool"), "check", "config", "--agent", str(config)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- an agent and a receiver that run ------------------------------------------------------------


@pytest.mark.timeout(300)
def test_rules_are_evaluated_where_an_agent_sends_what_it_keeps(tmp_path):
    with ExitStack() as stack:
        pages = stack.enter_context(Shapes(["everything_known"]))
        central = stack.enter_context(receiver(tmp_path))
        sender = stack.enter_context(agent(tmp_path, pages, central.url))
        waited(lambda: found(central, 'up{cluster="one"} == 1'))
        waited(lambda: found(central, "model:headroom_sustainable_sequences:sum5m"))
        waited(lambda: found(central, "engine:headroom_finished_requests:rate5m"))
        rules = [rule for group in api(central, "rules")["groups"] for rule in group["rules"]]
        names = api(central, "label/__name__/values")
        own = sender.get("/metrics")
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert any(rule["health"] == "ok" for rule in rules)
    ours = {name for name in names if name.startswith("headroom_")}
    assert len(ours) > 50
    assert {name for name in ours if not kept("agent.yml").fullmatch(name)} == set()
    # It did leave something out.
    assert "headroom_queue_time_seconds_sum" in pages_text()
    assert "headroom_queue_time_seconds_sum" not in names
    assert re.search(r"^prometheus_remote_storage_samples_failed_total.* 0$", own, re.MULTILINE)


def pages_text() -> str:
    return (PAGES / "everything_known.prom").read_text(encoding="utf-8")


def receiver(folder: Path) -> Process:
    """It scrapes nothing: rules, and what is written to it."""
    config = folder / "receiver.yml"
    config.write_text(json.dumps({"rule_files": hasten(folder / "rules")}), encoding="utf-8")
    command = [
        *(program("prometheus"), f"--config.file={config}", "--web.enable-remote-write-receiver"),
        *(f"--storage.tsdb.path={folder / 'receiver'}", "--web.listen-address=127.0.0.1:0"),
    ]
    return Process(command, folder / "receiver.log", listening=LISTENING, ready="/-/ready")


def agent(folder: Path, pages: Shapes, url: str) -> Process:
    """The shipped agent, of other targets and faster."""
    shipped = settings("agent.yml")
    shipped["global"]["scrape_interval"] = "1s"
    shipped["scrape_configs"][0]["static_configs"] = pages.targets()
    del shipped["remote_write"][0]["authorization"]
    shipped["remote_write"][0]["url"] = f"{url}/api/v1/write"
    config = folder / "agent.yml"
    config.write_text(json.dumps(shipped), encoding="utf-8")
    command = [
        *(program("prometheus"), f"--config.file={config}", "--enable-feature=agent"),
        *(f"--storage.agent.path={folder / 'agent'}", "--web.listen-address=127.0.0.1:0"),
    ]
    return Process(command, folder / "agent.log", listening=LISTENING, ready="/-/ready")


def api(prometheus: Process, path: str) -> Any:
    return json.loads(prometheus.get(f"/api/v1/{path}"))["data"]


def found(prometheus: Process, promql: str) -> list[Any]:
    result: list[Any] = api(prometheus, f"query?query={quote(promql)}")["result"]
    return result


def waited(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 90.0
    while not condition():
        assert time.monotonic() < end, "not within 90 seconds"
        time.sleep(0.5)
