"""
What others alert on, as published: expressions for Prometheus, thresholds and ``for`` applied by its rules.

Each detector is a value, a threshold that it must pass, and how long. So each can also be tuned: the same
value with the threshold at which its false pages are no more than ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scoreboard.scenarios import Scenario

KV = "vllm:kv_cache_usage_perc"
WAITING = "vllm:num_requests_waiting"
RUNNING = "vllm:num_requests_running"
TTFT_MEAN = (
    "sum without (engine) (rate(vllm:time_to_first_token_seconds_sum[1m])) / "
    "(sum without (engine) (rate(vllm:time_to_first_token_seconds_count[1m])) > 0)"
)
CONCURRENCY = f"sum without (engine) ({RUNNING} + {WAITING})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """
    One detector.

    Attributes:
        id: As listed in docs/backtest.md.
        words: How its author writes it.
        value: PromQL by scenario; one series for each engine.
        threshold: As published.
        above: Whether it fires above the threshold, or below it.
        seconds: Its ``for``.
        origin: Alert, autoscaler, router, load test or null detector.
    """

    id: str
    words: str
    value: Callable[[Scenario, int], str]
    threshold: float
    above: bool = True
    seconds: float
    origin: str


def _kv(_scenario: Scenario, _pool: int) -> str:
    return f"max without (engine) ({KV})"


def _waiting(_scenario: Scenario, _pool: int) -> str:
    return f"sum without (engine) ({WAITING})"


def _ttft(quantile: float) -> Callable[[Scenario, int], str]:
    return lambda _scenario, _pool: (
        f"histogram_quantile({quantile}, sum without (engine) "
        "(rate(vllm:time_to_first_token_seconds_bucket[5m]))) >= 0"
    )


def _wva_v1(_scenario: Scenario, _pool: int) -> str:
    """Below 1 when mean spare cache is below 0.10 or mean spare queue below 3; replicas of one model."""
    kv = f"avg by (model_name) (0.80 - max_over_time({KV}[1m])) / 0.10"
    queue = f"avg by (model_name) (5 - max_over_time({WAITING}[1m])) / 3"
    return (
        f'min by (model_name) (label_replace({kv}, "of", "kv", "", "") or '
        f'label_replace({queue}, "of", "queue", "", ""))'
    )


def _wva_v2(_scenario: Scenario, pool: int) -> str:
    """Demand / 0.85 over supply, 0.80 of the pool: tokens in use, and mean prompts for whoever waits."""
    prompt = (
        "sum without (engine) (rate(vllm:request_prompt_tokens_sum[15m])) / "
        "(sum without (engine) (rate(vllm:request_prompt_tokens_count[15m])) > 0)"
    )
    return (
        f"(max without (engine) ({KV}) + sum without (engine) ({WAITING}) * ({prompt}) / {pool})"
        " / (0.85 * 0.80)"
    )


def _endpoint_picker(_scenario: Scenario, _pool: int) -> str:
    return (
        "avg by (model_name) (max without (of) ("
        f'label_replace({WAITING} / 5, "of", "queue", "", "") or '
        f'label_replace({KV} / 0.8, "of", "kv", "", "")))'
    )


def _keda(_scenario: Scenario, _pool: int) -> str:
    return (
        "max without (of) ("
        f'label_replace({WAITING} / 30, "of", "queue", "", "") or '
        f'label_replace({KV} / 0.60, "of", "kv", "", ""))'
    )


def _below_plan(scenario: Scenario, _pool: int) -> str:
    """The cache's usage while fewer run than 0.8 of what was expected."""
    expected = 0.8 * (scenario.plan.concurrency or 0.0)
    return f"{KV} and {RUNNING} < {expected:g}"


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        id="B02", words="kv > 0.90 for 5m", value=_kv, threshold=0.90, seconds=300, origin="alert"
    ),
    Baseline(
        id="B05",
        words="max by (model) kv > 0.9 for 3m",
        value=_kv,
        threshold=0.9,
        seconds=180,
        origin="alert",
    ),
    Baseline(
        id="B07", words="kv > 0.95 for 5m", value=_kv, threshold=0.95, seconds=300, origin="alert"
    ),
    Baseline(
        id="B10",
        words="avg_over_time(kv[5m]) > 0.95 for 5m",
        value=lambda _scenario, _pool: f"max without (engine) (avg_over_time({KV}[5m]))",
        threshold=0.95,
        seconds=300,
        origin="alert",
    ),
    Baseline(
        id="B21",
        words="waiting > 5 for 5m",
        value=_waiting,
        threshold=5,
        seconds=300,
        origin="alert",
    ),
    Baseline(
        id="B22",
        words="waiting > 0 for 2m",
        value=_waiting,
        threshold=0,
        seconds=120,
        origin="alert",
    ),
    Baseline(
        id="B24",
        words="waiting > 10 for 2m",
        value=_waiting,
        threshold=10,
        seconds=120,
        origin="alert",
    ),
    Baseline(
        id="B27",
        words="waiting > 50 for 2m",
        value=_waiting,
        threshold=50,
        seconds=120,
        origin="alert",
    ),
    Baseline(
        id="B31",
        words="increase(preemptions[10m]) > 0 for 2m",
        value=lambda _scenario, _pool: (
            "sum without (engine) (increase(vllm:num_preemptions_total[10m]))"
        ),
        threshold=0,
        seconds=120,
        origin="alert",
    ),
    Baseline(
        id="B34",
        words="rate(preemptions[5m]) > 0.1 for 5m",
        value=lambda _scenario, _pool: (
            "sum without (engine) (rate(vllm:num_preemptions_total[5m]))"
        ),
        threshold=0.1,
        seconds=300,
        origin="alert",
    ),
    Baseline(
        id="B36",
        words="TTFT p95 over 5m > 5 s for 10m",
        value=_ttft(0.95),
        threshold=5,
        seconds=600,
        origin="alert",
    ),
    Baseline(
        id="B38",
        words="TTFT p99 over 5m > 2 s for 5m",
        value=_ttft(0.99),
        threshold=2,
        seconds=300,
        origin="alert",
    ),
    Baseline(
        id="B47",
        words="(0.80 - kv) / deriv(kv[5m]) below 15 min",
        value=lambda _scenario, _pool: f"(0.80 - {KV}) / (deriv({KV}[5m]) > 0) / 60",
        threshold=15,
        above=False,
        seconds=0,
        origin="forecast",
    ),
    Baseline(
        id="B51",
        words="kv > 0.95 and running < 0.8 x expected for 5m",
        value=_below_plan,
        threshold=0.95,
        seconds=300,
        origin="alert",
    ),
    Baseline(
        id="B60",
        words="llm-d WVA v1: spare kv < 0.10 or spare queue < 3",
        value=_wva_v1,
        threshold=1,
        above=False,
        seconds=0,
        origin="autoscaler",
    ),
    Baseline(
        id="B61",
        words="llm-d WVA v2: demand / 0.85 > supply",
        value=_wva_v2,
        threshold=1,
        seconds=0,
        origin="autoscaler",
    ),
    Baseline(
        id="B62",
        words="endpoint picker: mean of max(queue/5, kv/0.8) >= 1",
        value=_endpoint_picker,
        threshold=1,
        seconds=0,
        origin="router",
    ),
    Baseline(
        id="B64",
        words="KEDA recipe: kv > 0.60 or queue > 30",
        value=_keda,
        threshold=1,
        seconds=0,
        origin="autoscaler",
    ),
    Baseline(
        # The value is kept only while both slopes are surely positive: judge.py does that.
        id="B69",
        words="GuideLLM: concurrency and TTFT both rise (95 %), TTFT >= 2.5 s",
        value=lambda _scenario, _pool: TTFT_MEAN,
        threshold=2.5,
        seconds=0,
        origin="load test",
    ),
    Baseline(
        id="N1",
        words="GPU utilisation > 95 % for 10m",
        value=lambda _scenario, _pool: (
            "avg without (gpu) (avg_over_time(headroom_gpu_utilization_ratio[1m]))"
        ),
        threshold=0.95,
        seconds=600,
        origin="null",
    ),
    Baseline(
        id="N2",
        words="GPU memory used > 95 % for 5m",
        value=lambda _scenario, _pool: (
            "avg without (gpu) (headroom_gpu_memory_used_bytes / headroom_gpu_memory_total_bytes)"
        ),
        threshold=0.95,
        seconds=300,
        origin="null",
    ),
)
