"""What an operator does to a simulated server, and when."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from headroom_exporter.errors import ConfigError

ACTIONS = ("restart", "sleep", "wake")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Event:
    """
    Something an operator does.

    Attributes:
        at: Virtual seconds.
        action: ``restart``, ``sleep`` or ``wake``.
        level: Of sleep: 0, 1 or 2.
    """

    at: float
    action: str
    level: int = 1


def parse_event(text: str) -> Event:
    """
    Understand ``restart@600``, ``sleep@600``, ``sleep:2@600`` or ``wake@900``.

    Raises:
        ConfigError: it is none of them.
    """
    action, _, moment = text.partition("@")
    action, _, level = action.partition(":")
    try:
        event = Event(at=float(moment), action=action, level=int(level or 1))
    except ValueError:
        event = Event(at=-1.0, action=action)
    levels = (0, 1, 2) if action == "sleep" else (1,)
    if action not in ACTIONS or not 0 <= event.at < inf or event.level not in levels:
        raise ConfigError(
            f"event {text!r}: must be restart@SECONDS, sleep@SECONDS, sleep:LEVEL@SECONDS (level 0, "
            "1 or 2) or wake@SECONDS"
        )
    return event
