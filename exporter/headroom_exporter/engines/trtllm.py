"""
TensorRT-LLM's own server, trtllm-serve: only ``/prometheus/metrics``, in two eras.

Its ``/metrics`` is a list of iteration statistics that reading takes away from other readers: it is never
asked. Up to 1.2 five metrics without a prefix told of finished requests; from 1.3 ``trtllm_*`` tell of the
scheduler and the KV cache too. Dynamo's workers show the five with the prefix.

Sources: tensorrt_llm/metrics/collector.py, serve/openai_server.py, pyexecutor/py_executor.py and
batch_manager/evictionPolicy.cpp; see tests/fixtures/engines/trtllm. What they say:

- A block that only waits to be reused is in the queue of free ones, so "used" is what live sequences hold.
- Requests, tokens and times are counted when a request ends.
- The gauges are written by a task that a finished request wakes, and that goes on while steps follow each
  other: after an idle time they stay old until the first request has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common
from headroom_exporter.engines.base import (
    Engine,
    Labels,
    Page,
    Quantity,
    approximate,
    exact,
    gauge,
    unknown,
    usage,
)
from headroom_exporter.engines.tables import Key, Ranks, Table
from headroom_exporter.samples import Cadence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample

PREFIX = "trtllm_"
RUNNING = "trtllm_num_requests_running"
BATCH_SLOTS = "trtllm_max_batch_size_runtime"
ACTIVE_SLOTS = "trtllm_max_num_active_requests"
USED, POOL = "trtllm_kv_cache_used_blocks", "trtllm_kv_cache_max_blocks"
BLOCK = "trtllm_kv_cache_tokens_per_block"
UTILIZATION = "trtllm_kv_cache_utilization"
CACHED = "trtllm_prompt_cached_tokens_total"


def _both(name: str) -> tuple[str, str]:
    """A name of both eras, newest first."""
    return PREFIX + name, name


TABLE = Table(
    moving={
        "running": (RUNNING,),
        "waiting": ("trtllm_num_requests_waiting",),
        "prompt_tokens": ("trtllm_prompt_tokens_total",),
        "generation_tokens": ("trtllm_generation_tokens_total",),
    },
    shares={"kv_usage": (UTILIZATION,)},
    histograms={
        "time_to_first_token_seconds": _both("time_to_first_token_seconds"),
        # One mean per request, observed at its end: no counter of gaps.
        "inter_token_latency_seconds": _both("time_per_output_token_seconds"),
        "queue_time_seconds": _both("request_queue_time_seconds"),
        "request_duration_seconds": _both("e2e_request_latency_seconds"),
    },
    finished=(_both("request_success_total"), "finished_reason"),
    # The last two so that a fast page of the first era shows the record at all.
    fast=(BATCH_SLOTS, ACTIVE_SLOTS, USED, POOL, CACHED, *_both("request_success_total")),
    full=(BLOCK,),
)
# Facts that stand there before the first request.
CONFIGS = ("trtllm_model_config_info", "trtllm_kv_cache_config_info")
# Of the era without a prefix; any application may have such names, the label engine_type it has not.
BARE = ("e2e_request_latency_seconds_sum", "request_success_total")
MARKERS = frozenset(
    {RUNNING, *_both("request_success_total"), *_both("e2e_request_latency_seconds_sum"), *CONFIGS}
)


def proves(series: Mapping[str, Series]) -> bool:
    """Whether it is TensorRT-LLM: a name with its prefix, or one without it and its label."""
    return any(
        name.startswith(PREFIX) or all("engine_type" in labels for labels, _ in series[name])
        for name in MARKERS & series.keys()
    )


def read(page: Page) -> EngineSample:
    """One record per model; the label is the text "undefined" where the server was not told the name."""
    named = common.model(page)

    def key(labels: Labels) -> Key:
        label = labels.get("model_name", "")
        return "0", named if label in ("", "undefined") else label

    ranks = Ranks(key)
    ranks.put_all(page, TABLE)
    _read_slots(page, ranks)
    _read_pool(page, ranks)
    for labels, value in page.get((CACHED,)):
        fields, cached = ranks.of(labels), gauge(value)
        if fields is not None and cached is not None and cached <= fields.get("prompt_tokens", -1):
            fields["computed_prompt_tokens"] = fields["prompt_tokens"] - cached
    if not ranks.fields:
        # Nobody has asked it anything: it is there, and nothing else is known.
        ranks.of({})
    return ranks.sample(
        page, version=common.version(page), max_model_length=common.max_model_length(page)
    )


def _read_slots(page: Page, ranks: Ranks) -> None:
    """The least of the two limits on running requests; 0 is a limit that is not set."""
    for name in (BATCH_SLOTS, ACTIVE_SLOTS):
        for labels, value in page.get((name,)):
            fields, limit = ranks.of(labels), gauge(value)
            if fields is not None and limit:
                fields["slots"] = min(limit, fields.get("slots", limit))


def _read_pool(page: Page, ranks: Ranks) -> None:
    """
    Blocks used of the pool's, and the pool in tokens.

    They are preferred to the ratio, which old pages contradict. Before mid-2026 a pool in host memory was
    counted with that of the GPU in both.
    """
    used, block = _by_record(page, USED, ranks), _by_record(page, BLOCK, ranks)
    for owner, (fields, blocks) in _by_record(page, POOL, ranks).items():
        if not blocks:
            continue
        if owner in used:
            share = usage(used[owner][1] / blocks)
            fields.pop("kv_usage", None)
            if share is not None:
                fields["kv_usage"] = share
        if owner in block and block[owner][1]:
            fields["block_tokens"] = block[owner][1]
            fields["kv_capacity_tokens"] = blocks * block[owner][1]


def _by_record(page: Page, name: str, ranks: Ranks) -> dict[int, tuple[dict[str, Any], float]]:
    found = {}
    for labels, value in page.get((name,)):
        fields, known = ranks.of(labels), gauge(value)
        if fields is not None and known is not None:
            found[id(fields)] = fields, known
    return found


TRTLLM = Engine(
    name="trtllm",
    title="TensorRT-LLM",
    versions="trtllm-serve 1.0 to 1.2 (five metrics, of finished requests only) and main at 050f80de",
    markers=MARKERS,
    proves=proves,
    fast_names=TABLE.fast_names(),
    full_names=TABLE.full_names(MARKERS),
    read=read,
    paths=("/prometheus/metrics",),
    beside=(common.VERSION, common.MODELS),
    # Nobody else's page is there and empty but Triton's, which tells no version.
    known_by=common.VERSION,
    cadence=Cadence(tokens_at_finish=True),
    silent=(
        "trtllm-serve needs return_perf_metrics: true for /prometheus/metrics and enable_iter_perf_stats: "
        "true for the scheduler and the KV cache; its page is empty until the first request has ended, and "
        "until then it is known by its /version."
    ),
    empty_is_idle=True,
    tells={
        Quantity.RUNNING: approximate(
            "not before 1.3; as old as the last request that ended, where steps do not follow each other"
        ),
        Quantity.WAITING: approximate(
            "not before 1.3; as old as running; without those that hold a slot"
        ),
        Quantity.SLOTS: exact(
            "from 1.3: the least of max_batch_size_runtime and max_num_active_requests"
        ),
        Quantity.KV_USED: approximate(
            "not before 1.3; whole blocks; the default scheduler also holds back what running answers may "
            "still need, which is not in it"
        ),
        Quantity.KV_CAPACITY: exact("from 1.3"),
        Quantity.TOKENS_PER_SEQUENCE: approximate(
            "usage over running, of which some may hold no blocks yet"
        ),
        Quantity.PROMPTS: unknown("no lengths, only their sum: declare prompt_tokens in the plan"),
        Quantity.OUTPUTS: unknown("no lengths, only their sum: declare output_tokens in the plan"),
        Quantity.TTFT: exact("counted when the request ends"),
        Quantity.TPOT: approximate("one mean per request, counted when it ends"),
        Quantity.PREEMPTIONS: unknown("only how many are paused now"),
        Quantity.PREFILL: approximate(
            "from 1.3; counted when the request ends, without what a cache gave"
        ),
    },
)
