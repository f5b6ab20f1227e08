"""
Deployment shapes: what the exporter knows in each, as State.

Engines come from recorded and captured pages through EngineTrack; GPUs are written by hand. A golden stays
narrow: GPU shapes have no engine, engine shapes have no GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from golden.replay import MONOTONIC_START, POLL, WALL_START, RecordedPage, Replay, pages
from headroom_exporter.config import EngineConfig, Lengths, PlanConfig
from headroom_exporter.errors import Malformed, Unreachable
from headroom_exporter.expose import StateCollector
from headroom_exporter.gpus.figures import CLOCK_EVENTS
from headroom_exporter.samples import (
    Constraint,
    DiscoverySource,
    DiscoveryState,
    Footprint,
    GpuPod,
    GpuProcess,
    GpuSample,
    GpuState,
    HeadroomState,
    PodIdentity,
    ReloadState,
    State,
    StepFit,
)
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm"
GIB = 1024**3

# Every dimension declared: what the tiny model of the recording would be sized for.
FULL_PLAN = PlanConfig(
    name="support-chat",
    concurrency=12,
    max_num_seqs=48,
    prompt_tokens=Lengths(p50=150, p95=320),
    output_tokens=Lengths(p50=200, p95=400),
    request_rate=10.0,
    ttft_p95_seconds=1.0,
    tpot_p95_seconds=0.05,
    kv_cache_tokens=9000,
    floor_ratio=0.2,
    spike_factor=2.0,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a scrape at ``now`` (monotonic seconds) renders."""

    state: State
    plan: PlanConfig | None = None
    now: float = MONOTONIC_START

    def registry(self) -> CollectorRegistry:
        """A registry with nothing but this state."""
        registry = CollectorRegistry()
        registry.register(
            StateCollector(lambda: self.state, lambda _e, _m: self.plan, clock=lambda: self.now)
        )
        return registry

    def text(self) -> str:
        """The page of a scrape in the text format."""
        return generate_latest(self.registry()).decode()

    def openmetrics(self) -> str:
        """The page of a scrape in the OpenMetrics format."""
        page: bytes = generate_openmetrics(self.registry())  # type: ignore[no-untyped-call]
        return page.decode()


def steady(text: str) -> str:
    """
    A page without what differs from run to run and from release to release, and without its HELP.

    The texts of HELP are in docs/metrics.md, which is compared with the catalog.
    """
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith("# HELP ") and "headroom_scrape_duration_seconds" not in line
    ]
    return re.sub(
        r'(headroom_build_info\{version=")[^"]*', r"\g<1>VERSION", "\n".join(lines) + "\n"
    )


# --- engines -------------------------------------------------------------------------------------


def calm() -> Shape:
    """Two, then eight clients, and a plan with every dimension."""
    return _shape(_replayed(until=30.0, plan=FULL_PLAN))


def overloaded() -> Shape:
    """Forty clients on a pool for twenty-four: queueing and preempting; no plan."""
    return _shape(_replayed(until=90.0))


def slots_bound() -> Shape:
    """Forty clients on sixteen slots nobody declared."""
    return _shape(_replayed(until=70.0, recording="slots"))


def engine_down() -> Shape:
    """It was up; now nothing listens: what only grows stays, the rest is gone."""
    replay = _replayed(until=30.0, plan=FULL_PLAN)
    for _ in range(3):
        replay.track.fail(Unreachable("connection refused", kind="refused"))
    return _shape(replay)


def engine_never_up() -> Shape:
    """It has not answered yet."""
    replay = Replay()
    replay.track.fail(Unreachable("no answer within 5 s", kind="timeout"))
    return _shape(replay)


def engine_starting() -> Shape:
    """Before its first step: counters at 0, gauges not published yet."""
    body = (PAGES / "0.33.0" / "generated-1engine.prom").read_bytes()
    gauges = re.compile(rb"^vllm:(num_requests|kv_cache_usage).*\n", re.MULTILINE)
    numbers = re.compile(rb"^(vllm:(?!cache_config).*) \S+$", re.MULTILINE)
    fresh = numbers.sub(rb"\1 0.0", gauges.sub(b"", body))
    return _shape(_fed([fresh, fresh], version="0.33.0", plan=FULL_PLAN))


def two_ranks() -> Shape:
    """Data parallel: each rank has its own batch and pool."""
    body = (PAGES / "0.33.0" / "generated-dp2-1apiserver.prom").read_bytes()
    return _shape(_fed([body, body, body], version="0.33.0"))


def rust_frontend() -> Shape:
    """OpenMetrics from vLLM's Rust frontend: no cache facts on its page."""
    body = (PAGES / "0.33.0" / "synthesised-rustfrontend-dp2.prom").read_bytes()
    return _shape(_fed([body, body], version="0.33.0"))


def old_v0() -> Shape:
    """vLLM 0.4.3: other names, no rank, no steps, fewer histograms."""
    body = (PAGES / "0.4.3_0.5.0" / "captured-cpu-datadog.prom").read_bytes()
    return _shape(_fed([body, body], version="0.4.3"))


def everything_known() -> Shape:
    """The most a rank can show: a full page and plan, and every figure there is; some written by hand."""
    body = (PAGES / "0.33.0" / "generated-1engine.prom").read_bytes()
    replay = _fed([body] * 8, version="0.33.0", plan=FULL_PLAN)
    replay.track.fail(Malformed("status 500", kind="status"))
    state = replay.state()
    engine = state.engines[0]
    rank = engine.ranks[0]
    assert rank.sample is not None
    assert rank.derived is not None
    full = replace(
        rank,
        sample=replace(rank.sample, slots=48.0, kv_reserved=0.5),
        memory=replace(
            rank.memory,
            footprint=Footprint(mean=0.01, stddev=0.004, skewness=1.0, basis="live"),
            fit=StepFit(
                fixed=0.012,
                per_sequence=0.0002,
                per_prefill_token=0.00005,
                batch_max=40.0,
                windows=30.0,
            ),
        ),
        derived=replace(
            rank.derived,
            capacities={
                Constraint.SLOTS: 48.0,
                Constraint.KV_CACHE: 61.0,
                Constraint.LATENCY: 96.0,
                Constraint.PREFILL: 72.0,
                Constraint.PLAN: 12.0,
            },
            max_sequences={"server": 48.0, "plan": 48.0, "args": 48.0, "inferred": 48.0},
            state=HeadroomState.OK,
            reason="fits",
            demand=21.0,
            sustainable=48.0,
            binding=Constraint.SLOTS,
            headroom=27.0,
            ratio=1 - 21 / 48,
            spike_multiple=2.3,
            marginal_gain=0.4,
            knee=240.0,
            prompts=3.0,
            prompts_over_plan=(1.0, 2.0),
        ),
    )
    engine = replace(engine, up=True, ranks=(full,), gauge_age=1.2)
    return replace(_shape(replay), state=replace(state, engines=(engine,)))


def _replayed(*, until: float, plan: PlanConfig | None = None, recording: str = "ramp") -> Replay:
    replay = Replay(plan)
    for page in pages(recording):
        if page.t > until:
            break
        replay.take(page)
    _facts(replay.track, "0.32.0")
    return replay


def _fed(bodies: list[bytes], *, version: str, plan: PlanConfig | None = None) -> Replay:
    """The pages, one second apart."""
    replay = Replay(plan)
    for second, body in enumerate(bodies):
        replay.take(RecordedPage(float(second), body, 0.01))
    _facts(replay.track, version)
    return replay


def _facts(track: EngineTrack, version: str) -> None:
    track._version, track.poll_mode, track._max_model_length = version, "filtered", 2048


def _shape(replay: Replay) -> Shape:
    return Shape(replay.state(), replay.plan, replay.now)


# --- GPUs ----------------------------------------------------------------------------------------


def no_gpu() -> Shape:
    """No NVML on this host."""
    return _gpus(GpuState(up=False, errors={"no_library": 4.0}))


def gpu_off() -> Shape:
    """Switched off in the configuration."""
    return _gpus(GpuState(up=None))


def one_gpu() -> Shape:
    """A card that answers everything; an engine and something else on it."""
    return _gpus(_read(_card(0)))


def eight_gpus() -> Shape:
    """Eight cards, the last of which fell off the bus."""
    return _gpus(_read(*(_card(index) for index in range(7)), lost=("7",)))


def mig() -> Shape:
    """A card in MIG mode: instances have memory of their own and few figures else."""
    parent = replace(_card(0), utilization=None, memory_by_owner=None, processes=None)
    instances = [
        GpuSample(
            index=f"0:{number}",
            uuid=f"MIG-00000000-0000-4000-8000-00000000000{number}",
            name="NVIDIA H100 80GB HBM3 MIG 3g.40gb",
            mig=True,
            memory_total=40 * GIB,
            memory_used=number * 10 * GIB,
            memory_free=40 * GIB - number * 10 * GIB,
            memory_by_owner={"engine": number * 10 * GIB, "other": 0},
        )
        for number in (1, 2)
    ]
    return _gpus(_read(parent, *instances))


def hung_driver() -> Shape:
    """The last good reading is too old to show."""
    return replace(_gpus(_read(_card(0))), now=MONOTONIC_START + 60)


def _card(index: int) -> GpuSample:
    used = (70 - index) * GIB
    return GpuSample(
        index=str(index),
        uuid=f"GPU-00000000-0000-4000-8000-00000000000{index}",
        name="NVIDIA H100 80GB HBM3",
        memory_total=80 * GIB,
        memory_used=used,
        memory_free=79 * GIB - used,
        memory_reserved=GIB,
        utilization=0.93,
        memory_utilization=0.41,
        power=512.5,
        power_limit=700.0,
        energy=1_234_567.0 + index,
        temperature=61.0,
        clock_events={reason: reason == "sw_power_cap" for reason in CLOCK_EVENTS.values()},
        ecc_uncorrectable=0,
        row_remap_pending=False,
        row_remap_failed=False,
        processes=(GpuProcess(pid=4711, memory=used),),
        memory_by_owner={"engine": used - GIB, "other": GIB},
    )


def _read(*gpus: GpuSample, lost: tuple[str, ...] = ()) -> GpuState:
    return GpuState(
        up=True, driver_version="580.95.05", gpus=gpus, lost=lost, read_at=MONOTONIC_START
    )


def _gpus(gpu: GpuState) -> Shape:
    reload = ReloadState(successful=True, at=WALL_START)
    return Shape(State(engines=(), gpu=gpu, reload=reload))


# --- several engines -----------------------------------------------------------------------------


def one_of_two_down() -> Shape:
    """One engine is down; the other one's figures do not change for it."""
    shape = engine_never_up()
    other = EngineTrack(EngineConfig(name="qwen-32b"), POLL, lambda _e, _m: None)
    body = (PAGES / "unknown" / "captured-dp2-real-extract-gaie2950.prom").read_bytes()
    other.take(body, full=True, at=MONOTONIC_START, wall=WALL_START, duration=0.002)
    engines = (*shape.state.engines, other.state())
    return replace(shape, state=replace(shape.state, engines=engines))


# --- node mode -----------------------------------------------------------------------------------


def node_mode() -> Shape:
    """
    The API server is away, so what it said stands; the kubelet answers. No poll is done yet.

    GPU 0 is shared by two pods; the other one is not shown by NVML here.
    """
    pods = {
        f"chat/{name}": PodIdentity(namespace="chat", name=name, uid=f"uid-{name}")
        for name in ("llama-0", "llama-1")
    }
    gpu_pods = tuple(
        GpuPod(gpu=gpu, uuid=uuid, namespace="chat", pod=pod, container="vllm")
        for gpu, uuid, pod in (
            ("0", "GPU-0", "llama-0"),
            ("0", "GPU-0", "llama-1"),
            (None, "GPU-9", "llama-1"),
        )
    )
    sources = {
        "kubernetes": DiscoverySource(
            up=False, last_success=WALL_START - 90.0, errors={"unreachable": 3.0, "annotation": 1.0}
        ),
        "kubelet": DiscoverySource(up=True, last_success=WALL_START - 4.0),
    }
    state = State(
        engines=tuple(
            EngineTrack(EngineConfig(name=name), POLL, lambda _e, _m: None).state() for name in pods
        ),
        gpu=GpuState(up=None),
        reload=ReloadState(successful=True, at=WALL_START),
        discovery=DiscoveryState(sources=sources, pods=pods, gpu_pods=gpu_pods),
    )
    return Shape(state)


SHAPES: Mapping[str, Callable[[], Shape]] = {
    made.__name__: made
    for made in (
        calm,
        overloaded,
        slots_bound,
        engine_down,
        engine_never_up,
        engine_starting,
        two_ranks,
        rust_frontend,
        old_v0,
        everything_known,
        one_of_two_down,
        no_gpu,
        gpu_off,
        one_gpu,
        eight_gpus,
        mig,
        hung_driver,
        node_mode,
    )
}
