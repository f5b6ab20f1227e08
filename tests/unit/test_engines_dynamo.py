"""Dynamo: a worker shows the engine inside it; the frontend knows the whole model and no worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import BY_NAME, detect, parse_page, recognise
from headroom_exporter.engines.base import MAX_RANKS, MAX_REASONS
from headroom_exporter.engines.dynamo import DYNAMO_FRONTEND, DYNAMO_WORKER

if TYPE_CHECKING:
    from headroom_exporter.engines import Engine
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "dynamo"


def read(engine: Engine, text: str) -> EngineSample:
    return engine.read(parse_page(text.encode(), engine.full_names))


def only(engine: Engine, text: str) -> RankSample:
    (rank,) = read(engine, text).ranks
    return rank


def fixture(name: str) -> str:
    return (PAGES / f"{name}.prom").read_text(encoding="utf-8")


# --- which kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("captured-worker-vllm-0.13", "vllm"),
        ("captured-worker-sglang-0.5.7", "sglang"),
        ("captured-worker-trtllm-1.x", "trtllm"),
        ("extract-worker-alone", "dynamo-worker"),
        ("captured-frontend-2026-01", "dynamo-frontend"),
    ],
)
def test_a_worker_is_read_as_the_engine_inside_it(page: str, kind: str) -> None:
    assert recognise("/metrics", fixture(page).encode()) is BY_NAME[kind]


def test_a_frontend_that_nobody_has_used_yet_is_known_by_its_limits() -> None:
    text = 'dynamo_frontend_model_context_length{model="M"} 4096\n'
    assert detect(parse_page(text.encode(), DYNAMO_FRONTEND.full_names).series) is DYNAMO_FRONTEND
    assert only(DYNAMO_FRONTEND, text).model_name == "M"


# --- the worker ----------------------------------------------------------------------------------


def test_running_and_waiting_told_together_are_neither() -> None:
    text = 'dynamo_component_inflight_requests{dynamo_endpoint="generate",model="M"} 7\n'
    rank = only(DYNAMO_WORKER, text)
    assert (rank.model_name, rank.running, rank.waiting) == ("M", None, None)


@pytest.mark.parametrize("usage", ["0", "0.5"])
def test_a_usage_whose_meaning_the_engine_inside_decides_is_not_read(usage: str) -> None:
    text = (
        'dynamo_component_inflight_requests{dynamo_endpoint="generate",model="M"} 7\n'
        f"dynamo_component_gpu_cache_usage_percent {usage}\n"
        f"dynamo_component_kvstats_gpu_cache_usage_percent {usage}\n"
    )
    assert only(DYNAMO_WORKER, text).kv_usage is None


def test_only_requests_for_tokens_are_requests() -> None:
    """Others clear the cache and load adapters."""
    rank = only(DYNAMO_WORKER, fixture("extract-worker-alone"))
    assert rank.histograms["request_duration_seconds"].count == 2
    assert set(rank.histograms) == {"request_duration_seconds"}


# --- the frontend --------------------------------------------------------------------------------

FRONTEND = fixture("captured-frontend-2026-01")


def test_the_model_is_named_as_it_is_written_though_traffic_has_small_letters() -> None:
    rank = only(DYNAMO_FRONTEND, FRONTEND)
    assert (rank.model_name, rank.generation_tokens) == ("Qwen/Qwen3-0.6B", 300)
    assert rank.finished == {"success": 1}


def test_a_fast_poll_names_it_alike() -> None:
    fast = parse_page(FRONTEND.encode(), frozenset(DYNAMO_FRONTEND.fast_names))
    (rank,) = DYNAMO_FRONTEND.read(fast).ranks
    assert rank.model_name == "Qwen/Qwen3-0.6B"


def test_the_limits_of_one_worker_are_not_those_of_the_model() -> None:
    rank = only(DYNAMO_FRONTEND, FRONTEND)
    assert (rank.slots, rank.kv_capacity_tokens, rank.block_tokens) == (None, None, None)
    assert read(DYNAMO_FRONTEND, FRONTEND).max_model_length == 40960


def test_of_several_models_none_gives_the_length_of_all() -> None:
    other = 'dynamo_frontend_model_context_length{model="Other"} 4096\n'
    sample = read(DYNAMO_FRONTEND, FRONTEND + other)
    assert sample.max_model_length is None
    assert [rank.model_name for rank in sample.ranks] == ["Other", "Qwen/Qwen3-0.6B"]


def test_running_and_waiting_of_all_workers_are_not_read() -> None:
    text = FRONTEND.replace(
        'dynamo_frontend_inflight_requests{model="qwen/qwen3-0.6b"} 0',
        'dynamo_frontend_inflight_requests{model="qwen/qwen3-0.6b"} 9',
    )
    assert text != FRONTEND
    rank = only(DYNAMO_FRONTEND, text)
    assert (rank.running, rank.waiting, rank.kv_usage) == (None, None, None)


def test_requests_of_all_ways_in_are_summed_by_status() -> None:
    text = "".join(
        f'dynamo_frontend_requests_total{{endpoint="{endpoint}",model="m",status="{status}"}} 2\n'
        for endpoint in ("chat_completions", "completions")
        for status in ("success", "error")
    )
    assert only(DYNAMO_FRONTEND, text).finished == {"success": 4, "error": 4}


def test_a_histogram_may_begin_at_zero() -> None:
    found = only(DYNAMO_FRONTEND, FRONTEND).histograms["time_to_first_token_seconds"]
    assert found.bounds[0] == 0
    assert found.count == 1


def test_many_models_and_many_reasons_are_bounded() -> None:
    models = "".join(
        f'dynamo_frontend_output_tokens_total{{model="{i}"}} 1\n' for i in range(MAX_RANKS + 2)
    )
    sample = read(DYNAMO_FRONTEND, models)
    assert (len(sample.ranks), sample.dropped) == (MAX_RANKS, 2)
    reasons = "".join(
        f'dynamo_frontend_requests_total{{model="m",status="{i}"}} 1\n'
        for i in range(MAX_REASONS + 9)
    )
    assert len(only(DYNAMO_FRONTEND, reasons).finished) == MAX_REASONS


def test_values_that_are_no_numbers_are_not_read() -> None:
    rank = only(DYNAMO_FRONTEND, 'dynamo_frontend_output_tokens_total{model="m"} NaN\n')
    assert rank.generation_tokens is None
