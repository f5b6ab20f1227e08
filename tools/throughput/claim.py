"""
The claim: "vLLM serving Llama 3.1 8B: batch 1 about 95 tokens/s, batch 8 about 620 in total, batch 32
about 2,400, memory tops out around 64", against the step-time model of every card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from throughput import constants

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile

CLAIMED = {1: 95.0, 8: 620.0, 32: 2400.0}
CLAIMED_LIMIT = 64
# Share of the 8B's bf16 weights that fp8 leaves: embeddings and output layer (2.1 of 16.1 GB) stay.
FP8_SHARE = (2.1 + 14.0 / 2) / 16.1
# Share of its bandwidth at which the RTX 4090 reads weights: 15.97 ms of a step of 17.
READ_SHARE = 0.94


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    One profile at one mean context.

    Attributes:
        context: Mean tokens a running sequence holds.
        rates: Output tokens per second, decoding alone, by batch.
        errors: Relative to the claim, by batch.
        fit: Sequences of that context the pool holds.
    """

    profile: str
    context: int
    rates: dict[int, float]
    errors: dict[int, float]
    fit: int

    @property
    def worst(self) -> float:
        """Largest absolute relative error of the three batches."""
        return max(abs(error) for error in self.errors.values())


def decode_rate(profile: Profile, batch: int, context: int) -> float:
    """Output tokens per second of so many sequences that each hold so many tokens."""
    return batch / profile.step_seconds(batch, batch * context, 0)


def check(profile: Profile, context: int) -> Verdict:
    """Compare the claim with a profile at one context."""
    rates = {batch: decode_rate(profile, batch, context) for batch in CLAIMED}
    return Verdict(
        profile=profile.name,
        context=context,
        rates=rates,
        errors={batch: rates[batch] / claimed - 1 for batch, claimed in CLAIMED.items()},
        fit=profile.pool_tokens // context,
    )


def best(profile: Profile, batches: tuple[int, ...] = tuple(CLAIMED)) -> Verdict:
    """Return the context at which the worst error of those batches is least, in steps of 32 tokens."""
    return min(
        (check(profile, context) for context in range(32, 8193, 32)),
        key=lambda verdict: max(abs(verdict.errors[batch]) for batch in batches),
    )


def with_fp8_weights(entry: constants.Entry) -> Profile:
    """Scale the RTX 4090's profile to fp8 weights: fewer bytes to read, a larger pool."""
    card, model = constants.RTX4090, constants.LLAMA_8B
    saved = model.weights * (1 - FP8_SHARE) / (card.bandwidth * READ_SHARE)
    return replace(
        entry.profile(),
        name="rtx4090-llama-3.1-8b-fp8",
        step_fixed=entry.step_fixed - saved,
        num_gpu_blocks=constants.pool_blocks(card, model, 1, weights_share=FP8_SHARE),
    )


def needed_bandwidth(rate: float) -> float:
    """Bytes per second that reading bf16 weights once a step takes at so many steps a second."""
    return constants.LLAMA_8B.weights * rate


def knee(profile: Profile, context: int) -> float:
    """Batch at which 80 % of a step is paid per sequence, its cache included: 4 fixed / slope."""
    return (
        4 * profile.step_fixed / (profile.step_per_sequence + profile.step_per_kv_token * context)
    )


def implied_steps() -> dict[int, float]:
    """Seconds of a step that the claim itself implies, by batch."""
    return {batch: batch / rate for batch, rate in CLAIMED.items()}


def line_error() -> float:
    """
    Least worst relative error that *any* rising straight line has on the claimed steps.

    The middle point lies above the line through the outer two: the best line misses all three by the
    same share (equioscillation), found by bisection.
    """
    steps = implied_steps()
    (b1, t1), (b2, t2), (b3, t3) = sorted(steps.items())
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # Outer points raised by the share, the middle one lowered: does the chord reach it?
        chord = t1 + (t3 - t1) * (b2 - b1) / (b3 - b1)
        if chord * (1 + middle) >= t2 * (1 - middle):
            high = middle
        else:
            low = middle
    return high
