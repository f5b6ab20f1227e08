"""
vLLM, V0 and V1, 0.4 to 0.33: a table of names, newest first, and what is odd about them.

Sources: the metrics code of these versions (vllm/engine/metrics.py, vllm/v1/metrics/loggers.py) and
captured pages; see tests/fixtures/vllm.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import arguments, common
from headroom_exporter.engines.base import (
    MAX_RANKS,
    MAX_REASONS,
    Engine,
    Labels,
    Page,
    Quantity,
    approximate,
    clip_label,
    exact,
    gauge,
    histogram,
    number,
    usage,
)
from headroom_exporter.samples import EngineSample, Histogram, RankSample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headroom_exporter.engines.base import Series

# --- the table: field -> upstream sample names, newest first -------------------------------------

GAUGES: Mapping[str, tuple[tuple[str, ...], Callable[[float], float | None]]] = {
    "running": (("vllm:num_requests_running",), gauge),
    # 0.9.2 to 0.10.2 publish both names of the usage; the first that is there counts.
    "kv_usage": (("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), usage),
}
COUNTERS: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    # A histogram in spite of its name: once per engine step that yields output.
    "steps": ("vllm:iteration_tokens_total_count",),
    "step_tokens": ("vllm:iteration_tokens_total_sum",),
    "preemptions": ("vllm:num_preemptions_total",),
    "inter_token_seconds": (
        "vllm:inter_token_latency_seconds_sum",
        "vllm:time_per_output_token_seconds_sum",
    ),
    "inter_token_count": (
        "vllm:inter_token_latency_seconds_count",
        "vllm:time_per_output_token_seconds_count",
    ),
    "spec_drafts": ("vllm:spec_decode_num_drafts_total",),
    "spec_accepted_tokens": ("vllm:spec_decode_num_accepted_tokens_total",),
}
SLOW_COUNTERS: Mapping[str, tuple[str, ...]] = {
    # Up to 0.8.5 these count blocks, not tokens, and under another name: left out there.
    "prefix_queries": ("vllm:prefix_cache_queries_total",),
    "prefix_hits": ("vllm:prefix_cache_hits_total",),
}
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "request_prompt_tokens": ("vllm:request_prompt_tokens",),
    "request_output_tokens": ("vllm:request_generation_tokens",),
    "time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "inter_token_latency_seconds": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
    ),
    "queue_time_seconds": ("vllm:request_queue_time_seconds",),
    "request_duration_seconds": ("vllm:e2e_request_latency_seconds",),
}
WAITING = "vllm:num_requests_waiting"
WAITING_BY_REASON = "vllm:num_requests_waiting_by_reason"
SWAPPED = "vllm:num_requests_swapped"
COMPUTED_PROMPT = "vllm:prompt_tokens_by_source_total"
FINISHED = "vllm:request_success_total"
REJECTED = "vllm:admission_rejections_total"
CACHE_CONFIG = "vllm:cache_config_info"
PROCESS_START = "process_start_time_seconds"
ARGUMENT_SLOTS = "vllm serve.max_num_seqs"

Key = tuple[str, str]


def _flat(*tables: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for table in tables for names in table.values() for name in names)


FAST_NAMES = (
    *(name for names, _ in GAUGES.values() for name in names),
    WAITING,
    WAITING_BY_REASON,
    SWAPPED,
    *_flat(COUNTERS),
    COMPUTED_PROMPT,
)
FULL_NAMES = frozenset(
    {
        *FAST_NAMES,
        FINISHED,
        REJECTED,
        *_flat(SLOW_COUNTERS),
        *(
            name + suffix
            for names in HISTOGRAMS.values()
            for name in names
            for suffix in ("_bucket", "_sum")
        ),
        CACHE_CONFIG,
        PROCESS_START,
    }
)


# --- reading a page ------------------------------------------------------------------------------


def read(page: Page) -> EngineSample:
    """
    Turn the wanted samples of a vLLM page into one record per rank.

    A page of the fast poll gives records without histograms and cache facts.
    """
    ranks = _Ranks()
    for field, (names, check) in GAUGES.items():
        for labels, value in page.get(names):
            ranks.put(labels, field, check(value))
    for field, names in (*COUNTERS.items(), *SLOW_COUNTERS.items()):
        for labels, value in page.get(names):
            ranks.put(labels, field, gauge(value))
    _read_waiting(page, ranks)
    for labels, value in page.get((COMPUTED_PROMPT,)):
        if labels.get("source") == "local_compute":
            ranks.put(labels, "computed_prompt_tokens", gauge(value))
    ranks.put_by_label(page.get((FINISHED,)), "finished", "finished_reason")
    _read_histograms(page, ranks)
    # Published per model, without a rank: shown on the first rank, so that a sum over ranks is right.
    ranks.put_by_label(page.get((REJECTED,)), "rejected", "reason", rankless=True)
    _read_cache_config(page, ranks)
    for fields in ranks.fields.values():
        fields["argument_slots"] = page.value(ARGUMENT_SLOTS)
    started = [gauge(value) for _, value in page.get((PROCESS_START,))]
    return EngineSample(
        ranks=ranks.samples(),
        started=started[0] if started else None,
        dropped=len(ranks.dropped) + page.truncated,
        version=common.version(page),
        max_model_length=common.max_model_length(page),
    )


class _Ranks:
    """Fields of the ranks met so far, at most MAX_RANKS of them."""

    def __init__(self) -> None:
        self.fields: dict[Key, dict[str, Any]] = {}
        self.dropped: set[Key] = set()

    def of(self, labels: Labels) -> dict[str, Any] | None:
        # Triton's vLLM backend says "model" where vLLM says "model_name"; V0 knows no rank.
        model = labels.get("model_name") or labels.get("model") or ""
        key = (clip_label(labels.get("engine", "0")), clip_label(model))
        fields = self.fields.get(key)
        if fields is None:
            if len(self.fields) >= MAX_RANKS:
                self.dropped.add(key)
                return None
            fields = self.fields[key] = {}
        return fields

    def put(self, labels: Labels, field: str, value: float | None) -> None:
        fields = self.of(labels)
        if fields is not None and value is not None:
            fields[field] = value

    def put_by_label(
        self,
        series: list[tuple[Labels, float]],
        field: str,
        label: str,
        *,
        rankless: bool = False,
    ) -> None:
        for labels, value in series:
            fields = self._first(labels) if rankless else self.of(labels)
            known = gauge(value)
            if fields is None or known is None:
                continue
            by_label, name = fields.setdefault(field, {}), clip_label(labels.get(label, ""))
            if name in by_label or len(by_label) < MAX_REASONS:
                by_label[name] = known

    def _first(self, labels: Labels) -> dict[str, Any] | None:
        model = labels.get("model_name", "")
        for key in sorted(self.fields):
            if key[1] == model:
                return self.fields[key]
        return None

    def samples(self) -> tuple[RankSample, ...]:
        return tuple(
            RankSample(
                rank=rank,
                model_name=model,
                **_frozen(fields),
            )
            for (rank, model), fields in sorted(self.fields.items())
        )


def _frozen(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        field: MappingProxyType(value) if isinstance(value, dict) else value
        for field, value in fields.items()
    }


def _read_waiting(page: Page, ranks: _Ranks) -> None:
    """
    Waiting for capacity.

    From 0.20 vLLM tells why requests wait; a deferred one (LoRA budget, KV transfer) does not wait for
    capacity. Before, all that wait count. V0 swapped preempted sequences out: they wait for memory.
    """
    swapped = {_key(labels): value for labels, value in page.get((SWAPPED,))}
    for labels, value in page.get((WAITING,)):
        known = gauge(value)
        if known is not None:
            ranks.put(labels, "waiting", known + (gauge(swapped.get(_key(labels), 0.0)) or 0.0))
    for labels, value in page.get((WAITING_BY_REASON,)):
        if labels.get("reason") == "capacity":
            ranks.put(labels, "waiting", gauge(value))
        elif labels.get("reason") == "deferred":
            ranks.put(labels, "deferred", gauge(value))


def _key(labels: Labels) -> Key:
    return labels.get("engine", "0"), labels.get("model_name", "")


def _read_histograms(page: Page, ranks: _Ranks) -> None:
    for field, names in HISTOGRAMS.items():
        name = next((name for name in names if page.series.get(name + "_bucket")), None)
        if name is None:
            continue
        buckets: dict[int, list[tuple[Labels, float]]] = {}
        owners: dict[int, dict[str, Any]] = {}
        for labels, value in page.series[name + "_bucket"]:
            fields = ranks.of(labels)
            if fields is not None:
                buckets.setdefault(id(fields), []).append((labels, value))
                owners[id(fields)] = fields
        sums = {id(ranks.of(labels)): value for labels, value in page.get((name + "_sum",))}
        for owner, found in buckets.items():
            made: Histogram | None = histogram(found, sums.get(owner))
            if made is not None:
                owners[owner].setdefault("histograms", {})[field] = made


def _read_cache_config(page: Page, ranks: _Ranks) -> None:
    """
    The KV pool of a rank in tokens, less the block the engine keeps for itself.

    - ``kv_cache_size_tokens`` (0.24 and later) is per rank and right for hybrid models; it counts the
      whole pool, while the usage gauge divides by the pool less one reserved block, so we scale.
    - ``num_gpu_blocks`` is the sum over data-parallel ranks, repeated on each; ``block_size`` is not the
      size of a block on a model with state-space layers, so the product is not used there.
    - Every unknown value is the text ``None``.
    Labels are matched exactly: ``hash_block_size`` and others end alike.
    """
    configs = page.get((CACHE_CONFIG,))
    by_rank = {labels.get("engine"): labels for labels, _ in configs}
    # V0 reserved no block; its pages have the swap gauge.
    reserved = 0.0 if page.series.get(SWAPPED) else 1.0
    for (rank, _), fields in ranks.fields.items():
        labels = by_rank.get(rank) or by_rank.get(None)
        if labels is None:
            continue
        blocks, block = number(labels.get("num_gpu_blocks")), number(labels.get("block_size"))
        own_blocks = None if blocks is None else blocks / max(1, len(configs))
        tokens = number(labels.get("kv_cache_size_tokens"))
        hybrid = labels.get("mamba_block_size", "None") != "None"
        if tokens is None and own_blocks is not None and block is not None and not hybrid:
            tokens = own_blocks * block
        if tokens is not None and own_blocks is not None and own_blocks > reserved:
            fields["kv_capacity_tokens"] = tokens * (own_blocks - reserved) / own_blocks
            fields["block_tokens"] = tokens / own_blocks


def _command_line(url: str) -> Mapping[str, Series]:
    return common.figure(ARGUMENT_SLOTS, arguments.max_num_seqs(url))


def under_triton(series: Mapping[str, Series]) -> bool:
    """Whether Triton publishes these counters: it labels them with its own ``model`` and ``version``."""
    labels = [labels for labels, _ in series.get(COUNTERS["prompt_tokens"][0], ())]
    return bool(labels) and all({"model", "version"} <= held.keys() for held in labels)


VLLM = Engine(
    name="vllm",
    title="vLLM",
    versions="0.4 to 0.33",
    markers=frozenset({"vllm:num_requests_running", "vllm:prompt_tokens_total"}),
    proves=lambda series: not under_triton(series),
    fast_names=FAST_NAMES,
    full_names=FULL_NAMES,
    read=read,
    # The mounted prometheus_client application honours name[]; "/metrics" without the slash does not.
    filtered_path="/metrics/",
    beside=(common.VERSION, common.MODELS),
    command_line=_command_line,
    silent="vLLM publishes none when it runs with --disable-log-stats.",
    tells={
        Quantity.RUNNING: exact(),
        Quantity.WAITING: exact("from 0.20 without those that wait for LoRA or a KV transfer"),
        Quantity.SLOTS: approximate(
            "no release tells max_num_seqs: from the command line where it can be seen, else inferred from a "
            "plateau; better in the plan"
        ),
        Quantity.KV_USED: exact("whole blocks"),
        Quantity.KV_CAPACITY: exact("from 0.24; before, not for hybrid models"),
        Quantity.TOKENS_PER_SEQUENCE: exact("usage over running"),
        Quantity.PROMPTS: exact("in buckets of 1-2-5"),
        Quantity.OUTPUTS: exact("in buckets of 1-2-5"),
        Quantity.TTFT: exact(),
        Quantity.TPOT: exact("between tokens"),
        Quantity.PREEMPTIONS: exact(),
        Quantity.PREFILL: exact("from 0.16 without what a cache gave"),
    },
)
