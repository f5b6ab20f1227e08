"""A day of traffic in virtual time: simulated engine, page, poller, track, in this process."""

from __future__ import annotations

import resource
import time

from bench.report import Part, Row
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.replay import Replica, replay

PART = Part(
    "Replay in virtual time: H100, Llama-3.1-8B, diurnal traffic of 1 request/s, polls at 1 s"
)
PROFILE = "h100-llama-3.1-8b"
DAY, SLICE = 86_400, 3_600


def rows(*, quick: bool) -> list[Row]:
    """Seconds a day takes, how much faster than the clock that is, and what memory it adds."""
    until = SLICE if quick else DAY
    traffic = generators.parse(f"synthetic:diurnal?rate=1&duration={until}&seed=1")
    replica = Replica(
        name="replayed",
        frontend=Frontend(find(PROFILE)),
        load=TraceLoad(traffic.requests()),
    )
    memory, began, cpu = _peak_mib(), time.monotonic(), time.process_time()
    moments = sum(1 for _ in replay([replica], float(until)))
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    return [
        PART.row(f"{until // 3600} h, {moments:,} polls: CPU", cpu, "s"),
        PART.row(f"{until // 3600} h: wall", wall, "s"),
        PART.row("virtual time over CPU time", until / cpu, "x"),
        PART.row("memory added at its highest", _peak_mib() - memory, "MiB"),
    ]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
