"""What Prometheus would already know of a fleet: two weeks of recorded series, hours of scrapes."""

from __future__ import annotations

import re
import tempfile
from itertools import chain
from math import pi, sin
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TextIO

import yaml

from headroom_exporter.backtest.prometheus import promtool, write_samples
from headroom_exporter.backtest.record import SCRAPE_SECONDS
from headroom_exporter.backtest.rules import expressions
from rules_cost.blocks import multiply
from rules_cost.fleet import REPLICAS, Member
from rules_cost.pages import HISTORY_SECONDS, RATES, blank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rules_cost.pages import Engine

# An instant looks back so far; a series that no range reads needs no more.
LOOKBACK = 300.0
DAY = 86_400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_NAME = r"[a-zA-Z_][\w:]*"
_RANGE = re.compile(
    rf"({_NAME})(?:\{{[^}}]*\}})?(?:\[(\d+[smhd])(?::\w*)?\])?(?:\s+offset\s+(\d+[smhd]))?"
)
_SUBQUERY = re.compile(r"\(([^()]*)\)\[(\d+[smhd]):\w*\]")
# As Prometheus compacts with a retention of 15 days: 2 h, 6 h, 18 h and no further.
_BLOCKS = "18h"


def ranges(files: Sequence[Path]) -> dict[str, float]:
    """How far back the rules read each metric, seconds; those that they read at one instant have 0."""
    found: dict[str, float] = {}
    for expr in expressions(files):
        for name, back in chain(
            _directly(expr),
            (
                (name, back + _seconds(outer))
                for inner, outer in _SUBQUERY.findall(expr)
                for name, back in _directly(inner)
            ),
        ):
            found[name] = max(back, found.get(name, 0.0))
    return found


def _directly(expr: str) -> Iterator[tuple[str, float]]:
    for name, window, offset in _RANGE.findall(expr):
        yield name, _seconds(window) + _seconds(offset)


def _seconds(text: str) -> float:
    return float(text[:-1]) * _UNITS[text[-1]] if text else 0.0


def recorded(files: Iterable[Path]) -> dict[str, float]:
    """Recorded names and the seconds between two samples of theirs."""
    return {
        rule["record"]: _seconds(group["interval"])
        for file in files
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule
    }


def write_blocks(
    engines: Sequence[Engine],
    members: Sequence[Member],
    files: Sequence[Path],
    origin: float,
    data: Path,
) -> int:
    """
    Write the blocks of a fleet's past.

    Args:
        engines: What the kinds said, only the samples that rules read.
        members: The fleet.
        files: The rules, which say how much past they need.
        origin: Unix seconds at which the past ends.
        data: Prometheus' directory.

    Returns:
        How many series the blocks have together.
    """
    data.mkdir()
    with tempfile.TemporaryDirectory(prefix="headroom-rules-cost-") as name:
        text, small = Path(name) / "two.om", Path(name) / "data"
        with text.open("w", encoding="utf-8") as out:
            _write_scraped(out, engines, ranges(files), origin)
            _write_recorded(out, files, origin)
            out.write("# EOF\n")
        long = f"--max-block-duration={_BLOCKS}"
        promtool(
            "tsdb", "create-blocks-from", "openmetrics", "--quiet", long, str(text), str(small)
        )
        of = {kind: [one for one in members if one.kind == kind] for kind in RATES}
        models = {one.model: one for one in members}
        return sum(
            multiply(block, data, lambda labels: _copies(labels, of, models.values()))
            for block in sorted(small.iterdir())
        )


def _write_scraped(
    out: TextIO, engines: Sequence[Engine], back: Mapping[str, float], origin: float
) -> None:
    begin = origin - HISTORY_SECONDS
    for engine in engines:
        for line in engine.lines:
            if not back.get(line.name):
                continue
            labels = f"{blank(line.labels, engine.kind)},kind={engine.kind!r}".strip(",")
            head = f"{line.name}{{{labels}}}".replace("'", '"')
            first = int((HISTORY_SECONDS - back[line.name] - LOOKBACK) / SCRAPE_SECONDS)
            # What was before the recording is as it was at its beginning.
            longer = {scrape: line.values[0] for scrape in range(first, 0) if 0 in line.values}
            out.writelines(
                f"{head} {value} {begin + scrape * SCRAPE_SECONDS:.3f}\n"
                for scrape, value in (longer | line.values).items()
                if first <= scrape < HISTORY_SECONDS / SCRAPE_SECONDS
            )


def _write_recorded(out: TextIO, files: Sequence[Path], origin: float) -> None:
    back = ranges(files)
    for name, interval in recorded(files).items():
        if not back.get(name):
            continue
        count = int((back[name] + LOOKBACK) / interval)
        times = [origin - (count - index) * interval for index in range(count)]
        for kind in RATES:
            labels = {"engine": "\x00", "model_name": "\x01", "kind": kind}
            if name.startswith("rank:"):
                labels["rank"] = "0"
            if name.startswith("model:"):
                labels = {"model_name": "\x01", "kind": "model"}
            samples = zip(times, _values(name, kind, times), strict=True)
            write_samples(out, name, tuple(labels.items()), 0.0, samples)
            if name.startswith("model:"):
                break


def _values(name: str, kind: str, times: Sequence[float]) -> Iterator[float]:
    """Day and night, and noise in every digit, as rates have; shares of bad time are 0 while all is well."""
    rng = Random(f"{name} {kind}")  # noqa: S311 - noise
    bad = "exhausted" in name or "low" in name
    level = _level(name, kind)
    for at in times:
        wave = 0.0 if bad else 0.4 * sin(2 * pi * at / DAY)
        yield level * (1 + wave + rng.uniform(-0.05, 0.05))


def _level(name: str, kind: str) -> float:
    """About what the played engines have."""
    calm = {"exhausted": 0.0, "low": 0.0, "spike": 4.0, "demand": 8.0, "": 0.4}
    full = {"exhausted": 0.9, "low": 0.9, "spike": 0.3, "demand": 60.0, "": 2.0}
    levels = full if kind == "full" else calm
    level = next(each for word, each in levels.items() if word in name)
    return level * REPLICAS if name.startswith("model:") else level


def _copies(
    labels: Mapping[str, str], of: Mapping[str, Sequence[Member]], models: Iterable[Member]
) -> Iterator[Mapping[str, str]]:
    """The labels of a series of the two, for everyone of its kind."""
    own = {key: text for key, text in labels.items() if key != "kind"}
    if labels["kind"] == "model":
        for one in models:
            yield own | {"model_name": one.model, "namespace": one.namespace}
        return
    for one in of[labels["kind"]]:
        named = own | one.target
        if "engine" in own:
            named["engine"] = one.engine
        if "model_name" in own:
            named["model_name"] = one.model
        yield named


def reads(files: Sequence[Path], rule: str) -> tuple[tuple[str, str, float], ...]:
    """
    What rules of one name read over ranges.

    Args:
        files: The rules.
        rule: Recorded name or alert.

    Returns:
        Metric, window as written, and samples of one of its series; the longest of each metric first.
    """
    intervals = recorded(files)
    found = {
        (metric, window, _seconds(window) / intervals.get(metric, SCRAPE_SECONDS))
        for file in files
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for one in group["rules"]
        if rule in (one.get("alert"), one.get("record"))
        for metric, window in _windows(one["expr"])
    }
    return tuple(sorted(found, key=lambda each: (-each[2], each[0])))


def _windows(expr: str) -> Iterator[tuple[str, str]]:
    for name, window, _offset in _RANGE.findall(expr):
        if window:
            yield name, window
    for inner, outer in _SUBQUERY.findall(expr):
        for name, _ in _directly(inner):
            if "headroom" in name:
                yield name, outer
