"""Metric names in PromQL: one that nobody exports or records does not get onto a board."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from headroom_exporter.catalog import BY_NAME, CATALOG, Kind
from headroom_exporter.errors import HeadroomError

RULES = Path(__file__).resolve().parents[2] / "rules"
# Of Prometheus itself.
OTHERS = frozenset({"ALERTS"})
# Labels of a target, which every scraped series has; namespace and cluster only where the scrape adds them.
TARGET = ("job", "instance", "namespace")
_SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# What stands before a brace or a range is a metric, whatever it is called.
_SELECTED = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*[{\[]")


@cache
def recorded() -> frozenset[str]:
    """Names that the shipped rules record."""
    text = "".join(path.read_text("utf-8") for path in sorted(RULES.glob("recording/*.yaml")))
    return frozenset(re.findall(r"^\s*-?\s*record: (\S+)$", text, flags=re.MULTILINE))


@cache
def exposed() -> frozenset[str]:
    """Sample names of the catalog."""
    return frozenset(
        spec.name + suffix for spec in CATALOG for suffix in _SUFFIXES.get(spec.kind, ("",))
    )


def check(expr: str) -> str:
    """
    Pass an expression whose metrics are all known.

    Raises:
        HeadroomError: one is neither in the catalog nor recorded by rules/recording.
    """
    bare = _STRING.sub('""', expr)
    found = {word for word in _WORD.findall(bare) if word.startswith("headroom_") or ":" in word}
    unknown = sorted((found | set(_SELECTED.findall(bare))) - exposed() - recorded() - OTHERS)
    if unknown:
        raise HeadroomError(
            f"{expr.strip()}: {', '.join(unknown)}: allowed: names of catalog.py, with _bucket, _count or"
            " _sum for a histogram, and records of rules/recording/*.yaml"
        )
    return expr


def labels_of(name: str) -> tuple[str, ...]:
    """
    The labels by which a board may choose among a metric's series.

    Raises:
        HeadroomError: there is no such metric.
    """
    check(f"{name}{{}}")
    level, colon, _ = name.partition(":")
    if colon:
        return _RECORDED[level]
    base = name if name in BY_NAME else name.rpartition("_")[0]
    return (*TARGET, *BY_NAME[base].labels)


_RECORDED = {
    "rank": (*TARGET, "engine", "rank", "model_name"),
    "engine": (*TARGET, "engine", "model_name"),
    "model": ("namespace", "model_name"),
}


@cache
def limit_in_alert(alert: str, after: str) -> float:
    """
    A number that an alert compares with, so that a board need not repeat it.

    Args:
        alert: Its name.
        after: What stands before the number in its expression.

    Raises:
        HeadroomError: no such alert, or not that text once in it.
    """
    for file in sorted(RULES.glob("alerts/*.yaml")):
        _, found, rest = file.read_text("utf-8").partition(f"alert: {alert}\n")
        if found:
            numbers = re.findall(re.escape(after) + r" ([0-9.e]+)", rest.split("for:", 1)[0])
            if len(numbers) == 1:
                return float(numbers[0])
            raise HeadroomError(
                f"{file}: {alert}: {after!r} stands {len(numbers)} times: must stand once"
            )
    raise HeadroomError(f"{alert}: allowed: an alert of rules/alerts/*.yaml")
