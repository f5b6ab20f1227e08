"""The web server on a real socket: pages, negotiation, who may come in, and what bad visitors get."""

import asyncio
import base64
import gzip
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import bcrypt
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.registry import Collector

from headroom_exporter import __version__
from headroom_exporter.errors import ConfigError, ListenError
from headroom_exporter.web import Logins, Server, WebSettings, build_app, parse_listen, serve
from headroom_exporter.web import logins as logins_module
from headroom_exporter.web import server as server_module
from headroom_exporter.web.file import RateLimit
from headroom_exporter.web.logins import Bucket, bcrypt_matches

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# What Prometheus 2.53 and 3.x send.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
    "version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class Figures(Collector):
    """A gauge with a nasty label and a counter; fails on demand."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.broken = False

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("headroom_sequences", "Sequences that still fit.")
        yield CounterMetricFamily("headroom_steps", "Steps.")

    def collect(self) -> Iterator[Metric]:
        if self.broken:
            raise RuntimeError("a bug with a secret")
        gauge = GaugeMetricFamily("headroom_sequences", "Fit.", labels=["model_name"])
        for number in range(self.size):
            gauge.add_metric([f'a"b\\c\nd{number}'], 3.5)
        yield gauge
        yield CounterMetricFamily("headroom_steps", "Steps.", value=7)


@dataclass
class Site:
    """A running server and a client."""

    port: int
    session: aiohttp.ClientSession
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ask(self, path: str, method: str = "GET", **kwargs) -> tuple[int, str]:
        async with self.session.request(method, self.url + path, **kwargs) as response:
            return response.status, await response.text()


@asynccontextmanager
async def running(
    *,
    figures: Figures | None = None,
    settings: WebSettings | None = None,
    health: Callable[[], bool] = lambda: True,
    ready: Callable[[], bool] = lambda: True,
    reload: Callable[[], Awaitable[str | None]] | None = None,
    landing: Callable[[], str] | None = None,
    logins: Logins | None = None,
) -> AsyncIterator[Site]:
    registry = CollectorRegistry()
    registry.register(figures or Figures())
    app = build_app(
        registry=registry,
        health=health,
        ready=ready,
        reload=reload,
        landing=landing,
        settings=settings,
        logins=logins,
    )
    server = await serve(app, [("127.0.0.1", 0)], settings)
    try:
        async with aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
        ) as session:
            yield Site(server.addresses[0][1], session, server)
    finally:
        await server.close()


async def raw(port: int, request: bytes) -> bytes:
    """Everything the server answers to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


# --- listen addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9890", (None, 9890)),
        ("127.0.0.1:9890", ("127.0.0.1", 9890)),
        ("[::1]:9890", ("::1", 9890)),
        ("[::]:0", ("::", 0)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_listen_addresses_read_as_prometheus_writes_them(text, address):
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "9890", "localhost", "localhost:", "localhost:http", ":65536", ":-1", ":+1", ":1_0"),
        *("::1:9890", "[::1]", "[::1]9890", "[1.2.3.4]:80", "[]:80", "[::g]:80", "a b:80"),
        *("http://a:80", "a:80/", ":80 ", " :80", ":８０", "vsock://:80", "[::1]:80\n", "a\n:80"),
        *("a..b:80", ".:80", ".a:80", f"{'x' * 64}:80"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match=re.escape(f"--web.listen-address: {text!r}")) as caught:
        parse_listen(text)
    assert "allowed: HOST:PORT, :PORT, [IPV6]:PORT" in str(caught.value)


async def test_several_addresses_are_served_at_once():
    app = build_app(registry=CollectorRegistry(), health=lambda: True, ready=lambda: True)
    server = await serve(app, [("127.0.0.1", 0), ("127.0.0.2", 0)])
    try:
        assert [host for host, _ in server.addresses] == ["127.0.0.1", "127.0.0.2"]
        async with aiohttp.ClientSession() as session:
            for host, port in server.addresses:
                async with session.get(f"http://{host}:{port}/healthz") as response:
                    assert response.status == 200
    finally:
        await server.close()


async def test_a_port_in_use_opens_none_of_the_addresses():
    app = build_app(registry=CollectorRegistry(), health=lambda: True, ready=lambda: True)
    async with running() as site:
        with pytest.raises(ListenError) as caught:
            await serve(app, [("127.0.0.3", site.port), ("127.0.0.1", site.port)])
        assert str(caught.value) == (
            f"--web.listen-address: 127.0.0.1:{site.port} cannot be used: Address already in use; "
            "allowed: an address of this machine and a free port"
        )
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.3", site.port)


async def test_an_address_of_another_machine_is_refused_by_name():
    app = build_app(registry=CollectorRegistry(), health=lambda: True, ready=lambda: True)
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0 cannot be used"):
        await serve(app, [("192.0.2.1", 0)])


async def test_a_closed_server_frees_its_port_and_its_connections():
    async with running() as site:
        await site.ask("/healthz")
        port, server = site.port, site.server
        await server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


# --- /metrics ------------------------------------------------------------------------------------


async def metrics(site: Site, accept: str | None) -> tuple[str, str]:
    """Content type and text of a page."""
    headers = {} if accept is None else {"Accept": accept}
    async with site.session.get(site.url + "/metrics", headers=headers) as response:
        assert response.status == 200
        return response.headers["Content-Type"], await response.text()


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "text/plain;version=0.0.4"])
async def test_metrics_are_text_unless_asked_otherwise(accept):
    async with running() as site:
        kind, text = await metrics(site, accept)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in read_text(text)}
    assert families["headroom_sequences"].samples[0].labels == {"model_name": 'a"b\\c\nd0'}
    assert families["headroom_steps"].samples[0].value == 7


@pytest.mark.parametrize(
    "accept",
    [
        OPENMETRICS,
        PROMETHEUS_2,
        PROMETHEUS_3,
        # A version of the future before one of ours.
        "application/openmetrics-text;version=7.0.0,application/openmetrics-text;version=1.0.0",
    ],
)
async def test_metrics_are_openmetrics_where_asked_and_pass_the_strict_parser(accept):
    async with running() as site:
        kind, text = await metrics(site, accept)
    assert kind.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in read_openmetrics(text)}
    assert families["headroom_sequences"].samples[0].labels == {"model_name": 'a"b\\c\nd0'}
    assert families["headroom_steps"].samples[0].name == "headroom_steps_total"


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=",
        "application/openmetrics-text;version=" + "9" * 5000,
        "application/openmetrics-text;version=9.9.9",
        "text/plain;version=x;escaping=y",
        ";;;,,,=",
    ],
)
async def test_a_version_nobody_speaks_gives_plain_text(accept):
    async with running() as site:
        kind, _ = await metrics(site, accept)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("GZIP", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.00", False),
        ("deflate", False),
        ("", False),
    ],
)
async def test_metrics_are_gzipped_exactly_for_those_who_take_it(accepted, packed):
    async with running(figures=Figures(size=100)) as site:
        headers = {"Accept-Encoding": accepted}
        async with site.session.get(site.url + "/metrics", headers=headers) as response:
            body = await response.read()
            assert response.headers.get("Content-Encoding") == ("gzip" if packed else None)
    text = gzip.decompress(body) if packed else body
    assert text.count(b"headroom_sequences{") == 100


async def test_metrics_can_be_narrowed_by_name():
    async with running() as site:
        _, text = await site.ask("/metrics?name[]=headroom_steps_total&name[]=nonsense")
    assert "headroom_steps_total 7.0" in text
    assert "headroom_sequences" not in text


async def test_head_of_metrics_has_no_body():
    async with running() as site:
        assert await site.ask("/metrics", "HEAD") == (200, "")


async def test_a_bug_in_a_collector_is_a_500_without_its_traceback(caplog):
    figures = Figures()
    async with running(figures=figures) as site:
        figures.broken = True
        status, text = await site.ask("/metrics")
        assert status == 500
        assert text == "internal error; the log says more\n"
        assert any(record.exc_info for record in caplog.records)
        figures.broken = False
        assert (await site.ask("/metrics"))[0] == 200


# --- health, landing, reload ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_follow_what_they_are_told(path):
    fine = False
    async with running(health=lambda: fine, ready=lambda: fine) as site:
        assert (await site.ask(path))[0] == 503
        fine = True
        assert (await site.ask(path))[0] == 200


async def test_health_and_readiness_are_two_things():
    async with running(health=lambda: True, ready=lambda: False) as site:
        assert (await site.ask("/healthz"))[0] == 200
        assert await site.ask("/readyz") == (503, "no poll is done yet\n")


async def test_the_landing_page_links_and_escapes_and_loads_only_its_own_files():
    links, loaded, inline = [], [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            given = dict(attrs)
            if tag == "a":
                links.append(given["href"])
            elif tag in {"script", "img", "link", "iframe"}:
                loaded.append(given.get("src") or given["href"])
            inline.extend(name for name in given if name == "style" or name.startswith("on"))
            inline.extend([tag] * (tag == "style"))

    nasty = "m</pre><script>alert(1)</script>&"
    async with running(landing=lambda: nasty) as site, site.session.get(site.url) as response:
        assert response.content_type == "text/html"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        text = await response.text()
    Reader().feed(text)
    assert __version__ in text
    assert "&lt;script&gt;" in text
    assert {"metrics", "healthz", "readyz", "api/v1/state"} <= set(links)
    assert all(path.startswith("static/") for path in loaded)
    assert len(loaded) == 5
    assert inline == []


async def test_the_landing_page_needs_no_text_of_its_own():
    async with running() as site:
        status, text = await site.ask("/")
    assert status == 200
    assert "<pre>" not in text


async def test_reload_answers_how_it_went():
    results: list[str | None] = [None, "headroom.yaml: plans: 3 is not a list"]

    async def reload() -> str | None:
        return results.pop(0)

    async with running(reload=reload) as site:
        assert await site.ask("/-/reload", "POST") == (200, "reloaded\n")
        status, text = await site.ask("/-/reload", "POST")
        assert status == 500
        assert "headroom.yaml: plans: 3 is not a list" in text


async def test_a_bug_in_reload_stays_in_the_log():
    async def reload() -> str | None:
        raise RuntimeError("a secret")

    async with running(reload=reload) as site:
        assert await site.ask("/-/reload", "POST") == (500, "internal error; the log says more\n")


async def test_reload_is_refused_with_a_hint_where_it_is_off():
    async with running() as site:
        status, text = await site.ask("/-/reload", "POST")
    assert status == 403
    assert "web.reload" in text
    assert "SIGHUP" in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/-/reload", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/healthz/../metrics", 200),
    ],
)
async def test_wrong_methods_and_paths_get_their_status(method, path, status):
    async def reload() -> str | None:
        raise AssertionError("reached")

    async with running(reload=reload) as site:
        assert (await site.ask(path, method))[0] == status


# --- bad visitors --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/nowhere", "/", "/healthz"])
async def test_no_answer_names_versions_of_what_runs_here(path):
    async with running() as site, site.session.get(site.url + path) as response:
        assert response.headers["Server"] == "headroom-exporter"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello over TLS\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: a\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_400_and_no_traceback_in_the_log(request_, caplog):
    caplog.set_level(logging.DEBUG)
    async with running() as site:
        answer = await raw(site.port, request_)
        assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
        assert not [record for record in caplog.records if record.exc_info]
        assert (await site.ask("/healthz"))[0] == 200


async def test_a_body_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(server_module, "_LINGER_SECONDS", 0.1)

    async def reload() -> str | None:
        return None

    async with running(reload=reload) as site:
        answer = await raw(
            site.port, b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nab"
        )
    assert answer.startswith(b"HTTP/1.1 200")


async def test_visitors_beyond_the_limit_are_turned_away_and_leave_room_again(monkeypatch):
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 3)
    async with running() as site:
        held = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(3)]
        for reader, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert await raw(site.port, b"") == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        assert (await site.ask("/healthz"))[0] == 200


async def test_requests_leave_no_line_in_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    async with running() as site:
        caplog.clear()
        await site.ask("/metrics")
        await site.ask("/nowhere")
        assert caplog.records == []


# --- the web configuration -----------------------------------------------------------------------


def hashed(password: bytes, cost: int = 4) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], WebSettings]:
    def configured(text: str) -> WebSettings:
        path = tmp_path / "web.yml"
        # A new file in place of the old: an editor's or kubelet's way, and a new inode.
        (tmp_path / "next.yml").write_text(text)
        (tmp_path / "next.yml").rename(path)
        return WebSettings(path)

    return configured


class Counting:
    """The real comparison, counted."""

    def __init__(self) -> None:
        self.costs: list[str] = []

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.costs.append(hashed.decode().split("$")[2])
        return bcrypt_matches(password, hashed)


async def test_headers_of_the_file_stand_on_every_answer(configured):
    settings = configured(
        "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
        "    Content-Security-Policy: default-src 'self'\n"
    )
    async with running(settings=settings) as site:
        for path in ("/", "/metrics", "/nowhere", "/healthz"):
            async with site.session.get(site.url + path) as response:
                assert response.headers["X-Frame-Options"] == "deny"
                # Once, and the file's own instead of ours.
                policy = response.headers.getall("Content-Security-Policy")
                assert policy == ["default-src 'self'"]


async def test_without_users_nobody_is_asked(configured):
    async with running(settings=configured("")) as site:
        assert (await site.ask("/metrics"))[0] == 200


@pytest.mark.parametrize(
    ("name", "password", "status"),
    [
        ("alice", "correct:horse ü", 200),
        ("alice", "wrong", 401),
        ("alice", "", 401),
        ("bob", "correct:horse ü", 401),
        ("", "correct:horse ü", 401),
        ("Alice", "correct:horse ü", 401),
        ("alice", "a\0b", 401),
        ("alice", "x" * 5000, 401),
        ("long", "y" * 72 + "and more", 200),
    ],
)
async def test_only_a_user_with_the_right_password_comes_in(configured, name, password, status):
    settings = configured(
        f"basic_auth_users:\n  alice: {hashed('correct:horse ü'.encode())}\n"
        f"  long: {hashed(b'y' * 72)}\n"
    )
    async with running(settings=settings) as site:
        for _ in range(2):  # fresh, then remembered
            assert (await site.ask("/metrics", headers=basic(name, password)))[0] == status


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic YWxpY2U=",
        "Basic \xff",
        "Basic /w==",
        "Bearer YWxpY2U6cHc=",
        "YWxpY2U6cHc=",
        "Basic YWxpY2U6cHc= YWxpY2U6cHc=",
    ],
)
async def test_a_header_that_holds_no_credentials_is_asked_again(configured, header):
    counting = Counting()
    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings, logins=Logins(counting)) as site:
        line = b"" if header is None else b"Authorization: " + header.encode("latin-1") + b"\r\n"
        answer = await raw(
            site.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + line + b"\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 401")
        assert b'WWW-Authenticate: Basic realm="headroom", charset="UTF-8"' in answer
        assert (await site.ask("/", headers={"Authorization": "basic YWxpY2U6cHc="}))[0] == 200
        assert len(counting.costs) == 1


async def test_every_path_but_the_probes_asks_for_a_user(configured):
    async def reload() -> str | None:
        raise AssertionError("reached")

    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings, reload=reload) as site:
        for method, path in [
            *(("GET", "/"), ("GET", "/metrics"), ("HEAD", "/metrics"), ("POST", "/-/reload")),
            *(("GET", "/nowhere"), ("POST", "/healthz"), ("GET", "//healthz")),
            *(("GET", "/healthz/"), ("GET", "/metrics?/healthz")),
        ]:
            assert (await site.ask(path, method))[0] == 401, path
        for method in ("GET", "HEAD"):
            for path in ("/healthz", "/readyz", "/healthz?verbose"):
                assert (await site.ask(path, method))[0] == 200


async def test_a_credential_costs_one_bcrypt_however_often_it_comes(configured):
    counting = Counting()
    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings, logins=Logins(counting)) as site:
        for password, status in (("pw", 200), ("guess", 401)):
            counting.costs.clear()
            asked = [site.ask("/metrics", headers=basic("alice", password)) for _ in range(8)]
            assert {answer[0] for answer in await asyncio.gather(*asked)} == {status}
            assert (await site.ask("/metrics", headers=basic("alice", password)))[0] == status
            assert len(counting.costs) == 1


async def test_a_stranger_costs_as_much_as_the_dearest_user():
    counting = Counting()
    logins = Logins(counting)
    users = {"cheap": hashed(b"a", 4), "dear": hashed(b"b", 5)}
    assert not await logins.check(users, "stranger", b"b")
    assert counting.costs == ["05"]


async def test_guesses_cannot_push_out_those_who_belong_here():
    counting = Counting()
    logins = Logins(counting)
    users = {"alice": hashed(b"pw")}
    assert await logins.check(users, "alice", b"pw")
    for number in range(logins_module._REMEMBERED_LOGINS + 5):
        assert not await logins.check(users, "alice", b"guess %d" % number)
    counting.costs.clear()
    assert await logins.check(users, "alice", b"pw")
    assert counting.costs == []
    assert len(logins._wrong) == logins_module._REMEMBERED_LOGINS


async def test_credentials_that_run_together_are_not_confused():
    logins = Logins(lambda password, _hashed: password == b"c")
    known = "$2b$04$x"
    users = {"a": known, f"a{known}": known}
    assert await logins.check(users, f"a{known}", b"c")
    assert not await logins.check(users, "a", f"{known}c".encode())


async def test_the_loop_goes_on_while_a_password_is_checked_and_crowds_are_turned_away(configured):
    started, go_on = threading.Event(), threading.Event()

    def slow(_password: bytes, _hashed: bytes) -> bool:
        started.set()
        in_time = go_on.wait(5)
        go_on.set()  # else each of the crowd would wait as long
        return in_time

    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings, logins=Logins(slow)) as site:
        crowd = [
            asyncio.create_task(site.ask("/", headers=basic("alice", f"{number}")))
            for number in range(logins_module._MAX_WAITING_LOGINS)
        ]
        try:
            assert await asyncio.to_thread(started.wait, 20)
            assert (await site.ask("/healthz"))[0] == 200
            while True:  # until the whole crowd has arrived
                status, _ = await asyncio.wait_for(
                    site.ask("/", headers=basic("alice", os.urandom(4).hex())), 20
                )
                if status == 429:
                    break
        finally:
            go_on.set()
        answers = [(await task)[0] for task in crowd]
        assert set(answers) <= {200, 429}
        assert 200 in answers


async def test_users_are_read_again_when_the_file_changes(configured, tmp_path):
    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings) as site:
        assert (await site.ask("/", headers=basic("alice", "pw")))[0] == 200
        configured(f"basic_auth_users: {{alice: {hashed(b'new')}}}")
        assert (await site.ask("/", headers=basic("alice", "pw")))[0] == 401
        assert (await site.ask("/", headers=basic("alice", "new")))[0] == 200


async def test_a_file_that_breaks_or_vanishes_does_not_open_the_door(configured, tmp_path, caplog):
    settings = configured(f"basic_auth_users: {{alice: {hashed(b'pw')}}}")
    async with running(settings=settings) as site:
        for break_it in (
            lambda path: path.write_text("basic_auth_users: {alice: plain}"),
            lambda path: path.unlink(),
        ):
            caplog.clear()
            break_it(tmp_path / "web.yml")
            for _ in range(3):
                assert (await site.ask("/"))[0] == 401
                assert (await site.ask("/", headers=basic("alice", "pw")))[0] == 200
            assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


async def test_the_rate_limit_turns_away_all_but_probes(configured):
    settings = configured("rate_limit: {interval: 1h, burst: 2}")
    async with running(settings=settings) as site:
        assert [(await site.ask("/metrics"))[0] for _ in range(4)] == [200, 200, 429, 429]
        assert [(await site.ask("/healthz"))[0] for _ in range(4)] == [200] * 4


def test_a_bucket_fills_with_time_up_to_its_burst():
    now = 100.0
    bucket = Bucket(RateLimit(interval=2.0, burst=3), clock=lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now += 1.9
    assert not bucket.take()
    now += 0.2
    assert [bucket.take(), bucket.take()] == [True, False]
    now += 1000
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
