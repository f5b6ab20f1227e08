"""
The shipped files with time compressed: every duration divided by one number, nothing else touched.

A rule with a window of five minutes that must hold for one and is kept for fifteen says the same of a
world that is thirty times faster. Prometheus cannot be made to live in one; its files can.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Keys of Prometheus' and Alertmanager's files whose values are durations.
DURATION_KEYS = frozenset(
    {
        *("for", "keep_firing_for", "interval"),
        *("scrape_interval", "evaluation_interval"),
        *("group_wait", "group_interval", "repeat_interval"),
    }
)
# A duration in PromQL stands in brackets (a range, or range and step of a subquery) or after "offset".
_PROMQL_DURATION = re.compile(r"(?<=\[)[^\][]+(?=\])|(?<=\boffset )\s*[0-9a-z]+")
_ONE = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
_PART = re.compile(r"(\d+)(ms|[smhdwy])")
_MILLISECONDS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}


def milliseconds(duration: str) -> int:
    """A duration as Prometheus writes it: ``1h30m`` is 5400000."""
    if not _ONE.fullmatch(duration):
        raise ValueError(f"{duration!r}: no duration")
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in _PART.findall(duration))


def shorter(duration: str, factor: int) -> str:
    """
    The duration divided, in whole milliseconds.

    Raises:
        ValueError: milliseconds cannot express it, or it is none.
    """
    quotient, rest = divmod(milliseconds(duration), factor)
    if rest:
        raise ValueError(f"{duration}: not a multiple of {factor} ms")
    return f"{quotient}ms"


def expression(promql: str, factor: int) -> str:
    """A PromQL expression with every range, subquery step and offset divided."""

    def shortened(found: re.Match[str]) -> str:
        return _ONE.sub(lambda one: shorter(one[0], factor), found[0])

    return _PROMQL_DURATION.sub(shortened, promql)


def document(node: Any, factor: int) -> Any:
    """A parsed file with every duration divided: those under DURATION_KEYS and those in ``expr``."""
    if isinstance(node, list):
        return [document(each, factor) for each in node]
    if not isinstance(node, dict):
        return node
    made = {}
    for key, value in node.items():
        if key in DURATION_KEYS:
            made[key] = shorter(value, factor)
        elif key == "expr":
            made[key] = expression(value, factor)
        else:
            made[key] = document(value, factor)
    return made


def compress_file(source: Path, target: Path, factor: int) -> None:
    """Write a shipped file anew with its durations divided."""
    made = document(yaml.safe_load(source.read_text(encoding="utf-8")), factor)
    target.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    target.write_text(json.dumps(made, indent=1), encoding="utf-8")


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a parsed file with the keys that lead to it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from leaves(value, (*path, number))
    else:
        yield path, node
