"""
The status page in a real Chromium: it shows what /metrics says, says when it cannot, and asks nobody else.

Pictures of the demo go to a temporary folder, with ``--update-golden`` to docs/images.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as read_text

from chromium import Tab, chromium
from headroom_exporter import web
from headroom_exporter.app import Exporter
from headroom_exporter.config import Config
from headroom_exporter.status.history import History
from headroom_exporter.status.landing import landing
from status_scenes import MODEL, PLAN, calm, engine, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from headroom_exporter.samples import State

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MAX_IMAGE_BYTES = 200_000
MAX_PAGE_BYTES = 150_000
# The demo's traffic outgrows its plan about a minute after its start, each 150 s.
OVERLOAD_SECONDS = 140.0
DEMO = """
import sys
from headroom_exporter import demo
demo.LOCAL_VLLM = "http://127.0.0.1:1"  # nobody is there
sys.exit(demo.main(sys.argv[2] if len(sys.argv) > 2 else None, sys.argv[1], None))
"""


# --- scenes that stand still ---------------------------------------------------------------------


def still(shown: State, *, plan: bool = True, simulated: bool = False) -> Exporter:
    """An exporter that polls nobody and shows this."""
    exporter = Exporter(Config(plans=(PLAN,) if plan else ()), simulated=simulated)
    exporter._state = shown
    for each in shown.engines:
        exporter._history.note(each, each.last_success_monotonic or time.monotonic())
    return exporter


@asynccontextmanager
async def serving(exporter: Exporter, port: int = 0) -> AsyncIterator[str]:
    app = web.build_app(
        registry=exporter.registry(),
        health=exporter.healthy,
        ready=exporter.ready,
        landing=lambda: landing(exporter),
        api=exporter.status_api(),
    )
    server = await web.serve(app, [("127.0.0.1", port)])
    try:
        yield f"http://127.0.0.1:{server.addresses[0][1]}"
    finally:
        await server.close()


@asynccontextmanager
async def looking(exporter: Exporter) -> AsyncIterator[tuple[Tab, str]]:
    """A browser on the page of an exporter; nothing may have been asked elsewhere, nothing complained of."""
    async with serving(exporter) as url, chromium() as tab:
        await tab.size(1280)
        await tab.open(url)
        await tab.until("document.querySelector('#sentence')?.textContent")
        yield tab, url
        assert tab.complaints == []
        assert {"/".join(address.split("/")[:3]) for address in tab.requests} == {url}


async def metrics(url: str) -> Callable[..., float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    series = [sample for family in read_text(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        found = [
            each.value
            for each in series
            if each.name == name and labels.items() <= each.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    return value


async def tile(tab: Tab, name: str) -> str:
    """A tile's text on one line."""
    script = (
        "[...document.querySelectorAll('.tile')].map((each) => each.innerText)"
        f".find((text) => text.startsWith({json.dumps(name)}))"
    )
    return " ".join(str(await tab.run(script)).split())


async def text(tab: Tab, selector: str) -> str:
    """An element's text on one line."""
    return " ".join((await tab.text(selector)).split())


async def test_the_numbers_on_the_page_are_those_of_metrics():
    async with looking(still(calm())) as (tab, url):
        value = await metrics(url)
        demand = f"{value('headroom_running_sequences'):.0f} running"
        assert demand in await tile(tab, "Demand")
        assert f"{value('headroom_waiting_sequences'):.0f} waiting" in await tile(tab, "Demand")
        peak = value("headroom_peak_demand_sequences", window="5m")
        assert f"peak {peak:.0f} in 5 min" in await tile(tab, "Demand")
        assert await tile(tab, "Room") == (
            f"Room +{value('headroom_sequences'):.0f} more fit; "
            f"{value('headroom_sustainable_sequences'):.0f} sustainable, "
            f"{value('headroom_ratio'):.0%} free".replace("%", " %")
        )
        spike = int(value("headroom_spike_multiple") * 10) / 10
        assert f"{spike}×" in await tile(tab, "Survives")
        used = value("headroom_kv_cache_used_tokens")
        assert f"{used:,.0f} of" in await tile(tab, "KV cache")
        assert f"{value('headroom_kv_cache_usage_ratio'):.0%}"[:-1] in await tile(tab, "KV cache")
        table = await tab.text("#ceilings")
        for name, constraint in {
            "slots": "slots",
            "KV cache": "kv_cache",
            "planned time per token": "latency",
            "computing prompts": "prefill",
            "planned concurrency": "plan",
        }.items():
            capacity = value("headroom_capacity_sequences", constraint=constraint)
            assert re.search(rf"{name}[^\n]*\t{capacity:.0f}\t", table), (name, table)
        assert value("headroom_binding_constraint", constraint="kv_cache") == 1
        assert re.search(r"KV cache\s+binds first", table)
        gain = value("headroom_batching_marginal_gain_ratio")
        assert (await text(tab, "#batching")).startswith(f"{gain * 100:.0f} %")
        assert f"Beyond {value('headroom_knee_sequences'):.0f}" in await tab.text("#batching")
        engine_bytes = value("headroom_gpu_memory_owner_bytes", owner="engine")
        assert f"engine {engine_bytes / 2**30:.3g} GiB" in await tab.text("#gpus")
        over = value("headroom_prompts_over_plan_total", bound="lower")
        share = over / value("headroom_prompts_total")
        ever = f"Since the engine started: {share * 100:.1f} %"
        assert ever in await text(tab, "#plan")


async def test_the_verdict_is_a_sentence_with_its_state_in_words():
    async with looking(still(calm())) as (tab, _):
        assert await tab.text("#sentence") == (
            "KV cache binds first: 6 more sequences fit; the plan's 2x spike would not."
        )
        assert await tab.text("#state-word") == "ok"
        assert MODEL in await tab.text("#who")
        assert await tab.run("document.querySelector('#advice a').href.endsWith('SpikeUnsafe.md')")
        assert await tab.run("document.querySelector('#simulated').hidden")
        assert (await tab.run("document.title")).startswith("✓ ok")


async def test_it_says_when_what_it_watches_is_simulated():
    async with looking(still(calm(), simulated=True)) as (tab, _):
        assert "SIMULATED" in await tab.text("header")


async def test_unknown_is_never_drawn_as_zero():
    async with looking(still(state(engine(bare=True)), plan=False)) as (tab, _):
        assert (await tab.text("#sentence")).startswith("Unknown:")
        assert (await tile(tab, "Room")).startswith("Room – unknown")
        assert (await tile(tab, "Survives")).startswith("Survives a spike of – unknown")
        assert "unknown" in await tab.text("#ceilings")
        assert "\t0\t" not in await tab.text("#ceilings")
        assert "No plan is declared" in await tab.text("#plan")


async def test_an_engine_that_is_down_is_said_to_be():
    away = replace(
        engine(), up=False, last_success_monotonic=None, last_error="nothing listens on it"
    )
    async with looking(still(state(away))) as (tab, _):
        assert await tab.text("#sentence") == "No data: nothing listens on it."
        assert await tab.text("#state-word") == "unknown"
        assert await tab.run("document.querySelector('#tiles-box').hidden")


async def test_the_least_headroom_stands_first_and_any_rank_can_be_opened_by_keyboard():
    shown = state(engine("roomy", running=2.0), engine("full", running=26.0), engine("half"))
    async with looking(still(shown)) as (tab, _):
        names = await tab.run(
            "[...document.querySelectorAll('#rank-list .name')].map((each) => each.innerText)"
        )
        assert [name.split(" ")[0] for name in names] == ["full", "half", "roomy"]
        assert "on full" in await tab.text("#who")
        await tab.run("document.querySelectorAll('#rank-list button')[2].focus()")
        for kind in ("keyDown", "keyUp"):
            await tab.send(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r"
            )
        await tab.until("document.querySelector('#who').textContent.includes('on roomy')")
        # Redrawing leaves the focus where the reader has put it.
        assert "roomy" in await tab.run("document.activeElement.innerText")
        marked = "document.querySelector('#rank-list [aria-current]').innerText"
        assert "roomy" in await tab.run(marked)


async def test_the_chart_draws_the_past_and_a_table_says_the_same():
    exporter = still(calm())
    exporter._history = History()
    now = time.monotonic()
    for ago in range(300, -1, -1):
        polled = replace(engine(running=10.0 + ago % 5), last_success_monotonic=now - ago)
        exporter._history.note(polled, now - ago)
    async with looking(exporter) as (tab, _):
        await tab.until("document.querySelector('#chart canvas') !== null")
        spoken = await tab.run("document.querySelector('#chart').getAttribute('aria-label')")
        assert "between 11 and 15 sequences; sustainable now: 22." in spoken
        assert "The last 5 min" in await tab.text("#chart-span")
        box = await tab.run("document.querySelector('.u-over').getBoundingClientRect().toJSON()")
        middle = {key: box[key] + box[size] / 2 for key, size in (("x", "width"), ("y", "height"))}
        await tab.send("Input.dispatchMouseEvent", type="mouseMoved", **middle)
        read = await tab.until(
            "/demand/.test(document.querySelector('#readout').textContent)"
            " && document.querySelector('#readout').textContent"
        )
        assert "sustainable 22, demand 1" in read
        assert "slots 64, KV cache 22, latency 28, prefill 45, plan 31" in read
        await tab.run("document.querySelector('#minutes').open = true")
        await tab.until("document.querySelector('#minutes tbody tr') !== null")
        rows = (await tab.text("#minutes tbody")).splitlines()
        assert len(rows) in (5, 6, 7)
        assert {tuple(row.split("\t")[2:]) for row in rows[1:-1]} == {("15", "22", "ok")}


async def test_the_open_rank_stays_open_when_another_becomes_the_worst():
    exporter = still(state(engine("a", running=20.0), engine("b", running=3.0)))
    async with looking(exporter) as (tab, _):
        assert "on a" in await tab.text("#who")
        exporter._state = state(engine("a", running=4.0), engine("b", running=26.0))
        await tab.until("document.querySelector('#rank-list .name').textContent.includes('b')")
        assert "on a" in await tab.text("#who")


async def test_a_model_name_is_text_whatever_it_tries():
    nasty = "<img src=http://127.0.0.1:1/x onerror=document.title='broken'><script>1</script>"
    async with looking(still(state(engine(model=nasty)))) as (tab, _):
        assert nasty in await tab.text("#who")
        assert await tab.run("document.querySelectorAll('main img, main script').length") == 0


async def test_it_says_that_the_exporter_is_gone_and_recovers_after_its_restart():
    async with chromium() as tab:
        async with serving(still(calm())) as url:
            await tab.open(url)
            await tab.until("document.querySelector('#sentence')?.textContent")
            assert await tab.run("document.querySelector('#outage').hidden")
        await tab.until("!document.querySelector('#outage').hidden")
        assert "does not answer" in await tab.text("#outage")
        assert re.search(r"from \d\d:\d\d:\d\d", await tab.text("#outage"))
        assert await tab.run("document.body.classList.contains('offline')")
        port = int(url.rpartition(":")[2])
        async with serving(still(state(engine(running=26.0))), port):
            await tab.until("document.querySelector('#outage').hidden")
            assert "exhausted" in await tab.text(".state")
            assert not await tab.run("document.body.classList.contains('offline')")


async def test_the_whole_page_is_small():
    async with serving(still(calm())) as url, aiohttp.ClientSession() as session:
        sizes = {}
        async with session.get(url) as answer:
            text = await answer.text()
        sizes["page.html"] = len(text.encode())
        names = {*re.findall(r'(?:src|href)="(static/[^"]+)"', text)}
        names |= {f"static/{name}" for name in ("view.js", "chart.js", "format.js")}
        for name in names:
            async with session.get(f"{url}/{name}") as answer:
                assert answer.status == 200, name
                sizes[name] = len(await answer.read())
    assert sum(sizes.values()) < MAX_PAGE_BYTES, sizes


# --- accessibility -------------------------------------------------------------------------------


async def faults(tab: Tab) -> list[str]:
    """What axe-core finds that is serious or worse."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    await tab.send("Runtime.evaluate", expression=axe)
    found = await tab.run("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


SCENES = {
    "calm": lambda: still(calm(), simulated=True),
    "exhausted": lambda: still(state(engine(running=26.0))),
    "unknown": lambda: still(state(engine(bare=True)), plan=False),
    "many": lambda: still(state(engine("a"), engine("b", running=26.0), engine("c", running=20.0))),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scene", SCENES)
async def test_axe_finds_no_serious_fault(scene, scheme):
    async with looking(SCENES[scene]()) as (tab, _):
        await tab.scheme(scheme)
        await tab.run("document.querySelector('#minutes').open = true")
        assert await faults(tab) == []


async def test_axe_would_find_a_fault():
    async with looking(still(calm())) as (tab, _):
        script = "document.querySelector('#link').style.color = 'rgb(250 250 250)'"
        await tab.run(script)
        assert any(fault.startswith("color-contrast") for fault in await faults(tab))


async def test_nothing_is_wider_than_a_phone():
    async with looking(still(calm())) as (tab, _):
        await tab.size(390, 844, mobile=True)
        await asyncio.sleep(0.3)
        assert await tab.run("document.documentElement.scrollWidth") == 390


# --- the demo, and its pictures ------------------------------------------------------------------


class Album:
    """Takes a picture of the whole page."""

    def __init__(self, folder: Path, *, patient: bool) -> None:
        self.folder = folder
        # Pictures for people show more past than an assertion needs.
        self.patient = patient

    async def take(self, tab: Tab, name: str) -> None:
        path = self.folder / f"status-{name}.png"
        await tab.screenshot(path)
        size = path.stat().st_size
        assert 10_000 < size < MAX_IMAGE_BYTES, (name, size)


@pytest.fixture
def album(request: pytest.FixtureRequest, tmp_path: Path) -> Album:
    patient = bool(request.config.getoption("--update-golden"))
    return Album(IMAGES if patient else tmp_path, patient=patient)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(  # noqa: ASYNC220 - a test
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        await asyncio.to_thread(running.wait, 20)


async def opened(tab: Tab, url: str) -> None:
    """Go there as soon as somebody answers."""
    async with aiohttp.ClientSession() as session:
        for _ in range(300):
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)
    await tab.open(url)
    await tab.until("document.querySelector('#sentence')?.textContent")


IS = "document.querySelector('#state-word').textContent === "
DEMAND = "Number(document.querySelector('.tile .value')?.textContent)"


@pytest.mark.timeout(600)
async def test_the_demo_shows_calm_then_overload_on_its_page(album):
    listen = f"127.0.0.1:{free_port()}"
    async with process("-c", DEMO, listen), chromium() as tab:
        await tab.size(1280)
        await opened(tab, f"http://{listen}")
        assert "SIMULATED" in await tab.text("header")
        seen = "/prompts were longer/.test(document.querySelector('#plan').textContent)"
        await tab.until(f"{IS}'ok' && {DEMAND} >= 8 && {seen}", OVERLOAD_SECONDS)
        await album.take(tab, "calm")
        assert "binds first" in await tab.text("#sentence")
        assert await tab.run("document.querySelector('#chart canvas') !== null")
        await tab.size(390, 844, mobile=True)
        await asyncio.sleep(0.5)
        await album.take(tab, "phone")
        await tab.size(1280)
        await tab.until(f"{IS}'exhausted' && {DEMAND} >= 40", OVERLOAD_SECONDS)
        await album.take(tab, "overloaded")
        assert (await tab.text("#sentence")).startswith("Overloaded: ")
        assert "Demand peaked at" in await tab.text("#notes")
        await tab.scheme("dark")
        await asyncio.sleep(1.5)
        await album.take(tab, "dark")
        assert tab.complaints == []
        assert {"/".join(each.split("/")[:3]) for each in tab.requests} == {f"http://{listen}"}


@pytest.mark.timeout(300)
async def test_the_demo_on_an_engine_without_a_plan_that_then_goes_down(album):
    engine_at, listen = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    trace = "synthetic:poisson?rate=3&duration=600"
    async with chromium() as tab:
        await tab.size(1280)
        simulate = ("-m", "headroom_exporter", "simulate", "--trace", trace, "--listen", engine_at)
        async with process("-c", DEMO, listen, f"http://{engine_at}"):
            async with process(*simulate):
                await opened(tab, f"http://{listen}")
                await tab.until(IS + "'ok'", 60)
                if album.patient:
                    await asyncio.sleep(90)
                await album.take(tab, "no-plan")
                assert "No plan is declared" in await tab.text("#notes")
                assert "plans:" in await tab.text("#plan")
            await tab.until("document.querySelector('#sentence').textContent.startsWith('No data')")
            if album.patient:
                await asyncio.sleep(15)
            await album.take(tab, "engine-down")
            assert "nothing listens on" in await tab.text("#sentence")
            assert await tab.text("#state-word") == "unknown"
