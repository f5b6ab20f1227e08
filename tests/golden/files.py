"""Golden files: committed text that is compared, or written with ``pytest --update-golden``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SHOWN_LINES = 80


@dataclass(frozen=True, slots=True)
class Golden:
    """Compares text with a committed file; writes the file where ``update``."""

    update: bool

    def check(self, path: Path, text: str) -> None:
        """Fail with a diff where ``text`` is not what ``path`` holds."""
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} is missing; write it with: make golden", pytrace=False)
        wanted = path.read_text(encoding="utf-8")
        if wanted == text:
            return
        diff = list(
            difflib.unified_diff(
                wanted.splitlines(), text.splitlines(), f"{path.name} (golden)", "now", lineterm=""
            )
        )
        left = len(diff) - SHOWN_LINES
        more = [f"… {left} more lines"] if left > 0 else []
        pytest.fail("\n".join([*diff[:SHOWN_LINES], *more]), pytrace=False)
