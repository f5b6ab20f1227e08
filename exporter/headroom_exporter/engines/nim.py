"""
NVIDIA NIM for LLMs 1.x: vLLM's metrics without their prefix, and the slots, at ``/v1/metrics``.

Sources: NVIDIA's observability page for NIM for LLMs and a captured page; see tests/fixtures/engines/nim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.engines import common
from headroom_exporter.engines.base import (
    Engine,
    KvUsage,
    Labels,
    Page,
    Quantity,
    approximate,
    exact,
    unknown,
)
from headroom_exporter.engines.tables import Key, Ranks, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample

RUNNING, WAITING, USAGE = "num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc"
SLOTS = "num_request_max"
PROCESS_START = "process_start_time_seconds"
TABLE = Table(
    moving={
        "running": (RUNNING,),
        "waiting": (WAITING,),
        "slots": (SLOTS,),
        "prompt_tokens": ("prompt_tokens_total",),
        "generation_tokens": ("generation_tokens_total",),
        # One per token but the first of each request: gaps, not means of requests.
        "inter_token_seconds": ("time_per_output_token_seconds_sum",),
        "inter_token_count": ("time_per_output_token_seconds_count",),
    },
    shares={"kv_usage": (USAGE,)},
    histograms={
        "request_prompt_tokens": ("request_prompt_tokens",),
        "request_output_tokens": ("request_generation_tokens",),
        "time_to_first_token_seconds": ("time_to_first_token_seconds",),
        "inter_token_latency_seconds": ("time_per_output_token_seconds",),
        "request_duration_seconds": ("e2e_request_latency_seconds",),
    },
    # request_success_total counts the same requests again.
    finished=(("request_finish_total",), "finished_reason"),
    full=(PROCESS_START,),
)
MARKERS = frozenset({RUNNING, WAITING, USAGE, SLOTS})


def proves(series: Mapping[str, Series]) -> bool:
    """
    Whether it is a NIM: its names carry no prefix, any application may have one or two of them.

    All of the scheduler's gauges must stand there, each with the label of the model.
    """
    return all(
        name in series and all("model_name" in labels for labels, _ in series[name])
        for name in MARKERS
    )


def _key(labels: Labels) -> Key:
    return "0", labels.get("model_name", "")


def read(page: Page) -> EngineSample:
    """One record per model."""
    ranks = Ranks(_key)
    ranks.put_all(page, TABLE)
    for fields in ranks.fields.values():
        # 0 is a limit that is not set.
        fields["slots"] = fields.get("slots") or None
    return ranks.sample(
        page,
        started=page.value(PROCESS_START),
        version=common.version(page),
        max_model_length=common.max_model_length(page),
    )


NIM = Engine(
    name="nim",
    title="NVIDIA NIM",
    versions="for LLMs 1.x (a page of October 2024 and the documented names)",
    markers=MARKERS,
    proves=proves,
    fast_names=TABLE.fast_names(),
    full_names=TABLE.full_names(MARKERS),
    read=read,
    # NIM for VLMs 1.0 has it at /metrics.
    paths=("/v1/metrics", "/metrics"),
    beside=(common.VERSION, common.MODELS),
    kv_usage=KvUsage.LIVE,
    silent=(
        "NIM has its metrics at /v1/metrics; one that shows the names of the engine it runs is read as that."
    ),
    tells={
        Quantity.RUNNING: exact(),
        Quantity.WAITING: exact(),
        Quantity.SLOTS: exact("num_request_max"),
        Quantity.KV_USED: approximate(
            "NIM does not say which engine it runs; of both (vLLM, TensorRT-LLM) it is whole blocks of "
            "live sequences"
        ),
        Quantity.KV_CAPACITY: unknown(
            "declare kv_cache_tokens in the plan, from the NIM's log at its start"
        ),
        Quantity.TOKENS_PER_SEQUENCE: approximate("usage over running, a share of the pool only"),
        Quantity.PROMPTS: exact("in buckets of 1-2-5"),
        Quantity.OUTPUTS: exact("in buckets of 1-2-5"),
        Quantity.TTFT: exact(),
        Quantity.TPOT: exact("between tokens"),
        Quantity.PREEMPTIONS: unknown("not published: a full KV cache shows only as a queue"),
        Quantity.PREFILL: approximate("prompts, with what a cache gave"),
    },
)
