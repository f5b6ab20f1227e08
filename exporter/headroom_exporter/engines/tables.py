"""
What most engines' pages have in common: one sample name per field, one record per model and rank.

An engine gives a table of its names and says which labels tell its records apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from headroom_exporter.engines.base import (
    MAX_RANKS,
    MAX_REASONS,
    Labels,
    Page,
    Series,
    clip_label,
    gauge,
    histogram,
    usage,
)
from headroom_exporter.samples import EngineSample, RankSample, nothing

# (rank, model name)
Key = tuple[str, str]
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """
    Field of RankSample to upstream sample names; of several names the first that a page holds counts.

    Attributes:
        moving: Gauges and counters for every poll.
        shares: Ratios of 0 to 1, for every poll.
        histograms: Key of ``histograms`` to base names, without ``_bucket``.
        finished: Counter by reason, and the label that holds it.
        fast: Further names for every poll, that ``read`` of the engine handles itself.
        full: Further names for the full poll.
    """

    moving: Names = field(default_factory=nothing)
    shares: Names = field(default_factory=nothing)
    histograms: Names = field(default_factory=nothing)
    finished: tuple[tuple[str, ...], str] = ((), "")
    fast: tuple[str, ...] = ()
    full: tuple[str, ...] = ()

    def fast_names(self) -> tuple[str, ...]:
        """Names for ``Engine.fast_names``; each once."""
        told = [*self.moving.values(), *self.shares.values(), self.fast]
        return tuple(dict.fromkeys(name for names in told for name in names))

    def full_names(self, markers: frozenset[str]) -> frozenset[str]:
        """Names for ``Engine.full_names``."""
        parts = (
            name + suffix
            for names in self.histograms.values()
            for name in names
            for suffix in ("_bucket", "_sum")
        )
        return frozenset({*self.fast_names(), *parts, *self.finished[0], *self.full, *markers})


class Ranks:
    """
    Fields of the records met so far, at most MAX_RANKS of them.

    Args:
        key: Which record a series belongs to.
    """

    def __init__(self, key: Callable[[Labels], Key]) -> None:
        self._key = key
        self.fields: dict[Key, dict[str, Any]] = {}
        self._dropped: set[Key] = set()

    def of(self, labels: Labels) -> dict[str, Any] | None:
        """The record of a series; None where there are too many."""
        rank, model = self._key(labels)
        key = (clip_label(rank), clip_label(model))
        if key not in self.fields and len(self.fields) >= MAX_RANKS:
            self._dropped.add(key)
            return None
        return self.fields.setdefault(key, {})

    def put(self, labels: Labels, name: str, value: float | None) -> None:
        """Note a field; an unknown value only notes that the record is there."""
        fields = self.of(labels)
        if fields is not None and value is not None:
            fields[name] = value

    def put_by_label(self, series: Series, name: str, label: str) -> None:
        """Note a counter that is told apart by one label, at most MAX_REASONS of its values."""
        for labels, value in series:
            fields, known = self.of(labels), gauge(value)
            if fields is None or known is None:
                continue
            reasons, reason = fields.setdefault(name, {}), clip_label(labels.get(label, ""))
            if reason in reasons or len(reasons) < MAX_REASONS:
                reasons[reason] = known

    def put_histogram(self, page: Page, name: str, base: str) -> None:
        """Note a histogram; one that is not whole is left out."""
        buckets: dict[int, Series] = {}
        owners: dict[int, dict[str, Any]] = {}
        for labels, value in page.series.get(f"{base}_bucket", ()):
            fields = self.of(labels)
            if fields is not None:
                owners[id(fields)] = fields
                buckets.setdefault(id(fields), []).append((labels, value))
        sums = {id(self.of(labels)): value for labels, value in page.get((f"{base}_sum",))}
        for owner, found in buckets.items():
            made = histogram(found, sums.get(owner))
            if made is not None:
                owners[owner].setdefault("histograms", {})[name] = made

    def put_all(self, page: Page, table: Table) -> None:
        """Note everything that the table names."""
        for name, names in table.moving.items():
            for labels, value in page.get(names):
                self.put(labels, name, gauge(value))
        for name, names in table.shares.items():
            for labels, value in page.get(names):
                self.put(labels, name, usage(value))
        self.put_by_label(page.get(table.finished[0]), "finished", table.finished[1])
        for name, bases in table.histograms.items():
            held = (base for base in bases if page.series.get(f"{base}_bucket"))
            base = next(held, None)
            if base is not None:
                self.put_histogram(page, name, base)

    def sample(self, page: Page, **more: Any) -> EngineSample:
        """The records, in a stable order, and what else the page said (fields of EngineSample)."""
        ranks = tuple(
            RankSample(rank=rank, model_name=model, **_frozen(fields))
            for (rank, model), fields in sorted(self.fields.items())
        )
        return EngineSample(ranks=ranks, dropped=len(self._dropped) + page.truncated, **more)


def _frozen(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: MappingProxyType(value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }
