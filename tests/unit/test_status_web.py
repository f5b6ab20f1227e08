"""The status page's addresses: what they answer, to whom, and in how many bytes."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import bcrypt
import pytest

from headroom_exporter import web
from headroom_exporter.app import Exporter
from headroom_exporter.config import Config
from headroom_exporter.web import WebSettings
from headroom_exporter.web.assets import _FOLDER, _TYPES
from status_scenes import MODEL, PLAN, calm, engine, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ROUTES = ("/", "/static/app.js", "/api/v1/state", "/api/v1/history")
RANK = {"engine": "chat-0", "rank": "0", "model_name": MODEL}


def exporter() -> Exporter:
    found = Exporter(Config(plans=(PLAN,)))
    found._state = calm()
    for running in (10.0, 11.0, 12.0):
        found._history.note(engine(running=running), time.monotonic())
    return found


@asynccontextmanager
async def running(
    shown: Exporter, settings: WebSettings | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    app = web.build_app(
        registry=shown.registry(),
        health=shown.healthy,
        ready=shown.ready,
        api=shown.status_api(),
        settings=settings,
    )
    server = await web.serve(app, [("127.0.0.1", 0)], settings)
    url = f"http://127.0.0.1:{server.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession(url, auto_decompress=False) as session:
            yield session
    finally:
        await server.close()


async def ask(session: aiohttp.ClientSession, path: str, **query: str) -> tuple[int, Any]:
    async with session.get(path, params=query, headers={"Accept-Encoding": "identity"}) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if answer.status == 200 else text


async def test_the_state_is_json_that_nobody_keeps():
    async with running(exporter()) as session:
        async with session.get("/api/v1/state") as answer:
            assert answer.content_type == "application/json"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Content-Encoding"] == "gzip"
            found = json.loads(gzip.decompress(await answer.read()))
        assert found["version"] == 1
        assert found["ranks"][0]["headroom"]["sequences"] == 6.0
        status, plain = await ask(session, "/api/v1/state")
        assert (status, plain["ranks"]) == (200, found["ranks"])


async def test_the_history_comes_whole_and_then_row_by_row():
    shown = exporter()
    async with running(shown) as session:
        status, found = await ask(session, "/api/v1/history", **RANK)
        assert status == 200
        columns = found["columns"]
        assert columns["running"] == [10, 11, 12]
        assert time.time() - 60 < columns["time"][0] < time.time() + 60
        state_found = (await ask(session, "/api/v1/state"))[1]
        assert found["instance"] == state_found["exporter"]["instance"]
        shown._history.note(engine(running=13.0), time.monotonic())
        since = str(columns["time"][-1])
        _, later = await ask(session, "/api/v1/history", **RANK, since=since)
        assert later["columns"]["running"] == [13]
        _, none = await ask(session, "/api/v1/history", **RANK, since="1e12")
        assert none["columns"]["time"] == []


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({}, 400, "engine: missing"),
        ({"engine": "chat-0"}, 400, "rank: missing"),
        ({**RANK, "since": "yesterday"}, 400, "since: 'yesterday': must be Unix seconds"),
        ({**RANK, "since": "nan"}, 400, "since: 'nan'"),
        ({**RANK, "rank": "7"}, 404, "no such rank"),
    ],
)
async def test_a_wrong_question_is_told_what_is_wrong(query, status, said):
    async with running(exporter()) as session:
        found = await ask(session, "/api/v1/history", **query)
    assert found[0] == status
    assert said in found[1]


async def test_another_start_is_another_instance():
    assert (
        exporter()._document()["exporter"]["instance"]
        != (exporter()._document()["exporter"]["instance"])
    )


async def test_files_are_sent_once_and_then_only_when_they_changed():
    async with running(exporter()) as session:
        for name, kind in _TYPES.items():
            async with session.get(f"/static/{name}") as answer:
                assert (answer.status, answer.content_type) == (200, kind)
                assert await answer.read() == (_FOLDER / name).read_bytes()
                tag = answer.headers["ETag"]
            async with session.get(f"/static/{name}", headers={"If-None-Match": tag}) as answer:
                assert (answer.status, await answer.read()) == (304, b"")


async def test_no_file_of_the_page_is_forgotten_or_left_over():
    there = {str(path.relative_to(_FOLDER)) for path in _FOLDER.rglob("*") if path.is_file()}
    assert there == {*_TYPES, "page.html", "uplot/README.md"}


@pytest.mark.parametrize(
    "path",
    ["page.html", "../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "uplot", "/etc/passwd", "x"],
)
async def test_no_other_file_can_be_asked_for(path):
    async with running(exporter()) as session, session.get(f"/static/{path}") as answer:
        assert answer.status == 404


async def test_a_policy_forbids_what_is_not_ours():
    async with running(exporter()) as session, session.get("/") as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert "unsafe" not in policy


async def test_the_web_configuration_s_users_guard_every_new_address(tmp_path: Path):
    path = tmp_path / "web.yaml"
    secret = bcrypt.hashpw(b"pw", bcrypt.gensalt(4)).decode()
    path.write_text(f"basic_auth_users: {{me: '{secret}'}}\n", encoding="utf-8")
    async with running(exporter(), WebSettings(path)) as session:
        for route in ROUTES:
            for method in ("GET", "HEAD", "OPTIONS", "POST"):
                async with session.request(method, route, params=RANK) as answer:
                    assert answer.status == 401, (method, route)
            entry = {"Authorization": aiohttp.encode_basic_auth("me", "pw")}
            async with session.get(route, params=RANK, headers=entry) as answer:
                assert answer.status == 200, route


async def test_without_an_api_there_is_none():
    shown = exporter()
    app = web.build_app(registry=shown.registry(), health=shown.healthy, ready=shown.ready)
    paths = {resource.canonical for resource in app.router.resources()}
    assert "/" in paths
    assert not any(path.startswith("/api/") for path in paths)


def test_the_history_follows_the_engines_that_are_polled():
    shown = exporter()
    assert shown._past("chat-0", "0", MODEL, 0.0) is not None
    shown._pollers["chat-0"] = _Task()  # type: ignore[assignment]
    shown._tracks["chat-0"] = shown._engine_states["chat-0"] = None  # type: ignore[assignment]
    shown._stop_engine("chat-0")
    assert shown._past("chat-0", "0", MODEL, 0.0) is None
    assert state().engines == ()


class _Task:
    def cancel(self) -> None:
        pass
