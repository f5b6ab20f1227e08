"""How long prompts and outputs of made-up traffic are."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from random import Random

# Of the standard normal distribution.
_Z95 = 1.6448536269514722


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthDistribution:
    """
    Lognormal token counts given by two quantiles, cut to 1 .. ``largest``.

    Raises:
        ConfigError: p95 below p50, or below one token.
    """

    p50: float
    p95: float
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.p50 <= self.p95 or self.largest < 1:
            raise ConfigError(
                f"lengths p50 {self.p50}, p95 {self.p95}, largest {self.largest}: "
                "must be 1 <= p50 <= p95 and largest at least 1"
            )

    def draw(self, rng: Random) -> int:
        """Return one length in tokens."""
        spread = log(self.p95 / self.p50) / _Z95
        return max(1, min(self.largest, round(self.p50 * exp(rng.gauss(0.0, spread)))))
