"""Ollama: what is loaded and no more; nothing is made up for what it does not tell."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.config import EngineConfig, PlanConfig
from headroom_exporter.engines import recognise
from headroom_exporter.engines.base import MAX_RANKS, Certainty
from headroom_exporter.engines.ollama import OLLAMA, PATH
from headroom_exporter.errors import Malformed
from headroom_exporter.fetch import make_session
from headroom_exporter.samples import RankSample
from polling.harness import Request, http, polled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import aiohttp

    from headroom_exporter.samples import EngineSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "ollama"
TWO = (PAGES / "synthesised-0.33.api_ps.json").read_bytes()
NOTHING = (PAGES / "synthesised-0.33-nothing-loaded.api_ps.json").read_bytes()


def sample(body: bytes) -> EngineSample:
    return OLLAMA.read(OLLAMA.page(body, OLLAMA.full_names))


def listed(*models: Any) -> bytes:
    return json.dumps({"models": models}).encode()


# --- the page ------------------------------------------------------------------------------------


def test_each_loaded_model_is_a_rank_of_which_nothing_more_is_known() -> None:
    found = sample(TWO)
    assert [rank.model_name for rank in found.ranks] == ["llama3.1:8b", "nomic-embed-text:latest"]
    for rank in found.ranks:
        assert rank == RankSample(rank="0", model_name=rank.model_name)
    # One takes 8,192 tokens and one 2,048.
    assert found.max_model_length is None
    assert sample(listed({"name": "a", "context_length": 8192})).max_model_length == 8192


def test_everything_is_declared_unknown() -> None:
    assert {how.certainty for how in OLLAMA.tells.values()} == {Certainty.UNKNOWN}


def test_a_server_without_a_model_in_memory_is_recognised() -> None:
    assert recognise(PATH, NOTHING) is OLLAMA
    assert sample(NOTHING).ranks == ()


def test_older_servers_tell_no_context() -> None:
    body = (PAGES / "synthesised-0.5-no-context.api_ps.json").read_bytes()
    assert sample(body).max_model_length is None
    assert len(sample(body).ranks) == 1


@pytest.mark.parametrize("context", [None, -1, 0, True, "8192", 1e300, [8192]])
def test_a_context_that_is_no_number_is_unknown(context: Any) -> None:
    assert sample(listed({"name": "a", "context_length": context})).max_model_length is None


def test_a_model_listed_twice_is_one_rank() -> None:
    assert len(sample(listed({"name": "a"}, {"name": "a"})).ranks) == 1


def test_more_models_than_ranks_are_counted_as_left_out() -> None:
    found = sample(listed(*({"name": f"m{i}"} for i in range(MAX_RANKS + 3))))
    assert (len(found.ranks), found.dropped) == (MAX_RANKS, 3)


def test_a_long_name_is_cut() -> None:
    (rank,) = sample(listed({"name": "m" * 5000})).ranks
    assert len(rank.model_name) == 256


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"up 1\n",
        b"{",
        b"\xff",
        b"[" * 100000,
        b"[]",
        b"{}",
        b'{"models": 3}',
        b"null",
        listed(3),
        listed({"name": 3}),
        listed({"id": "gpt"}),
        listed({"name": ""}),
    ],
)
def test_anything_else_is_not_ollamas(body: bytes) -> None:
    with pytest.raises(Malformed, match="/api/ps is"):
        OLLAMA.page(body, OLLAMA.full_names)


# --- polled --------------------------------------------------------------------------------------


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


class FakeOllama:
    def __init__(self) -> None:
        self.loaded = TWO

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/api/ps":
                writer.write(http(self.loaded))
            case "/api/version":
                writer.write(http(b'{"version":"0.33.0"}'))
            case _:
                writer.write(http(b"404 page not found", "404 Not Found"))


@pytest.mark.parametrize("kind", ["auto", "ollama"])
async def test_it_is_up_and_its_state_is_unknown(kind: str, session: aiohttp.ClientSession) -> None:
    config = EngineConfig(name="e", kind=kind)
    async with polled(FakeOllama(), session, config=config) as (_, engine):
        await engine.ticks(20)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert (engine.state.kind, engine.state.version) == ("ollama", "0.33.0")
        states = [rank.derived for rank in engine.state.ranks]
        assert [(each.state, each.reason) for each in states if each] == [
            ("unknown", "no_gauges")
        ] * 2
        text = engine.text()
        for name in ("running_sequences", "waiting_sequences", "demand_sequences_count", "ratio"):
            assert not any(
                line.startswith(f"headroom_{name}{{") and not line.endswith(" 0.0")
                for line in text.splitlines()
            ), name


async def test_models_come_and_go_and_none_is_no_failure(session: aiohttp.ClientSession) -> None:
    fake = FakeOllama()
    async with polled(fake, session) as (_, engine):
        fake.loaded = NOTHING
        await engine.ticks(15)
        assert (engine.up(), engine.state.ranks, engine.state.errors) == (1, (), {})
        fake.loaded = TWO
        await engine.ticks(2)
        assert len([rank for rank in engine.state.ranks if rank.sample]) == 2
        fake.loaded = NOTHING
        await engine.ticks(15)
        assert [rank.sample for rank in engine.state.ranks] == [None, None]
        assert (engine.up(), engine.state.errors) == (1, {})


async def test_slots_come_from_the_plan(session: aiohttp.ClientSession) -> None:
    plan = PlanConfig(max_num_seqs=4)
    async with polled(FakeOllama(), session, plan=plan) as (_, engine):
        await engine.ticks(3)
        derived = [rank.derived for rank in engine.state.ranks]
        assert [dict(each.max_sequences) for each in derived if each] == [{"plan": 4}] * 2
        # A limit without a demand is no headroom.
        assert [each.headroom for each in derived if each] == [None, None]


def test_no_field_of_a_rank_is_filled_but_its_name() -> None:
    (rank, _) = sample(TWO).ranks
    empty = RankSample(rank="0", model_name="")
    filled = {f.name for f in fields(RankSample) if getattr(rank, f.name) != getattr(empty, f.name)}
    assert filled == {"model_name"}
