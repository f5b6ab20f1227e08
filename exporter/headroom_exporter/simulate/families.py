"""
The metric families of vLLM 0.32, in the order of its page: one table.

Names, help texts, label names and order are facts of that version's page. What the simulated engine
has no counterpart for (other caches, other tiers) shows the value that a vLLM without it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.simulate.counters import FINISH_REASONS, Counters, Tally
from headroom_exporter.simulate.frontend import REJECTION_REASONS, Frontend

if TYPE_CHECKING:
    from headroom_exporter.simulate.engine import SimulatedEngine
    from headroom_exporter.simulate.profiles import Profile

Labels = dict[str, str]
# Value of a sample of one rank; None where it does not exist yet.
Read = Callable[["SimulatedEngine"], float | None]
Children = tuple[tuple[Labels, Read], ...]
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """
    One family; each rank has all of its children.

    Attributes:
        name: As on its TYPE line.
        kind: Likewise.
        children: Extra labels of each sample of a gauge or counter, and how its value is read.
        tally: The histogram, where it is one.
        of_server: Labels and reader of samples that belong to the server, not to a rank.
    """

    name: str
    help: str
    kind: str
    children: Children = ()
    tally: Callable[[Counters], Tally] | None = None
    of_server: tuple[tuple[Labels, Callable[[Frontend], float]], ...] = ()


def _zero(_: SimulatedEngine) -> float:
    return 0


def _plain(read: Read) -> Children:
    return (({}, read),)


def _gauge(name: str, help_text: str, children: Children) -> Family:
    return Family(name=f"vllm:{name}", help=help_text, kind=GAUGE, children=children)


def _counter(name: str, help_text: str, children: Children) -> Family:
    return Family(name=f"vllm:{name}_total", help=help_text, kind=COUNTER, children=children)


def _histogram(name: str, help_text: str, tally: Callable[[Counters], Tally]) -> Family:
    return Family(name=f"vllm:{name}", help=help_text, kind=HISTOGRAM, tally=tally)


# --- readers -------------------------------------------------------------------------------------


def _running(engine: SimulatedEngine) -> float | None:
    return None if engine.gauges is None else engine.gauges.running


def _waiting(engine: SimulatedEngine) -> float | None:
    return None if engine.gauges is None else engine.gauges.waiting


def _deferred(engine: SimulatedEngine) -> float | None:
    return None if engine.gauges is None else 0


def _usage(engine: SimulatedEngine) -> float | None:
    return None if engine.gauges is None else engine.gauges.kv_usage


def _asleep_at(level: int) -> Read:
    return lambda engine: float(engine.sleep_level == level)


def _finished(reason: str) -> Read:
    return lambda engine: engine.counters.finished[reason]


def _rejected(reason: str) -> Callable[[Frontend], float]:
    return lambda frontend: frontend.rejections[reason]


def _computed_prompt_tokens(engine: SimulatedEngine) -> float:
    return engine.counters.prompt_tokens - engine.counters.cached_prompt_tokens


# --- the table -----------------------------------------------------------------------------------

_TOKENS = "in terms of number of {} tokens."
_ITEMS = "in terms of number of {} items."
_SHARING = "from KV connector cross-instance cache sharing"
_ESTIMATE = "Estimated number of {} per GPU (for Model Flops Utilization calculations)."

# Estimates of work: 0 unless the server was told to make them.
_ESTIMATES = tuple(
    _counter(f"estimated_{key}_per_gpu", _ESTIMATE.format(words), _plain(_zero))
    for key, words in (
        ("flops", "floating point operations"),
        ("read_bytes", "bytes read from memory"),
        ("write_bytes", "bytes written to memory"),
    )
)

# What the last step left.
_GAUGES = (
    _gauge(
        "num_requests_running",
        "Number of requests in model execution batches.",
        _plain(_running),
    ),
    _gauge(
        "num_requests_waiting",
        "Number of requests waiting to be processed.",
        _plain(_waiting),
    ),
    _gauge(
        "num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for "
        "scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, "
        "KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
        (({"reason": "capacity"}, _waiting), ({"reason": "deferred"}, _deferred)),
    ),
    _gauge(
        "engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is "
        "awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        (
            ({"sleep_state": "awake"}, lambda engine: float(engine.sleep_level is None)),
            ({"sleep_state": "weights_offloaded"}, _asleep_at(1)),
            ({"sleep_state": "discard_all"}, _asleep_at(2)),
        ),
    ),
    _gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", _plain(_usage)),
)

_CACHES = tuple(
    _counter(name, help_text, _plain(read))
    for name, help_text, read in (
        (
            "prefix_cache_queries",
            f"Prefix cache queries, {_TOKENS.format('queried')}",
            lambda engine: engine.counters.prefix_queries,
        ),
        (
            "prefix_cache_hits",
            f"Prefix cache hits, {_TOKENS.format('cached')}",
            lambda engine: engine.counters.prefix_hits,
        ),
        (
            "external_prefix_cache_queries",
            f"External prefix cache queries {_SHARING}, {_TOKENS.format('queried')}",
            _zero,
        ),
        (
            "external_prefix_cache_hits",
            f"External prefix cache hits {_SHARING}, {_TOKENS.format('cached')}",
            _zero,
        ),
        ("mm_cache_queries", f"Multi-modal cache queries, {_ITEMS.format('queried')}", _zero),
        ("mm_cache_hits", f"Multi-modal cache hits, {_ITEMS.format('cached')}", _zero),
    )
)

_PROMPTS = (
    _counter(
        "prompt_tokens",
        "Number of prefill tokens processed.",
        _plain(lambda engine: engine.counters.prompt_tokens),
    ),
    _counter(
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        (
            ({"source": "local_compute"}, _computed_prompt_tokens),
            ({"source": "local_cache_hit"}, lambda engine: engine.counters.cached_prompt_tokens),
            ({"source": "external_kv_transfer"}, _zero),
        ),
    ),
    _counter(
        "prompt_tokens_cached",
        "Number of cached prompt tokens (local + external).",
        _plain(lambda engine: engine.counters.cached_prompt_tokens),
    ),
    _counter(
        "prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host "
        "(offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or "
        "external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + "
        "vllm:external_prefix_cache_hits.",
        (
            ({"source": "device"}, lambda engine: engine.counters.prefix_hits),
            *(
                ({"source": tier}, _zero)
                for tier in ("host", "p2p", "disk", "external_unspecified")
            ),
        ),
    ),
)

_REQUESTS = (
    _counter(
        "generation_tokens",
        "Number of generation tokens processed.",
        _plain(lambda engine: engine.counters.generation_tokens),
    ),
    _counter(
        "request_success",
        "Count of successfully processed requests.",
        tuple(({"finished_reason": reason}, _finished(reason)) for reason in FINISH_REASONS),
    ),
    Family(
        name="vllm:admission_rejections_total",
        help="Number of admission attempts rejected by a queue limit, by reason.",
        kind=COUNTER,
        of_server=tuple(({"reason": reason}, _rejected(reason)) for reason in REJECTION_REASONS),
    ),
)

_PHASE = "Histogram of time spent in {} phase for request."
_HISTOGRAMS = (
    _histogram(
        "request_prompt_tokens", "Number of prefill tokens processed.", lambda c: c.request_prompt
    ),
    _histogram(
        "request_generation_tokens",
        "Number of generation tokens processed.",
        lambda c: c.request_output,
    ),
    _histogram(
        "iteration_tokens_total",
        "Histogram of number of tokens per engine_step.",
        lambda c: c.step_tokens,
    ),
    _histogram(
        "request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        lambda c: c.request_max_output,
    ),
    _histogram(
        "request_params_n", "Histogram of the n request parameter.", lambda c: c.request_choices
    ),
    _histogram(
        "request_params_max_tokens",
        "Histogram of the max_tokens request parameter.",
        lambda c: c.request_max_tokens,
    ),
    _histogram(
        "time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        lambda c: c.first_token,
    ),
    _histogram(
        "inter_token_latency_seconds",
        "Histogram of inter-token latency in seconds.",
        lambda c: c.token_interval,
    ),
    _histogram(
        "request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        lambda c: c.request_token_interval,
    ),
    _histogram(
        "e2e_request_latency_seconds",
        "Histogram of e2e request latency in seconds.",
        lambda c: c.duration,
    ),
    _histogram("request_queue_time_seconds", _PHASE.format("WAITING"), lambda c: c.queue_time),
    _histogram(
        "request_inference_time_seconds", _PHASE.format("RUNNING"), lambda c: c.inference_time
    ),
    _histogram("request_prefill_time_seconds", _PHASE.format("PREFILL"), lambda c: c.prefill_time),
    _histogram("request_decode_time_seconds", _PHASE.format("DECODE"), lambda c: c.decode_time),
    _histogram(
        "request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        lambda c: c.request_preemptions,
    ),
    _histogram(
        "request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        lambda c: c.request_computed_prompt,
    ),
)

# As one API server process writes it; cache_config_info follows.
FAMILIES: tuple[Family, ...] = (
    *_ESTIMATES,
    *_GAUGES,
    *_CACHES,
    Family(
        name="vllm:num_preemptions_total",
        help="Cumulative number of preemption from the engine.",
        kind=COUNTER,
        children=_plain(lambda engine: engine.counters.preemptions),
    ),
    *_PROMPTS,
    *_REQUESTS,
    *_HISTOGRAMS,
)
CACHE_CONFIG = Family(
    name="vllm:cache_config_info", help="Information of the LLMEngine CacheConfig", kind=GAUGE
)

# What a vLLM 0.32 server shows for settings that nobody touched; the rest follows from the profile.
_UNTOUCHED = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}


def cache_config(profile: Profile, rank: int, ranks: int) -> Labels:
    """
    The labels of a rank's cache_config_info.

    The size counts the reserved block, and the blocks those of all ranks, as vLLM's do.
    """
    tokens = profile.num_gpu_blocks * profile.block_tokens
    return _UNTOUCHED | {
        "block_size": str(profile.block_tokens),
        "effective_attention_block_size": str(profile.block_tokens),
        "enable_prefix_caching": str(profile.prefix_caching),
        "engine": str(rank),
        "kv_cache_max_concurrency": str(tokens / profile.max_model_len),
        "kv_cache_size_tokens": str(tokens),
        "num_gpu_blocks": str(profile.num_gpu_blocks * ranks),
    }
