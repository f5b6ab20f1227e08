"""States that the tests of the status page and its API look at: every number another one."""

from __future__ import annotations

import time
from dataclasses import replace

from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.derive.headroom import Evidence, derive
from headroom_exporter.samples import (
    Constraint,
    EngineState,
    Footprint,
    GpuSample,
    GpuState,
    HeadroomState,
    Histogram,
    MemorySnapshot,
    RankSample,
    RankState,
    ReloadState,
    State,
    StepFit,
    TimeHistogramSnapshot,
)

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
GIB = 2**30
PLAN = PlanConfig(
    name="chat",
    concurrency=31,
    max_num_seqs=64,
    prompt_tokens=Lengths(p50=512, p95=2000),
    output_tokens=Lengths(p95=600),
    request_rate=4.0,
    ttft_p95_seconds=1.0,
    tpot_p95_seconds=0.05,
    floor_ratio=0.2,
    spike_factor=2.0,
)
NO_TIME = TimeHistogramSnapshot(bounds=(1.0,), milliseconds=(0, 0), sum=0.0)
# 400 prompts: 40 of them certainly above 2000 tokens, as 2000 is a bound.
PROMPTS = Histogram(
    bounds=(500.0, 1000.0, 2000.0, 5000.0), counts=(210.0, 300.0, 360.0, 398.0, 400.0), sum=3e5
)
FIT = StepFit(fixed=0.02, per_sequence=0.001, per_prefill_token=None, batch_max=20.0, windows=12.0)


def memory(*, fit: StepFit | None = FIT, footprint: Footprint | None = None) -> MemorySnapshot:
    return MemorySnapshot(
        effective_batch=NO_TIME,
        demand=NO_TIME,
        kv_occupancy=NO_TIME,
        peak_running={60: 18.0, 300: 22.0},
        peak_demand={60: 19.0, 300: 23.0},
        peak_kv_usage={60: 0.71, 300: 0.82},
        state_seconds={HeadroomState.OK: 77.0},
        constraint_seconds={Constraint.KV_CACHE: 77.0},
        footprint=footprint,
        fit=fit,
    )


def rank(
    number: str = "0", *, model: str = MODEL, running: float = 15.0, waiting: float = 1.0
) -> RankState:
    """Capacities: slots 64, KV 22, latency 28, prefill 45, plan 31; with 15 + 1 there is room for 6."""
    sample = RankSample(
        rank=number,
        model_name=model,
        running=running,
        waiting=waiting,
        deferred=0.0,
        kv_usage=0.6321,
        preemptions=3.0,
        histograms={"request_prompt_tokens": PROMPTS},
        kv_capacity_tokens=41_392.0,
    )
    derived = derive(
        Evidence(
            running=running,
            waiting=waiting,
            batch=running,
            slots={"plan": 64.0},
            fit=FIT,
            base_demand=running - 1.0,
            prompts=PROMPTS,
        ),
        PLAN,
    )
    capacities = {
        Constraint.SLOTS: 64.0,
        Constraint.KV_CACHE: 22.0,
        Constraint.LATENCY: 28.0,
        Constraint.PREFILL: 45.0,
        Constraint.PLAN: 31.0,
    }
    demand = running + waiting
    full = demand >= 22.0
    return RankState(
        rank=number,
        model_name=model,
        memory=memory(),
        sample=sample,
        derived=replace(
            derived,
            state=HeadroomState.EXHAUSTED if full else HeadroomState.OK,
            reason="no_headroom" if full else "fits",
            demand=demand,
            capacities=capacities,
            sustainable=22.0,
            binding=Constraint.KV_CACHE,
            headroom=22.0 - demand,
            ratio=(22.0 - demand) / 22.0,
            spike_multiple=22.0 / (running - 1.0),
        ),
    )


def bare_rank(number: str = "0", model: str = MODEL) -> RankState:
    """A rank of which next to nothing is known."""
    sample = RankSample(rank=number, model_name=model, running=7.0, waiting=0.0)
    derived = derive(Evidence(running=7.0, waiting=0.0), None)
    return RankState(
        rank=number, model_name=model, memory=memory(fit=None), sample=sample, derived=derived
    )


def engine(
    name: str = "chat-0", *, model: str = MODEL, running: float = 15.0, bare: bool = False
) -> EngineState:
    """An engine that was polled just now and stays fresh for an hour."""
    return EngineState(
        name=name,
        up=True,
        stale_after=3600.0,
        ranks=(bare_rank(model=model) if bare else rank(model=model, running=running),),
        kind="vllm",
        version="0.32.0",
        poll_mode="filtered",
        max_model_length=8192,
        last_success=time.time(),
        last_success_monotonic=time.monotonic(),
        poll_duration=0.004,
        errors={"timeout": 2.0},
        unobserved_seconds=11.0,
    )


def gpus() -> GpuState:
    """One GPU whose memory has owners."""
    card = GpuSample(
        index="0",
        uuid="GPU-1",
        name="NVIDIA L4",
        memory_total=23 * GIB,
        memory_used=20 * GIB,
        memory_free=2 * GIB,
        memory_reserved=GIB,
        utilization=0.93,
        power=66.0,
        power_limit=72.0,
        temperature=61.0,
        clock_events={"sw_power_cap": True, "hw_slowdown": False},
        memory_by_owner={"engine": 17 * GIB, "other": 3 * GIB},
    )
    return GpuState(
        up=True, driver_version="580.1", gpus=(card,), read_at=time.monotonic() + 3600.0
    )


def state(*engines: EngineState) -> State:
    """Everything, as a scrape would show it."""
    reload = ReloadState(successful=True, at=1.0)
    return State(engines=engines, gpu=gpus(), reload=reload)


def calm() -> State:
    """One engine with room for six more."""
    return state(engine())
