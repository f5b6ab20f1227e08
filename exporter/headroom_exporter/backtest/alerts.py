"""
When an alert was pending, fired and resolved, from the results of its expression. Pure.

The rules are those of Prometheus for ``for`` and ``keep_firing_for``; a test holds them against
``promtool test rules`` on the same series.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.backtest.prometheus import by_labels
from headroom_exporter.errors import HeadroomError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headroom_exporter.backtest.prometheus import Labels, Series
    from headroom_exporter.backtest.rules import AlertRule

_LABEL = re.compile(r"\{\{-?\s*\$labels\.([a-zA-Z_]\w*)\s*-?\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """
    One time that one alert was up, from pending to resolved. Times are seconds since the start.

    Attributes:
        alert: The alert's name.
        severity: Its label of this name; empty where it has none.
        labels: What identifies it, sorted by name; without the alert's name.
        pending_at: First evaluation at which the condition held.
        fired_at: First evaluation at which it had held for long enough; None if it never did.
        resolved_at: Evaluation at which it was gone, and what keeps it firing had run out; None if
            it was still up at the end.
        value: Of the expression when it fired, or when it became pending if it never fired.
    """

    alert: str
    severity: str
    labels: Labels
    pending_at: float
    fired_at: float | None
    resolved_at: float | None
    value: float | None


@dataclass(slots=True, kw_only=True)
class _Active:
    pending_at: float
    value: float
    fired_at: float | None = None
    absent_since: float | None = None


def firings(
    rule: AlertRule, series: Sequence[Series], times: Sequence[float]
) -> tuple[Firing, ...]:
    """
    Run one alert through a recording.

    Args:
        rule: The alert.
        series: What its expression returned; times are among ``times``.
        times: Every evaluation of its group, seconds, ascending.

    Returns:
        In the order in which they became pending.

    Raises:
        HeadroomError: two series give the same alert at one time (Prometheus fails such an evaluation),
            or a label is a template of something else than labels.
    """
    found: list[Firing] = []
    labelled = ((alert_labels(rule, dict(each.labels)), each) for each in series)
    for labels, values in by_labels(rule.name, labelled).items():
        found.extend(
            Firing(
                alert=rule.name,
                severity=dict(labels).get("severity", ""),
                labels=labels,
                pending_at=active.pending_at,
                fired_at=active.fired_at,
                resolved_at=resolved_at,
                value=active.value,
            )
            for active, resolved_at in _episodes(rule, values, times)
        )
    return tuple(sorted(found, key=lambda each: (each.pending_at, each.labels)))


def alert_labels(rule: AlertRule, labels: Mapping[str, str]) -> Labels:
    """
    The labels of an alert: the result's without the metric's name, then what the rule sets.

    Args:
        rule: The alert.
        labels: Of one series of the result.

    Raises:
        HeadroomError: a template of something else than labels.
    """
    found = {name: value for name, value in labels.items() if name != "__name__"}
    for name, template in rule.labels:
        value = _LABEL.sub(lambda match: labels.get(match[1], ""), template)
        if "{{" in _LABEL.sub("", template):
            raise HeadroomError(
                f"{rule.name}: label {name}: {template!r} is not supported by the backtest;"
                " allowed: text and {{ $labels.name }}"
            )
        found[name] = value
    return tuple(sorted((name, value) for name, value in found.items() if value))


def _episodes(
    rule: AlertRule, values: Mapping[float, float], times: Sequence[float]
) -> Iterator[tuple[_Active, float | None]]:
    """Every time that one alert was up, with when it resolved."""
    active: _Active | None = None
    for now in times:
        value = values.get(now)
        if value is not None:
            active = active or _Active(pending_at=now, value=value)
            active.absent_since = None
            if active.fired_at is None and now - active.pending_at >= rule.for_seconds:
                active.fired_at, active.value = now, value
        elif active is not None:
            if active.absent_since is None:
                active.absent_since = now
            # Only what has fired is kept; a pending alert is dropped at once.
            absent = now - active.absent_since
            if active.fired_at is None or absent >= rule.keep_firing_for:
                yield active, now
                active = None
    if active is not None:
        yield active, None
