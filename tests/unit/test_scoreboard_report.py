"""What the scoreboard's page claims."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from scoreboard import report
from scoreboard.tally import Row


def row(lead, caught):
    return Row(
        caught=caught,
        sustained=55,
        ramp_leads=(lead,),
        sudden_leads=(),
        false_calm=0,
        false_other=0,
        calm_weeks=1.0,
        flaps=0,
        pages=0,
        named=0,
        nameable=0,
    )


def baselines(*leads):
    return [(SimpleNamespace(id=f"B{i}"), None, 0.0, row(lead, 37)) for i, lead in enumerate(leads)]


def test_a_baseline_that_leads_by_more_is_named_though_it_catches_less():
    told = report._ahead(row(330.0, 55), baselines(630.0, 60.0))
    assert told == "of 1 of 2; not of B0 (lead 10:30, but 37 of 55 caught)"


def test_as_much_lead_is_not_behind():
    assert len(report._not_behind(row(330.0, 55), baselines(330.0, 329.0))) == 1


def test_no_page_is_behind():
    assert report._ahead(row(330.0, 55), baselines(None, 60.0)) == "of all 2"
