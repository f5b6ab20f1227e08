"""
The list of metrics: the public API, and the only place where a name is spelt.

expose.py refuses a name that is not here; docs/metrics.md is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Exposition types."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """
    One metric family.

    Attributes:
        name: As exposed; of a counter with ``_total``, of an info with ``_info``.
        kind: Exposition type.
        unit: Base unit of the value.
        labels: Label names, in the order of the values given to it.
        help: What is measured, its unit, where it comes from.
        source: ``engine`` (passed through), ``memory``, ``derived``, ``plan``, ``gpu`` or ``self``.
        since: First release with it.
        deprecated: What to use instead, once it is on its way out.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    source: str
    since: str = "0.1.0"
    deprecated: str | None = None


_ENGINE = ("engine",)
_RANK = ("engine", "rank", "model_name")
_GPU = ("gpu",)


def _engine(name: str, kind: Kind, unit: str, help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(
        name=name, kind=kind, unit=unit, labels=(*_ENGINE, *labels), help=help_, source="engine"
    )


def _rank(name: str, kind: Kind, unit: str, help_: str, source: str, *labels: str) -> MetricSpec:
    return MetricSpec(
        name=name, kind=kind, unit=unit, labels=(*_RANK, *labels), help=help_, source=source
    )


def _gpu(name: str, kind: Kind, unit: str, help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(
        name=name, kind=kind, unit=unit, labels=(*_GPU, *labels), help=help_, source="gpu"
    )


def _self(name: str, kind: Kind, unit: str, help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(name=name, kind=kind, unit=unit, labels=labels, help=help_, source="self")


_G, _C, _H, _I = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM, Kind.INFO
_RAW = "Passed through raw: restarts at 0 with the engine."
_OWN = "Passed through with the engine's own bounds, thinned to the useful range."
_MS = (
    "A bucket counts the milliseconds spent at or below its level, _count all milliseconds observed, "
    "_sum level x milliseconds: rate(_sum)/rate(_count) is the exact mean over any range."
)

CATALOG: tuple[MetricSpec, ...] = (
    # --- an engine and its polls ---
    _engine("headroom_engine_up", _G, "boolean", "Whether the last poll of the engine succeeded."),
    _engine(
        "headroom_engine_info",
        _I,
        "",
        "Facts about the engine: its kind, version, how it is polled (poll_mode filtered: only the moving "
        "series, by name[]; full: the whole page at the slower fallback interval), and what its KV usage "
        "counts (kv_usage live: tokens of live sequences; reserved: what admission promised; none).",
        "engine_kind",
        "version",
        "poll_mode",
        "kv_usage",
    ),
    _engine(
        "headroom_engine_reading_age_seconds",
        _G,
        "seconds",
        "How old this engine's gauges can be at a poll, estimated from its cadence; absent where each step "
        "refreshes them.",
    ),
    _engine(
        "headroom_engine_last_success_timestamp_seconds",
        _G,
        "seconds",
        "Unix time of the last successful poll.",
    ),
    _engine(
        "headroom_engine_poll_duration_seconds",
        _G,
        "seconds",
        "Duration of the last successful poll, request to last byte.",
    ),
    _engine(
        "headroom_engine_poll_errors_total",
        _C,
        "errors",
        "Failed polls by kind: refused, unreachable, timeout, malformed, status, too_large, no_samples, "
        "wrong_kind, mixed (series of several engines), json (an answer that is no exposition), no_telemetry "
        "(a server that tells nothing, or was started so), credentials, "
        "dropped_ranks (series left out: a page with more than are read), bug.",
        "kind",
    ),
    _engine(
        "headroom_engine_unobserved_seconds_total",
        _C,
        "seconds",
        "Time between two successful polls that lay too far apart to integrate across: engine down, "
        "restarting, or answering too slowly.",
    ),
    _engine(
        "headroom_max_model_length_tokens",
        _G,
        "tokens",
        "Longest sequence the engine accepts. On vLLM: /v1/models (max_model_len).",
        "model_name",
    ),
    # --- as read and normalised ---
    _rank(
        "headroom_running_sequences",
        _G,
        "sequences",
        "Sequences in the batch at the last poll. On vLLM: vllm:num_requests_running.",
        "engine",
    ),
    _rank(
        "headroom_waiting_sequences",
        _G,
        "sequences",
        "Requests waiting for capacity at the last poll, deferred ones apart. On vLLM: "
        'vllm:num_requests_waiting_by_reason{reason="capacity"}, before 0.20 vllm:num_requests_waiting '
        "plus vllm:num_requests_swapped.",
        "engine",
    ),
    _rank(
        "headroom_deferred_sequences",
        _G,
        "sequences",
        "Requests waiting for something other than capacity (LoRA budget, KV transfer). On vLLM: "
        'vllm:num_requests_waiting_by_reason{reason="deferred"}.',
        "engine",
    ),
    _rank(
        "headroom_kv_cache_usage_ratio",
        _G,
        "ratio",
        "KV cache blocks held by requests, 0-1; evictable prefix cache counts as free. On vLLM: "
        "vllm:kv_cache_usage_perc. Absent for an engine that tells only what it reserves.",
        "engine",
    ),
    _rank(
        "headroom_kv_cache_reserved_ratio",
        _G,
        "ratio",
        "KV cache that admission has promised to running requests, prompt and longest answer, whether it "
        "holds tokens yet or not, 0-1. For engines that reserve (TGI); it is what the next request must "
        "find free there.",
        "engine",
    ),
    _rank(
        "headroom_kv_cache_capacity_tokens",
        _G,
        "tokens",
        "KV pool that requests can fill: the engine's start-up figure less the one block it reserves. "
        "On vLLM: vllm:cache_config_info (kv_cache_size_tokens, else blocks x block size).",
        "engine",
    ),
    _rank(
        "headroom_kv_cache_used_tokens",
        _G,
        "tokens",
        "Tokens' worth of blocks in use: usage ratio x capacity. Partly filled blocks count whole.",
        "engine",
    ),
    _rank(
        "headroom_kv_cache_free_tokens",
        _G,
        "tokens",
        "Tokens' worth of free blocks: capacity less used.",
        "engine",
    ),
    _rank(
        "headroom_max_sequences",
        _G,
        "sequences",
        "Slots (max_num_seqs) by where the number comes from: server (told by the engine), plan (declared), "
        "args (the engine's command line), inferred (estimate: plateau of running while requests wait and "
        "the cache has room). No vLLM release publishes it.",
        "derived",
        "basis",
    ),
    _rank(
        "headroom_prompt_tokens_total", _C, "tokens", f"Prompt tokens processed. {_RAW}", "engine"
    ),
    _rank("headroom_generation_tokens_total", _C, "tokens", f"Tokens generated. {_RAW}", "engine"),
    _rank(
        "headroom_steps_total",
        _C,
        "steps",
        "Engine steps that yielded output; with several API servers each counts its share of a step as "
        f"one, so there tokens per step are no batch. On vLLM: vllm:iteration_tokens_total_count. {_RAW}",
        "engine",
    ),
    _rank(
        "headroom_step_tokens_total",
        _C,
        "tokens",
        "Tokens of those steps, prompts and generated. On vLLM: vllm:iteration_tokens_total_sum. "
        + _RAW,
        "engine",
    ),
    _rank(
        "headroom_preemptions_total",
        _C,
        "sequences",
        f"Sequences thrown out of the batch because the KV cache was full. {_RAW}",
        "engine",
    ),
    _rank(
        "headroom_finished_requests_total",
        _C,
        "requests",
        f"Finished requests by reason. On vLLM: vllm:request_success_total. {_RAW}",
        "engine",
        "reason",
    ),
    _rank(
        "headroom_rejected_requests_total",
        _C,
        "requests",
        "Requests rejected at the queue limits, by reason; published per server, shown on its first "
        f"rank. On vLLM: vllm:admission_rejections_total. {_RAW}",
        "engine",
        "reason",
    ),
    _rank(
        "headroom_prefix_cache_queries_tokens_total",
        _C,
        "tokens",
        f"Tokens looked up in the prefix cache. {_RAW}",
        "engine",
    ),
    _rank(
        "headroom_prefix_cache_hits_tokens_total",
        _C,
        "tokens",
        f"Tokens found in the prefix cache. {_RAW}",
        "engine",
    ),
    _rank(
        "headroom_request_prompt_tokens",
        _H,
        "tokens",
        f"Prompt lengths of finished requests. {_OWN}",
        "engine",
    ),
    _rank(
        "headroom_request_output_tokens",
        _H,
        "tokens",
        f"Output lengths of finished requests. {_OWN}",
        "engine",
    ),
    _rank(
        "headroom_time_to_first_token_seconds",
        _H,
        "seconds",
        f"Time to first token. {_OWN}",
        "engine",
    ),
    _rank(
        "headroom_inter_token_latency_seconds",
        _H,
        "seconds",
        f"Time between two tokens of a request. {_OWN}",
        "engine",
    ),
    _rank(
        "headroom_queue_time_seconds",
        _H,
        "seconds",
        f"Time requests waited before they first ran, recorded when they leave. {_OWN}",
        "engine",
    ),
    _rank(
        "headroom_request_duration_seconds",
        _H,
        "seconds",
        f"Duration of finished requests, end to end. {_OWN}",
        "engine",
    ),
    # --- with memory ---
    _rank(
        "headroom_effective_batch_sequences",
        _H,
        "sequences",
        f"Time-weighted distribution of running sequences. {_MS}",
        "memory",
    ),
    _rank(
        "headroom_demand_sequences",
        _H,
        "sequences",
        f"Time-weighted distribution of demand, running plus waiting. {_MS}",
        "memory",
    ),
    _rank(
        "headroom_kv_cache_occupancy_ratio",
        _H,
        "ratio",
        f"Time-weighted distribution of KV cache usage, 0-1. {_MS}",
        "memory",
    ),
    _rank(
        "headroom_peak_running_sequences",
        _G,
        "sequences",
        "Largest running of the last window.",
        "memory",
        "window",
    ),
    _rank(
        "headroom_peak_demand_sequences",
        _G,
        "sequences",
        "Largest demand (running plus waiting) of the last window.",
        "memory",
        "window",
    ),
    _rank(
        "headroom_peak_kv_cache_usage_ratio",
        _G,
        "ratio",
        "Largest KV cache usage of the last window, 0-1.",
        "memory",
        "window",
    ),
    _rank(
        "headroom_state_seconds_total",
        _C,
        "seconds",
        "Time spent in each headroom state.",
        "memory",
        "state",
    ),
    _rank(
        "headroom_constraint_seconds_total",
        _C,
        "seconds",
        "Time during which each constraint was the binding one.",
        "memory",
        "constraint",
    ),
    _rank(
        "headroom_exhausted_seconds_total",
        _C,
        "seconds",
        "Time without headroom by the constraint that bound then; what could not be told is missing "
        "from it.",
        "memory",
        "constraint",
    ),
    _rank(
        "headroom_tokens_per_sequence",
        _G,
        "tokens",
        "Resident KV tokens of one running sequence, mean; basis live (measured lately) or plan "
        "(computed from planned lengths while there is no traffic to measure).",
        "memory",
        "basis",
    ),
    _rank(
        "headroom_tokens_per_sequence_stddev",
        _G,
        "tokens",
        "Standard deviation of the resident KV tokens of one running sequence (estimate).",
        "memory",
        "basis",
    ),
    # --- derived ---
    _rank(
        "headroom_capacity_sequences",
        _G,
        "sequences",
        "Sequences of today's mix that each constraint lets run (estimate): slots; kv_cache (overrun "
        "no more often than the plan's overrun_probability); latency (planned TPOT p95 kept); prefill "
        "(prompts take at most 80 % of engine time over minutes; it moves with demand, for prompts limit a "
        "flow and not a number of sequences); plan (planned concurrency). Absent while unknown.",
        "derived",
        "constraint",
    ),
    _rank(
        "headroom_capacity_known",
        _G,
        "boolean",
        "Whether the capacity of each constraint is known.",
        "derived",
        "constraint",
    ),
    _rank(
        "headroom_sustainable_sequences",
        _G,
        "sequences",
        "Least of the known capacities of slots, kv_cache, latency and prefill.",
        "derived",
    ),
    _rank(
        "headroom_sequences",
        _G,
        "sequences",
        "How many more sequences fit: sustainable less demand; negative when overloaded.",
        "derived",
    ),
    _rank(
        "headroom_ratio",
        _G,
        "ratio",
        "Headroom as a share of what is sustainable: 1 - demand / sustainable; negative when overloaded.",
        "derived",
    ),
    _rank(
        "headroom_binding_constraint",
        _G,
        "boolean",
        "1 for the constraint that stops the next sequence first, 0 for the others; all 0 while "
        "requests wait for what cannot be told; absent while no capacity is known.",
        "derived",
        "constraint",
    ),
    _rank(
        "headroom_state",
        _G,
        "boolean",
        "1 for the current state, 0 for the others: ok, low (below the plan's floor), exhausted (no "
        "headroom, requests waiting for capacity, or preempting), unknown.",
        "derived",
        "state",
    ),
    _rank(
        "headroom_state_reason_info",
        _I,
        "",
        "Why the state is what it is: fits, below_floor, no_headroom, waiting, preempting, no_gauges, "
        "stale_gauges, no_capacity_known.",
        "derived",
        "reason",
    ),
    _rank(
        "headroom_spike_multiple",
        _G,
        "multiple",
        "Largest multiple of recent traffic (mean of the last minute or of the last ten seconds, the "
        "larger) that fits every known limit (estimate): twice the requests are more than twice the "
        "sequences where steps become longer. Absent on an idle engine.",
        "derived",
    ),
    _rank(
        "headroom_step_fixed_seconds",
        _G,
        "seconds",
        "Fixed part of an engine step (estimate: step time = fixed + per sequence x batch, fitted to "
        "the engine's counters).",
        "derived",
    ),
    _rank(
        "headroom_step_per_sequence_seconds",
        _G,
        "seconds",
        "What each sequence of today's mix adds to a step (estimate, same fit).",
        "derived",
    ),
    _rank(
        "headroom_step_per_prefill_token_seconds",
        _G,
        "seconds",
        "What each computed prompt token adds to a step (estimate); absent while traffic does not "
        "tell it from the batch.",
        "derived",
    ),
    _rank(
        "headroom_batching_marginal_gain_ratio",
        _G,
        "ratio",
        "Throughput that one more sequence adds at the current batch, relative to the first one "
        "(estimate): 1 at an empty engine, near 0 where batching buys only latency.",
        "derived",
    ),
    _rank(
        "headroom_knee_sequences",
        _G,
        "sequences",
        "Batch beyond which 80 % of a step is paid per sequence (estimate): 4 x fixed / per sequence.",
        "derived",
    ),
    # --- plan ---
    _rank("headroom_plan_info", _I, "", "The plan that holds for this model.", "plan", "plan"),
    _rank(
        "headroom_plan_limit",
        _G,
        "",
        "Declared limit of each dimension: concurrency, prompt_p50, prompt_p95, output_p50, output_p95 "
        "and kv_tokens (tokens), request_rate (per second), ttft_p95 and tpot_p95 (seconds).",
        "plan",
        "dimension",
    ),
    _rank(
        "headroom_plan_spike_factor",
        _G,
        "multiple",
        "Multiple of demand that the plan wants to survive.",
        "plan",
    ),
    _rank(
        "headroom_plan_floor_ratio",
        _G,
        "ratio",
        "Headroom below which the plan calls the state low, 0-1.",
        "plan",
    ),
    _rank(
        "headroom_prompts_over_plan_total",
        _C,
        "requests",
        "Finished requests with a prompt longer than the planned p95: lower (certainly) and upper (at "
        "most), the engine's bucket edges around the plan. On plan, 5 % of headroom_prompts_total.",
        "plan",
        "bound",
    ),
    _rank(
        "headroom_prompts_total",
        _C,
        "requests",
        f"Finished requests whose prompt length was counted. {_RAW}",
        "plan",
    ),
    # --- GPU ---
    _self(
        "headroom_gpu_up",
        _G,
        "boolean",
        "Whether the last NVML read succeeded. Absent where GPUs are switched off in the configuration.",
    ),
    _self(
        "headroom_gpu_read_errors_total",
        _C,
        "errors",
        "Failed NVML reads by kind.",
        "kind",
    ),
    _gpu(
        "headroom_gpu_info",
        _I,
        "",
        "Facts about the GPU; mig is true for a MIG instance, whose index is parent:instance.",
        "uuid",
        "name",
        "driver_version",
        "mig",
    ),
    _gpu(
        "headroom_gpu_lost",
        _G,
        "boolean",
        "1 while a GPU answers that it fell off the bus.",
    ),
    _gpu("headroom_gpu_memory_total_bytes", _G, "bytes", "Device memory."),
    _gpu("headroom_gpu_memory_used_bytes", _G, "bytes", "Device memory allocated."),
    _gpu("headroom_gpu_memory_free_bytes", _G, "bytes", "Device memory free."),
    _gpu(
        "headroom_gpu_memory_reserved_bytes",
        _G,
        "bytes",
        "Device memory the driver keeps for itself.",
    ),
    _gpu(
        "headroom_gpu_memory_owner_bytes",
        _G,
        "bytes",
        "Device memory by owner: engine (inference servers) and other. Absent where processes cannot be "
        "told apart, as in a PID namespace of its own.",
        "owner",
    ),
    _gpu(
        "headroom_gpu_utilization_ratio",
        _G,
        "ratio",
        "Share of the sample period with a kernel running, 0-1: busy, not full.",
    ),
    _gpu(
        "headroom_gpu_memory_bandwidth_utilization_ratio",
        _G,
        "ratio",
        "Share of the sample period with device memory read or written, 0-1.",
    ),
    _gpu("headroom_gpu_power_watts", _G, "watts", "Power draw."),
    _gpu("headroom_gpu_power_limit_watts", _G, "watts", "Enforced power limit."),
    _gpu(
        "headroom_gpu_energy_joules_total", _C, "joules", "Energy used since the driver was loaded."
    ),
    _gpu("headroom_gpu_temperature_celsius", _G, "celsius", "Core temperature."),
    _gpu(
        "headroom_gpu_clock_event_active",
        _G,
        "boolean",
        "1 for each reason that limits the clocks now (NVML clock event reasons).",
        "reason",
    ),
    _gpu(
        "headroom_gpu_ecc_uncorrectable_errors_total",
        _C,
        "errors",
        "Uncorrectable ECC errors since the driver was loaded.",
    ),
    _gpu(
        "headroom_gpu_row_remap_failed",
        _G,
        "boolean",
        "1 where a row remap failed: replace the GPU.",
    ),
    _gpu(
        "headroom_gpu_row_remap_pending",
        _G,
        "boolean",
        "1 where a row remap waits for a GPU reset.",
    ),
    _gpu(
        "headroom_gpu_pod_info",
        _I,
        "",
        "Container that the GPU is allocated to, as the kubelet says (node mode); one for each where a "
        "GPU is shared. gpu is empty where NVML shows no such GPU to the exporter.",
        "uuid",
        "namespace",
        "pod",
        "container",
    ),
    # --- node mode ---
    _engine(
        "headroom_engine_pod_info",
        _I,
        "",
        "Pod that a discovered engine runs in (node mode).",
        "namespace",
        "pod",
        "uid",
    ),
    _self(
        "headroom_discovery_up",
        _G,
        "boolean",
        "Whether node mode's source (kubernetes: the API server's watch of pods; kubelet: its list of "
        "devices) answers. At 0 what it said before stands, and may be out of date.",
        "source",
    ),
    _self(
        "headroom_discovery_last_success_timestamp_seconds",
        _G,
        "seconds",
        "Unix time of the last word from node mode's source; the API server gives one at least every "
        "few minutes.",
        "source",
    ),
    _self(
        "headroom_discovery_errors_total",
        _C,
        "errors",
        "What went wrong in node mode by source and kind; docs/node-mode.md lists the kinds.",
        "source",
        "kind",
    ),
    # --- self ---
    _self("headroom_build_info", _I, "", "Version of the exporter.", "version"),
    _self(
        "headroom_config_last_reload_successful",
        _G,
        "boolean",
        "Whether the last reading of the configuration succeeded; a failed one keeps the running one.",
    ),
    _self(
        "headroom_config_last_reload_success_timestamp_seconds",
        _G,
        "seconds",
        "Unix time of the last successful reading of the configuration.",
    ),
    _self(
        "headroom_scrape_duration_seconds",
        _G,
        "seconds",
        "Time this scrape took to build.",
    ),
)

BY_NAME: dict[str, MetricSpec] = {spec.name: spec for spec in CATALOG}

# Of the exporter's own process, from prometheus_client's ProcessCollector with this prefix.
PROCESS_NAMESPACE = "headroom"
