"""
Play every scenario, score every detector, write docs/backtest.md: ``make backtest``.

Recordings are kept in .cache/backtest and made anew when the code or the scenario changes; the rules are
evaluated each time.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from scoreboard import report, tally
from scoreboard.baselines import BASELINES
from scoreboard.judge import judge
from scoreboard.scenarios import SCENARIOS, TUNE
from scoreboard.stage import ROOT

if TYPE_CHECKING:
    from scoreboard.judge import Outcome
    from scoreboard.scenarios import Scenario

DOC = ROOT / "docs" / "backtest.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="Score the alert rules and everyone else's.")
    parser.add_argument("--only", nargs="*", metavar="SCENARIO", help="these alone; writes nothing")
    arguments = parser.parse_args()
    # A simulated engine that restarts is no news.
    logging.getLogger("headroom_exporter").setLevel(logging.CRITICAL)
    names = {each.name for each in SCENARIOS}
    unknown = set(arguments.only or ()) - names
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: must be among {', '.join(sorted(names))}")
    chosen = [each for each in SCENARIOS if not arguments.only or each.name in arguments.only]
    began = time.monotonic()
    outcomes = _outcomes(chosen)
    if arguments.only:
        return 0
    DOC.write_text(_document(outcomes, time.monotonic() - began))
    print(f"{DOC.relative_to(ROOT)} written")
    return 0


def _outcomes(chosen: list[Scenario]) -> dict[str, Outcome]:
    """Longest first, so that both processors end together."""
    found = {}
    longest = sorted(chosen, key=lambda each: -each.seconds * len(each.servers))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for scenario, outcome in zip(longest, pool.map(judge, longest), strict=True):
            found[scenario.name] = outcome
            print(report.line(scenario, outcome), flush=True)
    return found


def _document(outcomes: dict[str, Outcome], seconds: float) -> str:
    ours_tune = tally.ours(SCENARIOS, outcomes, TUNE)
    allowed = ours_tune.false_calm + ours_tune.false_other
    rows = []
    for baseline in BASELINES:
        published = tally.published(baseline, SCENARIOS, outcomes)
        threshold = tally.tuned(baseline, SCENARIOS, outcomes, allowed)
        tuned = (
            None if threshold is None else tally.published(baseline, SCENARIOS, outcomes, threshold)
        )
        rows.append((baseline, published, threshold, tuned))
        print(f"{baseline.id} scored", flush=True)
    return report.document(SCENARIOS, outcomes, rows, seconds)


if __name__ == "__main__":
    sys.exit(main())
