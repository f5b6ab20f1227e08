"""What a rank's numbers come to, in a sentence, and what to do about it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.samples import Constraint, Derived, HeadroomState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headroom_exporter.config import PlanConfig
    from headroom_exporter.samples import EngineState, RankSample
    from headroom_exporter.status.plan import Dimension

NAMES = {
    Constraint.SLOTS: "slots (max_num_seqs)",
    Constraint.KV_CACHE: "the KV cache",
    Constraint.LATENCY: "the planned time per token",
    Constraint.PREFILL: "computing prompts",
}
BINDS_FIRST = {
    Constraint.SLOTS: "Slots (max_num_seqs) bind first",
    Constraint.KV_CACHE: "KV cache binds first",
    Constraint.LATENCY: "The planned time per token binds first",
    Constraint.PREFILL: "Computing prompts binds first",
}
WAIT_FOR = {
    Constraint.SLOTS: "a slot (max_num_seqs)",
    Constraint.KV_CACHE: "room in the KV cache",
    Constraint.LATENCY: "the planned time per token",
    Constraint.PREFILL: "their prompts to be computed",
}
WHAT_TO_DO = {
    Constraint.SLOTS: "Raise --max-num-seqs while the KV cache has room; else send load elsewhere or "
    "add a replica.",
    Constraint.KV_CACHE: "Send load elsewhere or add a replica now; shorter max_tokens or prompts make "
    "each sequence smaller.",
    Constraint.LATENCY: "More at once would break the planned time per token: send load elsewhere or "
    "add a replica.",
    Constraint.PREFILL: "Prompts come faster than they are computed: send long prompts elsewhere, or "
    "raise --max-num-batched-tokens.",
}
NO_IDEA = "Send load elsewhere or add a replica; what stops the next sequence is not known."


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A sentence, and the alert whose runbook says more; None where there is none."""

    text: str
    alert: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    What to make of a rank.

    Attributes:
        sentence: The whole in one sentence.
        advice: What to do now; None where there is nothing to do.
        alert: Whose runbook to open; None where there is nothing to do.
        notes: What else is worth knowing: deviations from the plan.
    """

    sentence: str
    advice: str | None = None
    alert: str | None = None
    notes: tuple[Note, ...] = ()


def engine_away(engine: EngineState, age: float | None = None) -> Verdict:
    """
    The verdict where an engine's samples cannot be shown: it is down, or was not asked yet.

    Args:
        engine: How it is polled.
        age: Seconds since its last good answer; None where there was none.
    """
    if engine.last_error is None and engine.last_success is None:
        return Verdict(sentence="Not asked yet: the first poll is on its way.")
    why = engine.last_error or "its last answer is too old"
    since = "" if age is None else f" for {_span(age)}"
    return Verdict(
        sentence=f"No data{since}: {why}.",
        advice="Nothing here says whether it has headroom until it answers again.",
        alert="HeadroomEngineDown",
    )


def rank_away() -> Verdict:
    """The verdict on a rank that the engine's last page did not hold."""
    return Verdict(
        sentence="No data: the engine answers, but this rank was not on its last page.",
        advice="Its engine process may have ended, or the model was unloaded.",
        alert="HeadroomEngineDown",
    )


def judge(
    sample: RankSample,
    derived: Derived,
    plan: PlanConfig | None,
    dimensions: Iterable[Dimension] = (),
) -> Verdict:
    """
    The verdict on a rank that is seen.

    Args:
        sample: What it says.
        derived: Its headroom.
        plan: What was declared for it; None for nothing.
        dimensions: The plan beside reality.
    """
    if derived.state == HeadroomState.UNKNOWN:
        found = _unknown(sample, derived)
    elif derived.state == HeadroomState.EXHAUSTED:
        found = _exhausted(sample, derived)
    else:
        found = _fits(derived, plan)
    return Verdict(
        sentence=found.sentence,
        advice=found.advice,
        alert=found.alert,
        notes=(*_deviations(dimensions), *_no_plan(plan)),
    )


def _unknown(sample: RankSample, derived: Derived) -> Verdict:
    if derived.reason == "stale_gauges":
        return Verdict(
            sentence="Unknown: requests run, but the engine's gauges stand still and are not believed.",
            advice="The engine may hang; look at its log. Nothing is shown until its counters move.",
            alert="HeadroomExporterStale",
        )
    if derived.reason == "no_gauges":
        return Verdict(
            sentence="Unknown: the engine publishes no running or waiting sequences.",
            advice="Some engines publish them with their first request only, some kinds never: see "
            "docs/engines.md.",
            alert="HeadroomConstraintUnknown",
        )
    return Verdict(
        sentence=f"Unknown: {_sequences(sample.running)} in the batch, and no ceiling is known yet.",
        advice="Traffic shows the ceilings by and by; a plan with max_num_seqs and lengths shows them "
        "at once.",
        alert="HeadroomConstraintUnknown",
    )


def _exhausted(sample: RankSample, derived: Derived) -> Verdict:
    waiting = sample.waiting or 0.0
    fits = _about(derived.sustainable)
    if derived.reason == "preempting":
        sentence = (
            "Overloaded: the KV cache is full and running sequences are thrown out of the batch; "
            f"{_requests(waiting)}."
        )
        alert = "HeadroomPreemptions"
    elif derived.reason == "waiting":
        for_what = "" if derived.binding is None else f" for {WAIT_FOR[derived.binding]}"
        sentence = (
            f"Overloaded: {_requests(waiting)}{for_what}; {_number(sample.running)} run, "
            f"about {fits} are sustainable."
        )
        alert = "HeadroomExhausted"
    else:
        by_what = "" if derived.binding is None else f", held by {NAMES[derived.binding]}"
        sentence = (
            f"No headroom: {_sequences(derived.demand)} want to run; about {fits} are sustainable"
            f"{by_what}."
        )
        alert = "HeadroomExhausted"
    advice = NO_IDEA if derived.binding is None else WHAT_TO_DO[derived.binding]
    return Verdict(sentence=sentence, advice=advice, alert=alert)


def _fits(derived: Derived, plan: PlanConfig | None) -> Verdict:
    """State ok or low: both say how many more fit, and whether the plan's spike would."""
    binds = "It fits" if derived.binding is None else BINDS_FIRST[derived.binding]
    more = math.floor(derived.headroom or 0.0)
    fit = "1 more sequence fits" if more == 1 else f"{more} more sequences fit"
    clause, spike_fits = _spike(derived, plan)
    if derived.state == HeadroomState.LOW:
        floor = (
            "" if plan is None else f", less than the {plan.floor_ratio:.0%} the plan keeps free"
        )
        advice = NO_IDEA if derived.binding is None else WHAT_TO_DO[derived.binding]
        return Verdict(
            sentence=f"{binds}: only {fit}{floor}.", advice=advice, alert="HeadroomBudgetBurn"
        )
    if spike_fits is False:
        return Verdict(
            sentence=f"{binds}: {fit}; {clause}.",
            advice="Nothing to do at this minute; a spike as the plan foresees it would queue.",
            alert="HeadroomSpikeUnsafe",
        )
    return Verdict(sentence=f"{binds}: {fit}{'; ' if clause else ''}{clause}.")


def _spike(derived: Derived, plan: PlanConfig | None) -> tuple[str, bool | None]:
    """What the plan's spike would do, and whether it fits; nothing where it cannot be told."""
    if plan is None or derived.spike_multiple is None:
        return "", None
    if derived.spike_multiple >= plan.spike_factor:
        return f"the plan's {plan.spike_factor:g}x spike would fit too", True
    return f"the plan's {plan.spike_factor:g}x spike would not", False


def _deviations(dimensions: Iterable[Dimension]) -> list[Note]:
    return [
        Note(
            text=_DEVIATION[each.name].format(_figure(each.observed), _figure(each.planned)),
            alert=alert,
        )
        for each in dimensions
        if each.fit == "over"
        for alert in (_ALERTS.get(each.name, "HeadroomPlanOutgrown"),)
    ]


_DEVIATION = {
    "concurrency": "Demand peaked at {0} sequences within 5 minutes; the plan is made for {1}.",
    "request_rate": "{0} requests a second come in; the plan is made for {1}.",
    "prompt_p50": "Half of the prompts are longer than {0} tokens; the plan says {1}.",
    "prompt_p95": "More than 5 % of the prompts are longer than the {1} tokens of the plan.",
    "output_p50": "Half of the answers are longer than {0} tokens; the plan says {1}.",
    "output_p95": "More than 5 % of the answers are longer than the {1} tokens of the plan.",
    "ttft_p95": "More than 5 % of the requests wait longer than the planned {1} s for a first token.",
    "tpot_p95": "More than 5 % of the tokens take longer than the planned {1} s.",
    "kv_tokens": "The KV pool holds {0} tokens; the plan counts on {1}.",
}
_ALERTS = {"prompt_p50": "HeadroomPromptsOutgrewPlan", "prompt_p95": "HeadroomPromptsOutgrewPlan"}


def _no_plan(plan: PlanConfig | None) -> tuple[Note, ...]:
    if plan is not None:
        return ()
    text = "No plan is declared for this model, so nothing says how much headroom is enough."
    return (Note(text=text, alert="HeadroomPlanMissing"),)


def _figure(value: float | None) -> str:
    if value is None:
        return "an unknown number of"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sequences(count: float | None) -> str:
    if count is None:
        return "an unknown number of sequences"
    return "1 sequence" if count == 1 else f"{count:,.0f} sequences"


def _requests(count: float) -> str:
    return "1 request waits" if count == 1 else f"{count:,.0f} requests wait"


def _about(count: float | None) -> str:
    return "an unknown number" if count is None else f"{math.floor(count):,}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _number(count: float | None) -> str:
    return "an unknown number" if count is None else f"{count:,.0f}"
