"""Who answers for a simulated server, in the words of its dialect."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.frontend import Frontend


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status 200, always: other paths are not here."""

    content_type: str
    body: bytes


class Speaker(Protocol):
    """Answers what readers of an engine ask."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are answered."""

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """
        Answer as the engine does.

        Args:
            path: One of ``paths``.
            names: The values of ``name[]``, which not every path looks at.
        """


def speaker(frontend: Frontend, *, epoch: float, speed: float = 1.0) -> Speaker:
    """
    The speaker of a server's dialect.

    Args:
        frontend: The simulated server.
        epoch: Unix seconds of virtual time 0.
        speed: Virtual seconds per second of the clock that ``epoch`` is read from.
    """
    # Only the words that are spoken are loaded.
    module = import_module(f"headroom_exporter.simulate.dialects.{frontend.dialect.name}")
    made: Speaker = module.Speaker(frontend, epoch=epoch, speed=speed)
    return made
