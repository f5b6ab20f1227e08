"""TensorRT-LLM's server: two eras of names, and a page that must not be read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.config import EngineConfig
from headroom_exporter.engines import parse_page, recognise
from headroom_exporter.engines.trtllm import TRTLLM
from headroom_exporter.fetch import make_session
from polling.harness import HASTY, REAL_PAGE, FakeVllm, Request, http, polled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import RankSample

FIXTURES = Path(__file__).parents[1] / "fixtures" / "engines"
PAGE = (FIXTURES / "trtllm" / "synthesised-main.prom").read_text(encoding="utf-8")
BARE = (FIXTURES / "trtllm" / "captured-1.x-unprefixed-extract.prom").read_text(encoding="utf-8")
DYNAMO = (FIXTURES / "dynamo" / "captured-worker-trtllm-1.x.prom").read_text(encoding="utf-8")
LABELS = '{engine_type="trtllm",model_name="m"}'
NAMED: Mapping[str, Series] = {"/v1/models": [({"model": "Qwen/Qwen3-8B"}, 1.0)]}
QUEUE = b'[{"iter": 1, "numActiveRequests": 2}]'


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def only(text: str, beside: Mapping[str, Series] | None = None) -> RankSample:
    page = parse_page(text.encode(), TRTLLM.full_names)
    (rank,) = TRTLLM.read(page.beside(beside or {})).ranks
    return rank


def page(**values: float) -> str:
    return "".join(f"trtllm_{name}{LABELS} {value}\n" for name, value in values.items())


# --- names with the prefix -----------------------------------------------------------------------


def test_scheduler_and_pool_are_read() -> None:
    rank = only(PAGE)
    assert (rank.running, rank.waiting, rank.slots) == (19, 4, 256)
    assert rank.kv_usage == 3438 / 5617
    assert (rank.block_tokens, rank.kv_capacity_tokens) == (32, 5617 * 32)
    assert rank.model_name == "Qwen/Qwen3-8B"


def test_slots_are_the_least_of_the_two_limits() -> None:
    assert only(page(max_batch_size_runtime=256, max_num_active_requests=64)).slots == 64
    assert only(page(max_batch_size_runtime=32, max_num_active_requests=64)).slots == 32
    assert only(page(max_num_active_requests=64)).slots == 64
    assert only(page(max_batch_size_runtime=0, max_num_active_requests=64)).slots == 64
    assert only(page(num_requests_running=1)).slots is None


def test_blocks_are_preferred_to_the_ratio() -> None:
    assert only(page(kv_cache_utilization=0.5)).kv_usage == 0.5
    told = page(kv_cache_used_blocks=1, kv_cache_max_blocks=4, kv_cache_utilization=0.5)
    assert only(told).kv_usage == 0.25
    broken = page(kv_cache_used_blocks=9, kv_cache_max_blocks=4, kv_cache_utilization=0.5)
    assert only(broken).kv_usage is None
    off = page(kv_cache_used_blocks=0, kv_cache_max_blocks=0, kv_cache_utilization=0.0)
    assert only(off).kv_capacity_tokens is None


def test_prompts_from_a_cache_are_taken_off() -> None:
    assert only(page(prompt_tokens_total=100)).computed_prompt_tokens is None
    some = page(prompt_tokens_total=100, prompt_cached_tokens_total=30)
    assert only(some).computed_prompt_tokens == 70
    more = page(prompt_tokens_total=100, prompt_cached_tokens_total=130)
    assert only(more).computed_prompt_tokens is None


def test_means_of_requests_are_no_counter_of_gaps() -> None:
    rank = only(PAGE)
    assert rank.histograms["inter_token_latency_seconds"].count == 3
    assert (rank.inter_token_count, rank.inter_token_seconds) == (None, None)


# --- names without it ----------------------------------------------------------------------------


def test_a_histogram_without_its_last_bucket_is_left_out() -> None:
    assert recognise("/prometheus/metrics", BARE.encode()) is TRTLLM
    assert only(BARE).histograms == {}


def test_the_text_undefined_is_no_model() -> None:
    assert only(BARE).model_name == ""
    assert only(BARE, NAMED).model_name == "Qwen/Qwen3-8B"
    assert only(PAGE, NAMED).model_name == "Qwen/Qwen3-8B"


def test_finished_requests_of_the_first_era_are_read() -> None:
    bare = DYNAMO.replace("trtllm_", "")
    for text in (bare, DYNAMO):
        rank = only(text)
        assert rank.finished == {"length": 2}
        assert sorted(rank.histograms) == [
            "inter_token_latency_seconds",
            "queue_time_seconds",
            "request_duration_seconds",
            "time_to_first_token_seconds",
        ]
        assert (rank.running, rank.slots, rank.kv_usage) == (None, None, None)


def test_a_fast_page_of_the_first_era_shows_the_same_record() -> None:
    fast = TRTLLM.read(parse_page(DYNAMO.encode(), frozenset(TRTLLM.fast_names))).ranks
    assert [rank.model_name for rank in fast] == ["Qwen/Qwen3-0.6B"]


def test_bare_names_of_another_application_are_not_taken_for_it() -> None:
    for labels in ("", '{model_name="m"}'):
        text = f"request_success_total{labels} 3\ne2e_request_latency_seconds_sum{labels} 1\n"
        assert recognise("/prometheus/metrics", text.encode()) is None


# --- through the poller --------------------------------------------------------------------------


class FakeTrtllm:
    """A trtllm-serve: its queue at /metrics, its page where the statistics are on."""

    def __init__(self, page: bytes | None) -> None:
        self.page = page

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/metrics":
                writer.write(http(QUEUE, Content_Type="application/json"))
            case "/prometheus/metrics" if self.page is not None:
                writer.write(http(self.page))
            case "/v1/models":
                writer.write(http(b'{"data": [{"id": "Qwen/Qwen3-8B"}]}'))
            case "/version":
                writer.write(http(b'{"version": "1.3.0"}'))
            case _:
                writer.write(http(b"", "404 Not Found"))


async def test_auto_never_reads_the_queue_where_there_is_a_page(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeTrtllm(PAGE.encode()), session) as (server, engine):
        await engine.ticks(30)
        assert engine.up() == 1
        assert (engine.state.kind, engine.state.version) == ("trtllm", "1.3.0")
        await server.close()
        await engine.ticks(2)
        await server.listen()
        await engine.ticks(30)
        assert engine.up() == 1
        assert "/metrics" not in server.paths()


async def test_auto_never_reads_the_queue_of_an_engine_nobody_has_used(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeTrtllm(b"# HELP x y\n"), session) as (server, engine):
        await engine.ticks(5)
        assert (engine.up(), engine.state.kind) == (1, "trtllm")
        assert engine.values("headroom_running_sequences") == []
        assert "/metrics" not in server.paths()


async def test_auto_waits_for_who_is_behind_an_empty_page_before_it_looks_elsewhere(
    session: aiohttp.ClientSession,
) -> None:
    unused = FakeTrtllm(b"")

    async def slow_to_say_who(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/version":
            await asyncio.sleep(3600)
        await unused(request, writer)

    async with polled(slow_to_say_who, session, poll=HASTY) as (server, engine):
        await engine.ticks(2)
        assert engine.state.errors == {"timeout": 2}
        assert "/metrics" not in server.paths()


async def test_where_only_the_queue_is_it_is_read_once_and_a_message_says_what_to_do(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeTrtllm(None), session) as (server, engine):
        for _ in range(20):
            await engine.ticks()
            assert "return_perf_metrics: true" in (engine.state.last_error or "")
        assert server.paths().count("/metrics") == 1
        assert engine.state.errors == {"json": 20}


async def test_not_even_a_wrong_kind_reads_the_queue_twice(session: aiohttp.ClientSession) -> None:
    config = EngineConfig(name="e", kind="vllm")
    async with polled(FakeTrtllm(None), session, config=config) as (server, engine):
        await engine.ticks(10)
        assert server.paths().count("/metrics") == 1
        assert "return_perf_metrics: true" in (engine.state.last_error or "")


async def test_the_queue_is_read_once_where_it_takes_the_place_of_a_page(
    session: aiohttp.ClientSession,
) -> None:
    """Another server took the address while nobody looked."""
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(3)
        assert engine.up() == 1
        server.answer = FakeTrtllm(None)
        server.requests.clear()
        await engine.ticks(40)
        assert server.paths().count("/metrics") <= 2
        server.requests.clear()
        await engine.ticks(10)
        assert "/metrics" not in server.paths()


async def test_the_configured_kind_makes_an_empty_page_an_engine_nobody_has_used(
    session: aiohttp.ClientSession,
) -> None:
    config = EngineConfig(name="e", kind="trtllm")
    server = FakeTrtllm(b"")
    async with polled(server, session, config=config) as (_, engine):
        await engine.ticks(2)
        assert engine.up() == 1
        assert engine.values("headroom_running_sequences") == []
        server.page = PAGE.encode()
        await engine.ticks(12)
        assert engine.values("headroom_running_sequences") == [19]


async def test_a_configured_kind_without_its_page_says_what_to_switch_on(
    session: aiohttp.ClientSession,
) -> None:
    config = EngineConfig(name="e", kind="trtllm")
    async with polled(FakeTrtllm(None), session, config=config) as (server, engine):
        await engine.ticks(2)
        assert "status 404 Not Found at /prometheus/metrics" in (engine.state.last_error or "")
        assert "return_perf_metrics: true" in (engine.state.last_error or "")
        assert "/metrics" not in server.paths()


async def test_a_configured_kind_that_does_not_fit_is_an_error(
    session: aiohttp.ClientSession,
) -> None:
    config = EngineConfig(name="e", kind="trtllm")
    async with polled(FakeTrtllm(REAL_PAGE), session, config=config) as (_, engine):
        await engine.ticks()
        assert engine.state.last_error == "kind is trtllm but the page is of vllm"
