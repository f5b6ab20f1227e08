"""How many slots (max_num_seqs) the engine has: no vLLM release publishes it."""

from __future__ import annotations

import math
from collections import deque

WINDOW_SECONDS = 30.0
MIN_SECONDS = 5.0
MIN_SAMPLES = 8
# Between a finish and the next step the gauge shows one less: seen in 22 of 165 samples of
# tests/fixtures/recordings/vllm-0.32.0-slots.jsonl.gz, and never more than one.
NEAR_SHARE = 0.8
NEAR_RATIO = 0.95
# Above this the cache may be what holds the plateau.
MAX_USAGE = 0.9
# Samples before which a prompt was done. A plateau is slots only while sequences leave and others take
# their place: one long prompt that takes the whole step, or an engine that hangs, holds running still too.
MIN_TURNOVER = 3


class PlateauMeter:
    """
    Infers the slots from the plateau of running while requests wait for capacity.

    A plateau is believed when, over at least five seconds of waiting, running stays within one (or 5 %) of
    the largest value ever seen, prompts go on being admitted, nothing is preempted, and the cache has room
    for a prompt: then neither the cache nor a fluctuating prefill queue holds it, and what stands still is
    the limit.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, bool]] = deque()
        self._most = 0.0
        self._value: float | None = None

    def add(
        self,
        now: float,
        *,
        running: float,
        waiting: float,
        usage: float | None,
        preempting: bool,
        admitting: bool,
        prompt_share: float | None = None,
    ) -> None:
        """
        Take one sample into account.

        Args:
            now: Seconds.
            running: Sequences in the batch.
            waiting: Requests that wait for capacity.
            usage: Share of the KV pool in use; None: not known, so it may be what holds.
            preempting: Sequences were preempted within the last seconds.
            admitting: Prompts were computed since the sample before.
            prompt_share: Share of the pool that a prompt needs; vLLM admits it whole or not at all.
        """
        self._most = max(self._most, running)
        if self._value is not None and running > self._value:
            self._value = None
        room = max(1.0 - MAX_USAGE, prompt_share or 0.0)
        if waiting < 1 or preempting or usage is None or usage > 1.0 - room:
            self.interrupt()
            return
        self._seen.append((now, running, admitting))
        while self._seen[0][0] < now - WINDOW_SECONDS:
            self._seen.popleft()
        if len(self._seen) >= MIN_SAMPLES and now - self._seen[0][0] >= MIN_SECONDS:
            self._judge()

    def interrupt(self) -> None:
        """Nothing was seen for a while, or something else holds: no plateau spans it."""
        self._seen.clear()

    def _judge(self) -> None:
        top = max(running for _, running, _ in self._seen)
        # More has run at once before: this is not the limit of a process that keeps its limit.
        if top < self._most:
            return
        # At least one below the top, at any size.
        edge = math.floor(top * NEAR_RATIO)
        near = sum(running >= edge for _, running, _ in self._seen)
        at_top = sum(running == top for _, running, _ in self._seen)
        turnover = sum(admitting for _, _, admitting in self._seen)
        # One level held, not a drift through neighbouring ones.
        if near >= NEAR_SHARE * len(self._seen) and at_top * 2 >= near and turnover >= MIN_TURNOVER:
            self._value = top

    @property
    def value(self) -> float | None:
        """The inferred slots; None while no plateau was seen."""
        return self._value


def effective_slots(bases: dict[str, float], seen: float) -> float | None:
    """
    The slots to reckon with.

    Order: the server's own, the plan's, the command line's, the inferred one; but what was seen beats them
    all: a limit below the largest running seen is wrong, and a plateau below the declared limit is the
    real one.

    Args:
        bases: ``server``, ``plan``, ``args``, ``inferred``, those that are known.
        seen: Largest running seen since the engine started.
    """
    held = {basis: limit for basis, limit in bases.items() if limit >= seen}
    inferred = held.get("inferred")
    declared = held.get("server", held.get("plan", held.get("args")))
    if declared is None or inferred is None:
        return inferred if declared is None else declared
    return min(declared, inferred)
