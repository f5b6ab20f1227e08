"""Servers that have no page of metrics: the message says who they are, and no engine is mistaken for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.config import EngineConfig
from headroom_exporter.engines import PATHS
from headroom_exporter.engines.strangers import is_transformers_serve
from headroom_exporter.fetch import make_session
from polling.harness import FakeVllm, Request, http, polled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import aiohttp

# The routes of transformers 4.57.1 (commands/serving.py) and of 5.23.0 (cli/serving/server.py).
SERVE_4 = ["/v1/chat/completions", "/v1/responses", "/v1/models", "/health"]
SERVE_4 += ["/v1/audio/transcriptions"]
SERVE_5 = [*SERVE_4, "/v1/completions", "/v1/systemone", "/load_model", "/reset"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def openapi(*paths: str) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "FastAPI"}, "paths": {key: {} for key in paths}}


class Stranger:
    """Answers these paths with JSON, /metrics with a status, all else with 404."""

    def __init__(self, status: str = "404 Not Found", **pages: Any) -> None:
        self.status = status
        self.pages = {"/" + name.replace("_json", ".json"): page for name, page in pages.items()}

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path in self.pages:
            writer.write(http(json.dumps(self.pages[request.path]).encode()))
        elif request.path == "/metrics":
            writer.write(http(b'{"detail":"no"}', self.status))
        else:
            writer.write(http(b'{"detail":"Not Found"}', "404 Not Found"))


@pytest.mark.parametrize("routes", [SERVE_4, SERVE_5, [*SERVE_5, "/v1/rerank"]])
def test_transformers_serve_is_known_by_its_routes(routes: list[str]) -> None:
    assert is_transformers_serve(openapi(*routes))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"paths": []},
        openapi(),
        openapi("/health", "/v1/models"),
        # A vLLM behind something that hides its metrics.
        openapi(*SERVE_4, "/v1/completions", "/tokenize", "/version", "/ping"),
        openapi(*SERVE_5[1:]),
    ],
)
def test_other_documents_are_not_its(answer: Any) -> None:
    assert not is_transformers_serve(answer)


@pytest.mark.parametrize("routes", [SERVE_4, SERVE_5])
@pytest.mark.parametrize("kind", ["auto", "vllm"])
async def test_the_message_says_that_it_has_no_telemetry(
    kind: str, routes: list[str], session: aiohttp.ClientSession
) -> None:
    server = Stranger(openapi_json=openapi(*routes))
    config = EngineConfig(name="e", kind=kind)
    async with polled(server, session, config=config) as (_, engine):
        await engine.ticks(2)
        assert engine.up() == 0
        assert engine.state.errors == {"no_telemetry": 2}
        assert "transformers serve has no telemetry" in (engine.state.last_error or "")


async def test_it_is_asked_only_after_every_path_was_refused(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(Stranger(openapi_json=openapi(*SERVE_5)), session) as (server, engine):
        await engine.ticks(1)
        assert server.paths() == [*PATHS, "/openapi.json"]


async def test_an_engine_with_metrics_is_never_asked_who_it_is(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(3)
        assert engine.up() == 1
        assert "/openapi.json" not in server.paths()


@pytest.mark.parametrize("answer", [None, [], 3, openapi("/"), {"paths": {"/health": None}}])
async def test_a_stranger_nobody_knows_stays_a_refused_page(
    answer: Any, session: aiohttp.ClientSession
) -> None:
    async with polled(Stranger(openapi_json=answer), session) as (_, engine):
        await engine.ticks(1)
        assert engine.state.errors == {"status": 1}
        assert engine.state.last_error == "status 404 Not Found"


async def test_a_router_is_told_from_a_server(session: aiohttp.ClientSession) -> None:
    server = Stranger("400 Bad Request", props={"role": "router", "max_instances": 4})
    async with polled(server, session) as (_, engine):
        await engine.ticks(1)
        assert engine.state.errors == {"no_telemetry": 1}
        assert "router mode" in (engine.state.last_error or "")


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_server_that_wants_a_key_is_not_asked_further(
    status: str, session: aiohttp.ClientSession
) -> None:
    async with polled(Stranger(status, props={}), session) as (server, engine):
        await engine.ticks(1)
        assert engine.state.errors == {"status": 1}
        assert "bearer_token_file" in (engine.state.last_error or "")
        assert "/props" not in server.paths()
