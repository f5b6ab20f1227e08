"""Text Generation Inference: what is reserved, what is absent, and an engine nobody has used yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.config import EngineConfig, PlanConfig
from headroom_exporter.engines import detect, parse_page
from headroom_exporter.engines.tgi import FACTS, TGI
from headroom_exporter.fetch import make_session
from polling.harness import Request, http, polled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import aiohttp

    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "tgi"
PAGE = (PAGES / "synthesised-3.x.prom").read_text(encoding="utf-8")
INFO_2 = json.loads((PAGES / "info-2.json").read_text(encoding="utf-8"))
INFO_3 = json.loads((PAGES / "synthesised-3.x.info.json").read_text(encoding="utf-8"))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def sample(text: str, info: Any = None) -> EngineSample:
    page = parse_page(text.encode(), TGI.full_names)
    return TGI.read(page.beside(FACTS.series(info)))


def only(text: str, info: Any = None) -> RankSample:
    (rank,) = sample(text, info).ranks
    return rank


# --- what a page tells ---------------------------------------------------------------------------


def test_what_is_reserved_is_not_called_used() -> None:
    rank = only(PAGE)
    assert rank.kv_reserved == 20480 / 65536
    assert rank.kv_usage is None
    assert rank.kv_capacity_tokens == 65536


def test_a_budget_in_info_stands_in_for_that_of_the_page() -> None:
    page = "tgi_request_count 3\ntgi_batch_current_max_tokens 8000\n"
    assert only(page, INFO_2).kv_reserved == 0.25
    assert only(page, INFO_2).kv_capacity_tokens == 32000
    assert only(page, INFO_3).kv_reserved is None
    assert only(page, INFO_3).kv_capacity_tokens is None
    assert only(page + "tgi_batch_max_total_tokens 16000\n", INFO_2).kv_reserved == 0.5


@pytest.mark.parametrize("budget", ["0", "NaN", "-1"])
def test_a_budget_that_is_none_makes_no_ratio(budget: str) -> None:
    page = f"tgi_batch_current_max_tokens 8000\ntgi_batch_max_total_tokens {budget}\n"
    assert only(page).kv_reserved is None
    assert only(page).kv_capacity_tokens is None


def test_model_version_and_limit_come_from_info() -> None:
    told = sample(PAGE, INFO_3)
    assert told.ranks[0].model_name == "meta-llama/Llama-3.1-8B-Instruct"
    assert (told.version, told.max_model_length) == ("3.3.6", 4096)
    assert sample(PAGE).ranks[0].model_name == ""


def test_the_routers_admission_is_not_taken_for_slots() -> None:
    assert INFO_3["max_concurrent_requests"] == 128
    assert only(PAGE, INFO_3).slots is None
    assert only(PAGE, {**INFO_2, "max_batch_size": 48}).slots == 48


def test_an_info_of_another_server_tells_nothing() -> None:
    """text-embeddings-inference answers /info too."""
    other = {"model_id": "BAAI/bge-large", "version": "1.5.0", "max_input_length": 512}
    assert FACTS.series(other) == {}
    odd: Any
    for odd in (None, [], "x", 3, {"model_id": 3, "max_total_tokens": True}):
        assert FACTS.series(odd) == {}


def test_linear_histograms_of_a_hundred_buckets_are_read() -> None:
    histograms = only(PAGE).histograms
    assert len(histograms["request_prompt_tokens"].bounds) == 100
    assert histograms["request_prompt_tokens"].bounds[0] == 30.72
    assert histograms["request_output_tokens"].count == 31
    assert len(histograms["request_duration_seconds"].bounds) == 35


def test_means_of_requests_are_no_counter_of_gaps() -> None:
    rank = only(PAGE)
    assert "inter_token_latency_seconds" in rank.histograms
    assert rank.inter_token_seconds is None
    assert rank.inter_token_count is None
    assert "time_to_first_token_seconds" not in rank.histograms


def test_the_histogram_of_batch_sizes_is_never_parsed() -> None:
    page = parse_page((PAGE + 'tgi_batch_next_size_bucket{le="1\n').encode(), TGI.full_names)
    assert not [name for name in page.series if "next_size" in name]
    assert page.series["tgi_request_count"]


def test_refused_requests_are_rejected_and_failed_ones_finished() -> None:
    rank = only(PAGE)
    assert rank.finished == {"success": 31, "generation": 1}
    assert rank.rejected == {"validation": 1, "overloaded": 2}


def test_steps_are_prefills_and_decodes_whatever_their_label_says() -> None:
    assert only(PAGE).steps == 2940
    fork = (
        "tgi_batch_inference_count{method=\"{'method': 'prefill'}\"} 16\n"
        "tgi_batch_inference_count{method=\"{'method': 'decode'}\"} 1509\n"
    )
    assert only(fork).steps == 1525


# --- what a page does not tell -------------------------------------------------------------------


def test_before_the_first_request_nothing_runs_for_a_fact() -> None:
    rank = only("", INFO_2)
    assert (rank.running, rank.waiting, rank.kv_reserved) == (0, 0, 0)
    assert (rank.prompt_tokens, rank.steps, rank.finished) == (None, None, {})


def test_a_page_that_nobody_vouches_for_is_not_idle() -> None:
    """Without /info an empty page may be anybody's."""
    rank = only("")
    assert (rank.running, rank.waiting, rank.kv_reserved) == (None, None, None)


def test_after_the_first_request_absent_is_unknown() -> None:
    rank = only("tgi_request_count 1\n", INFO_2)
    assert (rank.running, rank.waiting, rank.kv_reserved) == (None, None, None)


def test_a_fast_page_tells_idle_the_same() -> None:
    fast = frozenset(TGI.fast_names)
    for text in ("", "tgi_request_count 1\n", PAGE):
        page = parse_page(text.encode(), fast).beside(FACTS.series(INFO_2))
        (rank,) = TGI.read(page).ranks
        whole = only(text, INFO_2)
        assert (rank.running, rank.waiting, rank.kv_reserved, rank.steps) == (
            whole.running,
            whole.waiting,
            whole.kv_reserved,
            whole.steps,
        )


def test_the_page_is_known_by_what_appears_first() -> None:
    for text in (
        "tgi_request_count 1\n",
        "tgi_batch_max_total_tokens 4096\n",
        "tgi_queue_size 0\n",
    ):
        assert detect(parse_page(text.encode(), TGI.full_names).series) is TGI
    assert detect(parse_page(b"te_request_count 1\n", TGI.full_names).series) is None


# --- through the poller --------------------------------------------------------------------------


class FakeTgi:
    """A TGI as seen from outside."""

    def __init__(self, page: str = "", info: Any = INFO_3) -> None:
        self.page, self.info = page, info

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/metrics":
            writer.write(http(self.page.encode()))
        elif request.path == "/info" and self.info is not None:
            writer.write(http(json.dumps(self.info).encode()))
        else:
            writer.write(http(b"", "404 Not Found"))


async def test_auto_knows_an_engine_nobody_has_used_by_its_info(
    session: aiohttp.ClientSession,
) -> None:
    server = FakeTgi()
    async with polled(server, session) as (_, engine):
        await engine.ticks(3)
        assert engine.up() == 1
        assert engine.state.kind == "tgi"
        assert engine.values("headroom_running_sequences") == [0]
        server.page = PAGE
        await engine.ticks(12)
        assert engine.values("headroom_running_sequences") == [8]
        assert engine.values("headroom_kv_cache_reserved_ratio") == [0.3125]
        assert engine.values("headroom_kv_cache_usage_ratio") == []
        assert 'kv_usage="reserved"' in engine.text()


async def test_auto_takes_no_empty_page_of_a_stranger_for_idle(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeTgi(info=None), session) as (_, engine):
        await engine.ticks(2)
        assert engine.up() == 0
        assert engine.state.errors == {"no_samples": 2}
        assert "nobody has used yet (tgi, trtllm)" in (engine.state.last_error or "")


async def test_a_configured_kind_that_is_another_engines_page_is_an_error(
    session: aiohttp.ClientSession,
) -> None:
    """Not an idle TGI: the page has samples, of somebody else."""
    config = EngineConfig(name="e", kind="tgi")
    page = 'vllm:num_requests_running{model_name="m"} 1\n'
    async with polled(FakeTgi(page), session, config=config) as (_, engine):
        await engine.ticks()
        assert engine.state.last_error == "kind is tgi but the page is of vllm"
    async with polled(FakeTgi("http_requests_total 3\n"), session, config=config) as (_, engine):
        await engine.ticks()
        assert engine.state.errors == {"no_samples": 1}
        assert engine.values("headroom_running_sequences") == []


async def test_a_long_answer_that_moves_only_the_steps_is_not_frozen(
    session: aiohttp.ClientSession,
) -> None:
    server = FakeTgi(PAGE)
    async with polled(server, session, plan=PlanConfig(max_num_seqs=32)) as (_, engine):
        for step in range(40):
            server.page = PAGE.replace('"decode"} 2904', f'"decode"}} {2904 + step}')
            await engine.ticks()
        (rank,) = engine.state.ranks
        assert rank.derived is not None
        assert rank.derived.reason != "stale"
        assert rank.derived.demand == 10
