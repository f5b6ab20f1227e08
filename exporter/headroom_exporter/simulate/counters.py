"""What the simulated engine counts: the same events at the same moments as vLLM 0.32 does."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headroom_exporter.simulate.requests import Finished, Sequence

# Bucket bounds as a vLLM 0.32 page shows them.
TOKENS_PER_STEP = tuple(float(n) for n in (1, *(2**n for n in range(3, 15))))
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_INTERVAL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_TIME = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


def length_bounds(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to the last that is not above ``largest`` tokens."""
    bounds: list[float] = []
    decade = 1
    while True:
        for factor in (1, 2, 5):
            if factor * decade > largest:
                return tuple(bounds)
            bounds.append(float(factor * decade))
        decade *= 10


class Tally:
    """
    A histogram that is being filled.

    Attributes:
        bounds: Finite upper bounds, ascending; shape (n,).
        counts: Observations of each bucket alone, the last above every bound; shape (n + 1,).
        sum: Sum of the observed values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as said."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Counters:
    """Everything that only grows; starts again at 0 with a new engine."""

    def __init__(self, max_model_len: int) -> None:
        lengths = length_bounds(max_model_len)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        # Prompt tokens whose cache was found, not computed; counted like prompt_tokens.
        self.cached_prompt_tokens = 0
        # Tokens of the prompts looked up in the prefix cache, once a request, and found there.
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.step_tokens = Tally(TOKENS_PER_STEP)
        self.first_token = Tally(FIRST_TOKEN)
        self.token_interval = Tally(TOKEN_INTERVAL)
        self.request_token_interval = Tally(TOKEN_INTERVAL)
        self.request_prompt = Tally(lengths)
        self.request_output = Tally(lengths)
        self.request_max_output = Tally(lengths)
        self.request_computed_prompt = Tally(lengths)
        self.request_max_tokens = Tally(lengths)
        self.request_choices = Tally(CHOICES)
        self.request_preemptions = Tally(PREEMPTIONS)
        self.duration = Tally(REQUEST_TIME)
        self.queue_time = Tally(REQUEST_TIME)
        self.inference_time = Tally(REQUEST_TIME)
        self.prefill_time = Tally(REQUEST_TIME)
        self.decode_time = Tally(REQUEST_TIME)
        self._max_model_len = max_model_len

    def count_ended(self, record: Finished) -> None:
        """Count what vLLM counts of every request that the engine itself ended."""
        prompt, output = record.request.prompt_tokens, record.output_tokens
        # Without max_tokens in the request, vLLM fills in what the model's length leaves.
        allowed = output if record.reason == "length" else self._max_model_len - prompt
        self.finished[record.reason] += 1
        self.duration.observe(record.finished - record.request.arrival)
        self.request_prompt.observe(prompt)
        self.request_output.observe(output)
        self.request_max_output.observe(output)
        self.request_max_tokens.observe(allowed)
        self.request_choices.observe(1)

    def count_finished(self, sequence: Sequence, record: Finished) -> None:
        """Count a request that gave all its tokens."""
        self.count_ended(record)
        decode = record.finished - sequence.first_token
        self.request_computed_prompt.observe(record.request.prompt_tokens - sequence.cached)
        self.request_preemptions.observe(record.preemptions)
        self.request_token_interval.observe(decode / max(1, record.output_tokens - 1))
        self.queue_time.observe(sequence.scheduled - sequence.accepted)
        self.inference_time.observe(record.finished - sequence.scheduled)
        self.prefill_time.observe(sequence.first_token - sequence.scheduled)
        self.decode_time.observe(decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """
    What the last step that refreshed them left.

    Attributes:
        running: Sequences in the batch.
        waiting: Requests held back.
        kv_usage: Share of the usable pool held.
        at: Virtual seconds.
        generation_tokens: Counted until then; prompt_tokens likewise.
    """

    running: int
    waiting: int
    kv_usage: float
    at: float
    generation_tokens: int
    prompt_tokens: int


@dataclass(slots=True, kw_only=True)
class Integrals:
    """
    The truth over time, for whoever measures the engine: level times seconds.

    Attributes:
        running: Sequences scheduled or between two chunks of their prompt.
        waiting: Requests that arrived and do not run.
        kv_usage: Share of the usable pool held.
        busy: Seconds in which a step was under way.
    """

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    busy: float = 0.0
