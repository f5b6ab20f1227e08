"""Every detector on one scenario: rules and baselines evaluated by Prometheus, pages held against users."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.alerts import firings
from headroom_exporter.backtest.prometheus import Series
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.backtest.rules import AlertRule
from headroom_exporter.backtest.score import Page, Score, score
from headroom_exporter.simulate.profiles import find
from scoreboard.baselines import BASELINES, CONCURRENCY
from scoreboard.stage import ROOT, arrivals, stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headroom_exporter.backtest import Firing
    from headroom_exporter.backtest.truth import Breach
    from scoreboard.baselines import Baseline
    from scoreboard.scenarios import Scenario, Server

RULES = ROOT / "rules"
STEP = 30.0
HOUR = 3600.0
PAGE = "critical"
MIN_PROMPTS = 100
DRIFT_SHARE = 0.075
SLOPE_SECONDS = 120.0
# Student's t, one-sided 95 %, for the slope of five points.
SLOPE_T = 2.353

_BINDING = "engine:headroom_binding_constraint:ratio_rate5m"
_QUERIES = {"binding": _BINDING, "concurrency": CONCURRENCY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What came of one scenario.

    Attributes:
        name: The scenario's.
        ours: Score of our pages.
        leads: Of our pages: one for each server with a sustained breach.
        firings: Of all our alerts.
        values: What each baseline looks at, by its id.
        breaches: By server.
        outgrown: Hours in which the traffic itself exceeds the plan, by server and ``request_rate`` or
            ``prompts``.
        lost: Requests that found no server.
    """

    name: str
    ours: Score
    leads: tuple[float | None, ...]
    firings: tuple[Firing, ...]
    values: Mapping[str, tuple[Series, ...]]
    breaches: Mapping[str, tuple[Breach, ...]]
    outgrown: Mapping[tuple[str, str], tuple[int, ...]]
    lost: int


def judge(scenario: Scenario) -> Outcome:
    """Evaluate everything on one scenario."""
    played = stage(scenario)
    pool = find(scenario.profile).usable_blocks * find(scenario.profile).block_tokens
    queries = _QUERIES | {each.id: each.value(scenario, pool) for each in BASELINES}
    evaluation = evaluate(
        played.samples,
        [RULES],
        start=EPOCH,
        seconds=scenario.seconds,
        extra_queries=queries,
        extra_samples=[] if played.engine_samples is None else [played.engine_samples],
    )
    named = _Named(evaluation.series["binding"])
    pages = [_page(firing, named, scenario) for firing in evaluation.firings if _is_page(firing)]
    found = {name: felt.breaches for name, felt in played.felt.items()}
    strange = {page.engine for page in pages} - set(found)
    if strange:
        raise ValueError(f"{scenario.name}: pages of {strange}, which are no servers of it")
    scores = {
        name: score([page for page in pages if page.engine == name], found[name]) for name in found
    }
    values = {each.id: evaluation.series[each.id] for each in BASELINES}
    values["B69"] = _oversaturation(evaluation.series["concurrency"], values["B69"])
    return Outcome(
        name=scenario.name,
        ours=add(scores.values()),
        leads=tuple(each.lead for name, each in scores.items() if _sustained(found[name])),
        firings=evaluation.firings,
        values=values,
        breaches=found,
        outgrown={
            (server.name, dimension): hours
            for server in scenario.servers
            for dimension, hours in _outgrown(scenario, server).items()
        },
        lost=sum(felt.lost for felt in played.felt.values()),
    )


def _is_page(firing: Firing) -> bool:
    # An engine that is gone is an outage, not a lack of headroom: scored by what the scenario expects.
    return (
        firing.severity == PAGE
        and firing.fired_at is not None
        and firing.alert != "HeadroomEngineDown"
    )


def _sustained(found: Iterable[Breach]) -> bool:
    return any(breach.sustained for breach in found)


class _Named:
    """The constraint that the text of an alert names at a moment."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._known: dict[tuple[str, float], str] = {}
        for each in series:
            labels = dict(each.labels)
            for at in each.times:
                self._known[labels["engine"], at] = labels["constraint"]

    def at(self, engine: str, moment: float) -> str | None:
        return self._known.get((engine, moment))


def _page(firing: Firing, named: _Named, scenario: Scenario) -> Page:
    assert firing.fired_at is not None  # noqa: S101
    engine = dict(firing.labels).get("engine", "")
    end = scenario.seconds if firing.resolved_at is None else firing.resolved_at
    return Page(
        alert=firing.alert,
        engine=engine,
        begin=firing.fired_at,
        end=end,
        constraint=named.at(engine, firing.fired_at),
    )


def add(scores: Iterable[Score]) -> Score:
    """Counts of several, together; the lead of the first that has one."""
    each = list(scores)
    return Score(
        caught=sum(one.caught for one in each),
        missed=sum(one.missed for one in each),
        lead=next((one.lead for one in each if one.lead is not None), None),
        false_pages=sum(one.false_pages for one in each),
        flaps=sum(one.flaps for one in each),
        pages=sum(one.pages for one in each),
        named=sum(one.named for one in each),
        nameable=sum(one.nameable for one in each),
    )


def _outgrown(scenario: Scenario, server: Server) -> dict[str, tuple[int, ...]]:
    """
    Whole hours in which a server's traffic exceeds its plan, which is one for each rank.

    The mean rate is above the planned one; or of at least 100 prompts more than 7.5 % are longer than the
    planned p95, half as many again as the plan allows: an hour on plan is above 5 % every other time.
    """
    plan = scenario.plan
    requests, longer = Counter[int](), Counter[int]()
    for request in arrivals(server.traffic, scenario.seconds):
        hour = int(request.arrival // HOUR)
        requests[hour] += 1
        longer[hour] += request.prompt_tokens > (plan.prompt_tokens.p95 or math.inf)
    hours = range(int(scenario.seconds // HOUR))
    rate = math.inf if plan.request_rate is None else plan.request_rate * server.ranks
    return {
        "request_rate": tuple(hour for hour in hours if requests[hour] / HOUR > rate),
        "prompts": tuple(
            hour
            for hour in hours
            if requests[hour] >= MIN_PROMPTS and longer[hour] > DRIFT_SHARE * requests[hour]
        ),
    }


# --- baselines -----------------------------------------------------------------------------------


def baseline_score(
    baseline: Baseline, threshold: float, outcome: Outcome, scenario: Scenario
) -> tuple[Score, tuple[float | None, ...]]:
    """
    How a baseline fares on a scenario with a threshold.

    A detector that speaks of a model is held against the breaches of any of its replicas.

    Returns:
        Its score, and its lead for each server with a sustained breach.
    """
    rule = AlertRule(name=baseline.id, expr="", interval=STEP, for_seconds=baseline.seconds)
    times = [index * STEP for index in range(math.ceil(scenario.seconds / STEP))]
    up = [_past(baseline, threshold, each) for each in outcome.values[baseline.id]]
    pages = [
        Page(
            alert=baseline.id,
            engine=dict(firing.labels).get("instance", "").partition(":")[0],
            begin=firing.fired_at,
            end=scenario.seconds if firing.resolved_at is None else firing.resolved_at,
        )
        for firing in firings(rule, up, times)
        if firing.fired_at is not None
    ]
    scores, leads = [], []
    for engine, found in _told_apart(pages, outcome.breaches).items():
        one = score([page for page in pages if page.engine == engine], found)
        scores.append(one)
        if _sustained(found):
            leads.append(one.lead)
    return add(scores), tuple(leads)


def _past(baseline: Baseline, threshold: float, series: Series) -> Series:
    kept = [
        (at, value)
        for at, value in zip(series.times, series.values, strict=True)
        if (value > threshold if baseline.above else value < threshold)
    ]
    return Series(
        labels=series.labels, times=[at for at, _ in kept], values=[value for _, value in kept]
    )


def _told_apart(
    pages: Sequence[Page], found: Mapping[str, Sequence[Breach]]
) -> Mapping[str, Sequence[Breach]]:
    """Breaches by server; all together where the detector does not tell servers apart."""
    if not any(page.engine == "" for page in pages):
        return found
    everyone = sorted((each for one in found.values() for each in one), key=lambda each: each.begin)
    return {"": everyone}


def _oversaturation(concurrency: Sequence[Series], ttft: Sequence[Series]) -> tuple[Series, ...]:
    """
    GuideLLM's over-saturation: TTFT, while slopes of concurrency and of TTFT are both surely positive.

    Least squares over 120 s, five points 30 s apart; each slope above 0 with 95 %.
    """
    delays = {_instance(each): dict(zip(each.times, each.values, strict=True)) for each in ttft}
    found = []
    for each in concurrency:
        levels = dict(zip(each.times, each.values, strict=True))
        delay = delays.get(_instance(each), {})
        kept = [at for at in levels if at in delay and _rises(levels, at) and _rises(delay, at)]
        found.append(Series(labels=each.labels, times=kept, values=[delay[at] for at in kept]))
    return tuple(found)


def _instance(series: Series) -> str:
    return dict(series.labels)["instance"]


def _rises(values: Mapping[float, float], at: float) -> bool:
    count = round(SLOPE_SECONDS / STEP) + 1
    points = [(-index * STEP, values.get(at - index * STEP)) for index in range(count)]
    known = [(x, y) for x, y in points if y is not None]
    if len(known) < count:
        return False
    mean_x, mean_y = (sum(axis) / count for axis in zip(*known, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in known)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in known) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in known)
    error = math.sqrt(rest / (count - 2) / spread)
    return slope > SLOPE_T * error and slope > 0
