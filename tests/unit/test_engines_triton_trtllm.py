"""Triton's TensorRT-LLM backend: what a value means stands in a label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import parse_page, recognise
from headroom_exporter.engines.triton_trtllm import TRITON_TRTLLM

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "triton-trtllm"


def read(text: str) -> EngineSample:
    return TRITON_TRTLLM.read(parse_page(text.encode(), TRITON_TRTLLM.full_names))


def only(text: str) -> RankSample:
    (rank,) = read(text).ranks
    return rank


def requests(version: str = "1", **values: float) -> str:
    name = "nv_trt_llm_request_metrics"
    return "".join(
        f'{name}{{model="m",request_type="{meaning}",version="{version}"}} {value}\n'
        for meaning, value in values.items()
    )


def blocks(**values: float) -> str:
    name = "nv_trt_llm_kv_cache_block_metrics"
    return "".join(
        f'{name}{{kv_cache_block_type="{meaning}",model="m",version="1"}} {value}\n'
        for meaning, value in values.items()
    )


@pytest.mark.parametrize("name", ["documented-inflight.prom", "documented-v1.prom"])
def test_the_meanings_are_told_apart(name: str) -> None:
    body = (PAGES / name).read_bytes()
    assert recognise("/metrics", body) is TRITON_TRTLLM
    rank = only(body.decode())
    # The example has one in the step at hand and none admitted.
    assert (rank.running, rank.waiting, rank.slots) == (1, 1, 512)
    assert (rank.block_tokens, rank.kv_capacity_tokens) == (64, 6239 * 64)


def test_blocks_are_preferred_to_a_fraction_that_contradicts_them() -> None:
    assert only(blocks(used=1, max=6239, fraction=0.4875)).kv_usage == 1 / 6239
    assert only(blocks(fraction=0.4875)).kv_usage == 0.4875
    assert only(blocks(used=0, max=0, fraction=0.0)).kv_usage == 0


def test_more_blocks_than_the_pool_has_is_no_usage() -> None:
    assert only(blocks(used=200, max=100)).kv_usage is None
    assert only(blocks(used=101, max=100)).kv_usage == 1


def test_admitted_requests_run_scheduled_ones_only_where_nothing_else_is_told() -> None:
    assert only(requests(active=9, scheduled=4)).running == 9
    assert only(requests(scheduled=4)).running == 4
    assert only(requests(context=4, waiting=1)).running is None


def test_a_limit_of_zero_is_none() -> None:
    assert only(requests(max=0, active=1)).slots is None


def test_two_versions_of_a_model_are_two_records() -> None:
    page = requests("1", active=3, max=8) + requests("2", active=5, max=16)
    assert [(rank.rank, rank.running, rank.slots) for rank in read(page).ranks] == [
        ("1", 3, 8),
        ("2", 5, 16),
    ]


def test_without_the_kv_cache_the_requests_are_still_read() -> None:
    """The backend leaves the family out where the KV cache is disabled."""
    rank = only(requests(active=3, waiting=0, max=8))
    assert rank.running == 3
    assert (rank.kv_usage, rank.kv_capacity_tokens) == (None, None)


def test_tritons_own_metrics_alone_are_nobodys() -> None:
    """The backend in Python publishes none of these."""
    assert recognise("/metrics", b'nv_inference_request_success{model="m",version="1"} 3\n') is None
