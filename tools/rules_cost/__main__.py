"""
Measure the shipped rules on a real Prometheus and write docs/rules-cost.md.

    PYTHONPATH=tools python -m rules_cost [--engines 1000 10000] [--rules DIR] [--page FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from headroom_exporter.backtest.prometheus import check_rules
from headroom_exporter.backtest.rules import metric_names, rule_files
from headroom_exporter.errors import HeadroomError
from rules_cost.measure import measure
from rules_cost.pages import HISTORY_SECONDS, played
from rules_cost.report import Counts, page

ROOT = Path(__file__).resolve().parents[2]
_SCRAPE = round(HISTORY_SECONDS / 15.0)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where something that is needed is missing or fails."""
    parser = argparse.ArgumentParser(prog="rules_cost", description=__doc__.split("\n")[1])
    parser.add_argument("--engines", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rules", type=Path, default=ROOT / "rules")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "rules-cost.md")
    chosen = parser.parse_args(arguments)
    try:
        files = rule_files([chosen.rules])
        check_rules(files)
        chosen.page.write_text(_measured(files, sorted(chosen.engines)), encoding="utf-8")
    except HeadroomError as error:
        print(f"rules_cost: {error}", file=sys.stderr)
        return 1
    return 0


def _measured(files: tuple[Path, ...], sizes: list[int]) -> str:
    with tempfile.TemporaryDirectory(prefix="headroom-rules-cost-") as name:
        engines = played(Path(name))
        known = {line.name for engine in engines for line in engine.lines} | {"up"}
        read = metric_names(files, known)
        calm = engines[0]
        counts = Counts(
            page=calm.series_at(_SCRAPE),
            read=calm.only(read).series_at(_SCRAPE),
        )
        figures = []
        for size in sizes:
            folder = Path(name) / f"{size}"
            folder.mkdir()
            figures.append(measure([one.only(read) for one in engines], size, files, folder))
    return page(counts, figures)


if __name__ == "__main__":
    sys.exit(main())
