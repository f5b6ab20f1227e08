"""NVIDIA NIM: names without a prefix, which must be nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import detect, parse_page, recognise
from headroom_exporter.engines.nim import MARKERS, NIM
from headroom_exporter.fetch import make_session
from polling.harness import Request, http, polled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import aiohttp

FIXTURES = Path(__file__).parents[1] / "fixtures"
PAGE = (FIXTURES / "engines" / "nim" / "captured-1.x-2024-10.prom").read_text(encoding="utf-8")
OTHERS = sorted(
    path
    for path in [*(FIXTURES / "engines").rglob("*.prom"), *(FIXTURES / "vllm").rglob("*.prom")]
    if path.parent.name != "nim"
)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def gauges(**left_out: bool) -> str:
    return "".join(
        f'{name}{{model_name="m"}} 1\n' for name in sorted(MARKERS) if name not in left_out
    )


def test_slots_usage_and_gaps_are_read() -> None:
    (rank,) = NIM.read(parse_page(PAGE.encode(), NIM.full_names)).ranks
    assert (rank.model_name, rank.running, rank.waiting, rank.slots) == (
        "meta/llama-3.1-8b-instruct",
        1,
        0,
        64,
    )
    assert rank.kv_usage == pytest.approx(0.000284819)
    # 174 tokens of 5 requests: 169 gaps, so it is between tokens and no mean of requests.
    assert (rank.generation_tokens, rank.inter_token_count) == (174, 169)
    assert rank.finished == {"length": 5}
    assert rank.kv_capacity_tokens is None


def test_exponents_of_three_digits_are_read() -> None:
    page = PAGE.replace(
        "process_start_time_seconds 1.7303128549e+09", "process_start_time_seconds 1.73e+009"
    )
    assert page != PAGE
    assert NIM.read(parse_page(page.encode(), NIM.full_names)).started == 1.73e9


def test_an_application_with_some_of_the_names_is_no_nim() -> None:
    assert recognise("/v1/metrics", gauges().encode()) is NIM
    for name in MARKERS:
        assert recognise("/v1/metrics", gauges(**{name: True}).encode()) is None, name
    bare = gauges().replace('{model_name="m"}', "")
    assert recognise("/v1/metrics", bare.encode()) is None


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_page_of_another_engine_is_taken_for_a_nim(path: Path) -> None:
    page = parse_page(path.read_bytes(), NIM.full_names)
    assert not NIM.fits(page.series)


def test_a_page_of_nim_is_nobody_elses() -> None:
    assert recognise("/v1/metrics", PAGE.encode()) is NIM
    assert detect(parse_page(PAGE.encode(), NIM.full_names).series) is NIM


class FakeNim:
    """A NIM as seen from outside; its page is at one path alone."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        here = request.path == self.path
        writer.write(http(PAGE.encode()) if here else http(b"", "404 Not Found"))


@pytest.mark.parametrize("path", ["/v1/metrics", "/metrics"])
async def test_auto_finds_the_page_wherever_it_is(
    session: aiohttp.ClientSession, path: str
) -> None:
    async with polled(FakeNim(path), session) as (server, engine):
        await engine.ticks(2)
        assert engine.up() == 1
        assert engine.state.kind == "nim"
        assert engine.values("headroom_max_sequences") == [64]
        server.requests.clear()
        await engine.ticks(5)
        assert set(server.paths()) <= {path, "/version", "/v1/models"}
