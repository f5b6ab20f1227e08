"""
Every rule once, by itself: how an evaluation grows with the fleet.

Ten thousand engines do not run live on a small machine. So the past alone is loaded, and each rule's
expression is asked for at its end, one after the other, nobody else asking; the quicker of two answers
counts, so the page cache is warm, as it is in a Prometheus that evaluates all the time.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from headroom_exporter.backtest.prometheus import serve
from rules_cost.fleet import fleet
from rules_cost.history import write_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rules_cost.pages import Engine

# The last scrape of the past lies this long before its end, at most.
_BEFORE_END = 60.0
_ASKED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    One rule, asked for once at each size.

    Attributes:
        group: Its group.
        interval: Seconds between evaluations of the group.
        name: Of the alert or the recorded series.
        seconds: By size of the fleet.
    """

    group: str
    interval: float
    name: str
    seconds: dict[int, float]


def once(
    engines: Sequence[Engine], sizes: Sequence[int], files: Sequence[Path], folder: Path
) -> tuple[tuple[Asked, ...], float]:
    """
    Ask for every rule, at every size.

    Returns:
        The rules in the order of the files, and the mean load average meanwhile.

    Raises:
        HeadroomError: Prometheus is missing or refuses something.
    """
    rules = [
        Asked(group=group, interval=interval, name=name, seconds={})
        for group, interval, name, _ in _rules(files)
    ]
    loads = []
    for size in sizes:
        place = folder / f"once-{size}"
        place.mkdir()
        origin = time.time() // 60.0 * 60.0
        write_blocks(engines, fleet(size), files, origin, place / "data")
        with serve(
            place, origin=origin - _BEFORE_END, evaluation_interval=60.0, lookback=300.0
        ) as prometheus:
            for rule, (_, _, _, expr) in zip(rules, _rules(files), strict=True):
                took = []
                for _ in range(_ASKED):
                    began = time.monotonic()
                    # Counted, so that what is measured is not the answer's way through HTTP.
                    prometheus.query_range(f"count(({expr}))", seconds=1.0, step=60.0)
                    took.append(time.monotonic() - began)
                rule.seconds[size] = min(took)
                loads.append(os.getloadavg()[0])
        print(f"{size:,} engines: every rule asked for", flush=True)
    return tuple(rules), sum(loads) / len(loads)


def _rules(files: Sequence[Path]) -> Iterator[tuple[str, float, str, str]]:
    for file in files:
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            text = str(group["interval"])
            interval = float(text[:-1]) * {"s": 1.0, "m": 60.0}[text[-1]]
            for rule in group["rules"]:
                yield group["name"], interval, rule.get("alert") or rule["record"], rule["expr"]


def section(rules: Sequence[Asked], load: float) -> Iterator[str]:
    """The part of the page."""
    sizes = sorted(rules[0].seconds)
    small, large = sizes[0], sizes[-1]
    yield "\n## From 1,000 to 10,000 engines\n"
    yield (
        "Every expression by itself, at the end of the same past, on a Prometheus that does nothing\n"
        f"else: the quicker of two answers, load average {load:.1f}. Growth 10 would be linear. Where the\n"
        "share of its interval nears 1 on your machine, split the fleet: see below.\n"
    )
    heads = " | ".join(f"{size:,} engines" for size in sizes)
    yield f"| group | rules | every | {heads} | growth | of its interval at {large:,} |"
    yield f"|---|---|---|{'---|' * len(sizes)}---|---|"
    for group in dict.fromkeys(rule.group for rule in rules):
        own = [rule for rule in rules if rule.group == group]
        sums = {size: sum(rule.seconds[size] for rule in own) for size in sizes}
        cells = " | ".join(f"{sums[size]:.2f} s" for size in sizes)
        yield (
            f"| {group} | {len(own)} | {own[0].interval:.0f} s | {cells} | "
            f"{sums[large] / sums[small]:.1f} | {sums[large] / own[0].interval:.0%} |"
        )
    yield f"\nThe dearest at {large:,}:\n"
    yield f"| rule | {heads} | growth |"
    yield f"|---|{'---|' * len(sizes)}---|"
    for rule in sorted(rules, key=lambda each: -each.seconds[large] / each.interval)[:5]:
        cells = " | ".join(f"{rule.seconds[size]:.2f} s" for size in sizes)
        growth = rule.seconds[large] / rule.seconds[small]
        yield f"| `{rule.name}` | {cells} | {growth:.1f} |"
    yield ""
