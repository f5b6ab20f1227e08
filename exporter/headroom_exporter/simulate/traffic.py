"""Traffic: streams of requests, chosen, scaled, repeated, looked over. Nothing is held in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from headroom_exporter.simulate.requests import Request

    # Opens the traffic from its beginning, as often as it is called.
    Arrivals = Callable[[], Iterator[Request]]

# Copies of a request arrive within so many seconds of it: far enough not to come together, near enough
# to keep the shape of the day.
COPY_SECONDS = 30.0


def select(
    requests: Iterable[Request], *, start: float = 0.0, end: float = inf, keep_every: int = 1
) -> Iterator[Request]:
    """
    Cut a window out of a trace and keep every k-th request: the share of one of k equal replicas.

    Args:
        requests: In order of arrival.
        start: Seconds in the trace's clock; becomes 0.
        end: Seconds in the trace's clock; what arrives then or later is left out.
        keep_every: Counted from the first request of the trace, not of the window.
    """
    for number, request in enumerate(requests):
        if request.arrival >= end:
            return
        if request.arrival >= start and number % keep_every == 0:
            yield replace(request, arrival=request.arrival - start) if start else request


def scale(requests: Iterable[Request], factor: float, seed: int = 0) -> Iterator[Request]:
    """
    Multiply the rate of arrivals, lengths and the hour of the day unchanged.

    Below 1 each request is kept with that probability. Above 1 each comes as often as the factor says
    (2.5: twice, and every other one three times); the copies arrive at random within COPY_SECONDS of
    it, as those of independent users would: at once, they would be a burst that nobody sent. So
    what varies over minutes and hours varies ``factor`` times as much, and what varies over seconds
    does not become burstier than the trace.

    Args:
        requests: In order of arrival.
        factor: Above 0.
        seed: The same seed gives the same traffic.
    """
    if factor == 1:
        yield from requests
        return
    rng = Random(f"{seed} scale")
    pending: list[tuple[float, int, Request]] = []
    pushed = 0
    for request in requests:
        copies = int(factor) + (rng.random() < factor % 1)
        for copy in range(copies):
            late = rng.uniform(-COPY_SECONDS, COPY_SECONDS) if copy else 0.0
            arrival = abs(request.arrival + late)
            made = replace(request, arrival=arrival) if copy else request
            heappush(pending, (arrival, pushed, made))
            pushed += 1
        while pending and pending[0][0] <= request.arrival - COPY_SECONDS:
            yield heappop(pending)[2]
    while pending:
        yield heappop(pending)[2]


def with_prefix_hits(requests: Iterable[Request], share: float) -> Iterator[Request]:
    """Let the prefix cache hold that share of every prompt, 0 to 1."""
    for request in requests:
        yield replace(request, cached_tokens=int(share * request.prompt_tokens))


def repeat(arrivals: Arrivals, period: float) -> Iterator[Request]:
    """
    Play traffic again and again.

    Args:
        arrivals: The traffic, from 0 on.
        period: Seconds after which it begins anew; later arrivals are left out.
    """
    begin = 0.0
    played = True
    while played:
        played = False
        for request in arrivals():
            if request.arrival >= period:
                break
            played = True
            yield replace(request, arrival=begin + request.arrival)
        begin += period


# --- what a trace holds --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """
    What traffic amounts to.

    Attributes:
        requests: How many.
        first: Arrival of the first, seconds; 0 where there is none.
        last: Arrival of the last.
        prompt_tokens: Sum over requests.
        output_tokens: Sum over requests.
        longest_prompt: Tokens.
    """

    requests: int
    first: float
    last: float
    prompt_tokens: int
    output_tokens: int
    longest_prompt: int


def survey(requests: Iterable[Request]) -> Survey:
    """Read traffic once from end to end: what is wrong with it shows before anything starts."""
    count = prompts = outputs = longest = 0
    first = last = 0.0
    for request in requests:
        if not count:
            first = request.arrival
        count += 1
        last = request.arrival
        prompts += request.prompt_tokens
        outputs += request.output_tokens
        longest = max(longest, request.prompt_tokens)
    return Survey(
        requests=count,
        first=first,
        last=last,
        prompt_tokens=prompts,
        output_tokens=outputs,
        longest_prompt=longest,
    )
