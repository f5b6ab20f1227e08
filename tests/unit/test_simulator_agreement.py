"""
The simulated engine against recorded runs of a real vLLM, and the tools that record and compare.

The recordings are in tests/fixtures/simulator; docs/simulator-validation.md says what they show.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from headroom_exporter.simulate import profiles

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> Any:
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


constants = load("agreement.constants")
decisions = load("agreement.decisions")
figures = load("agreement.figures")
recorded = load("agreement.recorded")
report = load("agreement.report")
simulated = load("agreement.simulated")
validate = load("validate_simulator")

TINY = profiles.find("tiny-cpu")
FOLDER = recorded.FOLDER
NAMES = recorded.names(FOLDER)
COMPARED = sorted(set(validate.COMPARED))


@pytest.fixture(scope="module")
def calibration() -> Any:
    return report.calibrate(FOLDER)


@pytest.fixture(scope="module")
def workloads(calibration: Any) -> dict[str, Any]:
    _, front_end = calibration
    return {each.name: each for each in report.workloads(FOLDER, TINY, front_end)}


def off(compared: list[Any], limits: dict[str, float]) -> list[str]:
    """Figures whose error is above what was reached."""
    return [
        f"{each.kind}: {report.percent(each.error)}"
        for each in compared
        if abs(each.error) > limits.get(each.kind, limits["all"])
    ]
