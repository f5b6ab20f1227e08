"""The simulated server over HTTP, and how it follows the clock."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.lengths import LengthDistribution
from headroom_exporter.simulate.load import Phase, Script, ScriptedLoad
from headroom_exporter.simulate.server import RealTimeRunner, make_app, serve
from simulation import TINY_CPU

LENGTHS = LengthDistribution(p50=60, p95=120, largest=300)
SCRIPT = Script(phases=(Phase(seconds=10, clients=3),), prompt=LENGTHS, output=LENGTHS, repeat=True)


def samples(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_runner(clock: ManualClock, speed: float = 1.0) -> RealTimeRunner:
    return RealTimeRunner(Frontend(TINY_CPU), ScriptedLoad(SCRIPT), clock=clock, speed=speed)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def client(clock):
    app = make_app(make_runner(clock), epoch=1.7e9)
    async with TestClient(TestServer(app)) as client:
        yield client


def test_virtual_time_follows_the_clock(clock):
    runner = make_runner(clock, speed=2.0)
    runner.catch_up()
    assert runner.frontend.clock == 0.0
    clock.now += 1.5
    runner.catch_up()
    assert runner.frontend.clock == pytest.approx(3.0)
    assert runner.frontend.engines[0].running == 3
    assert runner.dropped == 0.0


def test_after_a_long_sleep_the_lost_time_is_dropped_not_simulated(clock):
    runner = make_runner(clock)
    clock.now += 3600
    runner.catch_up(max_steps=1000)
    assert runner.frontend.steps == 1000
    lost = runner.dropped
    assert lost == pytest.approx(3600 - runner.frontend.clock)
    clock.now += 1.0
    before = runner.frontend.clock
    runner.catch_up()
    assert runner.frontend.clock == pytest.approx(before + 1.0)
    assert runner.dropped == lost


async def test_the_page_is_of_this_moment(client, clock):
    async def generated() -> float:
        response = await client.get("/metrics")
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=1.0.0; charset=utf-8"
        return samples(await response.text())["vllm:generation_tokens_total"]

    assert await generated() == 0
    clock.now += 2.0
    assert await generated() > 1000


async def test_only_the_mounted_page_can_be_filtered(client):
    query = "name[]=vllm:num_requests_running&name[]=vllm:generation_tokens_total"
    filtered = await client.get(f"/metrics/?{query}")
    assert filtered.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = await filtered.text()
    assert len(text.splitlines()) == 6
    full = await (await client.get("/metrics/")).text()
    assert len(full.splitlines()) > 400
    assert await (await client.get(f"/metrics?{query}")).text() == full
    nothing = await client.get("/metrics/?name[]=other")
    assert (nothing.status, await nothing.text()) == (200, "")


async def test_the_mounted_page_is_compressed_on_request(client):
    for path, encoding in (("/metrics/", "gzip"), ("/metrics", None)):
        response = await client.get(path, headers={"Accept-Encoding": "gzip"})
        assert response.headers.get("Content-Encoding") == encoding
    plain = await client.get("/metrics/", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers


async def test_the_other_routes_answer_as_vllm_does(client):
    health = await client.get("/health")
    assert (health.status, await health.text()) == (200, "")
    assert await (await client.get("/version")).json() == {"version": "0.32.0"}
    models = await (await client.get("/v1/models")).json()
    assert models["data"][0]["id"] == "tiny"
    assert models["data"][0]["max_model_len"] == 2048
    assert (await client.get("/server_info")).status == 404


async def test_it_says_that_it_is_simulated(client):
    response = await client.get("/health")
    assert "simulated" in response.headers["Server"]


async def test_it_can_be_put_to_sleep_and_woken_over_http(client, clock):
    async def state() -> list[str]:
        text = await (await client.get("/metrics/?name[]=vllm:engine_sleep_state")).text()
        return [line.rsplit(" ", 1)[1] for line in text.splitlines() if not line.startswith("#")]

    clock.now += 1.0
    assert await state() == ["1.0", "0.0", "0.0"]
    assert (await client.post("/sleep?level=2")).status == 200
    assert await state() == ["0.0", "0.0", "1.0"]
    assert await (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
    assert (await client.post("/wake_up")).status == 200
    assert await state() == ["1.0", "0.0", "0.0"]
    wrong = await client.post("/sleep?level=7")
    assert (wrong.status, await wrong.text()) == (400, "level '7': must be 0, 1 or 2\n")


async def test_a_served_engine_runs_in_real_time_and_leaves_its_port():
    async with (
        serve(Frontend(TINY_CPU), ScriptedLoad(SCRIPT), speed=50.0) as served,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(f"{served.url}/health") as response:
            assert response.status == 200
        before = served.runner.frontend.clock
        async with http.get(f"{served.url}/metrics") as response:
            assert "vllm:num_requests_running" in await response.text()
        assert served.runner.frontend.clock > before
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{served.url}/health")


async def ask(http: aiohttp.ClientSession, url: str) -> str:
    try:
        async with http.get(f"{url}/metrics") as response:
            return await response.text()
    except aiohttp.ClientConnectorError as error:
        return type(error.os_error).__name__
    except aiohttp.ClientError:  # the connection died with the process
        return "cut"


async def test_a_restart_refuses_connections_and_then_answers_on_the_same_port():
    frontend = Frontend(TINY_CPU, events=[Event(at=50.0, action="restart")], start_seconds=150.0)
    # 50 virtual seconds are half a real one.
    async with (
        serve(frontend, ScriptedLoad(SCRIPT), speed=100.0) as served,
        aiohttp.ClientSession() as http,
    ):
        answers = [await ask(http, served.url)]
        async with asyncio.timeout(30):
            while not frontend.started or len(answers[-1]) < 1000:
                await asyncio.sleep(0.02)
                answers.append(await ask(http, served.url))
        assert "ConnectionRefusedError" in answers
        before, after = samples(answers[0]), samples(answers[-1])
        assert after["process_start_time_seconds"] > before["process_start_time_seconds"] + 1
        assert not served.ticking.done()


async def test_a_port_that_is_taken_is_an_error_at_once():
    async with serve(Frontend(TINY_CPU), ScriptedLoad(SCRIPT)) as first:
        port = int(first.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            async with serve(Frontend(TINY_CPU), ScriptedLoad(SCRIPT), port=port):
                pass
