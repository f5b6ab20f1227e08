"""From outcomes to the rows of the scoreboard. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from scoreboard.judge import add, baseline_score
from scoreboard.scenarios import CALM, HEAL, RAMP, SUDDEN, TUNE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headroom_exporter.backtest.score import Score
    from scoreboard.baselines import Baseline
    from scoreboard.judge import Outcome
    from scoreboard.scenarios import Scenario

WEEK = 7 * 86_400.0
CANDIDATES = 60
# A sudden spike cannot be foreseen; it can be told within so many seconds.
SUDDEN_SECONDS = -120.0

Scored = tuple["Score", tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One detector over a set of scenarios.

    Attributes:
        caught, sustained: Sustained breaches with a page, and all.
        ramp_leads: Seconds of lead before the first breach of each server, where it could be foreseen;
            None where no page came.
        sudden_leads: The same where it could not.
        false_calm: False pages in calm and self-healing traffic.
        false_other: False pages elsewhere: before a breach by more than half an hour, or none came.
        calm_weeks: Replica-weeks of calm and self-healing traffic.
        flaps: Pages that came soon after all of before had resolved.
        named, nameable: Pages that name the true constraint, and those that could.
    """

    caught: int
    sustained: int
    ramp_leads: tuple[float | None, ...]
    sudden_leads: tuple[float | None, ...]
    false_calm: int
    false_other: int
    calm_weeks: float
    flaps: int
    pages: int
    named: int
    nameable: int

    @property
    def median_lead(self) -> float | None:
        """On what could be foreseen; what no page came for counts as none at all, the worst."""
        if not self.ramp_leads:
            return None
        return median(-1e9 if lead is None else lead for lead in self.ramp_leads)

    @property
    def sudden_in_time(self) -> int:
        """Sudden breaches with a page within two minutes."""
        return sum(lead is not None and lead >= SUDDEN_SECONDS for lead in self.sudden_leads)


def row(scored: Sequence[tuple[Scenario, Scored]]) -> Row:
    """Add scenarios up."""
    calm = [(scenario, one) for scenario, (one, _) in scored if scenario.kind in (CALM, HEAL)]
    other = [one for scenario, (one, _) in scored if scenario.kind not in (CALM, HEAL)]
    total = add(one for _, (one, _) in scored)
    return Row(
        caught=total.caught,
        sustained=total.caught + total.missed,
        ramp_leads=_leads(scored, RAMP),
        sudden_leads=_leads(scored, SUDDEN),
        false_calm=sum(one.false_pages for _, one in calm),
        false_other=sum(one.false_pages for one in other),
        calm_weeks=sum(len(scenario.servers) * scenario.seconds for scenario, _ in calm) / WEEK,
        flaps=total.flaps,
        pages=total.pages,
        named=total.named,
        nameable=total.nameable,
    )


def _leads(scored: Sequence[tuple[Scenario, Scored]], kind: str) -> tuple[float | None, ...]:
    return tuple(lead for scenario, (_, leads) in scored if scenario.kind == kind for lead in leads)


def ours(
    scenarios: Sequence[Scenario], outcomes: Mapping[str, Outcome], split: str | None = None
) -> Row:
    """Our rules."""
    return row(
        [
            (each, (outcomes[each.name].ours, outcomes[each.name].leads))
            for each in scenarios
            if split in (None, each.split)
        ]
    )


def published(
    baseline: Baseline,
    scenarios: Sequence[Scenario],
    outcomes: Mapping[str, Outcome],
    threshold: float | None = None,
) -> Row:
    """A baseline, at its own threshold or another."""
    level = baseline.threshold if threshold is None else threshold
    return row(
        [(each, baseline_score(baseline, level, outcomes[each.name], each)) for each in scenarios]
    )


def tuned(
    baseline: Baseline,
    scenarios: Sequence[Scenario],
    outcomes: Mapping[str, Outcome],
    allowed: int,
) -> float | None:
    """
    The threshold with which a baseline does best on the tune scenarios at our rate of false pages.

    Args:
        baseline: Which.
        scenarios: All; only those of ``tune`` are looked at.
        outcomes: By scenario.
        allowed: False pages that ours have there, calm or not.

    Returns:
        Of sixty quantiles of the values seen: most breaches caught, then the longest median lead.
        None where there are no values. The largest never fires, so something is always left.
    """
    own = [each for each in scenarios if each.split == TUNE]
    best: tuple[tuple[int, float], float] | None = None
    for threshold in _candidates(baseline, own, outcomes):
        found = published(baseline, own, outcomes, threshold)
        if found.false_calm + found.false_other > allowed:
            continue
        lead = found.median_lead
        worth = (found.caught, -1e12 if lead is None else lead)
        if best is None or worth > best[0]:
            best = (worth, threshold)
    return None if best is None else best[1]


def _candidates(
    baseline: Baseline, scenarios: Sequence[Scenario], outcomes: Mapping[str, Outcome]
) -> list[float]:
    values = sorted(
        value
        for scenario in scenarios
        for series in outcomes[scenario.name].values[baseline.id]
        for value in series.values
    )
    if not values:
        return []
    # Detectors fire in the tails, so that is where thresholds are tried.
    ranks = [*(0.5 + 0.5 * (1 - 0.85**step) for step in range(CANDIDATES - 1)), 1.0]
    if not baseline.above:
        ranks = [1 - rank for rank in ranks]
    return sorted({values[min(len(values) - 1, int(rank * len(values)))] for rank in ranks})
