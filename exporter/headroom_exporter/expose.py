"""
State to metric families: built anew for each scrape, so what goes away disappears by itself.

A scrape reads one immutable State; it never triggers a poll or waits for one, and resets nothing, so any
number of scrapers see the same.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from headroom_exporter import __version__
from headroom_exporter.catalog import BY_NAME, CATALOG, PROCESS_NAMESPACE, Kind
from headroom_exporter.derive.histograms import thin
from headroom_exporter.samples import (
    LIMITING,
    Constraint,
    Derived,
    DiscoveryState,
    EngineState,
    GpuSample,
    GpuState,
    HeadroomState,
    Histogram,
    MemorySnapshot,
    RankSample,
    RankState,
    State,
    TimeHistogramSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from headroom_exporter.config import PlanConfig

# Histogram of the engine -> (lowest and highest bound of use, how many are kept): the budget is 200
# series per rank, and raw vLLM histograms alone would take 133.
THINNING: Mapping[str, tuple[float, float, int]] = {
    "request_prompt_tokens": (50, 200_000, 9),
    "request_output_tokens": (10, 50_000, 8),
    "time_to_first_token_seconds": (0.06, 80, 9),
    "inter_token_latency_seconds": (0.01, 1, 8),
    "queue_time_seconds": (0.3, 120, 7),
    "request_duration_seconds": (0.5, 480, 7),
}
WINDOW_NAMES = {60: "1m", 300: "5m"}
# A GPU reading older than this is left out: a hung driver must not look like a steady one.
GPU_STALE_SECONDS = 15.0


class Families:
    """Metric families under construction; a name that is not in the catalog raises KeyError."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def add(self, name: str, labels: Iterable[str], value: float | None) -> None:
        """Add one sample; None is unknown, so absent."""
        if value is not None and math.isfinite(value):
            family, names = self._family(name)
            family.add_sample(name, dict(zip(names, labels, strict=True)), value)

    def add_histogram(
        self,
        name: str,
        labels: Iterable[str],
        bounds: tuple[float, ...],
        counts: tuple[float, ...],
        total: float,
    ) -> None:
        """Add one cumulative histogram."""
        family, names = self._family(name)
        base = dict(zip(names, labels, strict=True))
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            family.add_sample(name + "_bucket", {**base, "le": _le(bound)}, count)
        family.add_sample(name + "_count", base, counts[-1])
        family.add_sample(name + "_sum", base, total)

    def _family(self, name: str) -> tuple[Metric, tuple[str, ...]]:
        spec = BY_NAME[name]
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Metric(family_name(name), spec.help, spec.kind)
        return family, spec.labels

    def in_catalog_order(self) -> Iterator[Metric]:
        """The families that have samples."""
        for spec in CATALOG:
            if spec.name in self._families:
                yield self._families[spec.name]


def _le(bound: float) -> str:
    """A bucket's bound as Go prints it, which is how scrapers compare it."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def family_name(name: str) -> str:
    """A metric's family: counters and infos are declared without their suffix."""
    return name.removesuffix({"counter": "_total", "info": "_info"}.get(BY_NAME[name].kind, ""))


class StateCollector(Collector):
    """
    Renders the latest State.

    Args:
        state: Gives the latest State.
        plan_of: The plan for an engine and a model.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        state: Callable[[], State],
        plan_of: Callable[[str, str], PlanConfig | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._plan_of = plan_of
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Families this collector can give; lets the registry check names without collecting."""
        return [Metric(family_name(spec.name), spec.help, spec.kind) for spec in CATALOG]

    def collect(self) -> Iterator[Metric]:
        """Families of this moment."""
        began = time.perf_counter()
        state, now, out = self._state(), self._clock(), Families()
        for engine in state.engines:
            _engine(out, engine, now, self._plan_of)
        _gpus(out, state.gpu, now)
        if state.discovery is not None:
            _discovery(out, state.discovery)
        out.add("headroom_build_info", (__version__,), 1)
        out.add("headroom_config_last_reload_successful", (), float(state.reload.successful))
        out.add("headroom_config_last_reload_success_timestamp_seconds", (), state.reload.at)
        out.add("headroom_scrape_duration_seconds", (), time.perf_counter() - began)
        yield from out.in_catalog_order()


def make_registry(collector: StateCollector) -> CollectorRegistry:
    """A registry of our own with the collector and this process's own figures."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(namespace=PROCESS_NAMESPACE, registry=registry)
    return registry


def is_fresh(engine: EngineState, now: float) -> bool:
    """Whether the engine's samples are recent enough to show."""
    last = engine.last_success_monotonic
    return last is not None and now - last <= engine.stale_after


def _engine(
    out: Families,
    engine: EngineState,
    now: float,
    plan_of: Callable[[str, str], PlanConfig | None],
) -> None:
    name = (engine.name,)
    fresh = is_fresh(engine, now)
    out.add("headroom_engine_up", name, float(engine.up and fresh))
    if engine.kind is not None:
        means = engine.kv_usage_means or ""
        facts = (engine.kind, engine.version or "", engine.poll_mode or "", means)
        out.add("headroom_engine_info", (*name, *facts), 1)
        out.add("headroom_engine_reading_age_seconds", name, engine.gauge_age if fresh else None)
    out.add("headroom_engine_last_success_timestamp_seconds", name, engine.last_success)
    out.add("headroom_engine_poll_duration_seconds", name, engine.poll_duration)
    for kind, count in engine.errors.items():
        out.add("headroom_engine_poll_errors_total", (*name, kind), count)
    out.add("headroom_engine_unobserved_seconds_total", name, engine.unobserved_seconds)
    for model in dict.fromkeys(rank.model_name for rank in engine.ranks):
        if fresh:
            out.add("headroom_max_model_length_tokens", (*name, model), engine.max_model_length)
    for rank in engine.ranks:
        labels = (engine.name, rank.rank, rank.model_name)
        plan = plan_of(engine.name, rank.model_name)
        _integrals(out, labels, rank.memory)
        _plan(out, labels, plan)
        if fresh and rank.sample is not None:
            _sample(out, labels, rank.sample, plan)
            _memory(out, labels, rank)
            if rank.derived is not None:
                _derived(out, labels, rank.derived)


Labels = tuple[str, str, str]


def _sample(out: Families, labels: Labels, sample: RankSample, plan: PlanConfig | None) -> None:
    out.add("headroom_running_sequences", labels, sample.running)
    out.add("headroom_waiting_sequences", labels, sample.waiting)
    out.add("headroom_deferred_sequences", labels, sample.deferred)
    out.add("headroom_kv_cache_usage_ratio", labels, sample.kv_usage)
    out.add("headroom_kv_cache_reserved_ratio", labels, sample.kv_reserved)
    capacity = sample.kv_capacity_tokens
    out.add("headroom_kv_cache_capacity_tokens", labels, capacity)
    if capacity is not None and sample.kv_usage is not None:
        used = sample.kv_usage * capacity
        out.add("headroom_kv_cache_used_tokens", labels, used)
        out.add("headroom_kv_cache_free_tokens", labels, capacity - used)
    out.add("headroom_prompt_tokens_total", labels, sample.prompt_tokens)
    out.add("headroom_generation_tokens_total", labels, sample.generation_tokens)
    out.add("headroom_steps_total", labels, sample.steps)
    out.add("headroom_step_tokens_total", labels, sample.step_tokens)
    out.add("headroom_preemptions_total", labels, sample.preemptions)
    out.add("headroom_prefix_cache_queries_tokens_total", labels, sample.prefix_queries)
    out.add("headroom_prefix_cache_hits_tokens_total", labels, sample.prefix_hits)
    for reason, count in sample.finished.items():
        out.add("headroom_finished_requests_total", (*labels, reason), count)
    for reason, count in sample.rejected.items():
        out.add("headroom_rejected_requests_total", (*labels, reason), count)
    for field, histogram in sample.histograms.items():
        _raw_histogram(out, labels, field, histogram, plan)


def _raw_histogram(
    out: Families, labels: Labels, field: str, histogram: Histogram, plan: PlanConfig | None
) -> None:
    low, high, keep = THINNING[field]
    thinned = thin(histogram, keep, low, high, around=_limits_of(field, plan))
    name = "headroom_" + field
    out.add_histogram(name, labels, thinned.bounds, thinned.counts, thinned.sum)


def _limits_of(field: str, plan: PlanConfig | None) -> list[float]:
    """Planned limits whose neighbouring bounds must survive thinning."""
    if plan is None:
        return []
    limits: dict[str, tuple[float | None, ...]] = {
        "request_prompt_tokens": (plan.prompt_tokens.p50, plan.prompt_tokens.p95),
        "request_output_tokens": (plan.output_tokens.p50, plan.output_tokens.p95),
        "time_to_first_token_seconds": (plan.ttft_p95_seconds,),
        "inter_token_latency_seconds": (plan.tpot_p95_seconds,),
    }
    return [limit for limit in limits.get(field, ()) if limit is not None]


def _integrals(out: Families, labels: Labels, memory: MemorySnapshot) -> None:
    """What only ever grows: shown even while the engine is away."""
    histograms: dict[str, TimeHistogramSnapshot] = {
        "headroom_effective_batch_sequences": memory.effective_batch,
        "headroom_demand_sequences": memory.demand,
        "headroom_kv_cache_occupancy_ratio": memory.kv_occupancy,
    }
    for name, seen in histograms.items():
        out.add_histogram(name, labels, seen.bounds, seen.milliseconds, seen.sum)
    for state, seconds in memory.state_seconds.items():
        out.add("headroom_state_seconds_total", (*labels, state), seconds)
    for constraint, seconds in memory.constraint_seconds.items():
        out.add("headroom_constraint_seconds_total", (*labels, constraint), seconds)
    for constraint, seconds in memory.exhausted_seconds.items():
        out.add("headroom_exhausted_seconds_total", (*labels, constraint), seconds)


def _memory(out: Families, labels: Labels, rank: RankState) -> None:
    memory = rank.memory
    peaks = {
        "headroom_peak_running_sequences": memory.peak_running,
        "headroom_peak_demand_sequences": memory.peak_demand,
        "headroom_peak_kv_cache_usage_ratio": memory.peak_kv_usage,
    }
    for name, windows in peaks.items():
        for window, value in windows.items():
            out.add(name, (*labels, WINDOW_NAMES[window]), value)
    footprint = memory.footprint
    capacity = rank.sample.kv_capacity_tokens if rank.sample else None
    if footprint is not None and capacity is not None:
        basis = (*labels, footprint.basis)
        out.add("headroom_tokens_per_sequence", basis, footprint.mean * capacity)
        if footprint.stddev is not None:
            out.add("headroom_tokens_per_sequence_stddev", basis, footprint.stddev * capacity)
    if memory.fit is not None:
        fit = memory.fit
        out.add("headroom_step_fixed_seconds", labels, fit.fixed)
        out.add("headroom_step_per_sequence_seconds", labels, fit.per_sequence)
        out.add("headroom_step_per_prefill_token_seconds", labels, fit.per_prefill_token)


def _derived(out: Families, labels: Labels, derived: Derived) -> None:
    for basis, value in derived.max_sequences.items():
        out.add("headroom_max_sequences", (*labels, basis), value)
    for constraint in Constraint:
        capacity = derived.capacities.get(constraint)
        out.add("headroom_capacity_sequences", (*labels, constraint), capacity)
        out.add("headroom_capacity_known", (*labels, constraint), float(capacity is not None))
    out.add("headroom_sustainable_sequences", labels, derived.sustainable)
    out.add("headroom_sequences", labels, derived.headroom)
    out.add("headroom_ratio", labels, derived.ratio)
    if derived.sustainable is not None:
        for constraint in LIMITING:
            bound = float(constraint == derived.binding)
            out.add("headroom_binding_constraint", (*labels, constraint), bound)
    for state in HeadroomState:
        out.add("headroom_state", (*labels, state), float(state == derived.state))
    out.add("headroom_state_reason_info", (*labels, derived.reason), 1)
    out.add("headroom_spike_multiple", labels, derived.spike_multiple)
    out.add("headroom_batching_marginal_gain_ratio", labels, derived.marginal_gain)
    out.add("headroom_knee_sequences", labels, derived.knee)
    out.add("headroom_prompts_total", labels, derived.prompts)
    if derived.prompts_over_plan is not None:
        for bound_name, count in zip(("lower", "upper"), derived.prompts_over_plan, strict=True):
            out.add("headroom_prompts_over_plan_total", (*labels, bound_name), count)


def _plan(out: Families, labels: Labels, plan: PlanConfig | None) -> None:
    if plan is None:
        return
    out.add("headroom_plan_info", (*labels, plan.name), 1)
    for dimension, limit in plan_limits(plan).items():
        out.add("headroom_plan_limit", (*labels, dimension), limit)
    out.add("headroom_plan_spike_factor", labels, plan.spike_factor)
    out.add("headroom_plan_floor_ratio", labels, plan.floor_ratio)


def plan_limits(plan: PlanConfig) -> dict[str, float]:
    """The declared limits by dimension; undeclared ones are left out."""
    limits = {
        "concurrency": plan.concurrency,
        "prompt_p50": plan.prompt_tokens.p50,
        "prompt_p95": plan.prompt_tokens.p95,
        "output_p50": plan.output_tokens.p50,
        "output_p95": plan.output_tokens.p95,
        "request_rate": plan.request_rate,
        "ttft_p95": plan.ttft_p95_seconds,
        "tpot_p95": plan.tpot_p95_seconds,
        "kv_tokens": plan.kv_cache_tokens,
    }
    return {dimension: limit for dimension, limit in limits.items() if limit is not None}


def _gpus(out: Families, gpu: GpuState, now: float) -> None:
    if gpu.up is None:
        return
    fresh = gpu.read_at is not None and now - gpu.read_at <= GPU_STALE_SECONDS
    out.add("headroom_gpu_up", (), float(gpu.up and fresh))
    for kind, count in gpu.errors.items():
        out.add("headroom_gpu_read_errors_total", (kind,), count)
    for index in gpu.lost:
        out.add("headroom_gpu_lost", (index,), 1)
    if fresh:
        for sample in gpu.gpus:
            _gpu(out, sample, gpu.driver_version or "")


def _gpu(out: Families, sample: GpuSample, driver_version: str) -> None:
    gpu = (sample.index,)
    mig = "true" if sample.mig else "false"
    out.add("headroom_gpu_info", (*gpu, sample.uuid, sample.name or "", driver_version, mig), 1)
    out.add("headroom_gpu_lost", gpu, 0)
    values: dict[str, float | None] = {
        "headroom_gpu_memory_total_bytes": sample.memory_total,
        "headroom_gpu_memory_used_bytes": sample.memory_used,
        "headroom_gpu_memory_free_bytes": sample.memory_free,
        "headroom_gpu_memory_reserved_bytes": sample.memory_reserved,
        "headroom_gpu_utilization_ratio": sample.utilization,
        "headroom_gpu_memory_bandwidth_utilization_ratio": sample.memory_utilization,
        "headroom_gpu_power_watts": sample.power,
        "headroom_gpu_power_limit_watts": sample.power_limit,
        "headroom_gpu_energy_joules_total": sample.energy,
        "headroom_gpu_temperature_celsius": sample.temperature,
        "headroom_gpu_ecc_uncorrectable_errors_total": sample.ecc_uncorrectable,
        "headroom_gpu_row_remap_failed": sample.row_remap_failed,
        "headroom_gpu_row_remap_pending": sample.row_remap_pending,
    }
    for name, value in values.items():
        out.add(name, gpu, None if value is None else float(value))
    for owner, size in (sample.memory_by_owner or {}).items():
        out.add("headroom_gpu_memory_owner_bytes", (*gpu, owner), size)
    for reason, active in (sample.clock_events or {}).items():
        out.add("headroom_gpu_clock_event_active", (*gpu, reason), float(active))


def _discovery(out: Families, discovery: DiscoveryState) -> None:
    for engine, pod in discovery.pods.items():
        out.add("headroom_engine_pod_info", (engine, pod.namespace, pod.name, pod.uid), 1)
    for gpu in discovery.gpu_pods:
        # An empty label is no label to Prometheus: a GPU that NVML does not show here has no index.
        owner = (gpu.namespace, gpu.pod, gpu.container)
        out.add("headroom_gpu_pod_info", (gpu.gpu or "", gpu.uuid, *owner), 1)
    for name, source in discovery.sources.items():
        out.add("headroom_discovery_up", (name,), float(source.up))
        last = source.last_success
        out.add("headroom_discovery_last_success_timestamp_seconds", (name,), last)
        for kind, count in source.errors.items():
            out.add("headroom_discovery_errors_total", (name, kind), count)


__all__ = ["Families", "Kind", "StateCollector", "is_fresh", "make_registry", "plan_limits"]
