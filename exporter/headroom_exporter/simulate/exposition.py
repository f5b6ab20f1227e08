"""
The simulated server's /metrics page, as vLLM 0.32 writes it.

A page is compiled once: whatever does not change while a process lives (help texts, labels, bounds,
``_created`` times) becomes text, and a scrape only puts the numbers in. A replay asks for a page for
each second of its day.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.utils import floatToGoString

from headroom_exporter.simulate.families import (
    CACHE_CONFIG,
    COUNTER,
    FAMILIES,
    HISTOGRAM,
    Family,
    Labels,
    cache_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from headroom_exporter.simulate.counters import Tally
    from headroom_exporter.simulate.frontend import Frontend

    # Adds the lines of a block to a page.
    Block = Callable[[list[str]], None]

VERSION = "0.32.0"
# /metrics and /metrics/ are answered by different code in vLLM, with different types.
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
CONTENT_TYPE_MOUNTED = "text/plain; version=0.0.4; charset=utf-8"
# Different filters remembered; a client that invents names must not fill the memory.
_MAX_COMPILED = 16


class Page:
    """
    What a server shows.

    With one API server process the page has the process's start and a ``_created`` gauge beside each
    counter and histogram, and the scheduler's gauges are 0 before the first step. With several,
    prometheus_client's multiprocess mode knows neither, the gauges are absent until the first step, and
    a filter finds nothing (all seen on 0.32.0).

    Args:
        frontend: The simulated server.
        epoch: Unix seconds of virtual time 0.
        speed: Virtual seconds per second of the clock that ``epoch`` is read from.
    """

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        self._epoch = epoch
        self._speed = speed
        self._several = frontend.api_servers > 1
        self._compiled: dict[frozenset[str] | None, list[Block]] = {}
        self._compiled_at = frontend.started

    @property
    def started(self) -> float:
        """Unix seconds at which the present process began."""
        return self._epoch + self._frontend.started / self._speed

    def render(self, names: Collection[str] | None = None) -> str:
        """
        Write the page.

        Args:
            names: Sample names to keep, as ``name[]`` asks for; None for all.

        Returns:
            Text exposition format; empty where no name matches.
        """
        key = None if names is None else frozenset(names)
        if self._several and key is not None:
            return ""
        if self._compiled_at != self._frontend.started or len(self._compiled) > _MAX_COMPILED:
            self._compiled.clear()
            self._compiled_at = self._frontend.started
        blocks = self._compiled.get(key)
        if blocks is None:
            blocks = self._compiled[key] = list(self._blocks(key))
        lines: list[str] = []
        for block in blocks:
            block(lines)
        return "\n".join(lines) + "\n" if lines else ""

    # --- compiling -------------------------------------------------------------------------------

    def _blocks(self, names: frozenset[str] | None) -> Iterator[Block]:
        if not self._several:
            start = "process_start_time_seconds"
            yield from _fixed(
                _head(start, "Start time of the process since unix epoch in seconds.", "gauge"),
                [(start, f"{start} {_number(self.started)}")],
                names,
            )
        for family in _in_order(self._several):
            if family.kind == HISTOGRAM:
                yield from self._histogram(family, names)
            else:
                yield from self._plain(family, names)
            if family.kind != "gauge" and not self._several:
                yield from self._created(family, names)
        yield from self._info(names)

    def _labels(self, rank: int, extra: Labels) -> Labels:
        model = self._frontend.profile.model_name
        return {"engine": str(rank), "model_name": model, **extra}

    def _plain(self, family: Family, names: frozenset[str] | None) -> Iterator[Block]:
        """A gauge or counter."""
        if names is not None and family.name not in names:
            return
        frontend, several = self._frontend, self._several
        ranks = range(len(frontend.engines))
        own = [
            (_series(family.name, self._labels(rank, extra)), rank, read)
            for extra, read in family.children
            for rank in ranks
        ]
        model = {"model_name": frontend.profile.model_name}
        shared = [(_series(family.name, model | extra), read) for extra, read in family.of_server]
        head = _head(family.name, family.help, family.kind)

        def block(lines: list[str]) -> None:
            engines, before = frontend.engines, len(lines)
            lines.extend(head)
            for series, rank, read in own:
                value = read(engines[rank])
                if value is not None:
                    lines.append(f"{series} {_number(value)}")
                elif not several:
                    lines.append(f"{series} 0.0")
            for series, of_server in shared:
                lines.append(f"{series} {_number(of_server(frontend))}")
            if names is not None and len(lines) == before + len(head):
                del lines[before:]

        yield block

    def _histogram(self, family: Family, names: frozenset[str] | None) -> Iterator[Block]:
        """A histogram: buckets, count and sum, or in multiprocess mode sum, buckets and count."""
        of = family.tally
        assert of is not None  # noqa: S101 - the table says so

        def wanted(part: str) -> bool:
            return names is None or family.name + part in names

        if not any(map(wanted, ("_bucket", "_count", "_sum"))):
            return
        frontend = self._frontend
        bounds = (*of(frontend.engines[0].counters).bounds, float("inf"))
        head = _head(family.name, family.help, HISTOGRAM)
        ranks = []
        for rank in range(len(frontend.engines)):
            labels = self._labels(rank, {})
            buckets = [
                _series(f"{family.name}_bucket", labels | {"le": _number(bound)})
                for bound in (bounds if wanted("_bucket") else ())
            ]
            count = _series(f"{family.name}_count", labels) if wanted("_count") else None
            total = _series(f"{family.name}_sum", labels) if wanted("_sum") else None
            ranks.append((buckets, count, total))
        sum_first = self._several

        def block(lines: list[str]) -> None:
            lines.extend(head)
            for (buckets, count, total), engine in zip(ranks, frontend.engines, strict=True):
                tally = of(engine.counters)
                if total is not None and sum_first:
                    lines.append(f"{total} {_number(tally.sum)}")
                _add_counts(lines, buckets, count, tally)
                if total is not None and not sum_first:
                    lines.append(f"{total} {_number(tally.sum)}")

        yield block

    def _created(self, family: Family, names: frozenset[str] | None) -> Iterator[Block]:
        """The gauges that say since when a family counts."""
        name = f"{family.name.removesuffix('_total') if family.kind == COUNTER else family.name}_created"
        children = [extra for extra, _ in family.children] or [{}]
        labels = [
            self._labels(rank, extra)
            for extra in children
            for rank in range(len(self._frontend.engines))
        ]
        if family.of_server:
            model = {"model_name": self._frontend.profile.model_name}
            labels = [model | extra for extra, _ in family.of_server]
        value = _number(self.started)
        samples = [(name, f"{_series(name, each)} {value}") for each in labels]
        yield from _fixed(_head(name, family.help, "gauge"), samples, names)

    def _info(self, names: frozenset[str] | None) -> Iterator[Block]:
        ranks = len(self._frontend.engines)
        samples = []
        for rank in range(ranks):
            labels = cache_config(self._frontend.profile, rank, ranks)
            samples.append((CACHE_CONFIG.name, f"{_series(CACHE_CONFIG.name, labels)} 1.0"))
        yield from _fixed(_head(CACHE_CONFIG.name, CACHE_CONFIG.help, "gauge"), samples, names)


def _in_order(several: bool) -> list[Family]:
    """The families as one process writes them, or as the multiprocess collector does."""
    if not several:
        return list(FAMILIES)
    kinds = {HISTOGRAM: 0, COUNTER: 1}
    return sorted(FAMILIES, key=lambda family: kinds.get(family.kind, 2))


def _fixed(
    head: list[str], samples: list[tuple[str, str]], names: frozenset[str] | None
) -> Iterator[Block]:
    """A block whose text does not change."""
    kept = [line for name, line in samples if names is None or name in names]
    if kept:
        text = [*head, *kept]
        yield lambda lines: lines.extend(text)


def _add_counts(lines: list[str], buckets: list[str], count: str | None, tally: Tally) -> None:
    if buckets:
        for series, total in zip(buckets, accumulate(tally.counts), strict=True):
            lines.append(f"{series} {_number(total)}")
    if count is not None:
        lines.append(f"{count} {_number(tally.count)}")


def _head(name: str, help_text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _series(name: str, labels: Labels) -> str:
    """Name and labels, in alphabetical order, as the client library writes them."""
    inside = ",".join(f'{key}="{_escape(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{inside}}}"


def _number(value: float) -> str:
    """A value as the client library writes it, which costs more than the whole rest of a page."""
    if isinstance(value, int) and value < 1_000_000:
        return f"{value}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
