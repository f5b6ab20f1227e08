"""The plan's limits beside what was seen. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from headroom_exporter.derive.histograms import over, quantile

if TYPE_CHECKING:
    from headroom_exporter.config import PlanConfig
    from headroom_exporter.samples import Histogram, RankState
    from headroom_exporter.status.recent import Recent

# The rate of a few requests jumps about: with fewer than this nothing is said of shares or rates.
MIN_REQUESTS = 20
PEAK_WINDOW = 300


class Fit(StrEnum):
    """How reality stands to one planned limit."""

    WITHIN = "within"
    OVER = "over"
    # The engine's buckets are too coarse to tell.
    UNCLEAR = "unclear"
    # Nothing, or too little, was seen.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """
    One planned limit beside reality.

    Attributes:
        name: As in ``headroom_plan_limit``.
        unit: tokens, seconds, sequences or requests_per_second.
        planned: The declared limit.
        observed: What was seen, estimated inside the engine's buckets; None where it cannot be told.
        basis: What ``observed`` is: quantile, rate, peak or size.
        seconds: The time it was seen over; None for a size.
        share_over: For quantiles, the share of requests beyond the limit: (certainly, at most).
    """

    name: str
    unit: str
    planned: float
    fit: Fit
    basis: str
    observed: float | None = None
    seconds: float | None = None
    share_over: tuple[float, float] | None = None


def compare(plan: PlanConfig, rank: RankState, recent: Recent | None) -> list[Dimension]:
    """
    Every declared limit of the plan beside what was seen lately, in the order of the configuration.

    Args:
        plan: What was declared.
        rank: The rank now; its peaks of the last five minutes.
        recent: Its requests of the last 15 minutes; None where none were noted.
    """
    lengths = (plan.prompt_tokens, plan.output_tokens)
    quantiles = (
        ("prompt_p50", "tokens", "request_prompt_tokens", 0.5, lengths[0].p50),
        ("prompt_p95", "tokens", "request_prompt_tokens", 0.95, lengths[0].p95),
        ("output_p50", "tokens", "request_output_tokens", 0.5, lengths[1].p50),
        ("output_p95", "tokens", "request_output_tokens", 0.95, lengths[1].p95),
        ("ttft_p95", "seconds", "time_to_first_token_seconds", 0.95, plan.ttft_p95_seconds),
        ("tpot_p95", "seconds", "inter_token_latency_seconds", 0.95, plan.tpot_p95_seconds),
    )
    found = [_concurrency(plan, rank), _request_rate(plan, recent)]
    for name, unit, field, q, planned in quantiles:
        if planned is not None:
            seen = None if recent is None else recent.histogram(field)
            found.append(_quantile(name, unit, q, planned, seen, recent))
    found.append(_pool(plan, rank))
    return [dimension for dimension in found if dimension is not None]


def _concurrency(plan: PlanConfig, rank: RankState) -> Dimension | None:
    if plan.concurrency is None:
        return None
    peak = rank.memory.peak_demand.get(PEAK_WINDOW) if rank.sample is not None else None
    return Dimension(
        name="concurrency",
        unit="sequences",
        planned=plan.concurrency,
        observed=peak,
        fit=_fit(peak, plan.concurrency),
        basis="peak",
        seconds=PEAK_WINDOW,
    )


def _request_rate(plan: PlanConfig, recent: Recent | None) -> Dimension | None:
    if plan.request_rate is None:
        return None
    rate = None if recent is None else recent.request_rate()
    seconds = 0.0 if recent is None else recent.seconds
    enough = rate is not None and rate * seconds >= MIN_REQUESTS
    return Dimension(
        name="request_rate",
        unit="requests_per_second",
        planned=plan.request_rate,
        observed=rate,
        fit=_fit(rate if enough else None, plan.request_rate),
        basis="rate",
        seconds=seconds or None,
    )


def _quantile(
    name: str, unit: str, q: float, planned: float, seen: Histogram | None, recent: Recent | None
) -> Dimension:
    share = exceedance(seen, planned)
    return Dimension(
        name=name,
        unit=unit,
        planned=planned,
        observed=None if seen is None or share is None else quantile(seen, q),
        fit=_share_fit(share, 1.0 - q),
        basis="quantile",
        seconds=None if recent is None else recent.seconds or None,
        share_over=share,
    )


def _pool(plan: PlanConfig, rank: RankState) -> Dimension | None:
    if plan.kv_cache_tokens is None:
        return None
    size = None if rank.sample is None else rank.sample.kv_capacity_tokens
    # The other way round: here it is reality that must not be less.
    return Dimension(
        name="kv_tokens",
        unit="tokens",
        planned=plan.kv_cache_tokens,
        observed=size,
        fit=Fit.UNKNOWN if size is None else _fit(plan.kv_cache_tokens, size),
        basis="size",
    )


def exceedance(seen: Histogram | None, limit: float) -> tuple[float, float] | None:
    """Share of observations beyond the limit: (certainly, at most); None for too few of them."""
    if seen is None or seen.count < MIN_REQUESTS:
        return None
    low, high = over(seen, limit)
    return low / seen.count, high / seen.count


def _fit(seen: float | None, limit: float) -> Fit:
    if seen is None:
        return Fit.UNKNOWN
    return Fit.OVER if seen > limit else Fit.WITHIN


def _share_fit(share: tuple[float, float] | None, allowed: float) -> Fit:
    """The planned quantile holds while no more than ``allowed`` of the requests lie beyond it."""
    if share is None:
        return Fit.UNKNOWN
    if share[0] > allowed:
        return Fit.OVER
    return Fit.WITHIN if share[1] <= allowed else Fit.UNCLEAR
