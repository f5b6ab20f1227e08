"""The demo's picture of a State, and how it finds an engine."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headroom_exporter.config import PlanConfig
from headroom_exporter.demo import Scene, demand_now, find_local, render, summary
from headroom_exporter.samples import (
    Constraint,
    Derived,
    EngineState,
    GpuSample,
    GpuState,
    HeadroomState,
    MemorySnapshot,
    RankSample,
    RankState,
    ReloadState,
    State,
    StepFit,
    TimeHistogramSnapshot,
)

NOW = 1000.0
SCENE = Scene(
    url="http://127.0.0.1:8000",
    metrics_url="http://127.0.0.1:9890/metrics",
    simulated=False,
    plan=PlanConfig(spike_factor=3.0),
)
EMPTY = TimeHistogramSnapshot(bounds=(), milliseconds=(0,), sum=0.0)
FIT = StepFit(
    fixed=0.017, per_sequence=0.0004, per_prefill_token=None, batch_max=40.0, windows=30.0
)
SAMPLE = RankSample(
    rank="0",
    model_name="llama",
    running=41.0,
    waiting=16.0,
    kv_usage=0.978,
    kv_capacity_tokens=41392.0,
)
DERIVED = Derived(
    state=HeadroomState.EXHAUSTED,
    reason="waiting",
    demand=57.0,
    capacities=MappingProxyType(
        {Constraint.SLOTS: 256.0, Constraint.KV_CACHE: 38.4, Constraint.PLAN: 24.0}
    ),
    sustainable=38.4,
    binding=Constraint.KV_CACHE,
    headroom=-18.6,
    ratio=-0.484,
    spike_multiple=0.72,
)


def memory(fit: StepFit | None = FIT) -> MemorySnapshot:
    none = MappingProxyType({})
    return MemorySnapshot(
        effective_batch=EMPTY,
        demand=EMPTY,
        kv_occupancy=EMPTY,
        peak_running=none,
        peak_demand=none,
        peak_kv_usage=none,
        state_seconds=none,
        constraint_seconds=none,
        fit=fit,
    )


def rank(**changes) -> RankState:
    whole = RankState(rank="0", model_name="llama", memory=memory(), sample=SAMPLE, derived=DERIVED)
    return replace(whole, **changes)


def state(*ranks: RankState, **changes) -> State:
    engine = EngineState(
        name="demo",
        up=True,
        stale_after=5.0,
        ranks=ranks or (rank(),),
        kind="vllm",
        version="0.32.0",
        poll_mode="filtered",
        last_success_monotonic=NOW - 0.5,
    )
    return State(
        engines=(replace(engine, **changes),),
        gpu=GpuState(up=None),
        reload=ReloadState(successful=True, at=0.0),
    )


def draw(what: State, scene: Scene = SCENE, **options) -> list[str]:
    return render(what, scene, now=NOW, **options)


def row(lines: list[str], name: str) -> str:
    (line,) = [line for line in lines if line.strip().startswith(f"{name}  ")]
    return line.strip().removeprefix(name).strip()


def test_a_known_state_is_shown_whole():
    lines = draw(state())
    assert row(lines, "engine") == "demo   vllm 0.32.0   poll: filtered"
    assert row(lines, "model") == "llama   rank 0"
    assert row(lines, "state") == "exhausted   waiting"
    assert row(lines, "effective batch") == "41 sequences"
    assert row(lines, "demand") == "57 = 41 running + 16 waiting"
    assert row(lines, "KV occupancy") == "98% " + "█" * 29 + "░ of 41,392 tokens"
    assert row(lines, "capacity") == "slots 256   kv_cache* 38   latency –   prefill –   plan 24"
    assert row(lines, "headroom") == (
        "-19 sequences   ratio -0.48   sustainable 38   binding kv_cache"
    )
    assert row(lines, "spike multiple").startswith("0.7x ")
    assert row(lines, "spike multiple").endswith("the plan wants 3x")
    assert row(lines, "step time") == "17.0 ms + 0.40 ms x batch"


def test_what_is_not_known_is_not_a_number():
    unknown = Derived(state=HeadroomState.UNKNOWN, reason="no_gauges")
    sample = RankSample(rank="0", model_name="llama")
    lines = draw(state(rank(sample=sample, derived=unknown, memory=memory(None))))
    assert row(lines, "state") == "unknown   no_gauges"
    assert row(lines, "effective batch") == "– sequences"
    assert row(lines, "demand") == "– = – running + – waiting"
    assert row(lines, "KV occupancy") == "–"
    assert row(lines, "headroom") == "– sequences   ratio –   sustainable –   binding unknown"
    assert row(lines, "step time") == "unknown"
    table = lines[lines.index(next(line for line in lines if "state" in line)) :]
    assert not any(char.isdigit() for line in table for char in line.replace("plan wants 3x", ""))


def test_a_known_zero_is_a_zero():
    sample = replace(SAMPLE, running=0.0, waiting=0.0, kv_usage=0.0)
    lines = draw(state(rank(sample=sample, derived=replace(DERIVED, demand=0.0))))
    assert row(lines, "demand") == "0 = 0 running + 0 waiting"
    assert row(lines, "KV occupancy").startswith("0% ░")


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulation_is_always_called_one(simulated):
    scene = replace(SCENE, simulated=simulated)
    for what in (state(), state(last_success_monotonic=None)):
        assert ("SIMULATED" in draw(what, scene)[0]) is simulated
        assert ("SIMULATED" in summary(what, scene, now=NOW)) is simulated


def test_stale_figures_are_not_shown():
    for last in (None, NOW - 60.0):
        lines = draw(state(last_success_monotonic=last, up=False, last_error="refused"))
        assert row(lines, "state") == "unknown"
        assert row(lines, "engine") == "demo   no data: refused"
        assert not any("41" in line for line in lines)
        stale = state(last_success_monotonic=last, last_error="refused")
        assert summary(stale, SCENE, now=NOW) == "state=unknown refused"
        assert demand_now(stale, NOW) is None


def test_a_failed_poll_is_told_while_figures_are_still_fresh():
    lines = draw(state(up=False, last_error="no answer within 5 s"))
    assert row(lines, "engine").endswith("no answer within 5 s")
    assert row(lines, "demand").startswith("57")


def test_a_rank_that_is_not_seen_is_unknown():
    lines = draw(state(rank(sample=None, derived=None)))
    assert row(lines, "state") == "unknown"


def test_many_ranks_do_not_flood_the_terminal():
    lines = draw(state(*(rank(rank=str(number)) for number in range(8))))
    assert sum("effective batch" in line for line in lines) == 4
    assert "and 4 ranks more" in lines[-1]


@pytest.mark.parametrize(
    ("word", "escape"),
    [("ok", "\x1b[32m"), ("low", "\x1b[33m"), ("exhausted", "\x1b[1;31m"), ("unknown", "\x1b[90m")],
)
def test_the_state_is_coloured_and_nothing_else(word, escape):
    what = state(rank(derived=replace(DERIVED, state=HeadroomState(word))))
    plain, coloured = draw(what), draw(what, colour=True)
    changed = [(one, two) for one, two in zip(plain, coloured, strict=True) if one != two]
    assert changed == [
        (
            f"  state             {word}   waiting",
            f"  state             {escape}{word.upper()}\x1b[0m   waiting",
        )
    ]


def test_an_engine_cannot_write_to_the_terminal():
    evil = "llama\x1b[2J\r\nroot# "
    what = state(rank(model_name=evil), last_error=evil, up=False)
    assert all(line.isprintable() for line in draw(what))
    assert summary(state(name=evil), SCENE, now=NOW).isprintable()


def test_lines_are_cut_to_the_terminal():
    lines = draw(state(), width=40, trace=[1.0] * 60)
    assert max(map(len, lines)) == 40


GIB = 2**30
GPU = GpuSample(
    index="0",
    uuid="GPU-1",
    name="Simulated RTX 4090",
    memory_total=24 * GIB,
    memory_used=22 * GIB,
    power=312.4,
    power_limit=450.0,
    utilization=0.87,
    memory_by_owner=MappingProxyType({"engine": 21 * GIB, "other": GIB}),
)


def with_gpus(*gpus: GpuSample, read_at: float | None = NOW - 1.0) -> State:
    return replace(state(), gpu=GpuState(up=True, gpus=gpus, read_at=read_at))


def test_a_gpu_shows_who_holds_its_memory_what_it_draws_and_whether_it_is_busy():
    assert row(draw(with_gpus(GPU)), "gpu 0") == (
        "Simulated RTX 4090   21 engine + 1 other of 24 GiB   312 of 450 W   busy 87%"
    )


def test_what_a_gpu_does_not_tell_is_not_a_number():
    bare = GpuSample(index="0", uuid="GPU-1", memory_total=24 * GIB, memory_used=22 * GIB)
    assert row(draw(with_gpus(bare)), "gpu 0") == "GPU   22 used of 24 GiB   – of – W   busy –"


def test_gpus_that_were_not_read_lately_are_not_shown():
    for read_at in (None, NOW - 60.0):
        assert not any("gpu" in line for line in draw(with_gpus(GPU, read_at=read_at)))


def test_many_gpus_do_not_flood_the_terminal():
    lines = draw(with_gpus(*(replace(GPU, index=str(number)) for number in range(8))))
    assert sum(" of 450 W" in line for line in lines) == 4
    assert "and 4 GPUs more" in lines[-1]


def test_demand_leaves_a_trace_with_gaps():
    *_, line = draw(state(), trace=[None, 0.0, 10.0, None, 20.0])
    assert row([line], "demand, 2 min") == "▁▅ █  up to 20"
    assert not any("2 min" in line for line in draw(state(), trace=[None, None]))


def test_the_summary_holds_the_headline_figures():
    assert summary(state(), SCENE, now=NOW) == (
        "demo state=exhausted batch=41 demand=57 kv=98% sustainable=38 headroom=-19 ratio=-0.48 "
        "binding=kv_cache spike=0.7x step=17.0ms+0.40msxbatch"
    )
    assert demand_now(state(), NOW) == 57.0


@pytest.mark.parametrize(
    ("body", "status", "found"),
    [
        ("# HELP x\nvllm:num_requests_running 0\n", 200, True),
        ("<html>vllm: a fine engine</html>", 200, False),
        ("x\nvllm:num_requests_running 0\n", 500, False),
    ],
)
async def test_only_a_vllm_is_taken_for_one(body, status, found):
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=body, status=status)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert await find_local(url) == (url if found else None)
    assert await find_local(url) is None  # nothing listens any more
