"""The same requests through the simulated engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agreement.recorded import Poll
from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.requests import Finished, Request

if TYPE_CHECKING:
    from agreement.recorded import Run
    from headroom_exporter.simulate.profiles import Profile

# Later than anything ends.
FAR = 1e6
SETTINGS = ("max_num_seqs", "num_gpu_blocks", "max_num_batched_tokens", "max_model_len")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """
    What a request meets outside the engine: HTTP, validation, queues between processes.

    Attributes:
        before: Seconds from the client's sending to the engine's queue.
        after_first: Seconds from the end of the step that gives the first token to the client's
            reading of it; ``after_last`` likewise.
    """

    before: float
    after_first: float
    after_last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    A run's figures before they are summed up, measured or simulated.

    Attributes:
        polls: Gauges, at the same moments in both.
        first: Seconds from sending to the first token, of each request.
        whole: Seconds from sending to the last token, of each request.
    """

    polls: list[Poll]
    first: list[float]
    whole: list[float]
    preemptions: int


def measured(run: Run) -> Outcome:
    """What the real run gave."""
    return Outcome(
        polls=run.polls,
        first=[each.first_token - each.sent for each in run.requests],
        whole=[each.finished - each.sent for each in run.requests],
        preemptions=run.preemptions,
    )


def configured(profile: Profile, run: Run) -> Profile:
    """Return the profile with the limits of the run's server."""
    return replace(profile, **{name: run.summary[name] for name in SETTINGS})


def simulate(run: Run, profile: Profile, front_end: FrontEnd) -> Outcome:
    """
    Send what the real server got, when it got it, and poll when it was polled.

    Args:
        run: The real one.
        profile: With any limits: those of the run are put in.
        front_end: What the client sees beside the engine's own time.
    """
    engine = SimulatedEngine(configured(profile, run))
    ended: dict[str, Finished] = {}

    def note(record: Finished) -> None:
        ended[record.request.id] = record

    for number, each in enumerate(run.requests):
        engine.submit(
            Request(
                id=str(number),
                arrival=each.sent + front_end.before,
                prompt_tokens=each.prompt,
                output_tokens=each.output,
                finish_reason="length",
            )
        )
    polls = []
    for poll in run.polls:
        engine.advance(poll.at, note)
        gauges = engine.gauges
        polls.append(
            Poll(
                at=poll.at,
                running=gauges.running if gauges else 0,
                waiting=gauges.waiting if gauges else 0,
                kv_usage=gauges.kv_usage if gauges else 0.0,
            )
        )
    engine.advance(FAR, note)
    records = [ended[str(number)] for number in range(len(run.requests))]
    return Outcome(
        polls=polls,
        first=[
            (record.first_token or FAR) + front_end.after_first - each.sent
            for record, each in zip(records, run.requests, strict=True)
        ],
        whole=[
            record.finished + front_end.after_last - each.sent
            for record, each in zip(records, run.requests, strict=True)
        ],
        preemptions=engine.counters.preemptions,
    )
