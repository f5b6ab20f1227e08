"""What the requests of the last 15 minutes were like: histograms and counts, a reading a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.derive.histograms import subtract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.samples import Histogram, RankSample

# Those that a plan has limits for.
FIELDS = (
    "request_prompt_tokens",
    "request_output_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
)
# A reading is a few kilobytes, and a window of 15 minutes needs no sharper edge than this.
STEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    Cumulative figures at one moment.

    Attributes:
        at: Monotonic seconds.
        arrived: Requests that ever came: finished, rejected, running or waiting; None where not told.
        histograms: By field, those of FIELDS that the engine has.
    """

    at: float
    arrived: float | None
    histograms: dict[str, Histogram]


class Recent:
    """
    Requests of the last ``window`` seconds, or since the engine started, or since we did.

    Args:
        window: Seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._readings: list[Reading] = []
        self._newest: Reading | None = None
        self._taken: Mapping[str, Histogram] | None = None

    def add(self, at: float, sample: RankSample) -> None:
        """Take in one sample; histograms come with the full page and are kept by those between."""
        if sample.histograms is self._taken:
            return
        newest, self._taken = self._newest, sample.histograms
        histograms = {
            field: sample.histograms[field] for field in FIELDS if field in sample.histograms
        }
        reading = Reading(at=at, arrived=_arrived(sample), histograms=histograms)
        if newest is not None and _restarted(newest, reading):
            self._readings.clear()
        self._newest = reading
        if not self._readings or at - self._readings[-1].at >= STEP_SECONDS:
            self._readings.append(reading)
        while len(self._readings) > 1 and self._readings[1].at <= at - self._window:
            del self._readings[0]

    @property
    def seconds(self) -> float:
        """How long a time the figures are of; 0 while there is only one reading."""
        newest = self._newest
        return newest.at - self._readings[0].at if newest is not None and self._readings else 0.0

    def histogram(self, field: str) -> Histogram | None:
        """What was observed within the window; None where nothing can be said."""
        newest = self._newest
        if newest is None or not self._readings or newest is self._readings[0]:
            return None
        after, before = newest.histograms.get(field), self._readings[0].histograms.get(field)
        return None if after is None or before is None else subtract(after, before)

    def request_rate(self) -> float | None:
        """Requests that came per second; None where not told."""
        newest = self._newest
        if newest is None or not self._readings or self.seconds <= 0:
            return None
        before = self._readings[0].arrived
        if newest.arrived is None or before is None:
            return None
        return max(0.0, newest.arrived - before) / self.seconds


def _arrived(sample: RankSample) -> float | None:
    if sample.running is None or sample.waiting is None or not sample.finished:
        return None
    inside = sample.running + sample.waiting + (sample.deferred or 0.0)
    return sum(sample.finished.values()) + sum(sample.rejected.values()) + inside


def _restarted(before: Reading, after: Reading) -> bool:
    """Whether a counter went back, or the bounds changed: another process of the engine."""
    return any(
        field not in after.histograms or subtract(after.histograms[field], earlier) is None
        for field, earlier in before.histograms.items()
    )
