"""The recorded overload of a real RTX 4090, request by request through the simulated engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.requests import Finished, Request
from throughput import predict, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.simulate.profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """What an engine shows at the end of one second; tokens are those of that second."""

    at: float
    tokens: float
    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request: seconds from the first arrival on."""

    arrival: float
    first_token: float
    last_token: float
    output: int

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.last_token - self.first_token) / max(1, self.output - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, recorded or simulated."""

    timings: list[Timing]
    seconds: list[Second]
    preemptions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of both runs."""

    name: str
    recorded: float
    simulated: float

    @property
    def error(self) -> float:
        """Simulated over recorded, less 1."""
        return self.simulated / self.recorded - 1


def recorded() -> Run:
    """Return the run as its authors published it."""
    timings = [
        Timing(
            arrival=float(row["arrival_s"]),
            first_token=float(row["first_token_s"]),
            last_token=float(row["last_token_s"]),
            output=int(row["output_tokens"]),
        )
        for row in tables.read("rtx4090_8b_requests.csv")
    ]
    seconds = [
        Second(
            at=float(row["t"]),
            tokens=float(row["gen_throughput"]),
            running=float(row["running"]),
            waiting=float(row["waiting"]),
            kv_usage=float(row["kv_cache_pct"]) / 100,
        )
        for row in tables.read("rtx4090_8b_timeseries.csv")
    ]
    return Run(timings=timings, seconds=seconds, preemptions=None)


def simulated(profile: Profile) -> Run:
    """Run the same requests through the simulated engine, looked at once a second."""
    engine = SimulatedEngine(profile)
    for index, row in enumerate(tables.read("rtx4090_8b_requests.csv")):
        engine.submit(
            Request(
                arrival=float(row["arrival_s"]),
                prompt_tokens=int(row["prompt_tokens"]),
                output_tokens=int(row["output_tokens"]),
                id=str(index),
            )
        )
    done: dict[int, Finished] = {}
    seconds: list[Second] = []

    def keep(record: Finished) -> None:
        done[int(record.request.id)] = record

    while engine.unfinished:
        before = engine.counters.generation_tokens
        engine.advance(len(seconds) + 1.0, keep)
        seconds.append(
            Second(
                at=len(seconds) + 1.0,
                tokens=engine.counters.generation_tokens - before,
                running=engine.running,
                waiting=engine.waiting,
                kv_usage=engine.used_blocks / profile.usable_blocks,
            )
        )
    timings = [
        Timing(
            arrival=record.request.arrival,
            first_token=predict.first_token(record),
            last_token=record.finished,
            output=record.output_tokens,
        )
        for _, record in sorted(done.items())
    ]
    lost = sum(record.preemptions for record in done.values())
    return Run(timings=timings, seconds=seconds, preemptions=lost)


def metrics(live: Run, model: Run) -> list[Metric]:
    """Latencies, levels and the whole: recorded beside simulated."""
    readings: tuple[tuple[str, Callable[[Timing], float]], ...] = (
        ("TTFT", lambda t: t.first_token - t.arrival),
        ("end to end", lambda t: t.last_token - t.arrival),
        ("time per token", lambda t: t.tpot),
    )
    found = [
        Metric(
            name=f"{name} p{share * 100:.0f}, s",
            recorded=quantile([of(t) for t in live.timings], share),
            simulated=quantile([of(t) for t in model.timings], share),
        )
        for name, of in readings
        for share in (0.5, 0.95)
    ]
    found.append(
        Metric(
            name="makespan, s",
            recorded=max(t.last_token for t in live.timings),
            simulated=max(t.last_token for t in model.timings),
        )
    )
    found += [
        Metric(name=f"mean {name}", recorded=mean(live, name), simulated=mean(model, name))
        for name in ("running", "waiting", "kv_usage")
    ]
    found.append(
        Metric(
            name="most waiting",
            recorded=max(s.waiting for s in live.seconds),
            simulated=max(s.waiting for s in model.seconds),
        )
    )
    return found


def mean(run: Run, name: str) -> float:
    """Mean of a level over the run's seconds."""
    return sum(float(getattr(second, name)) for second in run.seconds) / len(run.seconds)


def series_error(live: Run, model: Run, name: str) -> float:
    """Mean absolute difference of a level, second by second, over its recorded mean."""
    length = max(len(live.seconds), len(model.seconds))

    def at(run: Run, index: int) -> float:
        return float(getattr(run.seconds[index], name)) if index < len(run.seconds) else 0.0

    total = sum(abs(at(live, index) - at(model, index)) for index in range(length))
    return total / length / mean(live, name)


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def decode_points() -> list[tuple[float, float]]:
    """(running, tokens per second) of recorded seconds that computed no prompt and kept their batch."""
    points = []
    rows = tables.read("rtx4090_8b_timeseries.csv")
    for before, row in pairwise(rows):
        idle = float(row["gen_throughput"]) <= 0 or float(row["running"]) < 2
        prompts = float(row["prompt_throughput"]) > 0
        moved = abs(float(row["running"]) - float(before["running"])) > 1
        if not (idle or prompts or moved):
            batch = (float(row["running"]) + float(before["running"])) / 2
            points.append((batch, float(row["gen_throughput"])))
    return points
