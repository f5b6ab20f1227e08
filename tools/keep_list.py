"""
Which series must leave an edge: the names that rules, autoscaling and boards read.

    python tools/keep_list.py [--check | --print LIST]

Writes the ``regex`` of every relabelling in deploy/prometheus/agent.yml and edge.yml that stands below a line
``# keep: NAME``. ``--check`` writes nothing and exits 1 where a file is not what would be written;
``--print`` gives one list as a regular expression.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "exporter"))

from headroom_exporter.backtest.rules import expressions, names_in, rule_files  # noqa: E402 - after the path
from headroom_exporter.catalog import CATALOG, Kind  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = (ROOT / "deploy/prometheus/agent.yml", ROOT / "deploy/prometheus/edge.yml")
AUTOSCALING = ROOT / "deploy" / "autoscaling" / "rules.yaml"
BOARDS = ROOT / "grafana" / "dashboards"
# Prometheus' own: of the scrape, and of what the rules fired.
OF_PROMETHEUS = frozenset({"up", "ALERTS", "ALERTS_FOR_STATE"})
_SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BLOCK = re.compile(r'(?P<head>^ *# keep: (?P<list>\w+)\n *- regex: ")[^"]*(?=")', re.MULTILINE)


def exposed() -> frozenset[str]:
    """Sample names of an exporter's page, and ``up``."""
    names = {spec.name + suffix for spec in CATALOG for suffix in _SUFFIXES.get(spec.kind, ("",))}
    return frozenset(names) | {"up"}


def recorded() -> frozenset[str]:
    """Names that the shipped rules record, those for autoscalers too."""
    text = "".join(file.read_text(encoding="utf-8") for file in _rules())
    return frozenset(re.findall(r"^\s*-?\s*record: (\S+)$", text, flags=re.MULTILINE))


def read_by_rules() -> frozenset[str]:
    """What of the exporters' pages the rules read."""
    return frozenset[str]().union(
        *(names_in(_STRING.sub("", each), exposed()) for each in expressions(_rules()))
    )


def read_by_boards() -> frozenset[str]:
    """What the boards read: of the pages, recorded, or Prometheus' own."""
    known = exposed() | recorded() | OF_PROMETHEUS
    texts = (
        text
        for file in sorted(BOARDS.glob("*.json"))
        for text in _queries(json.loads(file.read_text(encoding="utf-8")))
    )
    return frozenset[str]().union(*(names_in(_STRING.sub("", text), known) for text in texts))


def lists() -> dict[str, frozenset[str]]:
    """
    Names by list.

    For whoever evaluates the rules where the data goes: ``raw``, of the pages what rules and boards read;
    ``rules``, the least that they need. For whoever evaluates them at the edge: ``looked_at``, what is
    recorded, alerts, and what boards read besides; ``recorded`` without the last.
    """
    boards, own = read_by_boards(), recorded() | OF_PROMETHEUS
    return {
        "raw": read_by_rules() | boards & exposed(),
        "rules": read_by_rules(),
        "looked_at": boards | own,
        "recorded": own,
    }


def pattern(names: frozenset[str]) -> str:
    """A list as one regular expression; relabelling anchors it."""
    return "|".join(sorted(names))


def written(text: str) -> str:
    """A configuration with its lists as they must be."""
    names = lists()

    def block(found: re.Match[str]) -> str:
        # An escaped end of line is none: the lines are one regular expression.
        indent = " " * 12
        lines = [f"{indent}{name}" for name in sorted(names[found["list"]])]
        return found["head"] + "\\\n" + "|\\\n".join(lines) + "\\\n" + indent

    return _BLOCK.sub(block, text)


def _rules() -> tuple[Path, ...]:
    return (*rule_files([ROOT / "rules"]), AUTOSCALING)


def _queries(node: Any) -> Iterator[str]:
    """Every PromQL and every ``label_values`` in a board."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "query", "definition"} and isinstance(value, str):
                yield value
            else:
                yield from _queries(value)
    elif isinstance(node, list):
        for each in node:
            yield from _queries(each)


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="keep_list", description=(__doc__ or "").split("\n")[1])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", choices=lists(), dest="printed")
    chosen = parser.parse_args(arguments)
    if chosen.printed:
        print(pattern(lists()[chosen.printed]))
        return 0
    stale = 0
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        made = written(text)
        if made == text:
            continue
        stale += 1
        if chosen.check:
            print(f"{file}: out of date; run python tools/keep_list.py")
        else:
            file.write_text(made, encoding="utf-8")
    return int(chosen.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
