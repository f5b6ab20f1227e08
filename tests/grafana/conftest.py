"""The boards' package on the path, their files, and one Prometheus for all queries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "grafana"))

from headroom_boards import engine, fleet, plan  # noqa: E402 - after the path
from headroom_boards.trial import trial as run_trial  # noqa: E402


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def boards():
    return {board.uid: board for board in (fleet.board(), plan.board(), engine.board())}


@pytest.fixture(scope="session")
def documents():
    """The committed files, as Grafana gets them."""
    found = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


@pytest.fixture(scope="session")
def trial(tmp_path_factory):
    """An hour and a half of simulated traffic in a real Prometheus."""
    with run_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served
