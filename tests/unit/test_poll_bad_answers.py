"""Every way an engine can answer badly: up 0 or a field absent, counted, logged once, nobody else harmed."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.config import EngineConfig
from headroom_exporter.engines import PATHS
from headroom_exporter.fetch import MAX_BODY_BYTES, make_session
from polling.harness import (
    HASTY,
    POLL,
    REAL_PAGE,
    Answer,
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

    import aiohttp

LOGGER = "headroom_exporter.poll"
HALF = REAL_PAGE[: len(REAL_PAGE) // 2 + 7]
assert not HALF.endswith(b"\n")
STALE = 'reason="stale_gauges"} 1.0'


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


async def never(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def dribble_head(_: Request, writer: asyncio.StreamWriter) -> None:
    for i in range(10_000):
        writer.write(b"HTTP/1.1 200 OK\r\n" if i == 0 else b"X-%d: y\r\n" % i)
        await writer.drain()
        await asyncio.sleep(0.02)


async def dribble_body(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(REAL_PAGE))
    for i in range(len(REAL_PAGE)):
        writer.write(REAL_PAGE[i : i + 1])
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(_: Request, writer: asyncio.StreamWriter) -> None:
    """A page of 100 MB, in chunks, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    line = b'vllm:num_requests_running{engine="0",model_name="m"} 1.0\n'
    chunk = line * (65_536 // len(line))
    for _chunk in range(100_000_000 // len(chunk)):
        writer.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        await writer.drain()


async def endless_continue(_: Request, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.001)


def chunked_cut() -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n" % len(REAL_PAGE) + REAL_PAGE[:1000]


def bomb() -> bytes:
    """Fifty megabytes of metrics in fifty kilobytes."""
    line = b'vllm:num_requests_running{engine="0",model_name="m"} 1.0\n'
    return gzip.compress(line * 900_000)


HANGS_UP = raw(b"", close=True)
DUPLICATED = REAL_PAGE + b'vllm:num_requests_running{engine="0",model_name="tiny"} 5.0\n'
NOBODY = b'# TYPE nobody:requests gauge\nnobody:requests{model_name="m"} 1.0\n'

# name -> (answer, kind of the error)
BAD: dict[str, tuple[Answer, str]] = {
    "never answers": (never, "timeout"),
    "headers dribble": (dribble_head, "timeout"),
    "body dribbles": (dribble_body, "timeout"),
    "hangs up": (HANGS_UP, "unreachable"),
    "not HTTP": (raw(b"220 smtp.example ESMTP\r\n", close=True), "unreachable"),
    "endless header": (
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
        "unreachable",
    ),
    "too many headers": (
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-1: y\r\n" * 100_000 + b"\r\n"),
        "unreachable",
    ),
    "continue without end": (endless_continue, "timeout"),
    "status 500": (raw(http(REAL_PAGE, "500 Internal Server Error")), "status"),
    "status 404": (raw(http(b'{"detail":"Not Found"}', "404 Not Found")), "status"),
    "status 401": (raw(http(b"", "401 Unauthorized")), "status"),
    "status 204": (raw(http(b"", "204 No Content", Content_Length="")), "status"),
    "HTML with 200": (raw(http(b"<!doctype html><html>Sign in</html>\n")), "malformed"),
    "JSON with 200": (raw(http(b'{"error": "no"}\n')), "json"),
    "half a page": (raw(http(HALF)), "malformed"),
    "shorter than its length": (
        raw(http(HALF, Content_Length=str(len(REAL_PAGE))), close=True),
        "unreachable",
    ),
    "chunks cut": (raw(chunked_cut(), close=True), "unreachable"),
    "bad chunk": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno\r\n", close=True),
        "unreachable",
    ),
    "100 MB": (endless, "too_large"),
    "gzip bomb": (raw(http(bomb(), Content_Encoding="gzip")), "malformed"),
    "deflate": (raw(http(zlib.compress(REAL_PAGE), Content_Encoding="deflate")), "malformed"),
    "unknown encoding": (raw(http(REAL_PAGE, Content_Encoding="x" * 500)), "malformed"),
    "gzip without saying so": (raw(http(gzip.compress(REAL_PAGE))), "malformed"),
    "empty 200": (raw(http(b"")), "no_samples"),
    "HELP and TYPE alone": (
        raw(http(b"".join(x for x in REAL_PAGE.splitlines(keepends=True) if x.startswith(b"#")))),
        "no_samples",
    ),
    "another engine's page": (raw(http(NOBODY)), "no_samples"),
    "a series twice": (raw(http(DUPLICATED)), "malformed"),
    "not UTF-8": (raw(http(REAL_PAGE.replace(b'"tiny"', b'"t\xff\xfey"'))), "malformed"),
    "not numbers": (raw(http(edited(REAL_PAGE, num_requests_running="many"))), "malformed"),
    "numbers without end": (
        raw(http(edited(REAL_PAGE, num_requests_running="1 " + "9" * 4000))),
        "malformed",
    ),
}
# Answers that send us looking for the page: requests of one search, with those that ask who it is.
SEARCH: dict[Answer, int] = {
    BAD["status 404"][0]: len(PATHS) + 1,
    BAD["empty 200"][0]: 4,
    BAD["HELP and TYPE alone"][0]: 4,
}


@pytest.mark.parametrize(("answer", "kind"), BAD.values(), ids=BAD)
async def test_a_bad_answer_is_counted_logged_once_and_got_over(
    answer: Answer,
    kind: str,
    session: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    good = FakeVllm()
    poll = HASTY if kind == "timeout" else POLL
    async with (
        polled(good, session, poll=poll) as (server, engine),
        polled(good, session) as (_, other),
    ):
        await engine.ticks(2)
        await other.ticks(2)
        assert (engine.up(), engine.state.errors) == (1, {})
        caplog.clear()
        server.requests.clear()

        server.answer = answer
        for _ in range(3):
            await asyncio.wait_for(asyncio.gather(engine.ticks(), other.ticks()), 20)

        assert engine.up() == 0
        assert engine.state.errors == {kind: 3}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert vars(caplog.records[0])["kind"] == kind
        assert len(vars(caplog.records[0])["reason"]) < 400
        assert server.most_in_flight == 1
        # One request a poll; one more where the filtered page came first; and aiohttp asks a second
        # time where it is hung up on before any answer. Where the page is gone it is looked for anew.
        most = 2 + 2 * SEARCH[answer] if answer in SEARCH else 7 if answer is HANGS_UP else 4
        assert 3 <= len(server.requests) <= most
        assert (other.up(), other.state.errors) == (1, {})
        assert other.values("headroom_running_sequences") == [0]

        caplog.clear()
        server.answer = good
        await engine.ticks(2)
        assert engine.up() == 1
        assert engine.state.errors == {kind: 3}
        assert [record.message for record in caplog.records] == ["engine is up"]
        assert engine.values("headroom_running_sequences") == [0]


@pytest.mark.parametrize(("answer", "kind"), BAD.values(), ids=BAD)
async def test_an_engine_that_is_bad_from_the_start_shows_nothing(
    answer: Answer, kind: str, session: aiohttp.ClientSession
) -> None:
    async with polled(answer, session, poll=HASTY if kind == "timeout" else POLL) as (
        server,
        engine,
    ):
        await asyncio.wait_for(engine.ticks(2), 20)
        assert engine.up() == 0
        assert engine.state.errors == {kind: 2}
        assert engine.values("headroom_running_sequences") == []
        assert engine.values("headroom_engine_last_success_timestamp_seconds") == []
        assert engine.published == 2
        # Where there is no such page, or one of JSON, the engine may be one that has its page elsewhere;
        # where there is none at all, it is asked who it is.
        paths = SEARCH.get(answer, len(PATHS) if kind == "json" else 1)
        assert len(server.requests) <= 2 * (2 if answer is HANGS_UP else paths)


async def test_nobody_listens(session: aiohttp.ClientSession) -> None:
    """Refused is known at once: what it last said goes with it, and comes back with it."""
    async with polled(FakeVllm(), session) as (server, engine):
        await engine.ticks(2)
        assert engine.values("headroom_running_sequences") == [0]
        await server.close()
        await engine.ticks(2)
        assert (engine.up(), engine.state.errors) == (0, {"refused": 2})
        assert engine.values("headroom_running_sequences") == []
        await server.listen()
        await engine.ticks(2)
        assert (engine.up(), engine.state.errors) == (1, {"refused": 2})
        assert engine.values("headroom_running_sequences") == [0]


async def test_a_name_with_two_addresses_that_both_refuse_is_refused(
    session: aiohttp.ClientSession,
) -> None:
    """``localhost`` is often ::1 and 127.0.0.1."""
    async with Server(FakeVllm()) as server:
        port = server.port
    engine = Polled(server, session, config=EngineConfig(name="e", url=f"http://localhost:{port}"))
    await engine.ticks(2)
    assert engine.state.errors == {"refused": 2}


async def test_a_redirect_is_not_followed(session: aiohttp.ClientSession) -> None:
    async with Server(FakeVllm()) as elsewhere:
        away = raw(http(b"", "302 Found", Location=f"{elsewhere.url}/metrics"))
        async with polled(away, session) as (_, engine):
            await engine.ticks(2)
            assert engine.state.errors == {"status": 2}
            assert elsewhere.requests == []


async def test_of_a_hundred_megabytes_little_is_read_and_less_kept(
    session: aiohttp.ClientSession,
) -> None:
    sent = 0

    async def count(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"# " + b"x" * 65_534 + b"\n"
        for _ in range(1600):
            writer.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
            await writer.drain()
            sent += len(chunk)

    async with polled(count, session) as (_, engine):
        tracemalloc.start()
        try:
            await engine.ticks()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert engine.state.errors == {"too_large": 1}
    # What lay in the sockets' buffers comes on top.
    assert MAX_BODY_BYTES < sent < 3 * MAX_BODY_BYTES
    assert peak < 4 * MAX_BODY_BYTES


async def test_a_gzip_bomb_is_never_unpacked(session: aiohttp.ClientSession) -> None:
    packed = raw(http(bomb(), Content_Encoding="gzip"))
    async with polled(packed, session) as (server, engine):
        tracemalloc.start()
        try:
            await engine.ticks()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.requests[0].headers["accept-encoding"] == "identity"
    assert engine.state.errors == {"malformed": 1}
    assert peak < 5_000_000


# --- pages that are taken, fields that are not ----------------------------------------------------


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1.0"])
async def test_gauges_that_cannot_be_are_absent(value: str, session: aiohttp.ClientSession) -> None:
    page = edited(
        REAL_PAGE,
        num_requests_running=value,
        num_requests_waiting=value,
        num_requests_waiting_by_reason=value,
        kv_cache_usage_perc=value,
    )
    async with polled(FakeVllm(page), session) as (_, engine):
        await engine.ticks(3)
        assert (engine.up(), engine.state.errors) == (1, {})
        for name in ("running_sequences", "waiting_sequences", "kv_cache_usage_ratio", "sequences"):
            assert engine.values(f"headroom_{name}") == []
        assert engine.values("headroom_preemptions_total") == [673]
        assert 'reason="no_gauges"' in engine.text()


async def test_a_usage_above_one_is_absent_and_what_rests_on_it_too(
    session: aiohttp.ClientSession,
) -> None:
    page = edited(REAL_PAGE, kv_cache_usage_perc="1.7", num_requests_running="3")
    async with polled(FakeVllm(page), session) as (_, engine):
        await engine.ticks(3)
        assert engine.values("headroom_kv_cache_usage_ratio") == []
        assert engine.values("headroom_kv_cache_used_tokens") == []
        assert engine.values("headroom_running_sequences") == [3]
        assert engine.values("headroom_kv_cache_capacity_tokens") == [9088]


async def test_a_pool_of_none_blocks_is_unknown(session: aiohttp.ClientSession) -> None:
    page = REAL_PAGE.replace(b'num_gpu_blocks="72"', b'num_gpu_blocks="None"').replace(
        b'kv_cache_size_tokens="9216"', b'kv_cache_size_tokens="None"'
    )
    assert page.count(b'"None"') > REAL_PAGE.count(b'"None"')
    async with polled(FakeVllm(page), session) as (_, engine):
        await engine.ticks(2)
        assert engine.up() == 1
        assert engine.values("headroom_kv_cache_capacity_tokens") == []
        assert engine.values("headroom_kv_cache_usage_ratio") == [0]


@pytest.mark.parametrize(
    "written",
    [rb"a\"b", rb"a\nb", rb"a\\b", rb"a\\nb", "Größe/模型-🦙".encode(), b"{,}= #", b"x" * 200],
    ids=["quote", "newline", "backslash", "backslash n", "unicode", "syntax", "long"],
)
async def test_a_model_name_comes_out_as_it_went_in(
    written: bytes, session: aiohttp.ClientSession
) -> None:
    page = REAL_PAGE.replace(b'model_name="tiny"', b'model_name="' + written + b'"')
    async with polled(FakeVllm(page), session) as (_, engine):
        await engine.ticks(2)
        assert (engine.up(), engine.state.errors) == (1, {})
        ours = [line for line in engine.text().splitlines() if "headroom_running_seq" in line]
        assert f'model_name="{written.decode()}"' in ours[-1]


async def test_ten_thousand_models_cost_little_and_show_few(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    page = b"".join(
        b'vllm:num_requests_running{engine="0",model_name="m%d"} 1.0\n' % i for i in range(10_000)
    )
    async with polled(FakeVllm(page), session) as (_, engine):
        began = time.thread_time()
        await engine.ticks(3)
        assert time.thread_time() - began < 6
        assert engine.up() == 1
        assert len(engine.values("headroom_running_sequences")) == 64
        assert engine.state.errors == {"dropped_ranks": 3 * (10_000 - 64)}
    assert len([record for record in caplog.records if "left out" in record.message]) == 1


async def test_models_that_change_with_every_page_do_not_fill_the_memory(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        for i in range(12):
            vllm.page = b"".join(
                b'vllm:num_requests_running{engine="0",model_name="m%d-%d"} 1.0\n' % (i, j)
                for j in range(64)
            )
            await engine.ticks()
        assert len(engine.state.ranks) <= 128
        assert len(engine.values("headroom_running_sequences")) == 64


async def test_a_label_of_a_megabyte_is_left_out_and_counted(
    session: aiohttp.ClientSession,
) -> None:
    name = b'model_name="' + b"x" * 1_000_000 + b'"'
    page = REAL_PAGE + b'vllm:num_requests_running{engine="1",' + name + b"} 1.0\n"
    async with polled(FakeVllm(page), session) as (_, engine):
        await engine.ticks()
        assert engine.up() == 1
        assert engine.values("headroom_running_sequences") == [0]
        assert engine.state.errors == {"dropped_ranks": 1}
        assert len(engine.text()) < 100_000


# --- what changes under way ----------------------------------------------------------------------


async def test_an_engine_that_restarts_is_a_reset_not_a_negative_rate(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        await engine.ticks(5)
        before = engine.values("headroom_effective_batch_sequences_count")
        vllm.page = edited(
            REAL_PAGE,
            num_preemptions_total="0.0",
            generation_tokens_total="10.0",
            prompt_tokens_total="5.0",
            iteration_tokens_total_count="2.0",
            iteration_tokens_total_sum="15.0",
        )
        await engine.ticks(5)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert engine.values("headroom_preemptions_total") == [0]
        assert engine.values("headroom_generation_tokens_total") == [10]
        assert all(value >= 0 for value in engine.values("headroom_prompt_tokens_total"))
        # Integrals are ours: they go on.
        assert engine.values("headroom_effective_batch_sequences_count") > before


async def test_a_counter_that_goes_back_alone_is_a_reset_too(
    session: aiohttp.ClientSession,
) -> None:
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        for total in ("100.0", "200.0", "50.0", "60.0"):
            vllm.page = edited(REAL_PAGE, num_preemptions_total=total, num_requests_running="2")
            await engine.ticks()
        assert engine.values("headroom_preemptions_total") == [60]
        # 10 since the reset: it is preempting, which a difference of -140 would have hidden.
        assert (
            'headroom_state_reason_info{engine="e",model_name="tiny",rank="0",reason="preempting"}'
            in (engine.text())
        )


async def test_gauges_that_freeze_are_unknown_within_ten_seconds(
    session: aiohttp.ClientSession,
) -> None:
    """vLLM keeps the last step's gauges: after a mass cancel they say 99 % full for minutes."""
    vllm = FakeVllm()
    async with polled(vllm, session) as (_, engine):
        for step in range(5):
            vllm.page = edited(
                REAL_PAGE,
                num_requests_running="40.0",
                kv_cache_usage_perc="0.99",
                generation_tokens_total=f"{343_700 + 40 * step}.0",
            )
            await engine.ticks()
        assert STALE not in engine.text()
        await engine.ticks(9)
        assert STALE not in engine.text()
        await engine.ticks(2)
        assert STALE in engine.text()
        assert (
            'headroom_state{engine="e",model_name="tiny",rank="0",state="unknown"} 1.0'
            in engine.text()
        )
        assert engine.values("headroom_sequences") == []
        # The raw gauge is still shown: it is what the engine says.
        assert engine.values("headroom_running_sequences") == [40]

        vllm.page = edited(
            REAL_PAGE, num_requests_running="1.0", generation_tokens_total="344000.0"
        )
        await engine.ticks()
        assert STALE not in engine.text()


async def test_idle_is_not_frozen(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (_, engine):
        await engine.ticks(40)
        assert STALE not in engine.text()
        assert engine.values("headroom_running_sequences") == [0]


async def test_a_clock_that_stands_still_breaks_nothing(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (_, engine):
        await engine.ticks(2)
        before = engine.text()
        await engine.ticks(3, every=0.0)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert _steady(engine.text()) == _steady(before)
        await engine.ticks(2)
        assert engine.up() == 1


async def test_a_wall_clock_that_jumps_moves_no_duration(session: aiohttp.ClientSession) -> None:
    async with polled(FakeVllm(), session) as (_, engine):
        await engine.ticks(3)
        engine.poller._clocks = type(engine.poller._clocks)(
            monotonic=engine.poller._clocks.monotonic, wall=lambda: 0.0
        )
        await engine.ticks(3)
        assert engine.values("headroom_engine_last_success_timestamp_seconds") == [0]
        assert engine.values("headroom_effective_batch_sequences_count") == [5000]
        assert engine.values("headroom_engine_unobserved_seconds_total") == [0]


async def test_the_wrong_kind_is_said_to_be_wrong(session: aiohttp.ClientSession) -> None:
    config = EngineConfig(name="e", kind="sglang")
    async with polled(FakeVllm(), session, config=config) as (_, engine):
        await engine.ticks(2)
        assert engine.state.errors == {"wrong_kind": 2}
        assert engine.state.last_error == "kind is sglang but the page is of vllm"


async def test_statistics_switched_off_are_told_from_an_engine_that_is_down(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(raw(http(b"# HELP vllm:num_requests_running x\n")), session) as (_, engine):
        await engine.ticks()
        assert "--disable-log-stats" in (engine.state.last_error or "")


def _steady(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "scrape_duration" not in line)


def test_what_is_edited_is_there_to_edit() -> None:
    for name in ("num_requests_running", "kv_cache_usage_perc", "generation_tokens_total"):
        assert edited(REAL_PAGE, **{name: "3.5"}).count(b" 3.5\n") == 1
