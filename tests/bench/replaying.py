"""A day of traffic in virtual time: simulated engine, page, poller, track, in one process of their own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bench.process import MIB, first_line, memory, started
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
TESTS = Path(__file__).resolve().parents[1]


def rows(*, quick: bool) -> list[Row]:
    """Seconds a day takes, how much faster than the clock that is, and what memory it adds."""
    until = SLICE if quick else DAY
    # In a process of its own: here, memory that other parts left behind would hide what it takes.
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); "
        f"from bench.replaying import report_of; print(report_of({until}), flush=True)"
    )
    with started(["-c", program]) as process:
        seen = json.loads(first_line(process))
    return [
        PART.row(f"{until // 3600} h, {seen['polls']:,} polls: CPU", seen["cpu"], "s"),
        PART.row(f"{until // 3600} h: wall", seen["wall"], "s"),
        PART.row("virtual time over CPU time", until / seen["cpu"], "x"),
        PART.row("memory added at its highest", seen["added"], "MiB"),
    ]


def report_of(until: int) -> str:
    """Replay so many virtual seconds: polls, CPU and wall seconds, MiB added at its highest, as JSON."""
    traffic = generators.parse(f"synthetic:diurnal?rate=1&duration={until}&seed=1")
    replica = Replica(
        name="replayed",
        frontend=Frontend(find(PROFILE)),
        load=TraceLoad(traffic.requests()),
    )
    before, began, cpu = _peak_mib(), time.monotonic(), time.process_time()
    polls = sum(1 for _ in replay([replica], float(until)))
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    return json.dumps({"polls": polls, "cpu": cpu, "wall": wall, "added": _peak_mib() - before})


def _peak_mib() -> float:
    # Not getrusage: after fork and exec its ru_maxrss is at least the peak of the process that forked.
    return memory(os.getpid()).peak / MIB
