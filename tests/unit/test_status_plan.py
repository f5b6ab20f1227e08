"""The plan beside what was seen: outgrown, as planned, or honestly neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.samples import Histogram, RankSample
from headroom_exporter.status.plan import MIN_REQUESTS, Dimension, Fit, compare
from headroom_exporter.status.recent import Recent
from status_scenes import PLAN, bare_rank, rank

BOUNDS = (100.0, 1000.0, 2000.0)


def recent(*counts: float, rate: float = 1.0) -> Recent:
    """100 seconds in which prompts fell into these buckets (cumulative)."""
    found = Recent(900.0)
    for at, factor in ((0.0, 0.0), (100.0, 1.0)):
        histogram = Histogram(
            bounds=BOUNDS, counts=tuple(factor * count for count in counts), sum=factor
        )
        found.add(
            at,
            RankSample(
                rank="0",
                model_name="m",
                running=0.0,
                waiting=0.0,
                finished={"stop": factor * rate * 100.0 + 1.0},
                histograms={"request_prompt_tokens": histogram},
            ),
        )
    return found


def of(plan: PlanConfig, seen: Recent | None = None) -> dict[str, Dimension]:
    return {each.name: each for each in compare(plan, rank(), seen)}


def test_only_what_was_declared_is_compared_in_the_order_of_the_file():
    assert compare(PlanConfig(), rank(), None) == []
    assert list(of(replace(PLAN, kv_cache_tokens=9.0))) == [
        "concurrency",
        "request_rate",
        "prompt_p50",
        "prompt_p95",
        "output_p95",
        "ttft_p95",
        "tpot_p95",
        "kv_tokens",
    ]


@pytest.mark.parametrize(("planned", "fit"), [(22.0, Fit.OVER), (23.0, Fit.WITHIN)])
def test_concurrency_is_held_against_the_peak_of_demand(planned, fit):
    found = of(PlanConfig(concurrency=planned))["concurrency"]
    assert (found.observed, found.fit, found.seconds) == (23.0, fit, 300)


@pytest.mark.parametrize(
    ("limit", "counts", "fit"),
    [
        # At a bound, shares are exact: 5 of 100 beyond it are the 5 % that a p95 allows.
        (1000.0, (50.0, 95.0, 100.0, 100.0), Fit.WITHIN),
        (1000.0, (50.0, 94.0, 100.0, 100.0), Fit.OVER),
        # Between bounds 1000 and 2000 lie 10 of 100: perhaps none of them beyond 1500, perhaps all.
        (1500.0, (50.0, 90.0, 100.0, 100.0), Fit.UNCLEAR),
        (1500.0, (50.0, 96.0, 100.0, 100.0), Fit.WITHIN),
        (1500.0, (50.0, 80.0, 90.0, 100.0), Fit.OVER),
    ],
)
def test_a_quantile_is_outgrown_only_where_the_buckets_prove_it(limit, counts, fit):
    plan = PlanConfig(prompt_tokens=Lengths(p95=limit))
    assert of(plan, recent(*counts))["prompt_p95"].fit == fit


def test_a_median_allows_half():
    plan = PlanConfig(prompt_tokens=Lengths(p50=1000.0))
    assert of(plan, recent(0.0, 50.0, 100.0, 100.0))["prompt_p50"].fit == Fit.WITHIN
    assert of(plan, recent(0.0, 49.0, 100.0, 100.0))["prompt_p50"].fit == Fit.OVER


@pytest.mark.parametrize(
    ("count", "fit"), [(MIN_REQUESTS, Fit.OVER), (MIN_REQUESTS - 1, Fit.UNKNOWN)]
)
def test_too_few_requests_say_nothing(count, fit):
    plan = PlanConfig(prompt_tokens=Lengths(p95=1000.0))
    found = of(plan, recent(0.0, 0.0, count, count))["prompt_p95"]
    assert found.fit == fit
    assert (found.share_over is None) is (fit == Fit.UNKNOWN)
    assert (found.observed is None) is (fit == Fit.UNKNOWN)


@pytest.mark.parametrize(("planned", "fit"), [(0.9, Fit.OVER), (1.0, Fit.WITHIN)])
def test_the_rate_is_of_requests_that_came(planned, fit):
    found = of(PlanConfig(request_rate=planned), recent(1.0, 1.0, 1.0, 1.0))["request_rate"]
    assert found.observed == pytest.approx(1.0)
    assert (found.fit, found.seconds) == (fit, 100.0)


def test_a_handful_of_requests_is_no_rate():
    found = of(PlanConfig(request_rate=0.01), recent(1.0, 1.0, 1.0, 1.0, rate=0.1))["request_rate"]
    assert found.fit == Fit.UNKNOWN


@pytest.mark.parametrize(("planned", "fit"), [(41_393.0, Fit.OVER), (41_392.0, Fit.WITHIN)])
def test_a_pool_deviates_when_it_is_smaller_than_planned(planned, fit):
    found = of(PlanConfig(kv_cache_tokens=planned))["kv_tokens"]
    assert (found.observed, found.fit) == (41_392.0, fit)


def test_what_is_not_seen_is_unknown():
    plan = replace(PLAN, kv_cache_tokens=9.0)
    found = {each.name: each for each in compare(plan, bare_rank(), None)}
    assert {each.fit for name, each in found.items() if name != "concurrency"} == {Fit.UNKNOWN}
    assert all(each.observed is None for name, each in found.items() if name != "concurrency")
