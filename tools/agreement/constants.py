"""Constants of a step and of the front end, from a run whose steps were logged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from throughput.fit import Row, non_negative

from agreement.simulated import FrontEnd

if TYPE_CHECKING:
    from agreement.recorded import Sent, Step
    from headroom_exporter.simulate.profiles import Profile

# A batch size with fewer steps than this tells nothing.
LEAST_STEPS = 10
# Steps of one batch size are averaged in so many groups by the tokens they hold.
GROUPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """
    Seconds of a step, and how well they give the logged ones.

    Attributes:
        by_batch: Of decoding steps: batch size, mean measured seconds, mean fitted seconds.
    """

    fixed: float
    per_sequence: float
    per_kv_token: float
    per_prefill_token: float
    by_batch: tuple[tuple[int, float, float], ...]

    def into(self, profile: Profile) -> Profile:
        """Return the profile with these constants."""
        return replace(
            profile,
            step_fixed=self.fixed,
            step_per_sequence=self.per_sequence,
            step_per_kv_token=self.per_kv_token,
            step_per_prefill_token=self.per_prefill_token,
            decode_beside_prefill=1.0,
        )


def fit(steps: list[Step]) -> Constants:
    """
    Fit the constants.

    Decoding: least squares on relative errors of means, every batch size with the same weight, since
    a run has a hundred times more steps of one size than of another. Prompts: what steps with prompts
    took beyond their decoding, over the tokens of those prompts.

    Raises:
        ValueError: too few steps.
    """
    rows = [
        Row(columns=(1.0, size, fmean(each.resident for each in part)), seconds=_mean(part))
        for size, group in _by_batch(steps).items()
        for part in _thirds(group)
    ]
    fixed, per_sequence, per_kv_token = non_negative(rows).values
    prompts = [each for each in steps if each.seconds is not None and each.prompt]
    beyond = sum(
        (each.seconds or 0.0)
        - (fixed + per_sequence * each.sequences + per_kv_token * each.resident)
        for each in prompts
    )
    return Constants(
        fixed=fixed,
        per_sequence=per_sequence,
        per_kv_token=per_kv_token,
        per_prefill_token=beyond / sum(each.prompt for each in prompts),
        by_batch=tuple(
            (
                size,
                _mean(group),
                fixed + per_sequence * size + per_kv_token * fmean(each.resident for each in group),
            )
            for size, group in sorted(_by_batch(steps).items())
        ),
    )


def _by_batch(steps: list[Step]) -> dict[int, list[Step]]:
    """Steps that only decode, by how many sequences; sizes with too few left out."""
    found: dict[int, list[Step]] = {}
    for each in steps:
        if each.seconds is not None and not each.prompt:
            found.setdefault(each.sequences, []).append(each)
    return {size: group for size, group in found.items() if len(group) >= LEAST_STEPS}


def _thirds(group: list[Step]) -> list[list[Step]]:
    ordered = sorted(group, key=lambda each: each.resident)
    cuts = [len(ordered) * part // GROUPS for part in range(GROUPS + 1)]
    return [ordered[low:high] for low, high in pairwise(cuts)]


def _mean(group: list[Step]) -> float:
    return fmean(each.seconds for each in group if each.seconds is not None)


def front_end(requests: list[Sent]) -> FrontEnd:
    """
    Medians: towards the engine, of requests that found it idle (others wait for a step's end as well);
    back to the client, of all.

    Raises:
        ValueError: no request found the engine idle.
    """
    known = [
        (each, each.queued, each.engine_first, each.engine_finished)
        for each in requests
        if each.queued is not None
        and each.engine_first is not None
        and each.engine_finished is not None
    ]
    alone = []
    busy_until = 0.0
    for each, queued, _, finished in sorted(known, key=lambda row: row[1]):
        if queued > busy_until:
            alone.append(queued - each.sent)
        busy_until = max(busy_until, finished)
    if not alone:
        raise ValueError("no request found the engine idle")
    return FrontEnd(
        before=median(alone),
        after_first=median(each.first_token - first for each, _, first, _ in known),
        after_last=median(each.finished - finished for each, _, _, finished in known),
    )
