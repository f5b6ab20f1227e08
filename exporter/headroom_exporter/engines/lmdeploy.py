"""
LMDeploy 0.16: smooth counters of each token beside gauges that are up to ten seconds old.

Source: lmdeploy/metrics/loggers.py, stats.py and metrics_processor.py, its server's log interval; the page
comes from executing the first. See tests/fixtures/engines/lmdeploy.
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
    gauge,
    unknown,
)
from headroom_exporter.engines.tables import Key, Ranks, Table
from headroom_exporter.samples import Cadence

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineSample

# The API server refreshes the scheduler's gauges with its log lines, log_interval = 10.
GAUGE_SECONDS = 10.0
RUNNING = "lmdeploy:num_requests_running"
WAITING = "lmdeploy:num_requests_waiting"
# Requests for which the API server has no free handle; they are not in the engine's queue yet.
API_WAITING = "lmdeploy:num_api_requests_waiting"
FINISHED = "lmdeploy:request_success_total"
PROCESS_START = "process_start_time_seconds"
TABLE = Table(
    moving={
        "running": (RUNNING,),
        "waiting": (WAITING,),
        "prompt_tokens": ("lmdeploy:prompt_tokens_total",),
        "generation_tokens": ("lmdeploy:generation_tokens_total",),
        # One per output of a request but the first; time_per_output_token_seconds is this by the output's
        # tokens. iteration_tokens_total is observed per output too: it counts no engine steps.
        "inter_token_seconds": ("lmdeploy:iter_token_latency_sum",),
        "inter_token_count": ("lmdeploy:iter_token_latency_count",),
        "spec_drafts": ("lmdeploy:spec_decode_num_drafts_total",),
        "spec_accepted_tokens": ("lmdeploy:spec_decode_num_accepted_tokens_total",),
    },
    histograms={
        "request_prompt_tokens": ("lmdeploy:request_prompt_tokens",),
        "request_output_tokens": ("lmdeploy:request_generation_tokens",),
        "time_to_first_token_seconds": ("lmdeploy:time_to_first_token_seconds",),
        "inter_token_latency_seconds": ("lmdeploy:iter_token_latency",),
        "queue_time_seconds": ("lmdeploy:request_queue_time_seconds",),
        "request_duration_seconds": ("lmdeploy:e2e_request_latency_seconds",),
    },
    # num_requests_succeeded and _failed are gauges that only grow, ten seconds old: these are the better.
    fast=(API_WAITING,),
    full=(FINISHED, PROCESS_START),
)
MARKERS = frozenset({RUNNING, "lmdeploy:prompt_tokens_total"})


def _key(labels: Labels) -> Key:
    return labels.get("engine", "0"), labels.get("model_name", "")


def read(page: Page) -> EngineSample:
    """One record per data-parallel rank; each has its own API server, so mostly one."""
    ranks = Ranks(_key)
    ranks.put_all(page, TABLE)
    for labels, value in page.get((API_WAITING,)):
        fields, known = ranks.of(labels), gauge(value)
        if fields is not None and known is not None and "waiting" in fields:
            fields["waiting"] += known
    ranks.put_by_label(_reasons(page), "finished", "finished_reason")
    return ranks.sample(
        page,
        started=page.value(PROCESS_START),
        version=common.version(page),
        max_model_length=common.max_model_length(page),
    )


def _reasons(page: Page) -> list[tuple[Labels, float]]:
    """The counter by reason, whose values are Python's: ``ResponseType.FINISH`` becomes ``finish``."""
    return [
        ({**labels, "finished_reason": _word(labels.get("finished_reason", ""))}, value)
        for labels, value in page.get((FINISHED,))
    ]


def _word(reason: str) -> str:
    return reason.rpartition(".")[2].lower()


LMDEPLOY = Engine(
    name="lmdeploy",
    title="LMDeploy",
    versions="0.16 (code at commit 1263d5cd)",
    markers=MARKERS,
    fast_names=TABLE.fast_names(),
    full_names=TABLE.full_names(MARKERS),
    read=read,
    beside=(common.MODELS,),
    cadence=Cadence(gauge_seconds=GAUGE_SECONDS),
    # Of its two backends one counts what its prefix cache keeps, the other does not; the page does not say
    # which one runs.
    kv_usage=KvUsage.NONE,
    silent="LMDeploy publishes none where its metrics are switched off (they are on by default in 0.16).",
    tells={
        Quantity.RUNNING: approximate("refreshed every 10 s"),
        Quantity.WAITING: approximate(
            "refreshed every 10 s; the engine's queue and the API server's"
        ),
        Quantity.SLOTS: approximate(
            "not published: inferred from a plateau; better declare --max-batch-size as max_num_seqs in the "
            "plan"
        ),
        Quantity.KV_USED: unknown(
            "published, but the PyTorch backend counts evictable cache and TurboMind does not, and the page "
            "does not say which runs: declare kv_cache_tokens, prompt_tokens and output_tokens in the plan"
        ),
        Quantity.KV_CAPACITY: unknown(
            "declare kv_cache_tokens in the plan, from the server's log at its start"
        ),
        Quantity.TOKENS_PER_SEQUENCE: unknown(
            "declare prompt_tokens and output_tokens in the plan"
        ),
        Quantity.PROMPTS: exact("in buckets of 1-2-5"),
        Quantity.OUTPUTS: exact("in buckets of 1-2-5"),
        Quantity.TTFT: exact(),
        Quantity.TPOT: exact("between outputs of a request"),
        Quantity.PREEMPTIONS: unknown("not published: a full KV cache shows only as a queue"),
        Quantity.PREFILL: approximate("prompts, with what a cache gave"),
    },
)
