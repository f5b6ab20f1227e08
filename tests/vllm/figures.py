"""What the tests measured, for people and for docs: lines and, where wanted, a JSON file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FIGURES_VARIABLE = "HEADROOM_FIGURES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """
    One measured number.

    Attributes:
        test: Name of the test that measured it.
        name: What it is.
        value: Number, or text where it is no number.
        unit: Base unit; empty for text and counts.
        expected: What it was held against, in words.
    """

    test: str
    name: str
    value: float | str
    unit: str
    expected: str

    def line(self) -> str:
        """``FIGURE test: name = value unit (expected)``."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.6g}"
        unit = f" {self.unit}" if self.unit else ""
        expected = f" ({self.expected})" if self.expected else ""
        return f"FIGURE {self.test}: {self.name} = {value}{unit}{expected}"


def write(figures: list[Figure]) -> None:
    """Write them to the file named by HEADROOM_FIGURES, if it is set."""
    target = os.environ.get(FIGURES_VARIABLE)
    if target:
        text = json.dumps([asdict(figure) for figure in figures], indent=1)
        Path(target).write_text(text + "\n", encoding="utf-8")
