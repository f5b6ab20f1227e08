"""The series budget: at most 200 for each rank, 30 for each GPU, whatever the engine and the plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_text

from golden.replay import Replay, pages
from golden.shapes import FULL_PLAN, SHAPES, Shape
from headroom_exporter.config import Lengths, PlanConfig

MOST_PER_RANK, MOST_PER_GPU, MOST_PER_ENGINE = 200, 30, 20

# Limits on an edge of vLLM's buckets, between two, and beyond the first and the last one.
PLANS = {
    "as declared": FULL_PLAN,
    "on edges": replace(
        FULL_PLAN,
        prompt_tokens=Lengths(p50=500, p95=2000),
        output_tokens=Lengths(p50=200, p95=1000),
        ttft_p95_seconds=1.0,
        tpot_p95_seconds=0.05,
    ),
    "tiny": replace(
        FULL_PLAN,
        prompt_tokens=Lengths(p50=1, p95=3),
        output_tokens=Lengths(p50=1, p95=2),
        ttft_p95_seconds=0.0015,
        tpot_p95_seconds=0.001,
    ),
    "huge": replace(
        FULL_PLAN,
        prompt_tokens=Lengths(p50=150_000, p95=2e6),
        output_tokens=Lengths(p50=90_000, p95=1e6),
        ttft_p95_seconds=3000.0,
        tpot_p95_seconds=100.0,
    ),
}


def series(shape: Shape, *by: str) -> Counter[tuple[str, ...]]:
    """How many series there are for each value of the given labels."""
    return Counter(
        tuple(sample.labels[label] for label in by)
        for family in read_text(shape.text())
        for sample in family.samples
        if all(label in sample.labels for label in by)
    )


def most(shape: Shape, *by: str) -> int:
    counts = series(shape, *by)
    assert counts
    return max(counts.values())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_all_that_a_rank_of_vllm_0_33_can_show_fits(plan: PlanConfig) -> None:
    assert most(replace(SHAPES["everything_known"](), plan=plan), "rank") <= MOST_PER_RANK


@pytest.mark.parametrize("recording", ["ramp", "slots"])
def test_a_real_engine_fits_at_any_moment(recording: str) -> None:
    replay = Replay(FULL_PLAN)
    seen: list[int] = []
    for page in pages(recording):
        replay.take(page)
        if len(seen) <= page.t // 10:
            seen.append(most(Shape(replay.state(), FULL_PLAN, replay.now), "rank"))
    assert len(seen) > 8
    assert max(seen) <= MOST_PER_RANK


@pytest.mark.parametrize("name", [name for name in SHAPES if "gpu" not in name and name != "mig"])
def test_every_shape_fits(name: str) -> None:
    shape = SHAPES[name]()
    per_rank = series(shape, "engine", "rank", "model_name")
    assert all(count <= MOST_PER_RANK for count in per_rank.values())
    for engine in shape.state.engines:
        ranks = sum(count for key, count in per_rank.items() if key[0] == engine.name)
        assert series(shape, "engine")[engine.name,] - ranks <= MOST_PER_ENGINE


@pytest.mark.parametrize("name", ["one_gpu", "eight_gpus", "mig"])
def test_a_gpu_that_answers_everything_fits(name: str) -> None:
    assert most(SHAPES[name](), "gpu") <= MOST_PER_GPU


def test_the_bounds_around_a_planned_limit_survive() -> None:
    """Exceedance is bracketed by the two buckets around the limit: thinning must not take them."""
    plan = replace(FULL_PLAN, prompt_tokens=Lengths(p50=150, p95=320))
    text = replace(SHAPES["everything_known"](), plan=plan).text()
    for bound in ("200.0", "500.0"):
        assert f'headroom_request_prompt_tokens_bucket{{engine="llama-8b",le="{bound}"' in text
