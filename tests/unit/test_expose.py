"""State to metric families: what is shown, what is left out, and when."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as read_text

from headroom_exporter.catalog import BY_NAME, CATALOG
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.expose import (
    GPU_STALE_SECONDS,
    THINNING,
    Families,
    StateCollector,
    is_fresh,
    make_registry,
    plan_limits,
)
from headroom_exporter.samples import (
    Constraint,
    Derived,
    EngineState,
    GpuSample,
    GpuState,
    HeadroomState,
    Histogram,
    MemorySnapshot,
    RankSample,
    RankState,
    ReloadState,
    State,
    TimeHistogramSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_000.0
EMPTY = TimeHistogramSnapshot(bounds=(1.0,), milliseconds=(2000, 3000), sum=4500.0)
MEMORY = MemorySnapshot(
    effective_batch=EMPTY,
    demand=EMPTY,
    kv_occupancy=EMPTY,
    peak_running={60: 3.0, 300: 7.0},
    peak_demand={},
    peak_kv_usage={},
    state_seconds={HeadroomState.OK: 3.0},
    constraint_seconds={Constraint.SLOTS: 1.0},
)
DERIVED = Derived(state=HeadroomState.OK, reason="fits")


def rank(sample: RankSample | None = None, derived: Derived | None = DERIVED) -> RankState:
    seen = sample or RankSample(rank="0", model_name="m", running=2.0)
    return RankState(
        rank=seen.rank, model_name=seen.model_name, memory=MEMORY, sample=seen, derived=derived
    )


def engine(*ranks: RankState, age: float = 1.0, up: bool = True) -> EngineState:
    return EngineState(
        name="e",
        up=up,
        stale_after=6.0,
        ranks=ranks or (rank(),),
        last_success=5.0,
        last_success_monotonic=NOW - age,
    )


def scrape(
    *engines: EngineState, gpu: GpuState | None = None, plan: PlanConfig | None = None
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series of a page, by name and labels; read back from its text."""
    state = State(
        engines=engines,
        gpu=gpu or GpuState(up=None),
        reload=ReloadState(successful=True, at=9.0),
    )
    collector = StateCollector(lambda: state, lambda _e, _m: plan, clock=lambda: NOW)
    text = generate_latest(make_registry(collector)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read_text(text)
        for sample in family.samples
    }


def of(page: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str) -> list[float]:
    return [value for (found, _), value in page.items() if found == name]


def labels_of(
    page: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str
) -> list[dict[str, str]]:
    return [dict(labels) for found, labels in page if found == name]


# --- staleness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "fresh"), [(0.0, True), (6.0, True), (6.1, False), (1e9, False)])
def test_samples_are_shown_until_they_are_stale(age: float, *, fresh: bool) -> None:
    page = scrape(engine(age=age))
    assert of(page, "headroom_engine_up") == [float(fresh)]
    for name in ("headroom_running_sequences", "headroom_state", "headroom_peak_running_sequences"):
        assert bool(of(page, name)) is fresh
    # What only grows stays.
    assert of(page, "headroom_demand_sequences_count") == [3000]
    assert of(page, "headroom_state_seconds_total") == [3]
    assert of(page, "headroom_engine_last_success_timestamp_seconds") == [5]


def test_an_engine_that_failed_is_down_though_its_sample_is_fresh() -> None:
    page = scrape(engine(up=False))
    assert of(page, "headroom_engine_up") == [0]
    assert of(page, "headroom_running_sequences") == [2]


def test_an_engine_that_never_answered_is_not_fresh() -> None:
    never = EngineState(name="e", up=False, stale_after=6.0)
    assert not is_fresh(never, NOW)
    page = scrape(never)
    assert of(page, "headroom_engine_up") == [0]
    assert of(page, "headroom_engine_last_success_timestamp_seconds") == []


# --- values --------------------------------------------------------------------------------------


def test_unknown_is_absent_and_zero_is_zero() -> None:
    page = scrape(engine(rank(RankSample(rank="0", model_name="m", running=0.0))))
    assert of(page, "headroom_running_sequences") == [0]
    assert of(page, "headroom_waiting_sequences") == []
    assert of(page, "headroom_kv_cache_used_tokens") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_shown(value: float) -> None:
    broken = replace(DERIVED, ratio=value, spike_multiple=value)
    page = scrape(engine(rank(derived=broken)))
    assert of(page, "headroom_ratio") == of(page, "headroom_spike_multiple") == []


def test_used_and_free_tokens_add_up_to_the_pool() -> None:
    sample = RankSample(rank="0", model_name="m", kv_usage=0.25, kv_capacity_tokens=9088.0)
    page = scrape(engine(rank(sample)))
    assert of(page, "headroom_kv_cache_used_tokens") == [2272]
    assert of(page, "headroom_kv_cache_free_tokens") == [6816]


def test_one_state_and_at_most_one_binding_constraint_is_1() -> None:
    derived = replace(DERIVED, sustainable=4.0, binding=Constraint.KV_CACHE)
    page = scrape(engine(rank(derived=derived)))
    assert sorted(of(page, "headroom_state")) == [0, 0, 0, 1]
    assert sorted(of(page, "headroom_binding_constraint")) == [0, 0, 0, 1]
    nobody = replace(derived, binding=None)
    assert sum(of(scrape(engine(rank(derived=nobody))), "headroom_binding_constraint")) == 0
    unknown = replace(derived, sustainable=None, binding=None)
    assert of(scrape(engine(rank(derived=unknown))), "headroom_binding_constraint") == []


def test_whether_a_capacity_is_known_is_said_of_every_constraint() -> None:
    derived = replace(DERIVED, capacities={Constraint.SLOTS: 16.0, Constraint.KV_CACHE: 0.0})
    page = scrape(engine(rank(derived=derived)))
    assert len(of(page, "headroom_capacity_known")) == len(Constraint)
    assert sum(of(page, "headroom_capacity_known")) == 2
    # A pool that holds none is known to.
    assert sorted(of(page, "headroom_capacity_sequences")) == [0, 16]


@pytest.mark.parametrize(
    "name",
    ['a"b', "a\nb", "a\\b", "a\\nb", "Größe/模型-🦙", "{,}= #", "", " ", "\t\r", "x" * 256],
)
def test_names_come_back_from_the_page_as_they_went_in(name: str) -> None:
    shown = replace(engine(rank(RankSample(rank="0", model_name=name, running=1.0))), name=name)
    (labels,) = labels_of(scrape(shown), "headroom_running_sequences")
    assert labels == {"engine": name, "rank": "0", "model_name": name}


def test_the_longest_sequence_is_shown_once_for_a_model_with_many_ranks() -> None:
    ranks = [rank(RankSample(rank=str(i), model_name="m", running=1.0)) for i in range(3)]
    shown = replace(engine(*ranks), max_model_length=2048)
    assert of(scrape(shown), "headroom_max_model_length_tokens") == [2048]


def test_engines_are_kept_apart() -> None:
    page = scrape(engine(), replace(engine(age=99.0), name="other"))
    up = {
        labels["engine"]: page["headroom_engine_up", frozenset(labels.items())]
        for labels in labels_of(page, "headroom_engine_up")
    }
    assert up == {"e": 1, "other": 0}


# --- the engine's own histograms ------------------------------------------------------------------

# vLLM's bounds of the time to first token, 0.33.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip


def ttft(plan: PlanConfig | None = None) -> tuple[list[float], dict[float, float], float]:
    counts = tuple(float(i) for i in range(1, len(TTFT) + 2))
    made = Histogram(bounds=TTFT, counts=counts, sum=12.5)
    sample = RankSample(rank="0", model_name="m", histograms={"time_to_first_token_seconds": made})
    page = scrape(engine(rank(sample)), plan=plan)
    name = "headroom_time_to_first_token_seconds"
    buckets = {
        float(dict(labels)["le"]): value
        for (found, labels), value in page.items()
        if found == f"{name}_bucket"
    }
    assert of(page, f"{name}_sum") == [12.5]
    return sorted(buckets), buckets, of(page, f"{name}_count")[0]


def test_buckets_are_fewer_but_each_is_still_exact() -> None:
    bounds, buckets, count = ttft()
    assert len(bounds) == THINNING["time_to_first_token_seconds"][2] + 1
    for bound in bounds[:-1]:
        assert buckets[bound] == TTFT.index(bound) + 1
    assert (bounds[-1], buckets[math.inf], count) == (math.inf, len(TTFT) + 1, len(TTFT) + 1)


@pytest.mark.parametrize(
    ("limit", "around"),
    [
        (0.6, {0.5, 0.75}),
        (0.75, {0.75}),
        (0.0001, {0.001}),
        (100.0, {80.0, 160.0}),
        (1e6, {2560.0}),
    ],
)
def test_the_bounds_around_a_planned_limit_stay(limit: float, around: set[float]) -> None:
    bounds, _, _ = ttft(PlanConfig(ttft_p95_seconds=limit))
    assert around <= set(bounds)
    assert len(bounds) <= THINNING["time_to_first_token_seconds"][2] + 1


# --- the plan ------------------------------------------------------------------------------------


def test_only_what_is_declared_is_a_limit() -> None:
    assert plan_limits(PlanConfig()) == {}
    plan = PlanConfig(concurrency=8, prompt_tokens=Lengths(p95=2048), tpot_p95_seconds=0.05)
    assert plan_limits(plan) == {"concurrency": 8, "prompt_p95": 2048, "tpot_p95": 0.05}


def test_the_plan_is_shown_while_the_engine_is_away() -> None:
    """Else an alert on plan and observation would lose one side at a time."""
    page = scrape(engine(age=1e6), plan=PlanConfig(name="chat", concurrency=8))
    assert of(page, "headroom_plan_limit") == [8]
    assert labels_of(page, "headroom_plan_info")[0]["plan"] == "chat"


# --- GPUs ----------------------------------------------------------------------------------------


def gpu(age: float = 0.0, *samples: GpuSample, **more: object) -> GpuState:
    seen = samples or (GpuSample(index="0", uuid="GPU-1", power=0.0),)
    return GpuState(up=True, gpus=seen, read_at=NOW - age, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_gpu_is_shown_until_its_reading_is_stale(*, fresh: bool) -> None:
    page = scrape(gpu=gpu(GPU_STALE_SECONDS + (0.0 if fresh else 0.1)))
    assert of(page, "headroom_gpu_up") == [float(fresh)]
    assert of(page, "headroom_gpu_power_watts") == ([0.0] if fresh else [])


def test_gpus_that_are_switched_off_are_not_mentioned() -> None:
    page = scrape(gpu=GpuState(up=None))
    assert [name for name, _ in page if "gpu" in name] == []


def test_a_lost_gpu_is_lost_and_the_others_are_not() -> None:
    page = scrape(gpu=gpu(lost=("1",)))
    lost = {
        labels["gpu"]: page["headroom_gpu_lost", frozenset(labels.items())]
        for labels in labels_of(page, "headroom_gpu_lost")
    }
    assert lost == {"0": 0, "1": 1}


def test_what_a_card_does_not_tell_is_absent() -> None:
    page = scrape(gpu=gpu(0.0, GpuSample(index="0", uuid="GPU-1")))
    assert {name for name, labels in page if dict(labels).get("gpu")} == {
        "headroom_gpu_info",
        "headroom_gpu_lost",
    }


# --- names ---------------------------------------------------------------------------------------


def test_a_name_that_is_not_in_the_catalog_cannot_be_exposed() -> None:
    with pytest.raises(KeyError, match="headroom_new_thing"):
        Families().add("headroom_new_thing", (), 1.0)


def test_labels_that_do_not_fit_the_catalog_are_a_defect() -> None:
    with pytest.raises(ValueError, match="zip"):
        Families().add("headroom_running_sequences", ("e", "0"), 1.0)


def test_families_come_in_the_order_of_the_catalog() -> None:
    out = Families()
    out.add("headroom_build_info", ("1",), 1)
    out.add("headroom_engine_up", ("e",), 1)
    assert [family.name for family in out.in_catalog_order()] == [
        "headroom_engine_up",
        "headroom_build",
    ]


def test_describing_asks_for_no_state() -> None:
    """A registry describes what it registers; nothing has been polled by then."""

    def no_state() -> State:
        raise AssertionError

    collector = StateCollector(no_state, lambda _e, _m: None)
    assert len(list(collector.describe())) == len(CATALOG) == len(BY_NAME)
    make_registry(collector)
