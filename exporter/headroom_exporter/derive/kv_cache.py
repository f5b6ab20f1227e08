"""
How many sequences the KV cache holds.

Everything is a share of the pool: the usage gauge is one, so a measured footprint needs no block size
and is right for hybrid models too. Tokens come in only where lengths are planned or shown.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from headroom_exporter.samples import Footprint

if TYPE_CHECKING:
    from headroom_exporter.config import Lengths

# Half of what is remembered is older than this much busy time: the mix of the last quarter of an hour.
HALF_LIFE = 900.0
# After this long without a running sequence, yesterday's mix is no evidence for today's.
EXPIRY = 3600.0
# Enough to have seen a handful of sequences come and go at two at a time (the calm phase of
# tests/fixtures/recordings/vllm-0.32.0-ramp.jsonl.gz is 12 s long).
MIN_BUSY_SECONDS = 5.0
MIN_SAMPLES = 5
MIN_COMPLETED = 10.0
# The first sequences after a start are all young, so small: they are watched but not counted.
WARM_UP_COMPLETED = 5.0
# No sequence holds less of a pool: a gauge that says so, or stays at 0, is broken.
MIN_MEAN = 1e-9
# Beyond this the expansion is not monotonic at the batch sizes of interest; a longer tail is cut to it.
MAX_SKEWNESS = 4.0
# Normal quantile of 0.95: a lognormal's p95 is this many sigmas above its p50.
Z95 = 1.6448536269514722


class FootprintMeter:
    """
    Live footprint: mean, spread and skewness of one running sequence's share of the pool.

    From samples (b running, usage u), each weighted by the time it stands for and forgotten with a
    half-life: mean = sum(u) / sum(b); with residuals r = u - mean x b of independent sequences,
    variance = E[r^2] / E[b] and third moment = E[r^3] / E[b].
    """

    def __init__(self) -> None:
        self._warm = False
        self._clear()

    def _clear(self) -> None:
        # Sums of w, w b, w u, and of w x every product of b and u of degree 2 and 3.
        self._w = self._b = self._u = 0.0
        self._bb = self._bu = self._uu = 0.0
        self._bbb = self._bbu = self._buu = self._uuu = 0.0
        self._samples = 0
        self._last: float | None = None
        self._completed_first: float | None = None
        self._completed = 0.0

    def add(
        self, now: float, running: float, usage: float, seconds: float, completed: float | None
    ) -> None:
        """
        Count a sample that stands for ``seconds``; idle ones are left out.

        Args:
            now: Monotonic seconds.
            running: Sequences in the batch.
            usage: Share of the pool in use.
            seconds: Time the sample stands for.
            completed: Sequences completed since the engine started, where known.
        """
        if running < 1 or seconds <= 0:
            return
        if self._last is not None and now - self._last > EXPIRY:
            self._warm = False
            self._clear()
        if completed is not None:
            if self._completed_first is None:
                self._completed_first = completed
            # The most, not the sum of rises: a sequence that is admitted before its first token, preempted
            # or resumed moves the figure down and up again.
            self._completed = max(self._completed, completed - self._completed_first)
        self._count(running, usage, seconds)
        self._last = now
        if not self._warm and self._turned_over(WARM_UP_COMPLETED):
            self._warm = True
            self._clear()
            self._completed_first, self._last = completed, now

    def _count(self, b: float, u: float, w: float) -> None:
        keep = 0.5 ** (w / HALF_LIFE)
        self._w = self._w * keep + w
        self._b = self._b * keep + w * b
        self._u = self._u * keep + w * u
        self._bb = self._bb * keep + w * b * b
        self._bu = self._bu * keep + w * b * u
        self._uu = self._uu * keep + w * u * u
        self._bbb = self._bbb * keep + w * b * b * b
        self._bbu = self._bbu * keep + w * b * b * u
        self._buu = self._buu * keep + w * b * u * u
        self._uuu = self._uuu * keep + w * u * u * u
        self._samples += 1

    def _turned_over(self, at_least: float) -> bool:
        """
        Whether at least so many sequences, and as many as run at once, have come and gone.

        Where completions are not known, busy time has to do.
        """
        if self._completed_first is None:
            return self._w >= MIN_BUSY_SECONDS
        return self._completed >= max(at_least, self._b / self._w)

    def read(self, now: float) -> Footprint | None:
        """The footprint; None while too little was seen, or too long ago."""
        if self._last is None or now - self._last > EXPIRY:
            return None
        if not self._warm or self._w < MIN_BUSY_SECONDS or self._samples < MIN_SAMPLES:
            return None
        if self._u < MIN_MEAN * self._b or not self._turned_over(MIN_COMPLETED):
            return None
        mu = self._u / self._b
        second = (self._uu - 2 * mu * self._bu + mu * mu * self._bb) / self._b
        sigma = math.sqrt(max(0.0, second))
        third = (
            self._uuu - 3 * mu * self._buu + 3 * mu * mu * self._bbu - mu**3 * self._bbb
        ) / self._b
        skewness = third / sigma**3 if sigma > 1e-9 * mu else 0.0
        # A negative skewness of so few independent sequences is noise; it would only add capacity.
        return Footprint(
            mean=mu,
            stddev=sigma,
            skewness=min(MAX_SKEWNESS, max(0.0, skewness)),
            basis="live",
        )


def planned_footprint(
    prompt: Lengths, output: Lengths, capacity_tokens: float | None, block_tokens: float | None
) -> Footprint | None:
    """
    Footprint of the planned lengths, both taken as lognormal and independent.

    A running sequence met at a random moment is length-biased: long outputs stay longer. With p prompt
    and o output tokens its resident tokens have the moments
    E[o(p + o/2)]/E[o], E[o(p^2 + po + o^2/3)]/E[o], E[o(p^3 + 3p^2 o/2 + p o^2 + o^3/4)]/E[o];
    rounding up to blocks of B tokens adds (B - 1)/2 to the mean and (B^2 - 1)/12 to the variance.

    Returns:
        None where a length is not planned or the pool's size is not known, and where p95 is so far from
        p50 (a slip of the keyboard) that the moments leave the range of numbers.
    """
    if capacity_tokens is None or None in (prompt.p50, prompt.p95, output.p50, output.p95):
        return None
    try:
        mean, stddev, skewness = _resident_moments(
            _lognormal(prompt), _lognormal(output), block_tokens or 1.0
        )
    except OverflowError:
        return None
    if not math.isfinite(mean + stddev + skewness):
        return None
    return Footprint(
        mean=mean / capacity_tokens,
        stddev=stddev / capacity_tokens,
        skewness=min(MAX_SKEWNESS, max(0.0, skewness)),
        basis="plan",
    )


def _resident_moments(p: _lognormal, o: _lognormal, block: float) -> tuple[float, float, float]:
    """Mean, standard deviation (tokens) and skewness of a resident sequence in whole blocks."""
    mu = p(1) + o(2) / (2 * o(1))
    m2 = p(2) + p(1) * o(2) / o(1) + o(3) / (3 * o(1))
    m3 = p(3) + 1.5 * p(2) * o(2) / o(1) + p(1) * o(3) / o(1) + o(4) / (4 * o(1))
    # The rounding is symmetric: it adds to the variance and nothing to the third moment.
    variance = max(0.0, m2 - mu * mu) + (block * block - 1) / 12
    third = m3 - 3 * mu * m2 + 2 * mu**3
    skewness = third / variance**1.5 if variance > 1e-12 * mu * mu else 0.0
    return mu + (block - 1) / 2, math.sqrt(variance), skewness


class _lognormal:  # noqa: N801 - reads as the function it is
    """Raw moments of a lognormal length: call with the order."""

    def __init__(self, lengths: Lengths) -> None:
        p50, p95 = float(lengths.p50 or 1.0), float(lengths.p95 or 1.0)
        self._mu, self._sigma = math.log(p50), math.log(p95 / p50) / Z95

    def __call__(self, order: int) -> float:
        return math.exp(order * self._mu + (order * self._sigma) ** 2 / 2)


def capacity(footprint: Footprint, overrun_probability: float, reserve: float = 0.0) -> float:
    """
    Sequences C such that C of them overrun the pool with at most the given probability.

    C mu + sqrt(C) sigma z + sigma (z^2 - 1) gamma / 6 <= 1 - reserve: the Cornish-Fisher quantile of a
    sum of C independent footprints; quadratic in sqrt(C).

    Args:
        footprint: Shares of the pool.
        overrun_probability: 0 to 0.5.
        reserve: Share of the pool that must stay free to admit the next prompt whole.

    Returns:
        Whole sequences, 0 or more.
    """
    z = normal_quantile(1.0 - overrun_probability)
    mu, sigma = footprint.mean, footprint.stddev or 0.0
    room = 1.0 - reserve - sigma * (z * z - 1.0) * footprint.skewness / 6.0
    if room <= 0.0:
        return 0.0
    root = (-sigma * z + math.sqrt((sigma * z) ** 2 + 4.0 * mu * room)) / (2.0 * mu)
    return float(math.floor(root * root + 1e-9))


def admission_reserve(prompt_share: float | None, footprint: Footprint) -> float:
    """
    Share of the pool that the next prompt needs beyond an average sequence's footprint.

    vLLM keeps a waiting request out until its whole prompt fits. Resident sequences are on average larger
    than a fresh prompt, so this is 0 unless prompts are long and outputs short.
    """
    return 0.0 if prompt_share is None else min(1.0, max(0.0, prompt_share - footprint.mean))


@lru_cache(maxsize=32)
def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal, by bisection of erfc (importing ``statistics`` costs 2 MB)."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        if 0.5 * math.erfc(-middle / math.sqrt(2)) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
