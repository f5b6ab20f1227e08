"""From evidence to headroom: capacities, the binding constraint, state. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.config import PlanConfig
from headroom_exporter.derive import histograms, kv_cache, slots, step_time
from headroom_exporter.samples import (
    LIMITING,
    Constraint,
    Derived,
    Footprint,
    HeadroomState,
    Histogram,
    StepFit,
    nothing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Below this mean demand a multiple of it says nothing.
MIN_SPIKE_BASE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    What a rank's sample and memory say at one moment.

    Attributes:
        waiting_persists: A request has waited for capacity for longer than the next step.
        preempting: Sequences were preempted within the last seconds.
        stale: Gauges that cannot be believed any more.
        recent_running: Largest running of the last seconds; the gauge dips between steps.
        recent_usage: Largest KV usage of the last seconds.
        seen_running: Largest running since the engine started.
        slots: max_num_seqs by basis.
        footprint: Share of the pool of one running sequence.
        prompt_share: Share of the pool that a mean prompt takes; what it reserves, where admission does.
        base_demand: What a spike multiplies: mean demand over the last minute or the last ten
            seconds, the larger.
        mean_running: Time-weighted mean of running over the last minutes.
        prompt_rate: Computed prompt tokens per second over the same minutes; None with too few prompts.
        p95_to_mean: Spread of inter-token latency over the last minutes.
        prompts: The engine's histogram of prompt lengths.
    """

    running: float | None = None
    waiting: float | None = None
    batch: float | None = None
    waiting_persists: bool = False
    preempting: bool = False
    stale: bool = False
    recent_running: float | None = None
    recent_usage: float | None = None
    seen_running: float = 0.0
    slots: Mapping[str, float] = field(default_factory=nothing)
    footprint: Footprint | None = None
    fit: StepFit | None = None
    prompt_share: float | None = None
    base_demand: float | None = None
    mean_running: float | None = None
    prompt_rate: float | None = None
    p95_to_mean: float | None = None
    prompts: Histogram | None = None


# The plan's headroom numbers where no plan is declared: its defaults.
NO_PLAN = PlanConfig()


def derive(seen: Evidence, declared: PlanConfig | None) -> Derived:
    """
    Capacity, headroom and state of one rank.

    A constraint's capacity is an estimate until it binds; while it visibly binds (requests wait, and this is
    what they wait for) it is no more than what runs now.
    """
    plan = declared or NO_PLAN
    believable = not seen.stale and seen.running is not None and seen.waiting is not None
    demand = (seen.running or 0.0) + (seen.waiting or 0.0) if believable else None
    now_binding = binding_now(seen) if believable else None
    known = capacities(seen, plan, demand)
    if now_binding is not None and seen.recent_running is not None:
        known[now_binding] = min(known.get(now_binding, seen.recent_running), seen.recent_running)
    limiting = {key: known[key] for key in LIMITING if key in known}
    sustainable = _least(*limiting.values())
    # What is seen to stop the next sequence goes before what is estimated to.
    binding = min(limiting, key=lambda key: (key != now_binding, limiting[key]), default=None)
    if believable and seen.waiting_persists and now_binding is None:
        # Requests wait and we cannot tell for what: whatever the estimates say, no more than this fits.
        sustainable, binding = _least(sustainable, seen.recent_running), None
    # Not 1 - demand / sustainable: that puts 16 of 20 just below a floor of 0.2.
    ratio = (sustainable - demand) / sustainable if demand is not None and sustainable else None
    state, reason = judge(seen, demand, sustainable, ratio, plan)
    over = _prompts_over(seen.prompts, plan)
    return Derived(
        state=state,
        reason=reason,
        demand=demand,
        capacities=MappingProxyType(known),
        max_sequences=seen.slots,
        sustainable=sustainable,
        binding=binding,
        headroom=None if demand is None or sustainable is None else sustainable - demand,
        ratio=ratio,
        spike_multiple=_spike_multiple(seen, limiting, sustainable) if believable else None,
        marginal_gain=None
        if seen.batch is None or not believable
        else step_time.marginal_gain(seen.fit, seen.batch),
        knee=step_time.knee(seen.fit),
        prompts_over_plan=over,
        prompts=None if seen.prompts is None else seen.prompts.count,
    )


def capacities(
    seen: Evidence, plan: PlanConfig, demand: float | None = None
) -> dict[Constraint, float]:
    """
    Sequences of today's mix that each constraint lets run; unknown ones are left out.

    Prefill limits a flow and not a number of sequences: its capacity is what is there now (or is on the
    mean of the last minutes, if that is more) times what the flow may grow by, so that the ratio of
    the two moves with the flow alone.
    """
    kv = None
    if seen.footprint is not None:
        reserve = kv_cache.admission_reserve(seen.prompt_share, seen.footprint)
        kv = kv_cache.capacity(seen.footprint, plan.overrun_probability, reserve)
        # vLLM does not start where one sequence of the longest length would not fit.
        kv = max(1.0, kv)
    found = {
        Constraint.SLOTS: slots.effective_slots(dict(seen.slots), seen.seen_running),
        Constraint.KV_CACHE: kv,
        Constraint.LATENCY: step_time.latency_capacity(
            seen.fit, plan.tpot_p95_seconds, seen.p95_to_mean
        ),
        Constraint.PREFILL: _prefill(seen, demand),
        Constraint.PLAN: plan.concurrency,
    }
    return {key: value for key, value in found.items() if value is not None}


def binding_now(seen: Evidence) -> Constraint | None:
    """
    What the waiting requests wait for; None when none wait, or when it cannot be told.

    Slots, when all were in use within the last seconds. The cache, when it preempts or had no room for the
    next prompt whole. Else both are free, and what is short is the time to compute prompts: but only when
    the slots are known, or more has been seen running than runs now.
    """
    if seen.preempting:
        return Constraint.KV_CACHE
    if not seen.waiting_persists or seen.recent_running is None:
        return None
    limit = slots.effective_slots(dict(seen.slots), seen.seen_running)
    if limit is not None and seen.recent_running >= limit:
        return Constraint.SLOTS
    needed = seen.prompt_share
    if needed is None and seen.footprint is not None:
        needed = seen.footprint.mean
    if seen.recent_usage is None or needed is None:
        return None
    if seen.recent_usage + needed > 1.0:
        return Constraint.KV_CACHE
    free_slots = limit is not None or seen.recent_running < seen.seen_running
    return Constraint.PREFILL if free_slots else None


def judge(
    seen: Evidence,
    demand: float | None,
    sustainable: float | None,
    ratio: float | None,
    plan: PlanConfig,
) -> tuple[HeadroomState, str]:
    """The state and, in one stable word, why."""
    if seen.running is None or seen.waiting is None:
        return HeadroomState.UNKNOWN, "no_gauges"
    if seen.stale:
        return HeadroomState.UNKNOWN, "stale_gauges"
    if seen.preempting:
        return HeadroomState.EXHAUSTED, "preempting"
    if seen.waiting_persists:
        return HeadroomState.EXHAUSTED, "waiting"
    if sustainable is None or demand is None:
        return HeadroomState.UNKNOWN, "no_capacity_known"
    if demand >= sustainable:
        return HeadroomState.EXHAUSTED, "no_headroom"
    if ratio is not None and ratio < plan.floor_ratio:
        return HeadroomState.LOW, "below_floor"
    return HeadroomState.OK, "fits"


def _prefill(seen: Evidence, demand: float | None) -> float | None:
    multiple = step_time.prefill_multiple(seen.fit, seen.prompt_rate)
    if multiple is None or not seen.mean_running:
        return None
    return max(demand or 0.0, seen.mean_running) * multiple


def _spike_multiple(
    seen: Evidence, limiting: Mapping[Constraint, float], sustainable: float | None
) -> float | None:
    """Largest k at which k x the recent traffic fits every known limit."""
    base = seen.base_demand
    if sustainable is None or base is None or base < MIN_SPIKE_BASE:
        return None
    flow = step_time.prefill_multiple(seen.fit, seen.prompt_rate)
    if seen.waiting_persists or seen.preempting:
        # What runs now may be a peak, above the mean of before: no more than today's traffic fits.
        return min(1.0, sustainable / base)
    stocks = [
        step_time.traffic_multiple(seen.fit, base, capacity)
        for constraint, capacity in limiting.items()
        if constraint != Constraint.PREFILL
    ]
    return _least(flow, *stocks)


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _prompts_over(prompts: Histogram | None, plan: PlanConfig) -> tuple[float, float] | None:
    if prompts is None or plan.prompt_tokens.p95 is None:
        return None
    return histograms.over(prompts, plan.prompt_tokens.p95)
