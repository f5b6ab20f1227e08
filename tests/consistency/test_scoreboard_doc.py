"""docs/backtest.md was made from the rules that are shipped."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from scoreboard import report  # noqa: E402 - after the path
from scoreboard.scenarios import SCENARIOS  # noqa: E402

DOC = (ROOT / "docs" / "backtest.md").read_text()


def test_it_speaks_of_the_rules_as_they_are():
    assert f"rules: {report.rules_digest()} -->" in DOC, "run make backtest"


def test_it_has_every_scenario():
    rows = {line.split("|")[1].strip() for line in DOC.splitlines() if line.startswith("| ")}
    assert {each.name for each in SCENARIOS} <= rows
