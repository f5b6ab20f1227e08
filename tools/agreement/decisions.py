"""The simulated scheduler step by step beside the real one: the real steps' times, its own decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agreement.simulated import configured
from headroom_exporter.simulate.requests import Request
from headroom_exporter.simulate.scheduler import Scheduler

if TYPE_CHECKING:
    from agreement.recorded import Run, Step
    from headroom_exporter.simulate.profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """
    What a step computed and what it left.

    Attributes:
        sequences: Computed in it, tokens likewise.
        resident: Tokens the running sequences held as it began.
        free: Blocks free after it.
    """

    sequences: int
    tokens: int
    resident: int
    running: int
    waiting: int
    free: int


def real(step: Step) -> Decision:
    """Return what vLLM decided."""
    return Decision(
        sequences=step.sequences,
        tokens=step.tokens,
        resident=step.resident,
        running=step.running,
        waiting=step.waiting,
        free=step.free,
    )


def simulated(run: Run, steps: list[Step], profile: Profile) -> tuple[list[Decision], int]:
    """
    Let the simulated scheduler decide every step of a run whose steps were logged.

    A request is there for a step that began after vLLM's own scheduler had got it.

    Returns:
        Its decisions, and how many preemptions they hold.
    """
    scheduler = Scheduler(configured(profile, run))
    queue = sorted(run.requests, key=lambda each: each.queued or 0.0, reverse=True)
    decisions = []
    ended = []
    for number, step in enumerate(steps):
        while queue and (queue[-1].queued or 0.0) <= step.start:
            each = queue.pop()
            request = Request(
                arrival=step.start, prompt_tokens=each.prompt, output_tokens=each.output
            )
            scheduler.accept(request, step.start)
        scheduler.schedule(number, step.start)
        chunks, resident = list(scheduler.chunks), scheduler.resident
        decoding = scheduler.decoding
        scheduler.resident += decoding
        for sequence, tokens in chunks:
            scheduler.compute(sequence, tokens, number + 1)
        scheduler.chunks.clear()
        ended += scheduler.finish(number)
        decisions.append(
            Decision(
                sequences=decoding + len(chunks),
                tokens=decoding + sum(tokens for _, tokens in chunks),
                resident=resident,
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                free=scheduler.pool.free,
            )
        )
    return decisions, sum(sequence.preemptions for sequence in ended)
