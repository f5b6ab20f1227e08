"""A backtest: the replay with its scrapes written down, then the shipped rules by a real Prometheus."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from bench.micro import full_plan
from bench.report import Part, Row
from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.play import Run, Server, play
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.profiles import find

PART = Part("Backtest of one rank: H100, Llama-3.1-8B, diurnal traffic of 1 request/s, full plan")
PROFILE = "h100-llama-3.1-8b"
RULES = Path(__file__).resolve().parents[2] / "rules"
DAY, SLICE = 86_400, 3_600
MIB = 2**20


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """
    Seconds of both halves. Needs the Debian package prometheus.

    Args:
        directory: For the samples; they are the samples of all series, every 15 s.
        quick: An hour instead of a day.
    """
    seconds = SLICE if quick else DAY
    began, cpu = time.monotonic(), time.process_time()
    played = play(_run(seconds), directory)
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    size = played.samples.stat().st_size / MIB
    began, own, children = time.monotonic(), time.process_time(), _children_seconds()
    found = evaluate(played.samples, [RULES], start=EPOCH, seconds=float(seconds))
    judged = time.monotonic() - began
    own, children = time.process_time() - own, _children_seconds() - children
    name = f"{seconds // 3600} h"
    return [
        PART.row(f"{name}: playing it, CPU", cpu, "s"),
        PART.row(f"{name}: playing it, wall", wall, "s"),
        PART.row(f"{name}: samples on disk", size, "MiB"),
        PART.row(f"{name}: evaluating {len(found.rules)} alerts, wall", judged, "s"),
        PART.row(f"{name}: the same, CPU of promtool and Prometheus", children, "s"),
        PART.row(f"{name}: the same, CPU of our own", own, "s"),
    ]


def _run(seconds: float) -> Run:
    traffic = generators.parse(f"synthetic:diurnal?rate=1&duration={seconds}&seed=1")
    server = Server(
        name="played", frontend=Frontend(find(PROFILE)), arrivals=iter(traffic.requests())
    )
    return Run(servers=[server], plan=full_plan(), seconds=float(seconds))


def _children_seconds() -> float:
    """CPU of the processes that were started and have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
