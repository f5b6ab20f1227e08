"""The exporter as a process beside many engines, and a naive loop beside the same ones."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import latency
from bench.process import MIB, Memory, cpu_seconds, first_line, memory, started
from bench.report import Part, Row
from bench.settings import INTERVAL_SECONDS, configuration
from vllm.scrape import get
from vllm.server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.latency import Latency

POLLING = Part("Exporter at 4 Hz beside engines of 430 series each (full plan, no GPU)")
SCRAPING = Part("/metrics of that exporter, polling meanwhile")
FLOOR = Part("Memory of an interpreter that has only imported")
# Probing the filter and the first full pages are over by then.
WARM_UP_SECONDS = 6.0
START_SECONDS = 30.0
# One poll of it is like another.
NAIVE_SECONDS = 10.0
# Engines -> most CPU in % of one core, most resident MiB.
CPU_TARGETS = {1: 1.0, 8: 8.0}
MEMORY_TARGETS = {1: 48.0, 8: 64.0}
LIBRARIES = "asyncio, aiohttp, prometheus_client, yaml, pynvml"
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Share of one core, and polls a second of all engines together: full and filtered pages."""

    share: float
    polls: dict[str, float]

    @property
    def rate(self) -> float:
        """All polls a second."""
        return sum(self.polls.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """
    What was seen beside one number of engines.

    Attributes:
        polling: The exporter's memory after a while of polling that nobody scraped.
        scraped: Its memory after all the scrapes.
        scrapes: What each kind of page took.
    """

    count: int
    exporter: Usage
    naive: Usage
    polling: Memory
    scraped: Memory
    scrapes: dict[str, Latency]

    @property
    def name(self) -> str:
        """How rows begin."""
        return f"{self.count} engine{'s' if self.count > 1 else ''}"


# --- measuring -----------------------------------------------------------------------------------


def measure(count: int, directory: Path, *, seconds: float, scrapes: int) -> Fleet:
    """
    Measure the exporter, then the naive loop, beside the same engines.

    Args:
        count: Engines.
        directory: For the configuration and the log.
        seconds: How long the exporter's CPU is counted; a multiple of 10, since full polls are 10 s apart.
        scrapes: Of each kind of page.
    """
    with serving(count) as addresses:
        with exporting(addresses, directory) as (address, pid):
            time.sleep(WARM_UP_SECONDS)
            exporter = _usage(pid, addresses[0], seconds)
            polling = memory(pid)
            seen = latency.every_kind(address, pid, times=scrapes, polling=exporter.share)
            scraped = memory(pid)
        arguments = [str(HERE / "naive.py"), str(INTERVAL_SECONDS), *addresses]
        with started(arguments) as process:
            first_line(process)
            time.sleep(2.0)
            naive = _usage(process.pid, addresses[0], NAIVE_SECONDS)
    return Fleet(
        count=count,
        exporter=exporter,
        naive=naive,
        polling=polling,
        scraped=scraped,
        scrapes=seen,
    )


@contextmanager
def serving(count: int) -> Iterator[list[str]]:
    """So many engines in a process of their own: their addresses."""
    with started([str(HERE / "engines.py"), str(count)]) as process:
        yield json.loads(first_line(process))


@contextmanager
def exporting(addresses: list[str], directory: Path) -> Iterator[tuple[str, int]]:
    """``headroom-exporter run``: its address and process id once it is ready."""
    file = directory / f"exporter-{len(addresses)}.yaml"
    file.write_text(configuration(addresses), encoding="utf-8")
    listen = f"127.0.0.1:{free_port()}"
    arguments = ["-m", "headroom_exporter", "run", "--config", str(file)]
    arguments += ["--web.listen-address", listen]
    log = file.with_suffix(".log")
    with started(arguments, quiet=log) as process:
        give_up = time.monotonic() + START_SECONDS
        while not _ready(f"http://{listen}/readyz"):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"not ready\n{log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(0.1)
        yield f"http://{listen}", process.pid


def _ready(address: str) -> bool:
    try:
        get(address)
    except OSError:
        return False
    return True


def _usage(pid: int, engine: str, seconds: float) -> Usage:
    before, cpu, began = _polls(engine), cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    after, used, took = _polls(engine), cpu_seconds(pid) - cpu, time.monotonic() - began
    return Usage(
        share=used / took, polls={kind: (after[kind] - before[kind]) / took for kind in after}
    )


def _polls(engine: str) -> dict[str, int]:
    """How often all engines together were polled so far; any of them tells."""
    return dict(json.loads(get(f"{engine}/polls")))


# --- rows ----------------------------------------------------------------------------------------


def floor_rows() -> list[Row]:
    """What the libraries weigh before a line of ours runs."""
    modules = {
        "nothing": "sys",
        LIBRARIES: LIBRARIES,
        "those, aiohttp.web and the exporter": f"{LIBRARIES}, aiohttp.web, headroom_exporter.app",
    }
    return [
        FLOOR.row(f"{name}: resident", _resident_with(imported) / MIB, "MiB")
        for name, imported in modules.items()
    ]


def _resident_with(modules: str) -> float:
    program = f"import {modules}; print('ready', flush=True); import time; time.sleep(600)"
    with started(["-c", program]) as process:
        # This one leaves the byte code behind, and is heavier by what compiling took.
        first_line(process)
    with started(["-c", program]) as process:
        first_line(process)
        return memory(process.pid).resident


def polling_rows(fleet: Fleet) -> list[Row]:
    """CPU and memory of the exporter, and the CPU of the naive loop."""
    exporter, naive, name = fleet.exporter, fleet.naive, fleet.name
    # A naive loop that cannot keep up polls less often: compare what a poll costs.
    ratio = (naive.share / naive.rate) / (exporter.share / exporter.rate)
    full = 100 * exporter.polls["full"] / exporter.rate
    hertz, naive_hertz = exporter.rate / fleet.count, naive.rate / fleet.count
    rows = [
        POLLING.row(
            f"{name}: CPU of a core ({hertz:.2f} polls/s each, {full:.1f} % full pages)",
            100 * exporter.share,
            "%",
            most=CPU_TARGETS.get(fleet.count),
        ),
        POLLING.row(
            f"{name}: CPU of the naive loop ({naive_hertz:.2f} polls/s each)",
            100 * naive.share,
            "%",
        ),
        POLLING.row(f"{name}: naive loop over exporter, CPU per poll", ratio, "x", least=5),
    ]
    most = MEMORY_TARGETS.get(fleet.count)
    held, scraped = fleet.polling, fleet.scraped
    return [
        *rows,
        POLLING.row(f"{name}: resident, never scraped", held.resident / MIB, "MiB", most=most),
        POLLING.row(
            f"{name}: resident, after all the scrapes", scraped.resident / MIB, "MiB", most=most
        ),
        POLLING.row(f"{name}: highest resident ever", scraped.peak / MIB, "MiB"),
        POLLING.row(f"{name}: proportional share", scraped.proportional / MIB, "MiB"),
    ]


def scraping_rows(fleet: Fleet) -> list[Row]:
    """Series of the page; time and CPU of a scrape."""
    series = latency.series(next(iter(fleet.scrapes.values())).text)
    return [
        SCRAPING.row(f"{fleet.name}: series on the page", series),
        *(_scraping_row(f"{fleet.name}: {kind}", seen) for kind, seen in fleet.scrapes.items()),
    ]


def _scraping_row(what: str, seen: Latency) -> Row:
    return Row(
        part=SCRAPING.heading,
        what=f"{what} ({seen.size / 1024:.0f} KiB), p50",
        value=1000 * seen.p50,
        unit="ms",
        beside={"p95": 1000 * seen.p95, "its CPU": 1000 * seen.cpu},
    )
