"""
What stands in Prometheus rule files: which metrics they read, in which order they build on each other.

Prometheus itself parses them (``from_api``); the files are read here only for what must be known before
it has samples: the names of the metrics.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from headroom_exporter.errors import HeadroomError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
# PromQL that would mean something else, or nothing, when a rule is evaluated over a whole recording.
_REFUSED = (
    (re.compile(r"\bALERTS(_FOR_STATE)?\b"), "alerts are worked out after all queries"),
    (re.compile(r"@\s*(start|end)\s*\("), "a rule has no range; write the time without it"),
    (re.compile(r'__name__"?\s*(=~|!=|!~)'), "name each metric in full: only those are recorded"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRule:
    """
    A rule that records series.

    Attributes:
        name: The recorded name.
        expr: PromQL, as Prometheus prints it.
        interval: Seconds between evaluations of its group.
        labels: What the rule sets; an empty value takes the label away.
    """

    name: str
    expr: str
    interval: float
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """
    A rule that alerts.

    Attributes:
        name: The alert's name.
        expr: PromQL, as Prometheus prints it.
        interval: Seconds between evaluations of its group.
        for_seconds: How long it is pending before it fires.
        keep_firing_for: Seconds for which it goes on firing without its condition.
        labels: What the rule sets; values can be templates.
        annotations: Templates, not rendered.
    """

    name: str
    expr: str
    interval: float
    for_seconds: float = 0.0
    keep_firing_for: float = 0.0
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def severity(self) -> str:
        """Its label of this name; empty where it has none."""
        return dict(self.labels).get("severity", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """Every rule, in the order of the files."""

    recordings: tuple[RecordingRule, ...] = ()
    alerts: tuple[AlertRule, ...] = ()

    @property
    def both(self) -> tuple[RecordingRule | AlertRule, ...]:
        """All of them."""
        return (*self.recordings, *self.alerts)

    @property
    def intervals(self) -> frozenset[float]:
        """Seconds between evaluations, of all groups."""
        return frozenset(rule.interval for rule in self.both)


def rule_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """
    The files that are meant by files and directories.

    Args:
        paths: A rule file, or a directory with ``recording/*.yaml`` and ``alerts/*.yaml``.

    Returns:
        Files, those of a directory sorted by name, recording rules first.

    Raises:
        HeadroomError: a path is neither, or holds no rule file.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = [*sorted(path.glob("recording/*.yaml")), *sorted(path.glob("alerts/*.yaml"))]
        if not found or not found[0].is_file():
            raise HeadroomError(
                f"{path}: no rule files; allowed: a rule file, or a directory with"
                " recording/*.yaml and alerts/*.yaml"
            )
        files.extend(each.resolve() for each in found)
    return tuple(dict.fromkeys(files))


def expressions(files: Iterable[Path]) -> tuple[str, ...]:
    """
    The PromQL of every rule, as it stands in the files.

    Raises:
        HeadroomError: a file cannot be read or is no rule file.
    """
    found: list[str] = []
    for file in files:
        try:
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            found += [
                str(rule["expr"])
                for group in (document or {}).get("groups") or ()
                for rule in group.get("rules") or ()
            ]
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise HeadroomError(f"{file}: cannot be read: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise HeadroomError(f"{file}: not a Prometheus rule file: {error!r}") from error
    return tuple(found)


def names_in(text: str, known: Collection[str]) -> frozenset[str]:
    """Which of the known names stand in a PromQL expression."""
    return frozenset(_WORD.findall(text)).intersection(known)


def metric_names(files: Iterable[Path], known: Collection[str]) -> frozenset[str]:
    """
    Which metrics the rules read, so that nothing else need be recorded.

    Args:
        files: From ``rule_files``.
        known: Sample names that could be recorded, those of histograms with their suffix.

    Raises:
        HeadroomError: a file cannot be read or is no rule file.
    """
    return frozenset[str]().union(*(names_in(expr, known) for expr in expressions(files)))


def from_api(groups: Sequence[Mapping[str, Any]]) -> RuleSet:
    """
    Take the rules as Prometheus parsed them.

    Args:
        groups: ``data.groups`` of its answer to ``/api/v1/rules``; durations are seconds there.

    Raises:
        HeadroomError: a rule that cannot be evaluated over a recording.
    """
    recordings: list[RecordingRule] = []
    alerts: list[AlertRule] = []
    for group in groups:
        if group.get("limit"):
            raise HeadroomError(
                f"{group['file']}: group {group['name']}: limit {group['limit']}: not supported by"
                " the backtest; allowed: none"
            )
        for rule in group["rules"]:
            _refuse(group["file"], rule["name"], rule["query"])
            if rule["type"] == "recording":
                recordings.append(_recording(rule, group["interval"]))
            else:
                alerts.append(_alert(rule, group["interval"]))
    return RuleSet(recordings=tuple(recordings), alerts=tuple(alerts))


def _refuse(file: str, name: str, expr: str) -> None:
    for pattern, why in _REFUSED:
        if found := pattern.search(expr):
            raise HeadroomError(
                f"{file}: {name}: {found[0]!r} is not supported by the backtest: {why}"
            )


def _recording(rule: Mapping[str, Any], interval: float) -> RecordingRule:
    return RecordingRule(
        name=rule["name"],
        expr=rule["query"],
        interval=float(interval),
        labels=tuple(sorted(rule.get("labels", {}).items())),
    )


def _alert(rule: Mapping[str, Any], interval: float) -> AlertRule:
    return AlertRule(
        name=rule["name"],
        expr=rule["query"],
        interval=float(interval),
        for_seconds=float(rule.get("duration", 0)),
        keep_firing_for=float(rule.get("keepFiringFor", 0)),
        labels=tuple(sorted(rule.get("labels", {}).items())),
        annotations=tuple(sorted(rule.get("annotations", {}).items())),
    )


def levels(recordings: Sequence[RecordingRule]) -> tuple[tuple[RecordingRule, ...], ...]:
    """
    Put recording rules in an order in which each finds what it reads.

    Returns:
        Levels: the rules of one read only what those before recorded, and samples.

    Raises:
        HeadroomError: rules read each other, or one reads itself. (Prometheus would give them their
            values of the evaluation before, which no order can.)
    """
    names = frozenset(rule.name for rule in recordings)
    left, found = list(recordings), []
    while left:
        # Several rules can record one name: whoever reads it needs them all.
        missing = {rule.name for rule in left}
        level = [rule for rule in left if not names_in(rule.expr, names) & missing]
        if not level:
            raise HeadroomError(
                f"recording rules read each other or themselves: {', '.join(sorted(missing))};"
                " allowed: rules that build on other rules without a circle"
            )
        found.append(tuple(level))
        left = [rule for rule in left if rule not in level]
    return tuple(found)


def fill_step(rules: RuleSet, evaluation_interval: float) -> float:
    """
    The step that meets every evaluation of every rule, seconds.

    Recorded series are written at this step, because a lookback that bridged the gaps of a slow group
    would also make every sample that is gone live on for so long.
    """
    every = [round(each * 1000) for each in rules.intervals | {evaluation_interval}]
    return math.gcd(*every) / 1000


def refuse_counts(rules: RuleSet, step: float) -> None:
    """
    Refuse rules that count samples which ``fill_step`` multiplied.

    Raises:
        HeadroomError: a rule counts or sums samples of a series recorded at longer intervals.
    """
    slow = {rule.name for rule in rules.recordings if rule.interval > step}
    for rule in rules.both:
        for name in re.findall(r"\b(?:count|sum)_over_time\(([a-zA-Z_:][\w:]*)", rule.expr):
            if name in slow:
                raise HeadroomError(
                    f"{rule.name}: counts samples of {name}, which the backtest repeats every"
                    f" {step:g} s; allowed: avg_over_time, max_over_time and the like, or the"
                    " interval of the other groups for it"
                )
