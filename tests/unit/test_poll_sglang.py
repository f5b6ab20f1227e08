"""An SGLang server polled as it would be: found, asked for its limits, saturated, gone idle, replaced."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.config import EngineConfig
from headroom_exporter.fetch import make_session
from headroom_exporter.samples import Constraint, HeadroomState
from polling.harness import FakeVllm, Polled, Request, Server, http

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import aiohttp

    from headroom_exporter.samples import Derived, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "sglang"
NEW = (PAGES / "generated-0.5.23-1rank.prom").read_bytes()
SATURATED = (PAGES / "captured-0.4.x-saturated.prom").read_bytes()
LOADS = b'{"version": "0.5.23", "loads": [{"dp_rank": 0, "max_running_requests": 23}]}'


@dataclass
class FakeSglang:
    """
    An SGLang from outside.

    Attributes:
        page: What it says now.
        answers: JSON by path; any other path is not found.
        tokens_per_poll: Added to every counter of tokens with each answer; 0: it has gone idle.
    """

    page: bytes = NEW
    answers: dict[str, bytes] = field(default_factory=dict)
    tokens_per_poll: int = 0
    polls: int = 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/metrics":
            self.polls += 1
            writer.write(http(self._now()))
        elif request.path in self.answers:
            writer.write(http(self.answers[request.path]))
        else:
            writer.write(http(b'{"detail":"Not Found"}', "404 Not Found"))

    def _now(self) -> bytes:
        moved = self.tokens_per_poll * self.polls

        def more(found: re.Match[bytes]) -> bytes:
            return found[1] + str(float(found[2]) + moved).encode()

        counters = rb"^(sglang:(?:realtime|prompt|generation)_tokens_total\{.*\} )(\S+)$"
        return re.sub(counters, more, self.page, flags=re.MULTILINE)


def with_gauges(page: bytes, **values: str) -> bytes:
    """A page whose gauges of these names have other values."""
    for name, value in values.items():
        pattern = rb"^(sglang:%s(?:\{.*\})?) \S+$" % name.encode()
        page, found = re.subn(pattern, rb"\g<1> " + value.encode(), page, flags=re.MULTILINE)
        assert found, name
    return page


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


def sample(on: Polled) -> RankSample:
    found = on.state.ranks[0].sample
    assert found is not None
    return found


def derived(on: Polled) -> Derived:
    found = on.state.ranks[0].derived
    assert found is not None
    return found


async def test_it_is_found_and_asked_for_its_limits_at_the_first_poll(
    session: aiohttp.ClientSession,
) -> None:
    sglang = FakeSglang(answers={"/v1/loads": LOADS})
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(1)
        state = on.state
        assert (state.kind, state.version, state.max_model_length) == ("sglang", "0.5.23", 40960)
        assert state.kv_usage_means == "live"
        assert sample(on).slots == 23
        assert derived(on).max_sequences == {"server": 23}
        assert derived(on).capacities[Constraint.SLOTS] == 23
        # Whatever it does not answer it is asked a few times and then no more.
        await on.ticks(200)
        assert server.paths().count("/server_info") <= 5
        assert server.paths().count("/v1/loads") <= 5


async def test_a_saturated_server_that_tells_no_limit_is_exhausted(
    session: aiohttp.ClientSession,
) -> None:
    """The page of the documentation: 162 run, 2826 wait, and the cache is 28 % full."""
    sglang = FakeSglang(page=SATURATED, tokens_per_poll=2000)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(1)
        # One reading of a gauge that may be 40 steps old proves no queue yet.
        assert derived(on).state is not HeadroomState.EXHAUSTED
        await on.ticks(20)
        assert (sample(on).running, sample(on).waiting, sample(on).kv_usage) == (162, 2826, 0.28)
        assert derived(on).state is HeadroomState.EXHAUSTED
        assert derived(on).demand == 162 + 2826


async def test_a_saturated_server_is_bound_by_the_slots_it_tells(
    session: aiohttp.ClientSession,
) -> None:
    page = with_gauges(NEW, num_queue_reqs="40", token_usage="0.28")
    sglang = FakeSglang(page=page, answers={"/v1/loads": LOADS}, tokens_per_poll=50)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(20)
        assert derived(on).state is HeadroomState.EXHAUSTED
        assert derived(on).binding is Constraint.SLOTS
        assert derived(on).headroom == 23 - (23 + 40)


async def test_the_age_of_its_gauges_follows_its_steps(session: aiohttp.ClientSession) -> None:
    """40 steps of 21 ms, as its histogram of gaps says."""
    sglang = FakeSglang(tokens_per_poll=50)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(3)
        assert on.state.gauge_age is not None
        assert 0.5 < on.state.gauge_age < 5.0


async def test_a_server_gone_idle_whose_gauges_stand_is_not_taken_for_busy(
    session: aiohttp.ClientSession,
) -> None:
    sglang = FakeSglang(answers={"/v1/loads": LOADS}, tokens_per_poll=50)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(10)
        assert derived(on).state is not HeadroomState.UNKNOWN
        sglang.page, sglang.tokens_per_poll = sglang._now(), 0
        await on.ticks(25)
        assert derived(on).state is HeadroomState.UNKNOWN
        # The refresh of an idle server, 30 s after its last report.
        sglang.page = with_gauges(
            sglang.page, num_running_reqs="0", num_queue_reqs="0", token_usage="0"
        )
        await on.ticks(2)
        assert derived(on).state is HeadroomState.OK


async def test_a_server_replaced_by_another_kind_is_found_anew(
    session: aiohttp.ClientSession,
) -> None:
    sglang = FakeSglang(answers={"/v1/loads": LOADS}, tokens_per_poll=50)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(3)
        await server.close()
        await on.ticks(1)
        assert on.up() == 0
        server.answer = FakeVllm()
        await server.listen()
        await on.ticks(2)
        assert (on.state.kind, on.state.version) == ("vllm", "0.32.0")
        assert [rank.model_name for rank in on.state.ranks] != ["Qwen/Qwen3-8B"]
        assert "slots" not in str(derived(on).max_sequences)
        assert sample(on).slots is None


async def test_after_a_restart_the_new_limits_count(session: aiohttp.ClientSession) -> None:
    sglang = FakeSglang(answers={"/v1/loads": LOADS}, tokens_per_poll=50)
    async with Server(sglang) as server:
        on = Polled(server, session)
        await on.ticks(12)
        before = sample(on).generation_tokens
        await server.close()
        await on.ticks(1)
        sglang.answers["/v1/loads"] = LOADS.replace(b"23}", b"64}")
        sglang.polls = 0
        await server.listen()
        await on.ticks(1)
        assert sample(on).slots == 64
        assert derived(on).max_sequences == {"server": 64}
        after = sample(on).generation_tokens
        assert before is not None
        assert after is not None
        assert after < before


async def test_a_forced_kind_that_does_not_fit_is_an_error(session: aiohttp.ClientSession) -> None:
    async with Server(FakeSglang()) as server:
        on = Polled(server, session, config=EngineConfig(name="e", kind="vllm"))
        await on.ticks(2)
        assert on.up() == 0
        assert on.state.errors == {"wrong_kind": 2}
        assert on.state.last_error is not None
        assert "sglang" in on.state.last_error


async def test_limits_that_cannot_be_read_do_no_harm(session: aiohttp.ClientSession) -> None:
    broken = {"/v1/loads": b'{"loads": [{"max_', "/server_info": b"[" * 100_000}
    async with Server(FakeSglang(answers=broken, tokens_per_poll=50)) as server:
        on = Polled(server, session)
        await on.ticks(3)
        assert on.up() == 1
        assert sample(on).slots is None
        assert on.state.errors == {}
