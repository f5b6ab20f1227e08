"""Which plan holds: the most specific one that matches."""

from __future__ import annotations

import itertools

import pytest

from headroom_exporter.config import PlanConfig, plan_for

ENGINE, MODEL = "llama-8b", "meta-llama/Llama-3.1-8B-Instruct"


def plan(engine: str | None, model: str | None, name: str = "p") -> PlanConfig:
    return PlanConfig(name=name, match_engine=engine, match_model_name=model)


# Most specific first; the order docs/configuration.md promises.
ORDER = (
    plan(ENGINE, MODEL),
    plan("llama-*", MODEL),
    plan(ENGINE, "meta-llama/*"),
    plan(None, MODEL),
    plan(ENGINE, None),
    plan("llama-*", "meta-llama/*"),
    plan(None, "meta-llama/*"),
    plan("llama-*", None),
    plan(None, None),
)


@pytest.mark.parametrize(("better", "worse"), list(itertools.combinations(ORDER, 2)))
def test_the_more_specific_plan_holds_wherever_it_stands(
    better: PlanConfig, worse: PlanConfig
) -> None:
    assert plan_for((better, worse), ENGINE, MODEL) is better
    assert plan_for((worse, better), ENGINE, MODEL) is better


def test_of_equally_specific_plans_the_first_holds() -> None:
    first, second = plan(None, "meta-*", "first"), plan(None, "meta-llama/*", "second")
    assert plan_for((first, second), ENGINE, MODEL) is first
    assert plan_for((second, first), ENGINE, MODEL) is second


@pytest.mark.parametrize(
    "other",
    [
        plan("other", None),
        plan(None, "other"),
        plan(ENGINE, "other"),
        plan("other", MODEL),
        plan(ENGINE.upper(), None),
        plan(None, "llama"),
    ],
)
def test_a_plan_must_match_with_every_key_it_has(other: PlanConfig) -> None:
    assert plan_for((other,), ENGINE, MODEL) is None


def test_no_plans_no_plan() -> None:
    assert plan_for((), ENGINE, MODEL) is None


def test_a_name_with_pattern_characters_is_matched_by_itself() -> None:
    exact, pattern = plan(None, "m[1]", "exact"), plan(None, "m*", "pattern")
    assert plan_for((pattern, exact), ENGINE, "m[1]") is exact
