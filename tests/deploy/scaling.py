"""
A day's swing on two fleets, scaled by ours and by the usual triggers; the table of docs/autoscaling.md.

    PYTHONPATH=exporter:tests python -m deploy.scaling [l4] [l4-floor] [h100]

Writes the table between the marks of that page. Pages are those of the shipped rules, evaluated by a real
Prometheus on what was scraped.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.hpa import Autoscaler, Fleet, Goal, Look, Scrapes, play, replicas_wanted
from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.backtest.rules import metric_names, rule_files
from headroom_exporter.backtest.truth import Requests
from headroom_exporter.catalog import CATALOG, Kind
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.profiles import find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploy.hpa import Played
    from headroom_exporter.backtest import Evaluation

ROOT = Path(__file__).resolve().parents[2]
AUTOSCALING = ROOT / "deploy" / "autoscaling"
PAGE = ROOT / "docs" / "autoscaling.md"
_MARKED = re.compile(r"(<!-- scaling: begin -->\n).*(<!-- scaling: end -->)", re.DOTALL)
# From the moment a replica is asked for to its first answer: image there, model loaded, graphs captured.
START_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A fleet: profile of a replica, requests a second as a day's mean, and the plan in force."""

    words: str
    profile: str
    rate: float
    plan: PlanConfig


def _plan(
    concurrency: float, slots: float, ttft: float, tpot: float, floor: float = 0.2
) -> PlanConfig:
    return PlanConfig(
        name="planned",
        concurrency=concurrency,
        max_num_seqs=slots,
        prompt_tokens=Lengths(p50=512.0, p95=2048.0),
        output_tokens=Lengths(p50=200.0, p95=600.0),
        ttft_p95_seconds=ttft,
        tpot_p95_seconds=tpot,
        floor_ratio=floor,
    )


SCENES = {
    "l4": Scene(
        words="L4: the cache binds",
        profile="l4-llama-3.1-8b",
        rate=2.4,
        plan=_plan(24.0, 256.0, 2.0, 0.2),
    ),
    # Twenty sequences are few: what arrives by chance is a larger share of them.
    "l4-floor": Scene(
        words="L4, floor 0.3",
        profile="l4-llama-3.1-8b",
        rate=2.4,
        plan=_plan(24.0, 256.0, 2.0, 0.2, floor=0.3),
    ),
    "h100": Scene(
        words="H100: prompts bind",
        profile="h100-llama-3.1-8b",
        rate=40.0,
        plan=_plan(100.0, 1024.0, 1.0, 0.05),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What is scaled on: its words, what it sees, and its target."""

    words: str
    sees: Callable[[Look], float | None]
    goal: Goal


def _ours(look: Look) -> float | None:
    return replicas_wanted(look.scrapes, look.scrapes.floor)


def _waiting(look: Look) -> float | None:
    found = look.scrapes.now("headroom_waiting_sequences")
    return sum(found.values()) if found else None


def _busy(look: Look) -> float | None:
    return sum(look.busy.values()) if look.busy else None


def _cache(look: Look) -> float | None:
    found = look.scrapes.now("headroom_kv_cache_usage_ratio")
    return sum(found.values()) / len(found) if found else None


TRIGGERS = {
    "ours": Trigger(
        words="demand over sustainable (ours)",
        sees=_ours,
        goal=Goal(kind="AverageValue", value=0.9),
    ),
    "waiting": Trigger(
        words="waiting requests, 5 a replica",
        sees=_waiting,
        goal=Goal(kind="AverageValue", value=5.0),
    ),
    "kv": Trigger(
        words="KV cache usage, mean 0.6", sees=_cache, goal=Goal(kind="Value", value=0.6)
    ),
    "gpu": Trigger(
        words="GPU utilisation, mean 0.8", sees=_busy, goal=Goal(kind="AverageValue", value=0.8)
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What became of a day.

    Attributes:
        played: Replicas and what the trigger saw.
        late_minutes: In which users missed the plan.
        pages: Times that a page fired, of the shipped rules.
        wanted: (seconds, value) of the recorded metric, as a real Prometheus has it.
    """

    played: Played
    late_minutes: int
    pages: dict[str, int]
    wanted: dict[float, float]


def behaviour() -> Mapping[str, Any]:
    """Of the shipped HorizontalPodAutoscaler."""
    spec = yaml.safe_load((AUTOSCALING / "hpa.yaml").read_text(encoding="utf-8"))["spec"]
    found: Mapping[str, Any] = spec["behavior"]
    return found


def day(
    scene: Scene,
    trigger: Trigger,
    *,
    hours: float,
    folder: Path,
    start_seconds: float = START_SECONDS,
    least: int = 2,
    most: int = 10,
) -> Outcome:
    """
    Play a swing from low to high and back: seven times as much traffic at its top as at its ends.

    Args:
        scene: The fleet.
        trigger: What it is scaled on; with our behaviour, whatever it is.
        hours: How long; a day's swing in less time is steeper than life.
        folder: Gets what was scraped.
        start_seconds: From asking for a replica to its first answer.
        least: minReplicas; the fleet begins with so many.
        most: maxReplicas.
    """
    seconds = hours * 3600.0
    requests = Requests(scene.plan)
    traffic = generators.parse(
        f"{generators.PREFIX}diurnal?rate={scene.rate:g}&amplitude=0.75&duration={seconds:g}"
        f"&period={seconds:g}&peak_at={seconds / 2:g}"
    )
    fleet = Fleet(
        find(scene.profile),
        requests.sent(traffic.requests(), seconds),
        requests,
        start_seconds=start_seconds,
    )
    scaler = Autoscaler(trigger.goal, least, most, behaviour())
    samples = folder / "samples.om"
    with samples.open("w", encoding="utf-8") as out:
        played = play(
            fleet,
            scaler,
            trigger.sees,
            Scrapes(scene.plan, out, _names()),
            scene.plan,
            seconds=seconds,
            first=least,
        )
        out.write("# EOF\n")
    minutes = requests.minutes(seconds)
    return Outcome(
        played=played,
        late_minutes=sum(minute.breach for minute in minutes),
        pages=_pages(_evaluated(samples, [ROOT / "rules"], seconds, 30.0)),
        wanted=_wanted(_evaluated(samples, [AUTOSCALING / "rules.yaml"], seconds, 15.0)),
    )


def _names() -> frozenset[str]:
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    known = {spec.name + suffix for spec in CATALOG for suffix in suffixes.get(spec.kind, ("",))}
    return metric_names(rule_files([ROOT / "rules", AUTOSCALING / "rules.yaml"]), known)


def _evaluated(samples: Path, rules: list[Path], seconds: float, interval: float) -> Evaluation:
    return evaluate(
        samples,
        rules,
        start=EPOCH,
        seconds=seconds,
        evaluation_interval=interval,
        extra_queries={"wanted": "model:headroom_replicas_wanted:sum2m"},
        workdir=samples.parent,
    )


def _pages(found: Evaluation) -> dict[str, int]:
    pages: dict[str, int] = {}
    for one in found.firings:
        if one.severity == "critical" and one.fired_at is not None:
            pages[one.alert] = pages.get(one.alert, 0) + 1
    return pages


def _wanted(found: Evaluation) -> dict[float, float]:
    return {
        at: value
        for series in found.series["wanted"]
        for at, value in zip(series.times, series.values, strict=True)
    }


def row(scene: Scene, trigger: Trigger, hours: float, outcome: Outcome) -> str:
    """One line of the table."""
    played = outcome.played
    sizes = [size for _, size in played.replicas]
    pages = ", ".join(f"{count} {name}" for name, count in sorted(outcome.pages.items())) or "none"
    return (
        f"| {scene.words} | {hours:g} h | {trigger.words} | {max(sizes)} "
        f"| {played.replica_seconds / 3600:.1f} | {played.changes} | {played.turns} "
        f"| {outcome.late_minutes} | {pages} |\n"
    )


HEAD = (
    "| fleet | swing in | trigger | most replicas | replica hours | changes | turns | minutes in which users "
    "missed the plan | pages |\n|---|---|---|---|---|---|---|---|---|\n"
)
RUNS = (
    *(("l4", trigger, 4.0) for trigger in TRIGGERS),
    ("l4-floor", "ours", 4.0),
    *(("h100", trigger, 4.0) for trigger in TRIGGERS),
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="scaling", description=(__doc__ or "").split("\n")[1])
    parser.add_argument("scenes", nargs="*", default=list(SCENES), metavar="|".join(SCENES))
    chosen = parser.parse_args(arguments).scenes
    # Engines that are not there yet do not answer, and each exporter says so.
    logging.disable(logging.ERROR)
    table = HEAD
    for name, trigger, hours in RUNS:
        if name not in chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="headroom-scaling-") as folder:
            outcome = day(SCENES[name], TRIGGERS[trigger], hours=hours, folder=Path(folder))
        line = row(SCENES[name], TRIGGERS[trigger], hours, outcome)
        print(line, end="", flush=True)
        table += line
    if set(chosen) == set(SCENES):
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(_MARKED.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
