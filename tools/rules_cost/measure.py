"""One fleet, measured: first while it is only scraped, then with the rules."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headroom_exporter.errors import HeadroomError
from rules_cost.fleet import fleet
from rules_cost.history import ranges, recorded, write_blocks
from rules_cost.pages import Pages, serving
from rules_cost.server import running

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rules_cost.pages import Engine
    from rules_cost.server import Prometheus

# Between the first evaluations and those that count for CPU: caches are filled by then.
WARM_SECONDS = 60.0
BASELINE_SECONDS = 60.0
# Ten thousand engines on two busy cores: seven minutes were not enough for a group of four.
PATIENCE_SECONDS = 900.0
LOOK_SECONDS = 4.0
# Evaluations that must have been seen of each group; one of a group of minutes.
EVALUATIONS = 6
SLOW_INTERVAL = 120.0
LONG_SECONDS = 3600.0


@dataclass(slots=True, kw_only=True)
class Cost:
    """
    What one rule or one group took.

    Attributes:
        group: Name of the group.
        name: Of the rule; empty for the group itself.
        interval: Seconds between evaluations.
        seconds: Of every evaluation that was seen.
        rules: How many rules it is.
        error: What Prometheus said when it failed; empty where it never did.
    """

    group: str
    name: str
    interval: float
    rules: int = 1
    seconds: list[float] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    error: str = ""

    @property
    def median(self) -> float:
        """The middle evaluation."""
        return statistics.median(self.seconds)

    def note(self, one: dict[str, Any]) -> None:
        """Take an evaluation in, unless it is the one already seen, or there was none."""
        at = one["lastEvaluation"]
        if at in self.seen or at.startswith("0001-"):
            return
        self.seen.add(at)
        self.seconds.append(one["evaluationTime"])
        self.error = one.get("lastError") or self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of Prometheus: share of a core, resident bytes, series in the head, samples appended a second."""

    cpu: float
    resident: float
    series: float
    samples: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    What was measured of one fleet.

    Attributes:
        engines: Its size.
        load: Mean load average of one minute while the rules were evaluated.
        scraped: Only scraped.
        ruled: With rules.
        recorded: Series that recording rules have.
        alerts: Pending and firing ones, by their name.
        missed: Evaluations that Prometheus left out because the one before had not ended.
        groups: By the order of the files.
        rules: Likewise.
    """

    engines: int
    load: float
    scraped: Usage
    ruled: Usage
    recorded: int
    alerts: dict[str, int]
    missed: int
    groups: tuple[Cost, ...]
    rules: tuple[Cost, ...]


def measure(engines: Sequence[Engine], count: int, files: Sequence[Path], folder: Path) -> Figures:
    """
    Measure a fleet.

    Args:
        engines: What its kinds say, only the samples that rules read.
        count: How many engines.
        files: The rules.
        folder: Empty; gets gigabytes.

    Raises:
        HeadroomError: Prometheus is missing, does not keep up, or does not see what it should.
    """
    members = fleet(count)
    # The past ends when the scrapes begin: as long as its blocks take to be written, about.
    origin = (time.time() + 15.0 + count * 0.005) // 15.0 * 15.0
    blocks = write_blocks(engines, members, files, origin, folder / "data")
    late = time.time() - origin
    _say(count, f"{blocks:,} series of the past in blocks, {late:+.0f} s late")
    time.sleep(max(0.0, -late))
    with (
        serving(Pages(engines, members, origin)) as port,
        running(folder, members, port) as prometheus,
    ):
        _wait_for_all(prometheus, count)
        scraped = _usage(prometheus, BASELINE_SECONDS)
        _say(count, f"scraped: {scraped}")
        prometheus.load(files)
        return _evaluated(prometheus, count, scraped, files)


def _wait_for_all(prometheus: Prometheus, count: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while (up := prometheus.number("count(up == 1)")) < count:
        if time.monotonic() > end:
            raise HeadroomError(
                f"{up:.0f} of {count} engines are scraped after {PATIENCE_SECONDS} s"
            )
        time.sleep(LOOK_SECONDS)


def _usage(prometheus: Prometheus, seconds: float) -> Usage:
    before, begun = prometheus.own(), time.monotonic()
    time.sleep(seconds)
    return _between(before, prometheus.own(), time.monotonic() - begun)


def _between(before: dict[str, float], after: dict[str, float], seconds: float) -> Usage:
    cpu, samples = "process_cpu_seconds_total", "prometheus_tsdb_head_samples_appended_total"
    return Usage(
        cpu=(after[cpu] - before[cpu]) / seconds,
        resident=after["process_resident_memory_bytes"],
        series=after["prometheus_tsdb_head_series"],
        samples=(after[samples] - before[samples]) / seconds,
    )


def _evaluated(
    prometheus: Prometheus, count: int, scraped: Usage, files: Sequence[Path]
) -> Figures:
    groups: dict[str, Cost] = {}
    rules: dict[tuple[str, int], Cost] = {}
    loads: list[float] = []
    begun = time.monotonic()
    warm: tuple[float, dict[str, float]] | None = None
    while not groups or not _enough(groups.values()) or warm is None:
        if time.monotonic() - begun > PATIENCE_SECONDS:
            none = [one.group for one in groups.values() if not one.seconds]
            if none or warm is None:
                never = f"in {PATIENCE_SECONDS:g} s at {count:,} engines"
                raise HeadroomError(f"{', '.join(none)}: no evaluation has ended {never}")
            break
        time.sleep(LOOK_SECONDS)
        for group in prometheus.groups():
            _note(group, groups, rules)
        loads.append(os.getloadavg()[0])
        if warm is None and time.monotonic() - begun > WARM_SECONDS:
            warm = time.monotonic(), prometheus.own()
    own = prometheus.own()
    ruled = _between(warm[1], own, time.monotonic() - warm[0])
    _check(prometheus, count, files)
    _say(count, f"with rules: {ruled}")
    return Figures(
        engines=count,
        load=statistics.mean(loads),
        scraped=scraped,
        ruled=ruled,
        recorded=int(prometheus.number('count({__name__=~"(engine|rank|model):headroom.+"})')),
        alerts=prometheus.counts("count by (alertname) (ALERTS)"),
        missed=int(own["prometheus_rule_group_iterations_missed_total"]),
        groups=tuple(groups.values()),
        rules=tuple(rules.values()),
    )


def _enough(groups: Iterable[Cost]) -> bool:
    return all(
        len(one.seconds) >= (1 if one.interval > SLOW_INTERVAL else EVALUATIONS) for one in groups
    )


def _note(
    group: dict[str, Any], groups: dict[str, Cost], rules: dict[tuple[str, int], Cost]
) -> None:
    name, interval = group["name"], float(group["interval"])
    whole = Cost(group=name, name="", interval=interval, rules=len(group["rules"]))
    groups.setdefault(name, whole).note(group)
    for place, rule in enumerate(group["rules"]):
        shown = rule["name"]
        if dimension := rule.get("labels", {}).get("dimension"):
            shown += f" {dimension}"
        one = Cost(group=name, name=shown, interval=interval)
        rules.setdefault((name, place), one).note(rule)


def _check(prometheus: Prometheus, count: int, files: Sequence[Path]) -> None:
    """Every engine must have the past that the rules look at, or they were measured on nothing."""
    known, back = recorded(files), ranges(files)
    checks = [
        f"count({name} offset {back[name]:.0f}s)"
        for name in known
        if not name.startswith("model:") and back.get(name, 0.0) >= LONG_SECONDS
    ]
    for expr in (
        "count(up == 1)",
        "count(engine:headroom_use:ratio5m)",
        "count(rate(headroom_finished_requests_total{reason='stop'}[1h]))",
        *checks,
    ):
        if (found := prometheus.number(expr)) != count:
            raise HeadroomError(f"{expr} is {found:.0f} of {count} engines: the past is not there")


def _say(count: int, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {count:,} engines: {text}", flush=True)
