"""``kind: auto`` over the wire: how each kind is found, what it is asked, what happens when it changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import PATHS
from headroom_exporter.fetch import make_session
from polling.harness import HASTY, FakeVllm, Polled, Request, Server, http, polled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

PAGES = Path(__file__).parents[1] / "fixtures" / "engines"
NOT_FOUND = http(b'{"detail":"Not Found"}', "404 Not Found")


def page(name: str) -> bytes:
    return (PAGES / name).read_bytes()


LMDEPLOY = page("lmdeploy/generated-0.16.0.prom")
LLAMACPP = page("llamacpp/captured-0c1e570-np4-busy.prom")
NIM = page("nim/captured-1.x-2024-10.prom")
SGLANG = page("sglang/generated-0.5.23-1rank.prom")
TGI = page("tgi/synthesised-3.x.prom")
TRITON = page("triton-trtllm/documented-inflight.prom")
TRTLLM = page("trtllm/synthesised-main.prom")
WORKER = page("dynamo/extract-worker-alone.prom")
WORKER_OF_VLLM = page("dynamo/captured-worker-vllm-0.13.prom")
PS = b'{"models": [{"name": "llama3.2:3b", "context_length": 4096}]}'
INFO = b'{"model_id": "m", "version": "3.3.4", "max_total_tokens": 8192}'
MODELS = b'{"data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 40960}]}'
VERSION = b'{"version": "1.3.0"}'


@dataclass
class Fake:
    """
    A server that answers with these bytes.

    Attributes:
        answers: Body by path.
        otherwise: The whole answer at any other path.
    """

    answers: dict[str, bytes]
    otherwise: bytes = field(default=NOT_FOUND)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        body = self.answers.get(request.path)
        writer.write(self.otherwise if body is None else http(body))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


# --- found ---------------------------------------------------------------------------------------

OLD_TRITON = http(b"", "400 Bad Request")
NEW_TRITON = http(b"")
# What is asked in the first poll; what in each poll after, where all that is asked once was told.
FOUND = {
    "llamacpp": (
        Fake({"/metrics": LLAMACPP, "/props": b'{"total_slots": 4}', "/v1/models": MODELS}),
        ["/prometheus/metrics", "/metrics", "/slots", "/props", "/v1/models"],
        # Asked while something runs; where it is switched off it is not there.
        ["/metrics", "/slots"],
    ),
    "lmdeploy": (
        Fake({"/metrics": LMDEPLOY, "/v1/models": MODELS}),
        ["/prometheus/metrics", "/metrics", "/v1/models"],
        ["/metrics"],
    ),
    "nim": (
        Fake({"/v1/metrics": NIM, "/v1/models": MODELS, "/version": VERSION}),
        ["/prometheus/metrics", "/metrics", "/v1/metrics", "/version", "/v1/models"],
        ["/v1/metrics"],
    ),
    "ollama": (
        Fake({"/api/ps": PS, "/api/version": VERSION}),
        ["/prometheus/metrics", "/metrics", "/v1/metrics", "/api/ps", "/api/version"],
        ["/api/ps"],
    ),
    "tgi": (
        Fake({"/metrics": TGI, "/info": INFO}),
        ["/prometheus/metrics", "/metrics", "/info"],
        ["/metrics"],
    ),
    "trtllm": (
        Fake({"/prometheus/metrics": TRTLLM, "/version": VERSION, "/v1/models": MODELS}),
        ["/prometheus/metrics", "/version", "/v1/models"],
        ["/prometheus/metrics"],
    ),
    "triton-trtllm": (
        Fake({"/metrics": TRITON}, otherwise=OLD_TRITON),
        ["/prometheus/metrics", "/metrics"],
        ["/metrics"],
    ),
    "dynamo-worker": (
        Fake({"/metrics": WORKER}),
        ["/prometheus/metrics", "/metrics"],
        ["/metrics"],
    ),
}


@pytest.mark.parametrize(("fake", "first", "later"), FOUND.values(), ids=FOUND)
async def test_what_each_kind_is_asked_at_the_start_and_then(
    fake: Fake,
    first: list[str],
    later: list[str],
    session: aiohttp.ClientSession,
    request: pytest.FixtureRequest,
) -> None:
    async with polled(fake, session) as (server, engine):
        await engine.ticks()
        assert f"[{engine.state.kind}]" in request.node.name
        assert server.paths() == first
        server.requests.clear()
        await engine.ticks(30)
        assert server.paths() == later * 30
        assert engine.state.errors == {}


async def test_a_newer_triton_answers_every_other_path_with_nothing_and_is_found(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(Fake({"/metrics": TRITON}, otherwise=NEW_TRITON), session) as (_, engine):
        await engine.ticks()
        assert (engine.up(), engine.state.kind) == (1, "triton-trtllm")


async def test_a_fact_that_was_told_is_not_asked_again_for_another_that_was_not(
    session: aiohttp.ClientSession,
) -> None:
    info = b'{"version": "0.5.23", "max_running_requests": 23}'
    async with polled(Fake({"/metrics": SGLANG, "/server_info": info}), session) as (
        server,
        engine,
    ):
        await engine.ticks(100)
        assert server.paths().count("/server_info") == 1
        assert server.paths().count("/v1/loads") == 5


async def test_a_page_beside_that_does_not_answer_in_time_is_left_in_peace(
    session: aiohttp.ClientSession,
) -> None:
    good = Fake({"/metrics": LLAMACPP, "/props": b'{"total_slots": 4}', "/v1/models": MODELS})

    async def slow_to_list(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/slots":
            await asyncio.sleep(3600)
        await good(request, writer)

    async with polled(slow_to_list, session, poll=HASTY) as (server, engine):
        await engine.ticks(50)
        assert engine.up() == 1
        assert len(engine.values("headroom_running_sequences")) == 1
        assert server.paths().count("/slots") == 1
        await engine.ticks(20)
        assert server.paths().count("/slots") == 2


async def test_facts_that_are_not_told_in_time_hold_up_a_poll_once(
    session: aiohttp.ClientSession,
) -> None:
    async def slow_to_tell(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path not in PATHS:
            await asyncio.sleep(3600)
        writer.write(http(SGLANG) if request.path == "/metrics" else NOT_FOUND)

    async with polled(slow_to_tell, session, poll=HASTY) as (server, engine):
        await engine.ticks(80)
        assert engine.up() == 1
        # One page of four, at five polls.
        assert server.paths().count("/v1/loads") == 5
        assert len(server.requests) == 1 + 80 + 5


async def test_a_server_without_any_page_is_asked_more_and_more_seldom(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(Fake({}), session) as (server, engine):
        pauses = await engine.run(12)
        assert len(server.requests) == 12 * len(
            ["/prometheus/metrics", "/metrics", "/v1/metrics", "/api/ps", "/openapi.json"]
        )
        assert pauses[-1] > 10 * pauses[0]


async def test_a_server_that_wants_a_key_is_asked_once_a_poll(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(Fake({}, otherwise=http(b"", "401 Unauthorized")), session) as (
        server,
        engine,
    ):
        await engine.ticks(5)
        assert len(server.requests) == 5
        assert "bearer_token_file" in (engine.state.last_error or "")


async def test_the_longest_sequence_of_one_model_is_not_shown_for_another(
    session: aiohttp.ClientSession,
) -> None:
    two = b'{"models": [{"name": "a", "context_length": 4096}, {"name": "b", "context_length": 8192}]}'
    ollama = Fake({"/api/ps": PS})
    async with polled(ollama, session) as (_, engine):
        await engine.ticks(15)
        assert engine.values("headroom_max_model_length_tokens") == [4096]
        ollama.answers["/api/ps"] = two
        await engine.ticks(15)
        assert len(engine.state.ranks) == 3
        assert engine.values("headroom_max_model_length_tokens") == []
        ollama.answers["/api/ps"] = two.replace(b"8192", b"4096")
        await engine.ticks(15)
        assert set(engine.values("headroom_max_model_length_tokens")) == {4096}


# --- changed -------------------------------------------------------------------------------------


async def test_the_engine_in_a_dynamo_worker_is_read_once_it_speaks(
    session: aiohttp.ClientSession,
) -> None:
    worker = Fake({"/metrics": WORKER, "/v1/models": MODELS})
    async with polled(worker, session) as (_, engine):
        await engine.ticks(5)
        assert engine.state.kind == "dynamo-worker"
        worker.answers["/metrics"] = WORKER_OF_VLLM
        await engine.ticks(15)
        assert (engine.state.kind, engine.state.max_model_length) == ("vllm", 40960)
        assert len(engine.values("headroom_running_sequences")) == 1
        assert engine.state.errors == {}
        # And again when the engine inside has gone and come back.
        worker.answers["/metrics"] = WORKER
        await engine.ticks(15)
        assert engine.state.kind == "dynamo-worker"
        worker.answers["/metrics"] = WORKER_OF_VLLM
        await engine.ticks(15)
        assert engine.state.kind == "vllm"


@pytest.mark.parametrize(
    "before",
    [
        Fake({"/prometheus/metrics": TRTLLM, "/version": VERSION, "/v1/models": MODELS}),
        Fake({"/v1/metrics": NIM, "/version": VERSION, "/v1/models": MODELS}),
        Fake({"/api/ps": PS, "/api/version": VERSION}),
        Fake({"/metrics": SGLANG, "/v1/models": MODELS}),
        Fake({"/metrics": TGI, "/info": INFO}),
    ],
    ids=["trtllm", "nim", "ollama", "sglang", "tgi"],
)
async def test_another_kind_at_the_address_is_found_though_nobody_ever_refused(
    before: Fake, session: aiohttp.ClientSession
) -> None:
    """As behind a Service, that changes where it leads between two polls."""
    async with Server(before) as server:
        on = Polled(server, session)
        await on.ticks(5)
        assert on.up() == 1
        # It tells neither its version nor its longest sequence: the other's must not stand there.
        server.answer = Fake({"/metrics": LLAMACPP, "/props": b'{"total_slots": 4}'})
        await on.ticks(20)
        state = on.state
        assert (on.up(), state.kind) == (1, "llamacpp")
        assert (state.version, state.max_model_length) == (None, None)
        assert [rank.model_name for rank in state.ranks] == [""]
        server.answer = FakeVllm()
        await on.ticks(20)
        assert (on.up(), on.state.kind, on.state.version) == (1, "vllm", "0.32.0")
        assert [rank.model_name for rank in on.state.ranks] == ["tiny"]


async def test_a_page_gone_empty_is_not_taken_for_the_same_engine_without_use(
    session: aiohttp.ClientSession,
) -> None:
    """A new SGLang has an empty page too, and runs what no page tells."""
    async with Server(Fake({"/metrics": TGI, "/info": INFO})) as server:
        on = Polled(server, session)
        await on.ticks(15)
        assert on.state.kind == "tgi"
        server.answer = Fake({"/metrics": b""})
        await on.ticks(15)
        assert on.up() == 0
        server.answer = Fake({"/metrics": b"", "/info": INFO})
        await on.ticks(15)
        assert (on.up(), on.state.kind) == (1, "tgi")
        assert on.values("headroom_running_sequences") == [0]
