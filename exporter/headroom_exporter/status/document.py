"""
The State as one JSON document: what ``GET /api/v1/state`` answers and the status page draws. Pure.

Every key is always there; what is not known is null. docs/status-api.md is the contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headroom_exporter import __version__
from headroom_exporter.expose import GPU_STALE_SECONDS, is_fresh
from headroom_exporter.links import runbook
from headroom_exporter.samples import Constraint, HeadroomState
from headroom_exporter.status.plan import compare
from headroom_exporter.status.verdict import Verdict, engine_away, judge, rank_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headroom_exporter.config import PlanConfig
    from headroom_exporter.samples import (
        EngineState,
        GpuSample,
        GpuState,
        MemorySnapshot,
        RankSample,
        RankState,
        State,
    )
    from headroom_exporter.status.history import History
    from headroom_exporter.status.plan import Dimension

VERSION = 1
WINDOW_NAMES = {60: "1m", 300: "5m"}
# Worst first: the order of the list, and of the summary.
SEVERITY = (
    HeadroomState.EXHAUSTED,
    HeadroomState.UNKNOWN,
    HeadroomState.LOW,
    HeadroomState.OK,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """
    What the document is made from besides the State.

    Attributes:
        plan_of: The plan for an engine and a model.
        history: The last 15 minutes.
        instance: Changes with each start of the exporter, so that readers know their history ended.
        simulated: Whether what is watched is a simulation.
    """

    plan_of: Callable[[str, str], PlanConfig | None]
    history: History
    instance: str
    simulated: bool = False


def document(state: State, source: Source, *, now: float, wall: float) -> dict[str, Any]:
    """
    The State as plain dicts and lists, ready for JSON.

    Args:
        state: What is known.
        source: Plans and history.
        now: Monotonic seconds, against which samples are fresh or not.
        wall: Unix seconds.
    """
    ranks = [
        _rank(engine, rank, source, now=now) for engine in state.engines for rank in engine.ranks
    ]
    ranks.sort(key=_least_headroom_first)
    engines = [_engine(engine, now) for engine in state.engines]
    return {
        "version": VERSION,
        "time": round(wall, 3),
        "exporter": {
            "version": __version__,
            "instance": source.instance,
            "simulated": source.simulated,
            "config_reload_successful": state.reload.successful,
            "config_read_at": state.reload.at,
        },
        "state": _worst(ranks, engines),
        "ranks": ranks,
        "engines": engines,
        "gpus": _gpus(state.gpu, now),
    }


def _least_headroom_first(rank: Mapping[str, Any]) -> tuple[float, float, str, str]:
    """Without headroom first, then what cannot be told, then by ratio."""
    ratio = rank["headroom"]["ratio"]
    order = SEVERITY.index(rank["state"])
    known = math.inf if ratio is None else ratio
    return (min(order, 2), known, rank["engine"], rank["rank"])


def _worst(ranks: Iterable[Mapping[str, Any]], engines: Iterable[Mapping[str, Any]]) -> str:
    states = {rank["state"] for rank in ranks}
    if not states or any(not engine["up"] for engine in engines):
        states.add(HeadroomState.UNKNOWN)
    return next(state for state in SEVERITY if state in states)


# --- engines -------------------------------------------------------------------------------------


def _engine(engine: EngineState, now: float) -> dict[str, Any]:
    fresh = is_fresh(engine, now)
    return {
        "name": engine.name,
        "up": engine.up and fresh,
        "kind": engine.kind,
        "version": engine.version,
        "max_model_length_tokens": engine.max_model_length if fresh else None,
        "verdict": None
        if _has_numbers(engine, now)
        else _verdict(engine_away(engine, _age(engine, now))),
        "poll": {
            "mode": engine.poll_mode,
            "last_success": _number(engine.last_success),
            "age_seconds": _age(engine, now),
            "stale_after_seconds": engine.stale_after,
            "duration_seconds": _number(engine.poll_duration),
            "errors": {kind: _number(count) for kind, count in engine.errors.items()},
            "unobserved_seconds": _number(engine.unobserved_seconds),
            "last_error": engine.last_error,
        },
    }


def _has_numbers(engine: EngineState, now: float) -> bool:
    """Whether anything is shown of it: after a refused connection nothing is, however fresh it was."""
    seen = any(rank.sample is not None for rank in engine.ranks)
    return is_fresh(engine, now) and (engine.up or seen)


def _age(engine: EngineState, now: float) -> float | None:
    last = engine.last_success_monotonic
    return None if last is None else round(max(0.0, now - last), 3)


# --- ranks ---------------------------------------------------------------------------------------


def _rank(engine: EngineState, rank: RankState, source: Source, *, now: float) -> dict[str, Any]:
    plan = source.plan_of(engine.name, rank.model_name)
    recent = source.history.recent((engine.name, rank.rank, rank.model_name))
    fresh = is_fresh(engine, now)
    sample, derived = (rank.sample, rank.derived) if fresh else (None, None)
    seen = sample is not None and derived is not None
    dimensions = [] if plan is None or not seen else compare(plan, rank, recent)
    if sample is not None and derived is not None:
        verdict = judge(sample, derived, plan, dimensions)
    else:
        here = _has_numbers(engine, now)
        verdict = rank_away() if here else engine_away(engine, _age(engine, now))
    return {
        "engine": engine.name,
        "rank": rank.rank,
        "model_name": rank.model_name,
        "seen": seen,
        "state": derived.state if derived is not None else HeadroomState.UNKNOWN,
        "reason": derived.reason if derived is not None else "no_data",
        "verdict": _verdict(verdict),
        **_levels(rank if seen else None),
        "kv_cache": _kv_cache(sample, rank.memory),
        "peaks": _peaks(rank.memory if seen else None),
        "batching": _batching(rank if seen else None),
        "plan": None if plan is None else _plan(plan, dimensions),
        "prompts_over_plan": _prompts_over(rank if seen else None, plan, dimensions),
        "state_seconds": {key: _number(value) for key, value in rank.memory.state_seconds.items()},
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "sentence": verdict.sentence,
        "advice": verdict.advice,
        "runbook": _runbook(verdict.alert),
        "notes": [{"text": note.text, "runbook": _runbook(note.alert)} for note in verdict.notes],
    }


def _runbook(alert: str | None) -> str | None:
    return None if alert is None else runbook(alert)


def _levels(rank: RankState | None) -> dict[str, Any]:
    """The same keys for a rank that is seen and for one that is not (None)."""
    sample = None if rank is None else rank.sample
    derived = None if rank is None else rank.derived
    capacities: Mapping[Constraint, float] = {} if derived is None else derived.capacities
    return {
        "running": _of(sample, "running"),
        "waiting": _of(sample, "waiting"),
        "deferred": _of(sample, "deferred"),
        "preemptions": _of(sample, "preemptions"),
        "demand": _of(derived, "demand"),
        "sustainable": _of(derived, "sustainable"),
        "headroom": {"sequences": _of(derived, "headroom"), "ratio": _of(derived, "ratio")},
        "binding": None if derived is None else derived.binding,
        "spike_multiple": _of(derived, "spike_multiple"),
        "capacities": {each: _number(capacities.get(each)) for each in Constraint},
        "max_sequences": {}
        if derived is None
        else {basis: _number(value) for basis, value in derived.max_sequences.items()},
    }


def _kv_cache(sample: RankSample | None, memory: MemorySnapshot) -> dict[str, Any]:
    usage, size = (None, None) if sample is None else (sample.kv_usage, sample.kv_capacity_tokens)
    used = None if usage is None or size is None else usage * size
    footprint = memory.footprint
    return {
        "usage_ratio": _number(usage),
        "capacity_tokens": _number(size),
        "used_tokens": _number(used),
        "free_tokens": None if used is None or size is None else _number(size - used),
        "tokens_per_sequence": None
        if footprint is None or size is None
        else _number(footprint.mean * size),
        "tokens_per_sequence_basis": None if footprint is None else footprint.basis,
    }


def _peaks(memory: MemorySnapshot | None) -> dict[str, Any]:
    return {
        name: {
            text: None if memory is None else _number(getattr(memory, field).get(seconds))
            for seconds, text in WINDOW_NAMES.items()
        }
        for name, field in (
            ("running", "peak_running"),
            ("demand", "peak_demand"),
            ("kv_usage_ratio", "peak_kv_usage"),
        )
    }


def _batching(rank: RankState | None) -> dict[str, Any]:
    derived = None if rank is None else rank.derived
    fit = None if rank is None else rank.memory.fit
    return {
        "marginal_gain_ratio": _of(derived, "marginal_gain"),
        "knee_sequences": _of(derived, "knee"),
        "step_fixed_seconds": _of(fit, "fixed"),
        "step_per_sequence_seconds": _of(fit, "per_sequence"),
    }


# --- the plan ------------------------------------------------------------------------------------


def _plan(plan: PlanConfig, dimensions: Iterable[Dimension]) -> dict[str, Any]:
    return {
        "name": plan.name,
        "spike_factor": plan.spike_factor,
        "floor_ratio": plan.floor_ratio,
        "dimensions": [
            {
                "dimension": each.name,
                "unit": each.unit,
                "planned": each.planned,
                "observed": _number(each.observed),
                "basis": each.basis,
                "seconds": _number(each.seconds),
                "fit": each.fit,
                "share_over": _bracket(each.share_over),
            }
            for each in dimensions
        ],
    }


def _prompts_over(
    rank: RankState | None, plan: PlanConfig | None, dimensions: Iterable[Dimension]
) -> dict[str, Any] | None:
    """Prompts longer than planned: since the engine's start as on /metrics, and of late."""
    if plan is None or plan.prompt_tokens.p95 is None:
        return None
    derived = None if rank is None else rank.derived
    late = next((each for each in dimensions if each.name == "prompt_p95"), None)
    return {
        "planned_p95_tokens": plan.prompt_tokens.p95,
        "requests": _bracket(None if derived is None else derived.prompts_over_plan),
        "prompts": _of(derived, "prompts"),
        "recent_ratio": None if late is None else _bracket(late.share_over),
        "recent_seconds": None if late is None else _number(late.seconds),
    }


def _bracket(pair: tuple[float, float] | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {"lower": _number(pair[0]), "upper": _number(pair[1])}


# --- GPUs ----------------------------------------------------------------------------------------


def _gpus(gpu: GpuState, now: float) -> dict[str, Any]:
    fresh = gpu.read_at is not None and now - gpu.read_at <= GPU_STALE_SECONDS
    return {
        "up": None if gpu.up is None else gpu.up and fresh,
        "driver_version": gpu.driver_version,
        "lost": list(gpu.lost),
        "errors": {kind: _number(count) for kind, count in gpu.errors.items()},
        "devices": [_gpu(each) for each in gpu.gpus] if fresh else [],
    }


def _gpu(gpu: GpuSample) -> dict[str, Any]:
    owners = gpu.memory_by_owner
    events = gpu.clock_events
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "mig": gpu.mig,
        "memory_bytes": {
            "total": gpu.memory_total,
            "used": gpu.memory_used,
            "free": gpu.memory_free,
            "reserved": gpu.memory_reserved,
            "engine": None if owners is None else owners.get("engine"),
            "other": None if owners is None else owners.get("other"),
        },
        "utilization_ratio": _number(gpu.utilization),
        "memory_bandwidth_utilization_ratio": _number(gpu.memory_utilization),
        "power_watts": _number(gpu.power),
        "power_limit_watts": _number(gpu.power_limit),
        "temperature_celsius": _number(gpu.temperature),
        "clock_events": None
        if events is None
        else sorted(reason for reason, active in events.items() if active),
        "ecc_uncorrectable": gpu.ecc_uncorrectable,
        "row_remap_pending": gpu.row_remap_pending,
        "row_remap_failed": gpu.row_remap_failed,
    }


# --- numbers -------------------------------------------------------------------------------------


def _of(record: object, field: str) -> float | None:
    return None if record is None else _number(getattr(record, field))


def _number(value: float | None) -> float | None:
    """What JSON can carry: infinite and not-a-number are as unknown as None."""
    return value if value is not None and math.isfinite(value) else None
