"""What a backtest found, as one record, and as the JSON document that scripts read. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headroom_exporter import __version__
from headroom_exporter.backtest.score import FORESIGHT_SECONDS, Page, Score, score

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from headroom_exporter.backtest import Evaluation, Firing, Series
    from headroom_exporter.backtest.play import Felt
    from headroom_exporter.config import PlanConfig
    from headroom_exporter.simulate.profiles import Profile
    from headroom_exporter.simulate.traffic import Survey

FORMAT, VERSION = "headroom-exporter backtest", 1
PAGE = "critical"
# An engine that is gone is an outage, not a lack of headroom: neither right nor wrong about breaches.
OUTAGE = "HeadroomEngineDown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """
    A series that the report draws or reads.

    Attributes:
        expr: PromQL, over the exporter's own metrics and what the rules record.
        unit: Of its values.
        what: For people.
    """

    expr: str
    unit: str
    what: str


# Sums over ranks: a server is one thing to its users. The last one is recorded by the shipped rules;
# with others it may be absent, and then no page names a constraint.
QUERIES: Mapping[str, Query] = {
    "demand_mean": Query(
        expr="sum without (rank) (rate(headroom_demand_sequences_sum[5m])"
        " / (rate(headroom_demand_sequences_count[5m]) > 0))",
        unit="sequences",
        what="demand, running and waiting, mean of five minutes",
    ),
    "demand_peak": Query(
        expr='sum without (rank, window) (headroom_peak_demand_sequences{window="1m"})',
        unit="sequences",
        what="largest demand of the last minute",
    ),
    "capacity": Query(
        expr="sum without (rank) (avg_over_time(headroom_capacity_sequences[5m]))",
        unit="sequences",
        what="what each constraint lets run, mean of five minutes",
    ),
    "ttft_p95": Query(
        expr="histogram_quantile(0.95, sum without (rank)"
        " (rate(headroom_time_to_first_token_seconds_bucket[5m]))) >= 0",
        unit="seconds",
        what="time to first token, 95th percentile of five minutes, from the engine's histogram",
    ),
    "tpot_p95": Query(
        expr="histogram_quantile(0.95, sum without (rank)"
        " (rate(headroom_inter_token_latency_seconds_bucket[5m]))) >= 0",
        unit="seconds",
        what="time between tokens, 95th percentile of five minutes, from the engine's histogram",
    ),
    "exhausted": Query(
        expr="max without (rank) (sum without (state)"
        ' (rate(headroom_state_seconds_total{state="exhausted"}[5m])))',
        unit="ratio",
        what="share of the last five minutes without headroom, of the worst rank",
    ),
    "binding": Query(
        expr="engine:headroom_binding_constraint:ratio_rate5m",
        unit="ratio",
        what="share of time for which the constraint bound that an alert's text would name",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """
    What was played.

    Attributes:
        trace: As the command line names it.
        offset: The traffic's own clock at second 0 of the recording, seconds.
        seconds: How long.
        survey: What the traffic amounts to.
        events: What befell the engine, as on the command line.
        profile: Of the engine, limits by flags included.
        ranks: Data-parallel ranks.
        plan: In force.
        plan_file: Where it stands.
        notes: What the reader should know of how this was chosen; a sentence each.
        rule_files: What Prometheus loaded.
    """

    trace: str
    offset: float
    seconds: float
    survey: Survey
    events: tuple[str, ...] = ()
    profile: Profile
    ranks: int = 1
    plan: PlanConfig
    plan_file: Path
    notes: tuple[str, ...] = ()
    rule_files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    What came of it.

    Attributes:
        stage: What was played.
        felt: What users felt.
        evaluation: What the rules made of it; ``series`` has the answers to QUERIES.
        pages: Alerts that would have got a person up, outages apart.
        score: Of these pages.
        wall_seconds: How long it all took.
    """

    stage: Stage
    felt: Felt
    evaluation: Evaluation
    pages: tuple[Page, ...]
    score: Score
    wall_seconds: float

    @property
    def fired(self) -> tuple[Firing, ...]:
        """Alerts that were more than pending: by severity, then in the order of time."""
        found = (each for each in self.evaluation.firings if each.fired_at is not None)
        return tuple(sorted(found, key=lambda each: (rank_of(each.severity), each.fired_at or 0.0)))

    @property
    def up(self) -> tuple[tuple[str, str], ...]:
        """Severity and name of each alert that ever became pending: worst first, then by time."""
        found = sorted(
            self.evaluation.firings, key=lambda each: (rank_of(each.severity), each.pending_at)
        )
        return tuple(dict.fromkeys((each.severity, each.alert) for each in found))

    @property
    def end(self) -> float:
        """Seconds."""
        return self.stage.seconds

    def constraint(self, firing: Firing) -> str | None:
        """What the text of a page named as it fired; None for whatever is no page."""
        for page in self.pages:
            if (page.alert, page.begin) == (firing.alert, firing.fired_at):
                return page.constraint
        return None


def rank_of(severity: str) -> int:
    """Worst first; severities of other people's rules last."""
    known = (PAGE, "warning", "info")
    return known.index(severity) if severity in known else len(known)


def build(stage: Stage, felt: Felt, evaluation: Evaluation, wall_seconds: float) -> Report:
    """Hold the pages of one server against what its users felt."""
    found = pages(evaluation.firings, evaluation.series["binding"], stage.seconds)
    return Report(
        stage=stage,
        felt=felt,
        evaluation=evaluation,
        pages=found,
        score=score(found, felt.breaches),
        wall_seconds=wall_seconds,
    )


def pages(firings: Iterable[Firing], binding: Sequence[Series], seconds: float) -> tuple[Page, ...]:
    """
    The alerts that get a person up for lack of headroom.

    Args:
        firings: All, in any order.
        binding: What binds, as the rules record it: labels ``engine`` and ``constraint``.
        seconds: The recording's length.
    """
    named = {
        (dict(each.labels).get("engine", ""), at): dict(each.labels).get("constraint")
        for each in binding
        for at in each.times
    }
    found = []
    for firing in firings:
        if firing.severity != PAGE or firing.fired_at is None or firing.alert == OUTAGE:
            continue
        engine = dict(firing.labels).get("engine", "")
        found.append(
            Page(
                alert=firing.alert,
                engine=engine,
                begin=firing.fired_at,
                end=seconds if firing.resolved_at is None else firing.resolved_at,
                constraint=named.get((engine, firing.fired_at)),
            )
        )
    return tuple(found)


# --- JSON ----------------------------------------------------------------------------------------


def document(report: Report) -> dict[str, Any]:
    """
    Everything, as JSON can say it: docs/backtesting.md describes the keys.

    Times are seconds since the recording began; ``traffic.clock_offset_seconds`` added, they are those
    of the traffic's own clock. What is unknown is null, and what is no number is left out.
    """
    stage, felt = report.stage, report.felt
    return {
        "format": FORMAT,
        "version": VERSION,
        "exporter_version": __version__,
        "simulated": True,
        "wall_seconds": round(report.wall_seconds, 3),
        "traffic": {
            "trace": stage.trace,
            "clock_offset_seconds": stage.offset,
            "seconds": stage.seconds,
            "requests": stage.survey.requests,
            "prompt_tokens": stage.survey.prompt_tokens,
            "output_tokens": stage.survey.output_tokens,
            "events": list(stage.events),
        },
        "profile": {**asdict(stage.profile), "ranks": stage.ranks},
        "plan": {**asdict(stage.plan), "file": str(stage.plan_file)},
        "notes": list(stage.notes),
        "rule_files": [str(file) for file in stage.rule_files],
        "rules": [
            {**asdict(rule), "labels": dict(rule.labels), "annotations": dict(rule.annotations)}
            for rule in report.evaluation.rules
        ],
        "alerts": [
            {**asdict(each), "value": _finite(each.value), "labels": dict(each.labels)}
            | {"constraint": report.constraint(each)}
            for each in report.evaluation.firings
        ],
        "users": {
            "requests": felt.requests,
            "lost": felt.lost,
            "minutes": [{**asdict(each), "breach": each.breach} for each in felt.minutes],
            "breaches": [{**asdict(each), "sustained": each.sustained} for each in felt.breaches],
        },
        "score": {**asdict(report.score), "lead_capped_at_seconds": FORESIGHT_SECONDS},
        "series": {
            name: _series(QUERIES[name], found) for name, found in report.evaluation.series.items()
        },
    }


def _series(query: Query, found: Sequence[Series]) -> dict[str, Any]:
    lines = []
    for each in found:
        kept = [
            (at, value)
            for at, value in zip(each.times, each.values, strict=True)
            if math.isfinite(value)
        ]
        lines.append(
            {
                "labels": dict(each.labels),
                "times": [at for at, _ in kept],
                "values": [value for _, value in kept],
            }
        )
    return {**asdict(query), "lines": lines}


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: a wait that is infinite, as nothing leaves the queue, is not told."""
    return value if value is not None and math.isfinite(value) else None
