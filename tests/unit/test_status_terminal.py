"""``headroom-exporter status``: a table, JSON, and clear words when nobody answers."""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter import cli
from headroom_exporter.errors import Malformed, Unreachable
from headroom_exporter.status import terminal
from headroom_exporter.status.document import Source, document
from headroom_exporter.status.history import History
from status_scenes import PLAN, calm, engine, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_exporter.samples import State


def made(shown: State, *, simulated: bool = False) -> dict[str, Any]:
    source = Source(
        plan_of=lambda _engine, _model: PLAN,
        history=History(),
        instance="abc",
        simulated=simulated,
    )
    return document(shown, source, now=time.monotonic(), wall=1_700_000_000.0)


class Answering(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b""
    points_to: str | None = None
    asked: tuple[str, str | None] = ("", None)

    def do_GET(self) -> None:
        type(self).asked = (self.path, self.headers.get("Authorization"))
        self.send_response(self.status)
        if self.points_to is not None:
            self.send_header("Location", self.points_to)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(
    body: bytes, status: int = 200, points_to: str | None = None
) -> Iterator[tuple[str, type[Answering]]]:
    answer = {"status": status, "body": body, "points_to": points_to}
    handler = type("Handler", (Answering,), answer)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", handler
        finally:
            server.shutdown()
            thread.join()


# --- drawing -------------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_the_document():
    lines = terminal.render(made(calm()), width=200)
    assert lines[2].split() == [
        *("STATE", "ENGINE", "RANK", "DEMAND", "LIMIT", "ROOM", "BINDS", "SPIKE", "KV", "MODEL")
    ]
    assert lines[3].split()[:10] == [
        *("✓", "ok", "chat-0", "0", "16", "22", "+6", "kv_cache", "1.5x", "63%")
    ]
    assert any("6 more sequences fit; the plan's 2x spike would not." in line for line in lines)
    assert any(line.endswith("/HeadroomSpikeUnsafe.md") for line in lines)


def test_unknown_is_a_dash():
    row = terminal.render(made(state(engine(bare=True))), width=200)[3]
    assert row.split()[:10] == ["?", "unknown", "chat-0", "0", "7", "–", "–", "–", "–", "–"]


def test_an_engine_that_was_never_seen_has_a_line():
    away = replace(
        engine("gone"), ranks=(), last_success_monotonic=None, last_error="nothing listens"
    )
    assert "? unknown  gone: No data: nothing listens." in terminal.render(made(state(away)))


def test_simulated_is_said_in_the_first_line():
    assert "SIMULATED" in terminal.render(made(calm(), simulated=True))[0]
    assert "SIMULATED" not in terminal.render(made(calm()))[0]


def test_rows_are_cut_and_sentences_wrapped():
    lines = terminal.render(made(calm()), width=60)
    assert all(len(line) <= 60 or "https://" in line or "/" in line for line in lines)
    assert "spike would not." in " ".join(line.strip() for line in lines)


def test_a_model_name_cannot_move_the_cursor():
    lines = terminal.render(made(state(engine(model="\x1b[2J\nm"))), width=200)
    assert all(line.isprintable() for line in lines)


# --- asking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/metrics", "/api/v1/state", "/behind/a/proxy/"])
def test_any_address_of_the_exporter_will_do(path):
    with answering(json.dumps(made(calm())).encode()) as (place, handler):
        assert terminal.fetch(f"http://{place}{path}")["version"] == 1
    prefix = "/behind/a/proxy" if "proxy" in path else ""
    assert handler.asked == (f"{prefix}/api/v1/state", None)


def test_name_and_password_go_into_a_header_and_not_into_messages():
    with answering(b"", 401) as (place, handler), pytest.raises(Unreachable) as caught:
        terminal.fetch(f"http://me:s%40cret@{place}")
    assert handler.asked[1] == "Basic bWU6c0BjcmV0"
    assert "cret" not in str(caught.value)
    assert "NAME:PASSWORD" in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_name_and_password_are_not_taken_to_where_a_redirect_points(status):
    with (
        answering(json.dumps(made(calm())).encode()) as (elsewhere, other),
        answering(b"", status, f"http://{elsewhere}/api/v1/state") as (place, _),
        pytest.raises(Unreachable, match=f"status {status}; it points elsewhere"),
    ):
        terminal.fetch(f"http://me:secret@{place}")
    assert other.asked == ("", None)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "http://",
        "http://a:99999",
        "file:///etc/passwd",
        "http://[::1",
        "http://[x]",
        "http://\u2100.example",
    ],
)
def test_no_address_at_all(url):
    with pytest.raises(Unreachable, match=r"must be like http://127.0.0.1:9890"):
        terminal.fetch(url)


def test_a_wrong_address_is_named_without_its_password():
    with pytest.raises(Unreachable, match="'host:99999': must be like") as caught:
        terminal.fetch("http://me:secret@host:99999")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("place", ["a" * 70, "127.0.0.1:1/\u00fc", "127.0.0.1:1/a b"])
def test_an_address_that_cannot_be_sent_is_no_traceback(place):
    with pytest.raises(Unreachable, match="no answer: "):
        terminal.fetch(f"http://{place}")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"{}", b"[" * 100_000])
def test_somebody_else_answers(body):
    with answering(body) as (place, _), pytest.raises(Malformed, match="not a headroom-exporter's"):
        terminal.fetch(place)


def test_a_later_version_is_refused_with_its_number():
    later = {**made(calm()), "version": 2}
    with (
        answering(json.dumps(later).encode()) as (place, _),
        pytest.raises(Malformed, match="version is 2; this program reads version 1"),
    ):
        terminal.fetch(place)


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_prints_a_table_and_ends_with_0(capsys):
    with answering(json.dumps(made(calm())).encode()) as (place, _):
        assert cli.main(["status", place]) == 0
    assert "kv_cache" in capsys.readouterr().out


def test_json_is_the_document_in_one_line(capsys):
    shown = made(calm())
    with answering(json.dumps(shown).encode()) as (place, _):
        assert cli.main(["status", place, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads(json.dumps(shown))


def test_nobody_there_is_exit_1_and_says_what_was_tried(capsys):
    assert cli.main(["status", "127.0.0.1:1"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "http://127.0.0.1:1/api/v1/state: no answer: Connection refused" in said.err


def test_watching_goes_on_when_nobody_answers(monkeypatch, capsys):
    shown = iter([Unreachable("gone for now"), made(calm()), KeyboardInterrupt()])

    def fetch(_url: str) -> dict[str, Any]:
        found = next(shown)
        if isinstance(found, BaseException):
            raise found
        return found

    slept: list[float] = []
    monkeypatch.setattr(terminal, "fetch", fetch)
    monkeypatch.setattr(time, "sleep", slept.append)
    assert cli.main(["status", "--watch", "--every", "7"]) == 0
    out = capsys.readouterr().out
    assert out.index("gone for now") < out.index("kv_cache")
    assert slept == [7.0, 7.0]
