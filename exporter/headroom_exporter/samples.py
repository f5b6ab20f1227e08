"""
The records that cross module borders: frozen, slotted, keyword-only.

None means unknown: not in this engine version, not published yet, or not believable. It is never
replaced by 0. Ratios are 0 to 1, times are seconds, sizes are bytes unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[Any, Any] = MappingProxyType({})


def nothing() -> Mapping[Any, Any]:
    """An empty read-only mapping, as a dataclass default (a mappingproxy has no hash before 3.12)."""
    return NOTHING


class Constraint(StrEnum):
    """What stops the next sequence."""

    SLOTS = "slots"
    KV_CACHE = "kv_cache"
    LATENCY = "latency"
    PREFILL = "prefill"
    PLAN = "plan"


# The plan is what the team sized for; it stops nobody, so it takes no part in "sustainable".
LIMITING = (Constraint.SLOTS, Constraint.KV_CACHE, Constraint.LATENCY, Constraint.PREFILL)


class HeadroomState(StrEnum):
    """Whether more sequences fit."""

    OK = "ok"
    LOW = "low"
    EXHAUSTED = "exhausted"
    UNKNOWN = "unknown"


# --- what an engine says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """
    A cumulative histogram as the engine published it.

    Attributes:
        bounds: Finite upper bounds, ascending; shape (n,).
        counts: Observations at or below each bound, then all of them; shape (n + 1,).
        sum: Sum of the observed values.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """All observations."""
        return self.counts[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """
    How old what an engine says can be, beyond the step it is in.

    Two readings closer together than this may be one and the same: they are no two witnesses.

    Attributes:
        gauge_seconds: Gauges are refreshed this seldom, seconds.
        gauge_steps: Gauges are refreshed once in so many steps.
        tokens_at_finish: Token counters jump when a request ends instead of growing with each step.
        gauges_when_asked: Gauges are computed for each reader, so they cannot freeze: a long answer that
            moves nothing is an answer.
    """

    gauge_seconds: float = 0.0
    gauge_steps: int = 0
    tokens_at_finish: bool = False
    gauges_when_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSample:
    """
    One data-parallel rank on one page.

    Counters are raw: they start again at 0 when the engine does. A fast poll carries only the
    gauges and counters that move; histograms and cache facts come with the full page.
    """

    rank: str
    model_name: str
    running: float | None = None
    # Waiting for capacity; deferred requests (LoRA budget, KV transfer) apart where told apart.
    waiting: float | None = None
    deferred: float | None = None
    # max_num_seqs or what this engine calls it, where the server itself tells.
    slots: float | None = None
    # The same from its command line, where that can be seen.
    argument_slots: float | None = None
    # Share of the pool that holds tokens of live sequences; what could be evicted at once is not in it.
    kv_usage: float | None = None
    # Share of the pool that admission has promised away, whether it holds tokens yet or not.
    kv_reserved: float | None = None
    prompt_tokens: float | None = None
    # Prompt tokens really computed: those found in a cache cost nothing.
    computed_prompt_tokens: float | None = None
    generation_tokens: float | None = None
    steps: float | None = None
    step_tokens: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    inter_token_seconds: float | None = None
    inter_token_count: float | None = None
    spec_drafts: float | None = None
    spec_accepted_tokens: float | None = None
    finished: Mapping[str, float] = field(default_factory=nothing)
    rejected: Mapping[str, float] = field(default_factory=nothing)
    histograms: Mapping[str, Histogram] = field(default_factory=nothing)
    # The pool that requests can fill, in tokens: the engine's figure less its reserved block.
    kv_capacity_tokens: float | None = None
    block_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """
    Everything one page said.

    Attributes:
        ranks: One record for each rank and model, in a stable order.
        started: Start of the engine's process, Unix seconds, where told.
        dropped: Ranks left out because the page held more than the limit.
        version: The engine's own version, where told.
        max_model_length: Longest sequence it accepts, tokens.
    """

    ranks: tuple[RankSample, ...]
    started: float | None = None
    dropped: int = 0
    version: str | None = None
    max_model_length: int | None = None


# --- what a GPU says -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A compute process on a GPU; ``memory`` is None where the driver may not tell."""

    pid: int
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """
    One GPU, or one MIG instance, read once. A field is None where card or driver has none.

    Attributes:
        index: NVML index; of a MIG instance ``parent:instance``.
        memory_reserved: Bytes the driver keeps for itself (memory info version 2).
        utilization: Share of the sample period with a kernel running.
        memory_utilization: Share of the sample period with device memory being read or written.
        energy: Joules since the driver was loaded.
        clock_events: Reason to whether it limits the clocks now.
        ecc_uncorrectable: Uncorrectable errors since the driver was loaded.
        memory_by_owner: ``engine`` and ``other`` bytes, where processes can be told apart.
    """

    index: str
    uuid: str
    name: str | None = None
    mig: bool = False
    memory_total: int | None = None
    memory_used: int | None = None
    memory_free: int | None = None
    memory_reserved: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None
    temperature: float | None = None
    clock_events: Mapping[str, bool] | None = None
    ecc_uncorrectable: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    memory_by_owner: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """
    The GPU side of one State.

    Attributes:
        up: True when the last read succeeded; None when GPUs are switched off by configuration.
        lost: Devices that answered "lost" in the last read: shown as ``headroom_gpu_up`` 0.
        read_at: Monotonic seconds of the last good read; None before the first.
        errors: Failed reads by kind.
    """

    up: bool | None
    driver_version: str | None = None
    gpus: tuple[GpuSample, ...] = ()
    lost: tuple[str, ...] = ()
    read_at: float | None = None
    errors: Mapping[str, float] = field(default_factory=nothing)


# --- what memory holds ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeHistogramSnapshot:
    """
    Time spent at or below each level.

    Attributes:
        bounds: Finite upper bounds of the level, ascending; shape (n,).
        milliseconds: Whole milliseconds at or below each bound, then all; shape (n + 1,).
        sum: Level times milliseconds.
    """

    bounds: tuple[float, ...]
    milliseconds: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """
    Resident KV cache of one running sequence, as a share of the pool.

    Attributes:
        mean: Share of the pool; mean over running sequences and time.
        stddev: The same unit; None where only the mean is known.
        skewness: Third standardised moment; 0 where it is not known.
        basis: ``live`` (measured now) or ``plan`` (computed from the planned lengths).
    """

    mean: float
    stddev: float | None
    skewness: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """
    Step time = fixed + per_sequence x batch, at today's mix of prompts, and prompts' own cost.

    Attributes:
        fixed: Seconds of a step whatever its batch; None until identified.
        per_sequence: Seconds each sequence adds; None until identified.
        per_prefill_token: Seconds each computed prompt token adds; None until identified.
        batch_max: Largest mean batch per step among the windows the fit rests on.
        windows: How many windows it rests on (with forgetting).
    """

    fixed: float | None
    per_sequence: float | None
    per_prefill_token: float | None
    batch_max: float
    windows: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySnapshot:
    """What one rank's past adds to its present: everything here survives between polls."""

    effective_batch: TimeHistogramSnapshot
    demand: TimeHistogramSnapshot
    kv_occupancy: TimeHistogramSnapshot
    # window in seconds -> largest seen inside it
    peak_running: Mapping[int, float]
    peak_demand: Mapping[int, float]
    peak_kv_usage: Mapping[int, float]
    state_seconds: Mapping[HeadroomState, float]
    constraint_seconds: Mapping[Constraint, float]
    exhausted_seconds: Mapping[Constraint, float] = field(default_factory=nothing)
    footprint: Footprint | None = None
    fit: StepFit | None = None


# --- what is derived -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """
    Capacity, headroom and state of one rank at one moment.

    Attributes:
        capacities: Sequences of today's mix each constraint lets run; an unknown one is absent.
        max_sequences: Slots (max_num_seqs) by where the number came from: plan, server, args, inferred.
        sustainable: Least of the known capacities of slots, kv_cache, latency and prefill.
        binding: The constraint that is least.
        headroom: sustainable - demand; negative when overloaded.
        ratio: 1 - demand / sustainable.
        reason: Why the state is what it is, one stable word.
        spike_multiple: Largest k at which k x the recent traffic fits every limit.
        prompts_over_plan: (certainly, at most) longer than the planned p95, of all prompts.
    """

    state: HeadroomState
    reason: str
    demand: float | None = None
    capacities: Mapping[Constraint, float] = field(default_factory=nothing)
    max_sequences: Mapping[str, float] = field(default_factory=nothing)
    sustainable: float | None = None
    binding: Constraint | None = None
    headroom: float | None = None
    ratio: float | None = None
    spike_multiple: float | None = None
    marginal_gain: float | None = None
    knee: float | None = None
    prompts_over_plan: tuple[float, float] | None = None
    prompts: float | None = None


# --- what a scrape renders -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """One rank as the scrape shows it; ``sample`` and ``derived`` are None while it is not seen."""

    rank: str
    model_name: str
    memory: MemorySnapshot
    sample: RankSample | None = None
    derived: Derived | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """
    One polled server as the scrape shows it.

    Attributes:
        stale_after: Seconds after ``last_success`` at which its samples are left out of a scrape.
        last_success: Unix seconds, for people; ``last_success_monotonic`` is for arithmetic.
        errors: Failed polls by kind since the exporter started.
        unobserved_seconds: Time that was not integrated because no poll covered it.
    """

    name: str
    up: bool
    stale_after: float
    ranks: tuple[RankState, ...] = ()
    kind: str | None = None
    version: str | None = None
    poll_mode: str | None = None
    # What the KV usage of this engine means (engines.base.KvUsage), and how old its gauges can be.
    kv_usage_means: str | None = None
    gauge_age: float | None = None
    max_model_length: int | None = None
    last_success: float | None = None
    last_success_monotonic: float | None = None
    poll_duration: float | None = None
    errors: Mapping[str, float] = field(default_factory=nothing)
    unobserved_seconds: float = 0.0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadState:
    """How the last reading of the configuration went; ``at`` is Unix seconds of the last good one, if any."""

    successful: bool
    at: float | None


# --- node mode -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PodIdentity:
    """Which pod; ``uid`` tells two of one name apart."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPod:
    """A container that a GPU is allocated to; ``gpu`` is its NVML index, None while NVML shows no such."""

    gpu: str | None
    uuid: str
    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverySource:
    """
    How one source of node mode does.

    Attributes:
        up: Whether it told all it knows when it was last asked; while it does not, what it told before
            stands.
        last_success: Unix seconds of its last word; None before the first.
        errors: What went wrong by kind since the exporter started.
    """

    up: bool
    last_success: float | None = None
    errors: Mapping[str, float] = field(default_factory=nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryState:
    """
    What node mode adds to a State.

    Attributes:
        sources: By name: ``kubernetes``, and ``kubelet`` where it is asked.
        pods: Engine name to its pod.
        gpu_pods: Whose each GPU is, as the kubelet tells.
    """

    sources: Mapping[str, DiscoverySource]
    pods: Mapping[str, PodIdentity] = field(default_factory=nothing)
    gpu_pods: tuple[GpuPod, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything a scrape shows. Replaced whole, never changed. ``discovery`` is node mode's alone."""

    engines: tuple[EngineState, ...]
    gpu: GpuState
    reload: ReloadState
    discovery: DiscoveryState | None = None
