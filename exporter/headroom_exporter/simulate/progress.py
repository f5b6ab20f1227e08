"""How far a long run is, and how much is left."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_CELLS = 24


def span(seconds: float) -> str:
    """A duration for people: ``59 s``, ``12:05``, ``3:00:00``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(done: float, total: float, left: float | None, words: str = "") -> str:
    """
    Draw one line.

    Args:
        done: Simulated seconds so far.
        total: Simulated seconds in all.
        left: Real seconds that are left; None while nobody knows.
        words: What else is to be said.
    """
    share = min(1.0, done / total) if total > 0 else 1.0
    filled = int(share * _CELLS)
    parts = [
        f"[{'#' * filled}{'.' * (_CELLS - filled)}] {share:4.0%}",
        f"{span(min(done, total))} of {span(total)}",
        "" if left is None else f"{span(left)} left",
        words,
    ]
    return "   ".join(part for part in parts if part)


class Progress:
    """
    A bar on a terminal that is drawn over itself; nothing where there is no terminal.

    Args:
        stream: Usually standard error.
        total: Simulated seconds in all.
    """

    def __init__(self, stream: TextIO, total: float) -> None:
        self.shown = stream.isatty()
        self._stream = stream
        self._total = total
        self._drawn = False

    def draw(self, done: float, left: float | None, words: str = "") -> None:
        """Draw it as it is now."""
        if self.shown:
            width = shutil.get_terminal_size().columns - 1
            line = bar(done, self._total, left, words)[:width]
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take it away, so that other lines can be written."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
