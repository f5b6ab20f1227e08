"""
Measure the shipped rules on a real Prometheus and write docs/rules-cost.md.

    python tools/rules_cost [--engines 1000] [--once 1000 10000] [--rules DIR] [--page FILE]
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from headroom_exporter.backtest.prometheus import check_rules  # noqa: E402 - after the path
from headroom_exporter.backtest.rules import metric_names, rule_files  # noqa: E402
from headroom_exporter.errors import HeadroomError  # noqa: E402
from rules_cost.measure import Figures, measure  # noqa: E402
from rules_cost.once import once  # noqa: E402
from rules_cost.pages import HISTORY_SECONDS, played  # noqa: E402
from rules_cost.report import Counts, page  # noqa: E402

_SCRAPE = round(HISTORY_SECONDS / 15.0)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where something that is needed is missing or fails."""
    parser = argparse.ArgumentParser(prog="rules_cost", description=(__doc__ or "").split("\n")[1])
    parser.add_argument("--engines", type=int, nargs="+", default=[1_000], help="live")
    parser.add_argument("--once", type=int, nargs="+", default=[1_000, 10_000], help="rule by rule")
    parser.add_argument("--rules", type=Path, default=ROOT / "rules")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "rules-cost.md")
    parser.add_argument("--figures", type=Path, default=ROOT / ".cache" / "rules-cost.pickle")
    parser.add_argument("--again", action="store_true", help="only write the page of --figures")
    chosen = parser.parse_args(arguments)
    try:
        files = rule_files([chosen.rules])
        check_rules(files)
        if not chosen.again:
            _measured(files, sorted(chosen.engines), sorted(chosen.once), chosen.figures)
        counts, figures, failures, asked = pickle.loads(chosen.figures.read_bytes())  # noqa: S301 - our own
        for failure in failures:
            print(f"rules_cost: {failure}", file=sys.stderr)
        if not figures:
            return 1
        chosen.page.write_text(page(counts, figures, failures, files, asked), encoding="utf-8")
    except HeadroomError as error:
        print(f"rules_cost: {error}", file=sys.stderr)
        return 1
    return int(bool(failures))


def _measured(
    files: tuple[Path, ...], sizes: list[int], asked_sizes: list[int], kept: Path
) -> None:
    """Measure one size after the other; one that fails does not take the others with it."""
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headroom-rules-cost-") as name:
        engines = played(Path(name))
        known = {line.name for engine in engines for line in engine.lines} | {"up"}
        read = metric_names(files, known)
        calm = engines[0]
        counts = Counts(page=calm.series_at(_SCRAPE), read=calm.only(read).series_at(_SCRAPE))
        figures: list[Figures] = []
        failures: list[str] = []
        for size in sizes:
            folder = Path(name) / f"{size}"
            folder.mkdir()
            try:
                figures.append(measure([one.only(read) for one in engines], size, files, folder))
            except HeadroomError as error:
                failures.append(f"{size:,} engines: {error}")
            shutil.rmtree(folder)
        asked = once([one.only(read) for one in engines], asked_sizes, files, Path(name))
        kept.write_bytes(pickle.dumps((counts, figures, failures, asked)))


if __name__ == "__main__":
    sys.exit(main())
