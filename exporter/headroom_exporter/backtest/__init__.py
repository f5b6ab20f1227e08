"""
Would the alerts have fired? Recorded samples, the shipped rule files, a real Prometheus in between.

Rules are evaluated in virtual time: each recording rule is range-queried at its group's rhythm, its results
become blocks like those of the samples, then the rules that read it follow, at last the alerts. A rule
sees what others recorded at the same instant; in a running Prometheus, groups are evaluated at different
moments of their interval, so there an alert can be one evaluation later.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter.backtest.alerts import Firing, firings
from headroom_exporter.backtest.prometheus import (
    Labels,
    Series,
    by_labels,
    check_rules,
    evaluations,
    make_blocks,
    serve,
    write_samples,
)
from headroom_exporter.backtest.rules import (
    AlertRule,
    RecordingRule,
    RuleSet,
    expressions,
    fill_step,
    from_api,
    levels,
    refuse_counts,
    rule_files,
)
from headroom_exporter.errors import HeadroomError
from headroom_exporter.samples import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from headroom_exporter.backtest.prometheus import Prometheus

__all__ = ["AlertRule", "Evaluation", "Firing", "Series", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """
    What the rules made of a recording.

    Attributes:
        firings: Of all alerts, in the order in which they became pending.
        series: The answers to the extra queries, by their name.
        rules: The alerts, as Prometheus parsed them.
    """

    firings: tuple[Firing, ...]
    series: Mapping[str, tuple[Series, ...]]
    rules: tuple[AlertRule, ...]


def evaluate(
    samples: Path,
    rules: Sequence[Path],
    *,
    start: float,
    seconds: float,
    scrape_interval: float = 15.0,
    evaluation_interval: float = 30.0,
    extra_queries: Mapping[str, str] = NOTHING,
    workdir: Path | None = None,
    extra_samples: Sequence[Path] = (),
) -> Evaluation:
    """
    Evaluate rule files, as shipped, over a recording.

    Args:
        samples: OpenMetrics text with timestamps: scrapes at ``start`` + multiples of their interval.
        rules: Rule files, or directories with ``recording/*.yaml`` and ``alerts/*.yaml``.
        start: Unix seconds of the recording's time 0; a multiple of ``evaluation_interval``.
        seconds: The recording's length; the last evaluation comes before it.
        scrape_interval: Seconds between scrapes.
        evaluation_interval: Seconds between evaluations of a group that names no interval.
        extra_queries: Name to PromQL: queried too, at ``evaluation_interval``.
        workdir: Where a temporary directory is made; it is removed at the end.
        extra_samples: More texts like ``samples``.

    Raises:
        HeadroomError: prometheus or promtool is missing or refuses something; a rule that cannot be
            evaluated this way; intervals that do not fit together.
    """
    files = rule_files(rules)
    check_rules(files)
    with tempfile.TemporaryDirectory(prefix="headroom-backtest-", dir=workdir) as name:
        loaded = _load(files, Path(name) / "rules", evaluation_interval)
        step = fill_step(loaded, evaluation_interval)
        refuse_counts(loaded, step)
        recording = _Recording(
            folder=Path(name) / "recording",
            start=start,
            seconds=seconds,
            scrape_interval=scrape_interval,
            evaluation_interval=evaluation_interval,
            step=step,
        )
        _refuse_misfits(recording, loaded)
        recording.folder.mkdir()
        for text in (samples, *extra_samples):
            make_blocks(text, recording.folder / "data")
        for level in levels(loaded.recordings):
            _record(recording, level)
        return _conclude(recording, loaded, extra_queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """What is being evaluated; ``step`` is that of recorded series."""

    folder: Path
    start: float
    seconds: float
    scrape_interval: float
    evaluation_interval: float
    step: float

    def serve(self) -> AbstractContextManager[Prometheus]:
        # Text has no staleness markers. Evaluations come at the moments of scrapes, so a sample need not
        # be seen for longer than until the next: what is gone from a scrape is gone at once, as it is
        # with markers.
        return serve(
            self.folder,
            origin=self.start,
            evaluation_interval=self.evaluation_interval,
            lookback=self.scrape_interval - 0.001,
        )


def _load(files: Sequence[Path], folder: Path, evaluation_interval: float) -> RuleSet:
    """Have a Prometheus without data load the files; what it evaluates at the present is thrown away."""
    folder.mkdir()
    with serve(
        folder,
        origin=0.0,
        evaluation_interval=evaluation_interval,
        lookback=evaluation_interval,
        rules=files,
    ) as prometheus:
        loaded = from_api(prometheus.rule_groups())
    count = len(loaded.recordings) + len(loaded.alerts)
    # It takes a path as a pattern, and a pattern that matches nothing is no error to it.
    if count != len(expressions(files)):
        raise HeadroomError(
            f"{', '.join(map(str, files))}: Prometheus loaded {count} rules of"
            f" {len(expressions(files))}; allowed: paths without * ? [ and \\"
        )
    return loaded


def _refuse_misfits(recording: _Recording, rules: RuleSet) -> None:
    """Evaluations must meet scrapes, and the instants of subqueries (multiples of their step) both."""
    scrape = round(recording.scrape_interval * 1000)
    for interval in sorted(rules.intervals | {recording.evaluation_interval}):
        if round(interval * 1000) % scrape:
            raise HeadroomError(
                f"evaluation interval {interval:g} s; allowed: multiples of the scrape interval"
                f" {recording.scrape_interval:g} s"
            )
    if round(recording.start * 1000) % round(recording.evaluation_interval * 1000):
        raise HeadroomError(
            f"start {recording.start:.3f}; allowed: multiples of the evaluation interval"
            f" {recording.evaluation_interval:g} s"
        )


def _record(recording: _Recording, rules: Sequence[RecordingRule]) -> None:
    """Evaluate recording rules that read nothing of each other, and add their series to the data."""
    text = recording.folder / "recorded.txt"
    with recording.serve() as prometheus, text.open("w", encoding="utf-8") as out:
        found: dict[str, list[tuple[Labels, Series]]] = {}
        for rule in rules:
            step = rule.interval
            for each in prometheus.query_range(rule.expr, seconds=recording.seconds, step=step):
                filled = _filled(recording, rule, each)
                found.setdefault(rule.name, []).append(
                    (_recorded_labels(rule, each.labels), filled)
                )
        for name, series in found.items():
            for labels, values in by_labels(name, series).items():
                write_samples(out, name, labels, recording.start, sorted(values.items()))
        out.write("# EOF\n")
    if found:
        make_blocks(text, recording.folder / "data")
    text.unlink()


def _recorded_labels(rule: RecordingRule, labels: Labels) -> Labels:
    found = {**dict(labels), **dict(rule.labels)}
    return tuple(sorted((key, text) for key, text in found.items() if text and key != "__name__"))


def _filled(recording: _Recording, rule: RecordingRule, series: Series) -> Series:
    """The same with each value repeated until the rule's next evaluation."""
    offsets = [index * recording.step for index in range(round(rule.interval / recording.step))]
    if len(offsets) == 1:
        return series
    return Series(
        labels=series.labels,
        times=[at + offset for at in series.times for offset in offsets],
        values=[value for value in series.values for _ in offsets],
    )


def _conclude(
    recording: _Recording, rules: RuleSet, extra_queries: Mapping[str, str]
) -> Evaluation:
    """Query the alerts and the extra queries once everything is recorded."""
    seconds, found = recording.seconds, list[Firing]()
    with recording.serve() as prometheus:
        for rule in rules.alerts:
            step = rule.interval
            results = prometheus.query_range(rule.expr, seconds=seconds, step=step)
            # Rounded as the answers are: 3 x 0.1 is another number than 0.3.
            times = [round(index * step, 3) for index in range(evaluations(seconds, step))]
            found.extend(firings(rule, results, times))
        series = {
            name: prometheus.query_range(expr, seconds=seconds, step=recording.evaluation_interval)
            for name, expr in extra_queries.items()
        }
    found.sort(key=lambda each: (each.pending_at, each.alert, each.labels))
    return Evaluation(firings=tuple(found), series=series, rules=rules.alerts)
