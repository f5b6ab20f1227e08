"""LMDeploy: smooth counters, old gauges, and a usage that means two things."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter.config import PlanConfig
from headroom_exporter.engines import parse_page, recognise
from headroom_exporter.engines.lmdeploy import LMDEPLOY
from headroom_exporter.fetch import make_session
from polling.harness import http, polled, raw

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "lmdeploy"
PAGE = (PAGES / "generated-0.16.0.prom").read_text(encoding="utf-8")


def read(text: str) -> EngineSample:
    return LMDEPLOY.read(parse_page(text.encode(), LMDEPLOY.full_names))


def only(text: str) -> RankSample:
    (rank,) = read(text).ranks
    return rank


def test_the_engines_queue_and_the_api_servers_are_one_queue() -> None:
    assert only(PAGE).waiting == 2
    page = PAGE.replace(
        'num_requests_waiting{engine="0",model_name="internlm/internlm2_5-7b-chat"} 0.0',
        'num_requests_waiting{engine="0",model_name="internlm/internlm2_5-7b-chat"} 5.0',
    )
    assert only(page).waiting == 7


def test_the_api_servers_queue_alone_is_no_queue_length() -> None:
    lines = [
        line for line in PAGE.splitlines() if not line.startswith("lmdeploy:num_requests_waiting")
    ]
    assert only("\n".join(lines) + "\n").waiting is None


def test_a_usage_that_means_two_things_is_not_read() -> None:
    assert "lmdeploy:gpu_cache_usage_perc{" in PAGE
    rank = only(PAGE)
    assert (rank.kv_usage, rank.kv_reserved, rank.kv_capacity_tokens) == (None, None, None)


def test_gaps_between_outputs_are_counted_and_outputs_are_no_steps() -> None:
    rank = only(PAGE)
    assert (rank.inter_token_seconds, rank.inter_token_count) == (0.4200000000000001, 20)
    assert "lmdeploy:iteration_tokens_total_count" in PAGE
    assert (rank.steps, rank.step_tokens) == (None, None)


def test_reasons_are_words_not_python() -> None:
    finished = only(PAGE).finished
    assert finished["finish"] == 1
    assert finished["cancel"] == 0
    assert not [reason for reason in finished if "." in reason]


def test_gauges_that_only_grow_are_not_read_as_running() -> None:
    page = PAGE.replace("lmdeploy:num_requests_running", "lmdeploy:num_requests_old")
    assert only(page).running is None
    assert not [name for name in LMDEPLOY.full_names if "succeeded" in name]


def test_each_rank_has_its_own_record() -> None:
    two = PAGE + "".join(
        line.replace('engine="0"', 'engine="1"') + "\n"
        for line in PAGE.splitlines()
        if 'engine="0"' in line
    )
    assert [rank.rank for rank in read(two).ranks] == ["0", "1"]


def test_families_without_samples_are_nobodys() -> None:
    heads = "".join(line + "\n" for line in PAGE.splitlines() if line.startswith("#"))
    assert read(heads).ranks == ()
    assert recognise("/metrics", heads.encode()) is None


async def test_the_age_of_the_gauges_is_shown() -> None:
    async with (
        make_session() as session,
        polled(raw(http(PAGE.encode())), session, plan=PlanConfig(max_num_seqs=64)) as (_, engine),
    ):
        await engine.ticks(3)
        assert engine.values("headroom_engine_reading_age_seconds") == [10]
        assert 'kv_usage="none"' in engine.text()
        assert engine.values("headroom_kv_cache_usage_ratio") == []
