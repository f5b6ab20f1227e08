"""What two engines said: played in virtual time, then told again by a server under thousands of names."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headroom_exporter.backtest.play import Run, Server, play
from headroom_exporter.backtest.record import EPOCH, SCRAPE_SECONDS
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.gpus.simulated import SimulatedGpus
from headroom_exporter.gpus.slowdowns import SLOWDOWN_REASONS
from headroom_exporter.samples import GpuState
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.profiles import find

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from rules_cost.fleet import Member

# Requests a second: some of what fits, and more than that; what finds a full queue is turned away.
RATES = {"calm": 0.3, "full": 4.0}
PROFILE = "l4-llama-3.1-8b"
LIMITS = Limits(max_num_queued_reqs=64)
PLAN = PlanConfig(
    name="planned",
    concurrency=32.0,
    max_num_seqs=256.0,
    prompt_tokens=Lengths(p50=512.0, p95=2048.0),
    output_tokens=Lengths(p50=200.0, p95=600.0),
    request_rate=1.0,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.1,
    kv_cache_tokens=40_000.0,
)
# What a data-centre card tells besides: as many series as a real one has.
HEALTHY: Mapping[str, Any] = {
    "clock_events": dict.fromkeys(sorted({"sw_power_cap", *SLOWDOWN_REASONS}), False),
    "ecc_uncorrectable": 0,
    "row_remap_pending": False,
    "row_remap_failed": False,
}
# The rules' longest look at an exporter's own samples (prompts, six hours), and what is left to be scraped.
HISTORY_SECONDS = 6 * 3600.0 + 300.0
LIVE_SECONDS = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """
    One series on a page.

    Attributes:
        name: Of the sample.
        labels: Text between the braces, without what a scrape adds.
        values: As written, by the number of the scrape; a gap is absent.
    """

    name: str
    labels: str
    values: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """
    What one engine's exporter said.

    Attributes:
        kind: ``calm`` or ``full``.
        lines: Every series of its pages.
    """

    kind: str
    lines: tuple[Line, ...]

    def only(self, names: Collection[str]) -> Engine:
        """The same with these samples alone."""
        return replace(self, lines=tuple(line for line in self.lines if line.name in names))

    def series_at(self, scrape: int) -> int:
        """How many series stand on that page."""
        return sum(scrape in line.values for line in self.lines)


def played(folder: Path) -> tuple[Engine, ...]:
    """Play every kind for HISTORY_SECONDS + LIVE_SECONDS; a card each, with its figures."""
    return tuple(_engine(kind, rate, folder) for kind, rate in RATES.items())


def _engine(kind: str, rate: float, folder: Path) -> Engine:
    traffic = generators.parse(f"{generators.PREFIX}poisson?rate={rate:g}&duration=28800")
    frontend = Frontend(find(PROFILE), limits=LIMITS)
    server = Server(name=kind, frontend=frontend, arrivals=traffic.requests())
    card = SimulatedGpus(lambda: 0.5, monotonic=lambda: 0.0)

    def cards(moment: float) -> GpuState:
        return GpuState(
            up=True,
            driver_version="simulated",
            gpus=tuple(replace(gpu, **HEALTHY) for gpu in card.read().gpus),
            read_at=moment,
        )

    run = Run(servers=[server], plan=PLAN, seconds=HISTORY_SECONDS + LIVE_SECONDS, gpus=cards)
    text = play(run, folder).samples
    found: dict[tuple[str, str], dict[int, str]] = {}
    scraped = f',job="headroom-exporter",instance="{kind}:9890"'
    with text.open(encoding="utf-8") as file:
        for row in file:
            series, _, stamp = row.rstrip("\n").rpartition(" ")
            series, _, value = series.rpartition(" ")
            name, _, labels = series.partition("{")
            if name in ("", "up"):
                continue
            # Without labels of its own, a sample's first one is the scrape's.
            own = f",{labels[:-1]}".removesuffix(scraped).removeprefix(",")
            scrape = round((float(stamp) - EPOCH) / SCRAPE_SECONDS)
            found.setdefault((name, own), {})[scrape] = value
    text.unlink()
    lines = (Line(name=name, labels=own, values=values) for (name, own), values in found.items())
    return Engine(kind=kind, lines=tuple(lines))


class Pages:
    """
    Pages of every member of a fleet, as they move with the clock.

    Args:
        engines: What the kinds say.
        members: Who is scraped; their place is the path of their page.
        origin: Unix seconds at which the scrape number HISTORY_SECONDS / SCRAPE_SECONDS is due.
    """

    def __init__(self, engines: Sequence[Engine], members: Sequence[Member], origin: float) -> None:
        self._engines = {engine.kind: engine for engine in engines}
        self._members = members
        self._first = origin - HISTORY_SECONDS
        self._templates: dict[tuple[str, int], bytes] = {}

    def page(self, place: int) -> bytes:
        """What a member says now."""
        member = self._members[place]
        scrape = int((time.time() - self._first) // SCRAPE_SECONDS)
        key = (member.kind, scrape)
        if key not in self._templates:
            self._templates[key] = self._template(*key)
        text = self._templates[key].replace(b"\x00", member.engine.encode())
        return text.replace(b"\x01", member.model.encode())

    def _template(self, kind: str, scrape: int) -> bytes:
        rows = (
            f"{line.name}{{{blank(line.labels, kind)}}} {line.values[scrape]}\n"
            for line in self._engines[kind].lines
            if scrape in line.values
        )
        return "".join(rows).encode()


def blank(labels: str, kind: str) -> str:
    """Labels of a kind with gaps for a member's engine and model."""
    model = find(PROFILE).model_name
    return labels.replace(f'engine="{kind}"', 'engine="\x00"').replace(
        f'model_name="{model}"', 'model_name="\x01"'
    )


class _Answer(asyncio.Protocol):
    """As little HTTP as Prometheus needs: a server that cost much would be measured too."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._read = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_server gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while b"\r\n\r\n" in self._read and self._transport is not None:
            request, _, self._read = self._read.partition(b"\r\n\r\n")
            body = self._pages.page(int(request.split(b" ", 2)[1].removeprefix(b"/")))
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: "
            self._transport.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)


@contextmanager
def serving(pages: Pages) -> Iterator[int]:
    """Serve the pages at /PLACE on a loopback port, which is yielded; it ends with the block."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: _Answer(pages), "127.0.0.1", 0, backlog=4096)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
