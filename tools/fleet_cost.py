"""
What a fleet's remote write costs, measured, and docs/fleet.md with the figures.

    python tools/fleet_cost.py [--engines 200] [--seconds 120]

Real Prometheus 2.42 (Debian 12): as an agent (deploy/prometheus/agent.yml) that sends everything and with the
lists of tools/keep_list.py, then as an edge that evaluates the rules (deploy/prometheus/edge.yml). Each sends
to a Prometheus with its remote-write receiver on. The pages are those of tools/rules_cost.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from keep_list import lists, pattern  # noqa: E402
from rules_cost.fleet import JOB, fleet  # noqa: E402
from rules_cost.pages import Pages, played, serving  # noqa: E402

from headroom_exporter.backtest.prometheus import program  # noqa: E402 - after the path
from headroom_exporter.errors import HeadroomError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules_cost.fleet import Member

PROMETHEUS = ROOT / "deploy" / "prometheus"
# What each is called, its configuration, and its list; none: everything.
SENDERS = (
    ("an agent, everything", "agent.yml", ""),
    ("an agent, what rules and boards read (`raw`)", "agent.yml", "raw"),
    ("an agent, what rules read (`rules`)", "agent.yml", "rules"),
    ("an edge with rules, what people look at (`looked_at`)", "edge.yml", "looked_at"),
    ("an edge with rules, what is recorded (`recorded`)", "edge.yml", "recorded"),
)
START_SECONDS = 120.0
STOP_SECONDS = 60.0
# Every engine is scraped once within 15 s; the rules' shortest windows have values after a minute.
WARM_SECONDS = 75.0
_LISTENING = re.compile(r'msg="Listening on" address=(\S+:\d+)')
_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_FIGURES = re.compile(r"(<!-- fleet_cost: begin -->\n).*(<!-- fleet_cost: end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    Of one sender.

    Attributes:
        words: What it is.
        series: Sent, of one engine, those of the scrape included.
        samples: Sent a second.
        sent: Bytes a second, compressed, without HTTP's heads.
        cpu: Of one core.
        resident: Bytes of memory.
    """

    words: str
    series: float
    samples: float
    sent: float
    cpu: float
    resident: float


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where Prometheus is missing or fails."""
    parser = argparse.ArgumentParser(prog="fleet_cost", description=(__doc__ or "").split("\n")[1])
    parser.add_argument("--engines", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0, help="measured, of each sender")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "fleet.md")
    chosen = parser.parse_args(arguments)
    try:
        found = _measured(chosen.engines, chosen.seconds)
    except HeadroomError as error:
        print(f"fleet_cost: {error}", file=sys.stderr)
        return 1
    table = text(found, chosen.engines, chosen.seconds)
    print(table)
    page = chosen.page.read_text(encoding="utf-8")
    chosen.page.write_text(_FIGURES.sub(lambda m: m[1] + table + m[2], page), encoding="utf-8")
    return 0


def _measured(engines: int, seconds: float) -> list[Figures]:
    members = fleet(engines)
    with tempfile.TemporaryDirectory(prefix="headroom-fleet-cost-") as name:
        kinds = played(Path(name))
        # As if the recording's live part began now.
        pages = Pages(kinds, members, time.time() // 15.0 * 15.0)
        found: list[Figures] = []
        with serving(pages) as port:
            for words, file, kept in SENDERS:
                folder = Path(name) / f"{len(found)}"
                folder.mkdir()
                settings = _settings(folder, file, members, port, kept)
                found.append(_one(words, folder, settings, engines, seconds))
                print(f"{time.strftime('%H:%M:%S')} {found[-1]}", flush=True)
    return found


def _settings(
    folder: Path, file: str, members: tuple[Member, ...], port: int, kept: str
) -> dict[str, Any]:
    """The shipped configuration; other targets, and the receiver's address left to be put in."""
    settings: dict[str, Any] = yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))
    targets = [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {**one.target, "__metrics_path__": f"/{one.place}"},
        }
        for one in members
    ]
    (folder / "targets.json").write_text(json.dumps(targets), encoding="utf-8")
    settings["scrape_configs"] = [
        {"job_name": JOB, "file_sd_configs": [{"files": [str(folder / "targets.json")]}]}
    ]
    settings.pop("alerting", None)
    if "rule_files" in settings:
        settings["rule_files"] = [str(PROMETHEUS / each) for each in settings["rule_files"]]
    (write,) = settings["remote_write"]
    del write["authorization"]
    del write["write_relabel_configs"]
    if kept:
        regex = pattern(lists()[kept])
        write["write_relabel_configs"] = [
            {"source_labels": ["__name__"], "regex": regex, "action": "keep"}
        ]
    return settings


def _one(
    words: str, folder: Path, settings: dict[str, Any], engines: int, seconds: float
) -> Figures:
    with _prometheus(folder, "receiver", {}, "--web.enable-remote-write-receiver") as receiver:
        settings["remote_write"][0]["url"] = f"http://{receiver}/api/v1/write"
        mode = [] if "rule_files" in settings else ["--enable-feature=agent"]
        with _prometheus(folder, "sender", settings, *mode) as sender:
            time.sleep(WARM_SECONDS)
            before, began = _own(sender), time.monotonic()
            time.sleep(seconds)
            after, long = _own(sender), time.monotonic() - began
            series = _own(receiver)["prometheus_tsdb_head_series"]
    failed = "prometheus_remote_storage_samples_failed_total"
    if after.get(failed, 0.0) > 0:
        raise HeadroomError(f"{words}: {after[failed]:.0f} samples could not be sent")

    def rate(name: str) -> float:
        return (after[name] - before[name]) / long

    return Figures(
        words=words,
        series=series / engines,
        samples=rate("prometheus_remote_storage_samples_total"),
        sent=rate("prometheus_remote_storage_bytes_total"),
        cpu=rate("process_cpu_seconds_total"),
        resident=after["process_resident_memory_bytes"],
    )


@contextmanager
def _prometheus(folder: Path, name: str, settings: dict[str, Any], *flags: str) -> Iterator[str]:
    """Run one on a loopback port of its own choosing; its address."""
    config, log = folder / f"{name}.yml", folder / f"{name}.log"
    config.write_text(json.dumps(settings), encoding="utf-8")
    kind = "agent" if "--enable-feature=agent" in flags else "tsdb"
    command = [
        *(program("prometheus"), f"--config.file={config}", "--web.listen-address=127.0.0.1:0"),
        *(f"--storage.{kind}.path={folder / name}", *flags),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            said = log.read_text(encoding="utf-8", errors="replace")
            listening = _LISTENING.search(said)
            if listening is not None and "is ready to receive" in said:
                yield listening[1]
                return
            if process.poll() is not None or time.monotonic() > end:
                raise HeadroomError(f"prometheus did not start; its log ends: {said[-2000:]}")
            time.sleep(0.1)
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _own(address: str) -> dict[str, float]:
    """Its own metrics; where a name has several series, their sum."""
    with urlopen(f"http://{address}/metrics", timeout=30) as answer:
        body = answer.read().decode()
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(body):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def text(found: list[Figures], engines: int, seconds: float) -> str:
    """The table of the page."""
    rows = "".join(
        f"| {one.words} | {one.series:.0f} | {one.samples / engines * 1000:,.0f} "
        f"| {one.sent / one.samples:.1f} | {one.sent / engines:,.0f} "
        f"| {one.sent / engines * 1000 * 86_400 / 1e9:.1f} GB "
        f"| {one.cpu * 100 * 1000 / engines:.0f} % | {one.resident / 2**20:.0f} MiB |\n"
        for one in found
    )
    return (
        f"Measured with {engines:,} engines over {seconds:g} s each; CPU and what 1,000 engines send in "
        "proportion.\n\n"
        "| what sends | series of an engine | samples/s of 1,000 engines | bytes a sample "
        "| bytes/s of an engine | a day of 1,000 engines | CPU of 1,000, of one core | resident "
        f"at {engines:,} |\n|---|---|---|---|---|---|---|---|\n{rows}"
    )


if __name__ == "__main__":
    sys.exit(main())
