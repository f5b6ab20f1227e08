"""
Made-up traffic with a seed: Poisson, bursty, ramp, spike, diurnal, drifting lengths.

``synthetic:ramp?rate=1&rate_end=6&duration=600`` says all of it; ``KINDS`` lists what may be set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import cos, inf, isfinite, log, pi
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.lengths import LengthDistribution
from headroom_exporter.simulate.requests import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX = "synthetic:"

COMMON: Mapping[str, float] = {
    "rate": 1.0,
    "duration": 3600.0,
    "seed": 0,
    "prompt_p50": 512,
    "prompt_p95": 2048,
    "prompt_max": 8192,
    "output_p50": 200,
    "output_p95": 600,
    "output_max": 2048,
}
# What each kind has of its own, with the defaults.
KINDS: Mapping[str, Mapping[str, float]] = {
    "poisson": {},
    # Variance over mean of the counts in windows much longer than a burst.
    "bursty": {"dispersion": 10.0, "burst_seconds": 2.0},
    # From rate to rate_end over the duration, linearly.
    "ramp": {"rate_end": 4.0},
    # factor x rate from ``at`` on, for ``seconds``.
    "spike": {"factor": 3.0, "at": 600.0, "seconds": 60.0},
    # rate x (1 + amplitude) at peak_at, rate x (1 - amplitude) half a period later.
    "diurnal": {"amplitude": 0.6, "period": 86_400.0, "peak_at": 50_400.0},
    # Lengths grow linearly to so many times their first size.
    "drift": {"prompt_growth": 2.0, "output_growth": 1.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """
    Traffic of one kind.

    Attributes:
        kind: One of KINDS.
        values: Every parameter of COMMON and of the kind.
    """

    kind: str
    values: Mapping[str, float]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.values["duration"]

    def requests(self) -> Iterator[Request]:
        """All requests in order of arrival; the same ones at every call."""
        values = self.values
        rng = Random(f"{values['seed']:g} {self.kind}")
        lengths = Random(f"{values['seed']:g} lengths")
        prompt = _lengths("prompt", values)
        output = _lengths("output", values)
        arrivals = _clusters(values, rng) if self.kind == "bursty" else self._thinned(rng)
        for arrival in arrivals:
            share = arrival / values["duration"]
            yield Request(
                arrival=arrival,
                prompt_tokens=_grown(prompt, values.get("prompt_growth", 1.0), share).draw(lengths),
                output_tokens=_grown(output, values.get("output_growth", 1.0), share).draw(lengths),
            )

    def rate(self, at: float) -> float:
        """Requests per second at a moment; of bursty traffic the mean."""
        values = self.values
        rate = values["rate"]
        if self.kind == "ramp":
            return rate + (values["rate_end"] - rate) * at / values["duration"]
        if self.kind == "spike":
            inside = values["at"] <= at < values["at"] + values["seconds"]
            return rate * values["factor"] if inside else rate
        if self.kind == "diurnal":
            turn = 2 * pi * (at - values["peak_at"]) / values["period"]
            return rate * (1 + values["amplitude"] * cos(turn))
        return rate

    def _thinned(self, rng: Random) -> Iterator[float]:
        """A Poisson process whose rate moves: one at the top rate, thinned."""
        values = self.values
        top = values["rate"] * max(
            1.0, values.get("factor", 1.0), 1.0 + values.get("amplitude", 0.0)
        )
        top = max(top, values.get("rate_end", 0.0))
        now = rng.expovariate(top)
        while now < values["duration"]:
            if rng.random() * top < self.rate(now):
                yield now
            now += rng.expovariate(top)


def _clusters(values: Mapping[str, float], rng: Random) -> Iterator[float]:
    """
    Bursts at random moments, of geometric size (a Neyman-Scott process).

    A size with mean m gives counts with variance over mean E[B^2] / E[B] = 2 m - 1.
    """
    mean = (values["dispersion"] + 1) / 2
    spread = values["burst_seconds"]
    pending: list[float] = []
    centre = -10 * spread  # bursts before the beginning still have arrivals after it
    while centre < values["duration"]:
        centre += rng.expovariate(values["rate"] / mean)
        while pending and pending[0] <= centre:
            arrival = heappop(pending)
            if 0 <= arrival < values["duration"]:
                yield arrival
        size = 1 if mean == 1 else 1 + int(log(1 - rng.random()) / log(1 - 1 / mean))
        for _ in range(size):
            heappush(pending, centre + rng.expovariate(1 / spread))
    while pending:
        arrival = heappop(pending)
        if 0 <= arrival < values["duration"]:
            yield arrival


def _lengths(of: str, values: Mapping[str, float]) -> LengthDistribution:
    return LengthDistribution(
        p50=values[f"{of}_p50"], p95=values[f"{of}_p95"], largest=int(values[f"{of}_max"])
    )


def _grown(lengths: LengthDistribution, growth: float, share: float) -> LengthDistribution:
    if growth == 1:
        return lengths
    factor = 1 + (growth - 1) * share
    return replace(lengths, p50=lengths.p50 * factor, p95=lengths.p95 * factor)


# --- from text -----------------------------------------------------------------------------------


def parse(text: str) -> Synthetic:
    """
    Understand ``synthetic:KIND`` or ``synthetic:KIND?name=value&name=value``.

    Raises:
        ConfigError: unknown kind or name, or a value that makes no traffic.
    """
    kind, _, query = text.removeprefix(PREFIX).partition("?")
    if kind not in KINDS:
        raise ConfigError(f"{text}: kind {kind!r}: must be one of {', '.join(KINDS)}")
    values = {**COMMON, **KINDS[kind]}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in values:
            raise ConfigError(f"{text}: {name!r}: must be one of {', '.join(values)}")
        values[name] = _number(text, name, value)
    _check(text, values)
    return Synthetic(kind=kind, values=values)


# Parameters that may be 0; all others must be above.
_FROM_ZERO = ("seed", "at", "peak_at", "amplitude", "rate", "rate_end")


def _number(text: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = inf
    least = "at least 0" if name in _FROM_ZERO else "above 0"
    if not isfinite(number) or number < 0 or (number == 0 and name not in _FROM_ZERO):
        raise ConfigError(f"{text}: {name} {value!r}: must be a number, {least}")
    return number


def _check(text: str, values: Mapping[str, float]) -> None:
    if max(values["rate"], values.get("rate_end", 0.0)) <= 0:
        raise ConfigError(f"{text}: rate {values['rate']:g}: must be above 0")
    if values.get("dispersion", 1.0) < 1:
        raise ConfigError(
            f"{text}: dispersion {values['dispersion']:g}: must be at least 1, a Poisson process's"
        )
    if values.get("amplitude", 0.0) > 1:
        raise ConfigError(f"{text}: amplitude {values['amplitude']:g}: must be 0 to 1")
    try:
        for of in ("prompt", "output"):
            _grown(_lengths(of, values), values.get(f"{of}_growth", 1.0), 1.0)
    except ConfigError as exc:
        raise ConfigError(f"{text}: {exc}") from exc
