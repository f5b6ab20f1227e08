"""What happens to a simulated server from outside, and when."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from headroom_exporter.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Event:
    """
    Something an operator does, or the GPU.

    Attributes:
        at: Virtual seconds.
        action: ``restart``, ``sleep``, ``wake`` or ``slow``.
        level: Of sleep: 0, 1 or 2.
        factor: Of slow: how many times as long each step takes from then on as the profile says;
            1 ends it.

    Raises:
        ConfigError: a factor with which time would stand still or run back.
    """

    at: float
    action: str
    level: int = 1
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < inf:
            raise ConfigError(
                f"event {self.action} at {self.at:g}: factor {self.factor:g}: must be above 0 and finite"
            )


def parse_event(text: str) -> Event:
    """
    Understand ``restart@600``, ``sleep@600``, ``sleep:2@600``, ``wake@900`` or ``slow:1.5@600``.

    Raises:
        ConfigError: it is none of them.
    """
    what, _, moment = text.partition("@")
    action, colon, value = what.partition(":")
    try:
        event = _event(float(moment), action, value if colon else None)
    except (ValueError, ConfigError):
        event = None
    if event is None or not 0 <= event.at < inf:
        raise ConfigError(
            f"event {text!r}: must be restart@SECONDS, sleep@SECONDS, sleep:LEVEL@SECONDS (level 0, "
            "1 or 2), wake@SECONDS or slow:FACTOR@SECONDS (factor above 0; 1 ends it)"
        )
    return event


def _event(at: float, action: str, value: str | None) -> Event | None:
    """The event, where action and value go together; ValueError or ConfigError for a bad number."""
    if action in ("restart", "sleep", "wake") and value is None:
        return Event(at=at, action=action)
    if action == "sleep" and value in ("0", "1", "2"):
        return Event(at=at, action=action, level=int(value))
    if action == "slow" and value is not None:
        return Event(at=at, action=action, factor=float(value))
    return None
