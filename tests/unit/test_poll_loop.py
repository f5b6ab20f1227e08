"""The poll loop: two rhythms, the filter and when it is trusted, back-off, facts, credentials."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headroom_exporter.config import EngineConfig
from headroom_exporter.engines import arguments
from headroom_exporter.fetch import make_session
from headroom_exporter.poll import EnginePoller
from headroom_exporter.track import EngineTrack
from polling.harness import (
    HASTY,
    POLL,
    REAL_PAGE,
    Clock,
    FakeVllm,
    Polled,
    Request,
    Server,
    edited,
    http,
    polled,
    raw,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import aiohttp

LOGGER = "headroom_exporter.poll"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def kinds(server: Server) -> list[str]:
    """``full`` and ``fast`` pages asked for, facts left out."""
    names = {"/metrics": "full", "/metrics/": "fast"}
    return [names[path] for path in server.paths() if path in names]


# --- two rhythms ---------------------------------------------------------------------------------


async def test_where_the_filter_works_only_what_moves_is_asked_for(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks()
        assert server.paths() == [
            "/prometheus/metrics",
            "/metrics",
            "/version",
            "/v1/models",
            "/metrics/",
        ]
        assert engine.state.poll_mode == "filtered"
        server.requests.clear()
        await engine.ticks(9)
        assert kinds(server) == ["fast"] * 9
        asked = server.requests[0].names
        assert "vllm:num_requests_running" in asked
        assert not [name for name in asked if name.endswith("_bucket")]
        # Names this version does not have are not asked for: the address stays short.
        assert "vllm:gpu_cache_usage_perc" not in asked
        assert len(server.requests[0].target) < 1000


async def test_the_whole_page_is_read_every_ten_seconds(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.run(sleeps=101)
        assert engine.clock.now - 5_000 == pytest.approx(101, abs=1)
        assert kinds(server).count("full") in (10, 11)
        # One of them is the probe.
        assert kinds(server).count("fast") in (91, 92)
        assert set(engine.clock.pauses) == {1.0}


async def test_what_only_the_whole_page_tells_is_kept_between(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        await engine.ticks(3)
        vllm.page = edited(REAL_PAGE, num_requests_running="5.0")
        await engine.ticks()
        assert engine.values("headroom_running_sequences") == [5]
        assert engine.values("headroom_kv_cache_capacity_tokens") == [9088]
        assert engine.values("headroom_request_prompt_tokens_count") == [1587]


async def test_a_scrape_never_asks_the_engine(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(2)
        before = len(server.requests)
        for _ in range(20):
            engine.text()
        assert len(server.requests) == before


async def test_every_poll_is_published(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(3)
        await server.close()
        await engine.ticks(2)
        assert engine.published == 5


# --- the filter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["ignored", "empty", "missing"])
async def test_a_filter_that_does_not_work_is_not_used(
    broken: str, session: aiohttp.ClientSession
) -> None:
    async with polled(FakeVllm(filter=broken), session) as (server, engine):
        await engine.run(sleeps=60)
        assert engine.state.poll_mode == "full"
        assert (engine.up(), engine.state.errors) == (1, {})
        assert engine.values("headroom_running_sequences") == [0]
        assert kinds(server)[-20:] == ["full"] * 20
        # A whole page is asked for no faster than every two seconds.
        assert engine.clock.pauses[-20:] == [2.0] * 20
        # A filter that answers is judged once; one that fails may only be slow, and gets a few chances.
        assert kinds(server).count("fast") <= (5 if broken == "missing" else 1)


async def test_a_filter_that_holds_back_a_series_is_not_used(
    session: aiohttp.ClientSession,
) -> None:
    """One rank of two is worse than none."""
    second = REAL_PAGE.replace(b'engine="0"', b'engine="1"')
    page = REAL_PAGE + b"".join(
        line for line in second.splitlines(keepends=True) if b'engine="1"' in line
    )

    class OneRank(FakeVllm):
        async def _filtered(self, request: Request) -> bytes:
            answer = await super()._filtered(request)
            body = answer.partition(b"\r\n\r\n")[2].splitlines(keepends=True)
            return http(b"".join(line for line in body if b'engine="1"' not in line))

    async with polled(OneRank(page), session) as (_, engine):
        await engine.ticks(5)
        assert engine.state.poll_mode == "full"
        assert len(engine.values("headroom_running_sequences")) == 2


@pytest.mark.parametrize("broken", ["empty", "missing", "slow"])
async def test_a_filter_that_stops_working_is_given_up(
    broken: str, session: aiohttp.ClientSession
) -> None:
    vllm = FakeVllm()
    poll = HASTY if broken == "slow" else POLL
    async with polled(vllm, session, poll=poll) as (server, engine):
        await engine.ticks(3)
        assert engine.state.poll_mode == "filtered"
        vllm.filter = broken
        vllm.page = edited(REAL_PAGE, num_requests_running="7.0")
        await engine.ticks(60)
        assert (engine.up(), engine.state.poll_mode) == (1, "full")
        assert engine.values("headroom_running_sequences") == [7]
        # An error answer is one failed poll; an empty one is made good at once.
        assert sum(engine.state.errors.values()) == (0 if broken == "empty" else 1)
        assert kinds(server)[-30:] == ["full"] * 30


async def test_a_filter_that_begins_to_answer_with_everything_is_given_up(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        await engine.ticks(3)
        vllm.filter = "ignored"
        vllm.page = edited(REAL_PAGE, num_requests_running="7.0")
        await engine.ticks(3)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert engine.values("headroom_running_sequences") == [7]
        # The whole page every second is what the fallback's slower rhythm is for.
        assert engine.state.poll_mode == "full"


async def test_the_filter_grows_when_gauges_appear(session: aiohttp.ClientSession) -> None:
    """vLLM publishes no gauge before its first step."""
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    bare = edited(REAL_PAGE, num_requests_waiting_by_reason=None, **dict.fromkeys(gauges))
    vllm = FakeVllm(bare)
    async with polled(vllm, session) as (server, engine):
        await engine.ticks(5)
        assert (engine.up(), engine.state.poll_mode) == (1, "filtered")
        assert engine.values("headroom_running_sequences") == []
        assert "vllm:num_requests_running" not in server.requests[-1].names

        vllm.page = edited(REAL_PAGE, num_requests_running="2.0")
        await engine.ticks(11)
        assert engine.values("headroom_running_sequences") == [2]
        assert engine.state.poll_mode == "filtered"
        vllm.page = edited(REAL_PAGE, num_requests_running="4.0")
        await engine.ticks()
        assert kinds(server)[-1] == "fast"
        assert "vllm:num_requests_running" in server.requests[-1].names
        assert engine.values("headroom_running_sequences") == [4]


async def test_an_empty_page_is_noticed_between_whole_ones_too(
    session: aiohttp.ClientSession,
) -> None:
    """Polled without a filter: an empty 200 is an engine that says nothing, not one that is well."""
    vllm = FakeVllm(filter="ignored")
    async with polled(vllm, session) as (_, engine):
        await engine.ticks(3)
        vllm.page = b""
        await engine.ticks()
        assert (engine.up(), engine.state.errors) == (0, {"no_samples": 1})


# --- harming nobody ------------------------------------------------------------------------------


async def test_back_off_grows_to_its_limit_and_ends_with_success(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await server.close()
        pauses = await engine.run(sleeps=10)
        for pause, middle in zip(pauses, [1, 2, 4, 8, 15, 15, 15, 15, 15, 15], strict=True):
            assert 0.8 * middle <= pause <= 1.2 * middle
        await server.listen()
        assert (await engine.run(sleeps=3))[-2:] == [1.0, 1.0]


async def test_an_engine_that_is_away_for_an_hour_is_asked_seldom(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(raw(http(b"", "503 Service Unavailable")), session) as (server, engine):
        await engine.run(sleeps=240)
        assert engine.clock.now - 5_000 > 2_700
        assert len(server.requests) == 240
        assert server.most_in_flight == 1


async def test_back_off_differs_between_pollers(session: aiohttp.ClientSession) -> None:
    """Else a fleet knocks in step."""
    async with Server(raw(http(b"", "503 Service Unavailable"))) as server:
        pauses = [(await Polled(server, session).run(sleeps=3))[-1] for _ in range(5)]
    assert len(set(pauses)) == 5


async def test_a_page_is_of_the_moment_halfway_between_question_and_answer(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (server, engine):
        await engine.ticks(2)

        async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
            engine.clock.now += 0.4
            await vllm(request, writer)

        server.answer = slow
        asked_at = engine.clock.now + 1.0
        await engine.ticks()
        assert engine.state.last_success_monotonic == pytest.approx(asked_at + 0.2)
        assert engine.values("headroom_engine_poll_duration_seconds") == pytest.approx([0.4])


async def test_a_slow_engine_rests_as_long_as_it_worked(session: aiohttp.ClientSession) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (server, engine):
        await engine.ticks(2)

        async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
            engine.clock.now += 0.2
            await vllm(request, writer)

        server.answer = slow
        pauses = await engine.run(sleeps=3)
        assert pauses == pytest.approx([0.8, 0.8, 0.8])
        fast = replace(POLL, interval=0.1)
        poller = EnginePoller(engine.config, fast, engine.track, lambda: None, session)
        assert poller._pause(0.2) == pytest.approx(0.2)


async def test_a_page_that_is_dear_to_parse_is_asked_for_seldom(
    session: aiohttp.ClientSession,
) -> None:
    """Parsing takes at most a twentieth of a core."""
    page = b"".join(
        b'vllm:num_requests_running{engine="0",model_name="m%d"} 1.0\n' % i for i in range(20_000)
    )
    async with polled(FakeVllm(page), session) as (_, engine):
        pauses = await engine.run(sleeps=2)
        assert min(pauses) > POLL.fallback_interval
        assert engine.poller._parse_seconds / pauses[-1] <= 0.05 + 1e-9


async def test_a_deadline_holds_for_the_whole_request(session: aiohttp.ClientSession) -> None:
    async def half(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm")
        await writer.drain()
        await asyncio.sleep(3600)

    loop = asyncio.get_running_loop()
    async with polled(half, session, poll=HASTY) as (_, engine):
        began = loop.time()
        await engine.ticks(2)
        assert 2 * HASTY.timeout <= loop.time() - began < POLL.timeout
        assert engine.state.last_error == "no answer within 0.3 s"


async def test_cancelling_ends_a_poll_at_once(session: aiohttp.ClientSession) -> None:
    asked = asyncio.Event()

    async def never(_: Request, __: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.sleep(3600)

    patient = replace(POLL, timeout=3600.0)
    async with polled(never, session, poll=patient) as (_, engine):
        task = asyncio.create_task(engine.poller.run())
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        assert engine.state.errors == {}


async def test_a_defect_of_ours_is_counted_logged_and_survived(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(EngineTrack):
        def take(self, *_: object, **__: object) -> bool:
            raise ZeroDivisionError("ours")

    async with Server(FakeVllm()) as server:
        config = EngineConfig(name="e", url=server.url)
        track, clock = Broken(config, POLL, lambda _e, _m: None), Clock()
        poller = EnginePoller(config, POLL, track, lambda: None, session, clock.clocks())
        await poller.tick()
        await poller.tick()
    assert track.state().errors == {"bug": 2}
    assert "ZeroDivisionError: ours" in caplog.text


# --- facts ---------------------------------------------------------------------------------------


async def test_version_and_longest_sequence_are_asked_once(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(40)
        assert (engine.state.version, engine.state.max_model_length) == ("0.32.0", 2048)
        assert server.paths().count("/version") == server.paths().count("/v1/models") == 1


@pytest.mark.parametrize(
    ("version", "models"),
    [
        (b"", b""),
        (b"not json", b"[]"),
        (b"[1]", b'{"data": {}}'),
        (b'{"version": 3}', b'{"data": [{"max_model_len": "2048"}]}'),
        (b'{"version": null}', b'{"data": [{"max_model_len": true}, null, 7]}'),
        (b"[" * 100_000, b'{"data": [{"max_model_len": -1}]}'),
        (b"\xff", b'{"data": [{"max_model_len": ' + b"9" * 5000 + b"}]}"),
        (b'{"version": "' + b"x" * 2_000_000 + b'"}', b'{"data": "' + b"x" * 2_000_000 + b'"}'),
    ],
)
async def test_facts_that_are_not_to_be_had_cost_nothing_else(
    version: bytes, models: bytes, session: aiohttp.ClientSession
) -> None:
    async with polled(FakeVllm(version=version, models=models), session) as (server, engine):
        await engine.ticks(200)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert (engine.state.version, engine.state.max_model_length) == (None, None)
        # A few chances: an engine that starts may not know them yet.
        assert server.paths().count("/version") == 5


async def test_a_long_version_is_cut(session: aiohttp.ClientSession) -> None:
    vllm = FakeVllm(version=b'{"version": "' + b"1" * 500 + b'"}')
    async with polled(vllm, session) as (_, engine):
        await engine.ticks()
        assert engine.state.version == "1" * 64


async def test_facts_are_asked_again_after_the_engine_was_away(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (server, engine):
        await engine.ticks(3)
        await server.close()
        await engine.ticks(3)
        vllm.version = b'{"version": "0.33.0"}'
        await server.listen()
        await engine.ticks(2)
        assert engine.state.version == "0.33.0"


async def test_facts_are_asked_again_when_another_process_answers(
    session: aiohttp.ClientSession,
) -> None:
    """Restarted between two polls: no failure, but another start time on the whole page."""
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        await engine.ticks(3)
        vllm.version = b'{"version": "0.33.0"}'
        vllm.page = edited(REAL_PAGE, process_start_time_seconds="1.8e+09")
        await engine.ticks(12)
        assert engine.state.version == "0.33.0"


async def test_slots_from_the_command_line_outlive_a_failed_poll_but_not_the_process(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[float | None] = [16.0]
    monkeypatch.setattr(arguments, "max_num_seqs", lambda _url: said[0])
    vllm = FakeVllm()
    async with polled(vllm, session) as (server, engine):
        await engine.ticks(3)
        assert engine.values("headroom_max_sequences") == [16]
        server.answer = raw(http(b"", "500 Internal Server Error"))
        await engine.ticks()
        server.answer = vllm
        for _ in range(3):
            await engine.ticks()
            assert engine.values("headroom_max_sequences") == [16]
        said[0] = None
        vllm.page = edited(REAL_PAGE, process_start_time_seconds="1.8e+09")
        await engine.ticks(12)
        assert engine.values("headroom_max_sequences") == []


# --- one log line per change of state ------------------------------------------------------------


async def test_a_failing_engine_is_one_line_whatever_it_takes_to_fail(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with polled(FakeVllm(), session) as (server, engine):
        await server.close()
        await engine.ticks(50)
        await server.listen()
        await engine.ticks(50)
        server.answer = raw(http(b"", "500 Internal Server Error"))
        await engine.ticks(50)
    said = [(record.levelname, vars(record).get("kind")) for record in caplog.records]
    assert said == [("WARNING", "refused"), ("INFO", None), ("WARNING", "status")]


# --- credentials ---------------------------------------------------------------------------------


async def test_a_bearer_token_goes_with_every_request_and_is_read_anew(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    config = EngineConfig(name="e", bearer_token_file=str(token))
    async with polled(FakeVllm(), session, config=config) as (server, engine):
        await engine.ticks(2)
        assert {r.headers.get("authorization") for r in server.requests} == {"Bearer first"}
        server.requests.clear()
        token.write_text("second\n")
        await engine.ticks(2)
        assert {r.headers.get("authorization") for r in server.requests} == {"Bearer second"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\n",
        b"s3cret\nInjected: header",
        b"s3cret\r\n\r\nGET /",
        b"\xff\xfe",
        b"s3\x00cret",
    ],
)
async def test_without_a_usable_token_nothing_is_asked_and_nothing_is_told(
    content: bytes | None,
    session: aiohttp.ClientSession,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    config = EngineConfig(name="e", bearer_token_file=str(token))
    async with polled(FakeVllm(), session, config=config) as (server, engine):
        await engine.ticks(2)
        assert engine.state.errors == {"credentials": 2}
        assert str(token) in (engine.state.last_error or "")
        assert server.requests == []
        assert "s3" not in caplog.text + (engine.state.last_error or "")
        token.write_text("good")
        await engine.ticks()
        assert engine.up() == 1


async def test_no_token_no_header_and_no_cookie(session: aiohttp.ClientSession) -> None:
    cookie = raw(http(REAL_PAGE, Set_Cookie="a=b"))
    async with polled(cookie, session) as (server, engine):
        await engine.ticks(3)
        sent = {name for request in server.requests for name in request.headers}
        assert not {"authorization", "cookie"} & sent


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.fixture
async def secure(certificate: tuple[Path, Path]) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with Server(FakeVllm(), tls=context) as server:
        yield server


async def test_a_certificate_nobody_vouches_for_is_not_accepted(
    secure: Server, session: aiohttp.ClientSession
) -> None:
    engine = Polled(secure, session)
    await engine.ticks(2)
    assert engine.state.errors == {"unreachable": 2}
    assert "certificate" in (engine.state.last_error or "").lower()
    assert secure.requests == []


async def test_a_certificate_is_accepted_by_its_ca_file_or_by_choice(
    secure: Server, certificate: tuple[Path, Path], session: aiohttp.ClientSession
) -> None:
    by_ca = EngineConfig(name="e", ca_file=str(certificate[0]))
    by_choice = EngineConfig(name="e", insecure_skip_verify=True)
    for config in (by_ca, by_choice):
        engine = Polled(secure, session, config=config)
        await engine.ticks(2)
        assert (engine.up(), engine.state.errors) == (1, {})


async def test_a_ca_file_that_is_missing_or_broken_is_a_failed_poll_until_it_is_there(
    secure: Server, certificate: tuple[Path, Path], session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    engine = Polled(secure, session, config=EngineConfig(name="e", ca_file=str(ca)))
    await engine.ticks()
    ca.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    await engine.ticks()
    assert engine.state.errors == {"credentials": 2}
    assert str(ca) in (engine.state.last_error or "")
    ca.write_bytes(certificate[0].read_bytes())
    await engine.ticks()
    assert engine.up() == 1
