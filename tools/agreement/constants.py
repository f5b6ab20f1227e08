"""Constants of a step and of the front end, from a run whose steps were logged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from throughput.fit import Row, non_negative

from agreement.simulated import FrontEnd

if TYPE_CHECKING:
    from agreement.recorded import Run, Sent, Step
    from headroom_exporter.simulate.profiles import Profile

# A batch size with fewer steps than this tells nothing.
LEAST_STEPS = 10
# Steps of one batch size are averaged in so many groups by the tokens they hold.
GROUPS = 3
PROMPT_EDGES = (0, 100, 200, 400, 800, 1200, 1600, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """
    Seconds of a step, and how well they give the logged ones.

    Attributes:
        by_batch: Of decoding steps: batch size, mean measured seconds, mean fitted seconds.
        by_prompt: Of steps with one prompt: its mean length in tokens, measured seconds per prompt
            token beyond the decoding.
    """

    fixed: float
    per_sequence: float
    per_kv_token: float
    per_prefill_token: float
    by_batch: tuple[tuple[int, float, float], ...]
    by_prompt: tuple[tuple[float, float], ...]

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

    def decoding(step: Step) -> float:
        return fixed + per_sequence * step.sequences + per_kv_token * step.resident

    beyond = [
        (each, each.seconds - decoding(each))
        for each in steps
        if each.seconds is not None and each.prompt
    ]
    return Constants(
        fixed=fixed,
        per_sequence=per_sequence,
        per_kv_token=per_kv_token,
        per_prefill_token=_per_token(beyond),
        by_batch=tuple(
            (size, _mean(group), fmean(decoding(each) for each in group))
            for size, group in sorted(_by_batch(steps).items())
        ),
        by_prompt=tuple(
            (fmean(each.prompt for each, _ in group), _per_token(group))
            for low, high in pairwise(PROMPT_EDGES)
            if (
                group := [
                    one for one in beyond if one[0].prompts == 1 and low < one[0].prompt <= high
                ]
            )
        ),
    )


def _per_token(beyond: list[tuple[Step, float]]) -> float:
    return sum(seconds for _, seconds in beyond) / sum(step.prompt for step, _ in beyond)


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


def front_end(runs: list[Run]) -> FrontEnd:
    """
    Medians: towards the engine, of requests that found it idle (others wait for a step's end as well);
    back to the client, of all.

    Raises:
        ValueError: no request found the engine idle.
    """
    before = [seconds for run in runs for seconds in _alone(run.requests)]
    if not before:
        raise ValueError("no request found the engine idle")
    known = [each for run in runs for each in run.requests]
    return FrontEnd(
        before=median(before),
        after_first=median(
            each.first_token - each.engine_first for each in known if each.engine_first is not None
        ),
        after_last=median(
            each.finished - each.engine_finished
            for each in known
            if each.engine_finished is not None
        ),
    )


def _alone(requests: list[Sent]) -> list[float]:
    """Seconds from sending to the engine's queue, of requests that found the engine idle."""
    found = []
    busy_until = 0.0
    for each in sorted(requests, key=lambda each: each.queued or 0.0):
        if each.queued is not None and each.engine_finished is not None:
            if each.queued > busy_until:
                found.append(each.queued - each.sent)
            busy_until = max(busy_until, each.engine_finished)
    return found


def speed(run: Run, profile: Profile) -> float | None:
    """
    How long the steps of a run took against what the constants say of the same steps.

    The machine's speed in that run: what a step computed is taken from its log, not from a simulation.

    Returns:
        A ratio; above 1 where the machine was slower. None where the steps were not logged.
    """
    sums = run.busy_steps
    if sums is None:
        return None
    return sums["seconds"] / (
        profile.step_fixed * sums["steps"]
        + profile.step_per_sequence * sums["sequences"]
        + profile.step_per_kv_token * sums["resident"]
        + profile.step_per_prefill_token * sums["prompt_tokens"]
    )


def scaled(profile: Profile, ratio: float) -> Profile:
    """Return the profile with every step longer by this ratio."""
    return replace(
        profile,
        step_fixed=profile.step_fixed * ratio,
        step_per_sequence=profile.step_per_sequence * ratio,
        step_per_kv_token=profile.step_per_kv_token * ratio,
        step_per_prefill_token=profile.step_per_prefill_token * ratio,
    )
