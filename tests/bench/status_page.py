"""The status page: what its history holds, what its answers take, what a visitor weighs."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest

from bench.micro import collector_of, full_plan, microseconds, state_of, take_time, thread_seconds
from bench.report import Part, Row
from headroom_exporter.config import PollConfig
from headroom_exporter.expose import make_registry
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.replay import Replica, replay
from headroom_exporter.status.document import Source, document
from headroom_exporter.status.history import WINDOW_SECONDS, History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_exporter.samples import EngineState

MEMORY = Part("Status page: memory that the last 15 minutes of one rank take")
TIMES = Part("Status page: CPU time of its steps")
PROFILE = "h100-llama-3.1-8b"
MOST_MIB = 4.0
MIB = 2**20
RATES = (1, 10)
RANKS = (1, 64)
# Rows that are too old are cut when as many as the window holds have gathered: within an hour, thrice.
LONGER_SECONDS = 3600
AGAIN = range(50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """
    A history that has seen 15 minutes, and the engine as it was at their end.

    Attributes:
        mean: CPU seconds of noting one poll.
    """

    history: History
    engine: EngineState
    at: float
    mean: float


def rows() -> list[Row]:
    """Bytes of the ring, microseconds of taking in a poll, and of each answer, in virtual time."""
    return [
        *(row for rate in RATES for row in _memory_rows(rate)),
        *_note_rows(),
        *(row for ranks in RANKS for row in _document_rows(ranks)),
        *_past_rows(),
    ]


# --- fifteen minutes -----------------------------------------------------------------------------


def _watch(rate: float, ranks: int = 1) -> Watched:
    """
    Poll a simulated engine for as long as the page remembers, and note each poll as the exporter does.

    Args:
        rate: Polls a second.
        ranks: So many copies of the engine's only rank.
    """
    history, engine, at, taken, polls = History(), None, 0.0, 0.0, 0
    for moment in replay([_replica()], WINDOW_SECONDS + 1, poll=PollConfig(interval=1 / rate)):
        engine, at = _copied(moment.state.engines[0], ranks), moment.at
        taken += thread_seconds(lambda each: history.note(*each), (engine, at))
        polls += 1
    if engine is None:
        raise RuntimeError("the replay yielded nothing")
    return Watched(history=history, engine=engine, at=at, mean=taken / polls)


def _replica() -> Replica:
    traffic = generators.parse(f"synthetic:diurnal?rate=1&duration={WINDOW_SECONDS + 1:.0f}&seed=1")
    return Replica(
        name="watched", frontend=Frontend(find(PROFILE)), load=TraceLoad(traffic.requests())
    )


def _copied(engine: EngineState, ranks: int) -> EngineState:
    return replace(
        engine,
        ranks=tuple(
            replace(each, rank=str(number)) for each in engine.ranks for number in range(ranks)
        ),
    )


def _later(watched: Watched, rate: float, seconds: float) -> Iterator[tuple[EngineState, float]]:
    """The polls that follow, all of them alike, and when they come."""
    for number in range(1, round(seconds * rate) + 1):
        at = watched.at + number / rate
        yield replace(watched.engine, last_success_monotonic=at), at


# --- memory --------------------------------------------------------------------------------------


def _memory_rows(rate: int) -> list[Row]:
    held, most = _held(rate)
    return [
        MEMORY.row(f"{rate}/s: held after 15 minutes", held / MIB, "MiB", most=MOST_MIB),
        MEMORY.row(
            f"{rate}/s: most within the hour that follows", most / MIB, "MiB", most=MOST_MIB
        ),
    ]


def _held(rate: int) -> tuple[int, int]:
    """
    Bytes that come free when the history goes: after 15 minutes, and the most in an hour after them.

    All it holds is counted: the columns as allocated, and the readings of the engine's histograms
    that nothing else remembers.
    """
    tracemalloc.start()
    try:
        watched = _watch(rate)
        history = watched.history
        watched = replace(watched, history=History())
        gc.collect()
        full = most = tracemalloc.get_traced_memory()[0]
        for engine, at in _later(watched, rate, LONGER_SECONDS):
            history.note(engine, at)
            most = max(most, tracemalloc.get_traced_memory()[0])
        history.forget(watched.engine.name)
        gc.collect()
        without = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return full - without, most - without


# --- time ----------------------------------------------------------------------------------------


def _note_rows() -> list[Row]:
    rate = RATES[-1]
    watched = _watch(rate)
    # Now and then one cuts the columns.
    longest = max(
        thread_seconds(lambda each: watched.history.note(*each), poll)
        for poll in _later(watched, rate, LONGER_SECONDS)
    )
    mean = 1e6 * watched.mean
    return [
        Row(
            part=TIMES.heading,
            what=f"History.note, mean of 15 minutes at {rate}/s",
            value=mean,
            unit="us",
            beside={"longest of an hour": 1e6 * longest},
        ),
        TIMES.row("the same over a whole filtered poll but for HTTP", mean / take_time(), "x"),
    ]


def _document_rows(ranks: int) -> list[Row]:
    watched, plan = _watch(1, ranks), full_plan()
    state, now = state_of(watched.engine), watched.at
    source = Source(plan_of=lambda *_: plan, history=watched.history, instance="bench")
    registry = make_registry(collector_of(state, plan, now))

    def answer() -> bytes:
        found = document(state, source, now=now, wall=now)
        return json.dumps(found, allow_nan=False, separators=(",", ":")).encode()

    page, taken = generate_latest(registry), microseconds(lambda _: answer(), AGAIN)
    scraped = microseconds(lambda _: generate_latest(registry), AGAIN)
    name = f"{ranks} rank{'s' if ranks > 1 else ''}"
    size = len(answer())
    return [
        TIMES.row(
            f"{name}: document of /api/v1/state",
            microseconds(lambda _: document(state, source, now=now, wall=now), AGAIN),
            "us",
        ),
        TIMES.row(f"{name}: the same as JSON ({size / 1024:.1f} KiB)", taken, "us"),
        TIMES.row(
            f"{name}: the latter over /metrics as text ({len(page) / 1024:.0f} KiB)",
            taken / scraped,
            "x",
        ),
    ]


def _past_rows() -> list[Row]:
    """The first answer to a new visitor holds the whole past; those that follow hold a few rows."""
    return [row for rate in RATES for row in _past_rows_at(rate)]


def _past_rows_at(rate: int) -> list[Row]:
    watched = _watch(rate)
    rank = watched.engine.ranks[0]
    ring = watched.history.ring((watched.engine.name, rank.rank, rank.model_name))
    if ring is None:
        raise RuntimeError("the rank has no history")

    def answer(after: float) -> str:
        return json.dumps(ring.columns(after=after), separators=(",", ":"))

    return [
        TIMES.row(
            f"history as JSON at {rate}/s, {what} ({len(answer(after)) / 1024:.1f} KiB)",
            microseconds(answer, [after] * len(AGAIN)),
            "us",
        )
        for what, after in (("whole", -math.inf), ("newest second", watched.at - 1.0))
    ]
