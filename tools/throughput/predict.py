"""What the simulated engine and its step formula say about a row of a published table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.requests import Finished, Request

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile
    from throughput.tables import Closed, Open

# Waves of a closed loop: the first settles, the rest is measured.
WAVES = 5
# inference-perf holds each rate for so long.
STAGE_SECONDS = 60.0
FAR = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    Over the measured requests: seconds; output tokens and requests per second.

    Attributes:
        tpot: Mean time per output token after the first.
        tpot_p50: Its median.
        ttft: Median time to the first token.
    """

    tpot: float
    tpot_p50: float
    ttft: float
    rate: float
    completed: float


@cache
def closed(profile: Profile, row: Closed) -> Outcome:
    """
    Run a closed loop to its steady state.

    Clients start evenly spread over one request's duration, else they would march in step for ever
    and no prompt would meet a decoding batch.
    """
    context = row.prompt + row.output / 2
    spread = row.output * profile.step_seconds(row.clients, round(row.clients * context), 0)
    engine = SimulatedEngine(profile)
    seen: list[Finished] = []

    def again(record: Finished) -> None:
        seen.append(record)
        if len(seen) <= (WAVES - 1) * row.clients:
            engine.submit(_request(record.finished, row.prompt, row.output))

    for client in range(row.clients):
        engine.submit(_request(client / row.clients * spread, row.prompt, row.output))
    while engine.unfinished:
        engine.advance(engine.clock + spread, again)
    # The first wave fills the engine and the last empties it.
    return _outcome(seen[row.clients : (WAVES - 1) * row.clients])


@cache
def open_loop(profile: Profile, row: Open, *, cached: bool = False, seed: int = 1) -> Outcome:
    """
    Run one stage of Poisson arrivals and let it drain.

    Args:
        profile: What to simulate.
        row: The stage.
        cached: Whether the prefix cache holds the prompts.
        seed: Of the arrivals.
    """
    rng = Random(seed)  # noqa: S311 - arrivals, not secrets
    engine = SimulatedEngine(profile)
    at = rng.expovariate(row.rate)
    while at < STAGE_SECONDS:
        engine.submit(_request(at, row.prompt, row.output, row.prompt if cached else 0))
        at += rng.expovariate(row.rate)
    seen: list[Finished] = []
    while engine.unfinished:
        engine.advance(engine.clock + STAGE_SECONDS, seen.append)
    return _outcome(seen)


def _request(arrival: float, prompt: int, output: int, cached: int = 0) -> Request:
    return Request(
        arrival=arrival, prompt_tokens=prompt, output_tokens=output, cached_tokens=cached
    )


def first_token(record: Finished) -> float:
    """
    When a request gave its first token.

    Raises:
        ValueError: it gave none: nothing here hangs up or is refused.
    """
    if record.first_token is None:
        raise ValueError(f"request {record.request.id!r} ended as {record.reason} without a token")
    return record.first_token


def _outcome(records: list[Finished]) -> Outcome:
    first = min(record.finished for record in records)
    last = max(record.finished for record in records)
    tokens = sum(record.output_tokens for record in records)
    seconds = max(last - first, 1e-9)
    gaps = [(r.finished - first_token(r)) / max(1, r.output_tokens - 1) for r in records]
    return Outcome(
        tpot=sum(gaps) / len(gaps),
        tpot_p50=_median(gaps),
        ttft=_median([first_token(r) - r.request.arrival for r in records]),
        rate=tokens * (len(records) - 1) / len(records) / seconds,
        completed=(len(records) - 1) / seconds,
    )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
