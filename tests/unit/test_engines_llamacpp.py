"""llama.cpp's server: three eras of its page, what stands beside it, and what its command line adds."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.engines import detect, parse_page
from headroom_exporter.engines.llamacpp import LLAMACPP, MAX_SLOTS, command_line
from headroom_exporter.fetch import make_session
from polling.harness import Request, http, polled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "llamacpp"
BUSY = "captured-0c1e570-np4-busy"
IDLE = "captured-0c1e570-np4-idle"
PAGE = (PAGES / f"{BUSY}.prom").read_bytes()
IDLE_PAGE = (PAGES / f"{IDLE}.prom").read_bytes()
URL = "http://127.0.0.1:8080"
SECRET = "the patient's name is"


def answer(path: str, stem: str = BUSY) -> Any:
    return json.loads((PAGES / f"{stem}.{path}.json").read_bytes())


BESIDE = {page.path: page.series for page in LLAMACPP.beside}
LAYOUT = {"llama-server": [({"layout": "split"}, 1.0)]}


def sample(
    page: bytes = PAGE,
    *,
    props: Any = None,
    slots: Any = None,
    known: Mapping[str, Series] | None = None,
) -> EngineSample:
    read = parse_page(page, LLAMACPP.full_names)
    beside = {**BESIDE["/props"](props), **BESIDE["/slots"](slots), **(known or {})}
    return LLAMACPP.read(read.beside(beside))


def only(page: bytes = PAGE, **beside: Any) -> RankSample:
    (rank,) = sample(page, **beside).ranks
    return rank


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "steps", "prompts"),
    [
        ("synthesised-2024-03-llcpp0.2.57", None, None),
        ("synthesised-2025-05-llcpp0.3.9", 162131, None),
        ("captured-b5400-b6700-2025-blog", 7831, None),
        ("synthesised-2026-10-commit0c1e57098", 162131, 12_817_300 + 8_810_000),
    ],
)
def test_each_era_tells_what_it_has(page: str, steps: float | None, prompts: float | None) -> None:
    body = (PAGES / f"{page}.prom").read_bytes()
    assert detect(parse_page(body, LLAMACPP.markers).series) is LLAMACPP
    rank = only(body)
    assert (rank.steps, rank.prompt_tokens) == (steps, prompts)
    # Of old pages too: what was computed. All prompts only where the cached ones are told as well.
    assert rank.computed_prompt_tokens is not None
    assert None not in (rank.running, rank.waiting, rank.generation_tokens)


def test_the_usage_of_old_pages_counts_kept_prompts_and_is_not_read() -> None:
    body = (PAGES / "synthesised-2025-05-llcpp0.3.9.prom").read_bytes()
    assert b"kv_cache_usage_ratio 0.411743" in body
    assert (only(body).kv_usage, only(body).kv_capacity_tokens) == (None, None)


def test_a_mean_since_somebodys_last_read_and_a_maximum_are_not_read() -> None:
    unread = {"prompt_tokens_seconds", "predicted_tokens_seconds", "n_tokens_max"}
    unread |= {"n_busy_slots_per_decode", "kv_cache_tokens", "kv_cache_usage_ratio"}
    assert {f"llamacpp:{name}" for name in unread}.isdisjoint(LLAMACPP.full_names)


def test_nan_before_the_first_decode_spoils_nothing() -> None:
    body = IDLE_PAGE.replace(b"decode 3.48374", b"decode -nan")
    assert body != IDLE_PAGE
    assert only(body).running == 0
    assert only(body.replace(b"processing 0", b"processing nan")).running is None


def test_drafts_count_only_where_there_are_any() -> None:
    assert only().spec_drafts is None
    body = PAGE.replace(b"num_drafts_total 0", b"num_drafts_total 40")
    body = body.replace(b"num_accepted_tokens_total 0", b"num_accepted_tokens_total 90")
    assert (only(body).spec_drafts, only(body).spec_accepted_tokens) == (40, 90)


# --- beside it -----------------------------------------------------------------------------------


def test_props_tell_slots_model_version_and_context() -> None:
    found = sample(props=answer("props"))
    assert found.version == "b1-0c1e570"
    assert found.max_model_length == 2048
    assert (found.ranks[0].model_name, found.ranks[0].slots) == ("tiny.gguf", 4)


def test_without_an_alias_the_file_is_the_model() -> None:
    props = {"total_slots": 1, "model_path": "/models/Llama-3.2-3B-Q4_K_M.gguf"}
    assert only(props=props).model_name == "Llama-3.2-3B-Q4_K_M.gguf"
    assert only(props={"model_path": "C:\\models\\a.gguf"}).model_name == "a.gguf"


def test_slots_are_counted_where_props_do_not_tell_them() -> None:
    assert only(slots=answer("slots")).slots == 4
    assert only().slots is None


def test_only_slots_that_process_hold_tokens() -> None:
    slots = answer("slots")
    tokens = sum(
        s["n_prompt_tokens_processed"]
        + s["n_prompt_tokens_cache"]
        + s["next_token"][0]["n_decoded"]
        for s in slots
    )
    assert [slot["is_processing"] for slot in slots] == [True] * 4
    all_four = only(props=answer("props"), slots=slots, known=LAYOUT)
    assert all_four.kv_usage == tokens / 8192
    # The server's own figure, of which it says n_prompt_tokens, is one token for each slot less at most.
    assert tokens == pytest.approx(sum(slot["n_prompt_tokens"] for slot in slots), abs=4)
    slots[0]["is_processing"] = False
    assert only(props=answer("props"), slots=slots, known=LAYOUT).kv_usage < all_four.kv_usage


def test_kept_prompts_of_an_idle_server_are_no_usage() -> None:
    slots = answer("slots", IDLE)
    assert slots[0]["n_prompt_tokens"] == 1599
    rank = only(IDLE_PAGE, props=answer("props"), slots=slots, known=LAYOUT)
    assert (rank.kv_usage, rank.kv_capacity_tokens) == (0, 8192)


def test_an_idle_server_is_not_asked_for_its_slots_and_uses_nothing() -> None:
    assert only(IDLE_PAGE, props=answer("props"), known=LAYOUT).kv_usage == 0
    assert only(PAGE, props=answer("props"), known=LAYOUT).kv_usage is None


def test_a_sequence_is_never_longer_than_its_slot() -> None:
    slots = answer("slots")
    slots[0]["next_token"][0]["n_decoded"] = 10**9
    known = BESIDE["/slots"](slots[:1])
    assert known["/slots.tokens"] == [({}, 2048.0)]


@pytest.mark.parametrize(
    "slot",
    [
        # 2025 and before: the prompt's length is not told.
        {"id": 0, "n_ctx": 2048, "is_processing": True, "next_token": [{"n_decoded": 5}]},
        {"is_processing": True, "n_ctx": 2048, "n_prompt_tokens": 5},
        {"is_processing": True, "n_ctx": -1, "n_prompt_tokens_cache": 0},
        {"is_processing": True, "n_ctx": True, "next_token": "many"},
    ],
)
def test_slots_that_do_not_tell_their_tokens_leave_the_usage_unknown(slot: Any) -> None:
    slots = [*answer("slots")[:3], slot]
    rank = only(props=answer("props"), slots=slots, known=LAYOUT)
    assert (rank.kv_usage, rank.kv_capacity_tokens, rank.slots) == (None, 8192, 4)


@pytest.mark.parametrize(
    "hostile", [None, [], {}, "slots", 7, [None], [[]], [{}] * (MAX_SLOTS + 1), {"slots": []}]
)
def test_answers_of_any_shape_do_no_harm(hostile: Any) -> None:
    rank = only(props=hostile, slots=hostile)
    assert (rank.running, rank.kv_usage, rank.kv_capacity_tokens) == (4, None, None)


# --- the pool ------------------------------------------------------------------------------------


def with_command(line: str, proc: Path, url: str = URL) -> Mapping[str, Series]:
    entry = proc / "4711"
    entry.mkdir()
    (entry / "cmdline").write_bytes("\0".join(line.split()).encode() + b"\0")
    return command_line(url, proc)


@pytest.mark.parametrize(
    ("line", "pool"),
    [
        ("llama-server -m a.gguf -np 4 -c 8192", 8192),
        ("/opt/llama-server -m a.gguf --parallel 4", 8192),
        ("llama-server -m a.gguf -np 4 -c 8192 --kv-unified", 8192),
        ("llama-server -m a.gguf -np 4 -kvu", 2048),
        ("llama-server -m a.gguf", 2048),
        ("llama-server -m a.gguf -np -1 -c 4096", 4096),
        ("llama-server -m a.gguf --no-kv-unified", 8192),
    ],
)
def test_the_command_line_tells_whether_the_slots_share_a_pool(
    line: str, pool: float, tmp_path: Path
) -> None:
    rank = only(props=answer("props"), known=with_command(line, tmp_path))
    assert rank.kv_capacity_tokens == pool


def test_slots_from_the_environment_leave_the_pool_unknown(tmp_path: Path) -> None:
    props = {**answer("props"), "total_slots": 8}
    known = with_command("llama-server -m a.gguf", tmp_path)
    assert only(props=props, known=known).kv_capacity_tokens is None


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("llama-server -m a.gguf -np 4 --port 8081", URL),
        ("llama-server -m a.gguf -np 4", "http://10.0.0.7:8080"),
        ("python a.py llama-server -np 4", URL),
    ],
)
def test_another_command_line_tells_nothing(line: str, url: str, tmp_path: Path) -> None:
    assert with_command(line, tmp_path, url) == {}
    assert only(props=answer("props")).kv_capacity_tokens is None


def test_two_servers_on_one_port_are_not_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "12"
    other.mkdir()
    (other / "cmdline").write_bytes(b"llama-server\0-np\x002\0")
    assert with_command("llama-server -np 4", tmp_path) == {}


def test_one_slot_needs_no_command_line() -> None:
    stem = "captured-0c1e570-np1-busy"
    body = (PAGES / f"{stem}.prom").read_bytes()
    rank = only(body, props=answer("props", stem), slots=answer("slots", stem))
    assert rank.kv_capacity_tokens == 4096
    assert rank.kv_usage == pytest.approx((200 + 940) / 4096)


# --- polled --------------------------------------------------------------------------------------


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


class FakeLlama:
    """A llama-server; ``page`` None: started without --metrics."""

    def __init__(self, page: bytes | None = PAGE, stem: str = BUSY) -> None:
        self.page = page
        self.slots = (PAGES / f"{stem}.slots.json").read_bytes()
        self.props: Any = answer("props", stem)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/metrics" if self.page is None:
                writer.write(http(b'{"error":{"code":501}}', "501 Not Implemented"))
            case "/metrics":
                writer.write(http(self.page or b""))
            case "/slots":
                writer.write(http(self.slots))
            case "/props":
                writer.write(http(json.dumps(self.props).encode()))
            case _:
                writer.write(http(b'{"error":{"code":404}}', "404 Not Found"))


async def test_the_model_is_named_from_the_first_page_on(session: aiohttp.ClientSession) -> None:
    async with polled(FakeLlama(), session) as (_, engine):
        await engine.ticks(1)
        assert [rank.model_name for rank in engine.state.ranks] == ["tiny.gguf"]
        assert engine.values("headroom_running_sequences") == [4]
        assert engine.values("headroom_waiting_sequences") == [3]


async def test_slots_are_asked_only_while_something_runs(session: aiohttp.ClientSession) -> None:
    """Asking would wake a server that sleeps, and keep one awake that has nothing to do."""
    fake = FakeLlama(IDLE_PAGE, IDLE)
    async with polled(fake, session) as (server, engine):
        await engine.ticks(8)
        assert "/metrics" in server.paths()
        assert "/slots" not in server.paths()
        fake.page = PAGE
        server.requests.clear()
        await engine.ticks(3)
        assert server.paths().count("/slots") == server.paths().count("/metrics") == 3
        fake.page = IDLE_PAGE
        server.requests.clear()
        await engine.ticks(3)
        assert "/slots" not in server.paths()


async def test_prompts_in_the_slots_are_neither_kept_nor_logged(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeLlama()
    slots = json.loads(fake.slots)
    for slot in slots:
        slot["prompt"] = slot["generated"] = SECRET
    for body in (json.dumps(slots).encode(), json.dumps(slots).encode()[:-9]):
        fake.slots = body
        async with polled(fake, session) as (_, engine):
            await engine.ticks(2)
            assert engine.up() == 1
            kept = repr(engine.state) + repr(engine.poller._beside)
        assert SECRET not in kept
        assert SECRET not in "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    "slots",
    [b"[" * 100_000, b"x" * 3_000_000, b"", b"null"],
    ids=["deep", "large", "empty", "null"],
)
async def test_slots_that_cannot_be_read_cost_only_the_usage(
    slots: bytes, session: aiohttp.ClientSession
) -> None:
    fake = FakeLlama()
    fake.slots = slots
    async with polled(fake, session) as (_, engine):
        await engine.ticks(2)
        assert (engine.up(), engine.state.errors) == (1, {})
        assert engine.values("headroom_running_sequences") == [4]
        assert engine.values("headroom_kv_cache_usage_ratio") == []


async def test_without_metrics_the_message_says_how_to_start_it(
    session: aiohttp.ClientSession,
) -> None:
    async with polled(FakeLlama(None), session) as (_, engine):
        await engine.ticks(1)
        assert engine.up() == 0
        assert "started with --metrics" in (engine.state.last_error or "")
        assert engine.state.errors == {"no_telemetry": 1}
