"""
Traffic from a file: CSV, plain or gzip, one request a row, read as a stream.

Columns ``arrival_s``, ``prompt_tokens`` and ``output_tokens`` must be there; optional ones are
``cached_tokens``, ``abort_after_s``, ``finish_reason`` and ``id``; others are not looked at. Rows come
in order of arrival, or nearly so. Memory does not grow with the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf, isfinite
from random import Random
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    # Opens the traffic from its beginning, as often as it is called.
    Arrivals = Callable[[], Iterator[Request]]

# A row may come so much too late: Mooncake's own timestamps are batches of 3 s.
REORDER_SECONDS = 10.0
# Copies of a request arrive within so many seconds of it: far enough not to come together, near enough
# to keep the shape of the day.
COPY_SECONDS = 30.0
_GZIP = b"\x1f\x8b"
_REASONS = ("stop", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """
    Names of the columns whose name may differ.

    Attributes:
        arrival: Seconds.
        cached: Prompt tokens in the prefix cache; None for ``cached_tokens`` where there is one.
    """

    arrival: str = "arrival_s"
    cached: str | None = None


class _Rows:
    """The rows of one file, and the error that says where one of them is wrong."""

    def __init__(self, path: Path, lines: TextIO, columns: Columns) -> None:
        self._path = path
        self._reader = csv.reader(lines)
        self._header = [name.strip() for name in next(self._reader, [])]
        self._arrival = self._find(columns.arrival)
        self._prompt = self._find("prompt_tokens")
        self._output = self._find("output_tokens")
        self._cached = (
            self._find_optional("cached_tokens")
            if columns.cached is None
            else self._find(columns.cached)
        )
        self._abort = self._find_optional("abort_after_s")
        self._reason = self._find_optional("finish_reason")
        self._id = self._find_optional("id")
        self._width = len(self._header)

    def _find(self, name: str) -> int:
        if name not in self._header:
            raise ConfigError(
                f"{self._path}:1: no column {name!r}; it has {', '.join(self._header) or 'none'}"
            )
        return self._header.index(name)

    def _find_optional(self, name: str) -> int | None:
        return self._header.index(name) if name in self._header else None

    def __iter__(self) -> Iterator[Request]:
        """Every row as a request, in the order of the file."""
        for row in self._reader:
            if row:
                yield self._request(row)

    def _request(self, row: list[str]) -> Request:
        if len(row) != self._width:
            raise self.wrong(f"{len(row)} fields, the header has {self._width}")
        reason = "stop" if self._reason is None else row[self._reason] or "stop"
        if reason not in _REASONS:
            raise self.wrong(f"finish_reason {reason!r}: must be one of {', '.join(_REASONS)}")
        return Request(
            arrival=self._seconds(row, self._arrival),
            prompt_tokens=self._tokens(row, self._prompt, 1),
            output_tokens=self._tokens(row, self._output, 1),
            id="" if self._id is None else row[self._id],
            finish_reason=reason,
            cached_tokens=0 if self._cached is None else self._tokens(row, self._cached, 0),
            abort_after=(
                None
                if self._abort is None or not row[self._abort]
                else self._seconds(row, self._abort)
            ),
        )

    def _seconds(self, row: list[str], column: int) -> float:
        try:
            seconds = float(row[column])
        except ValueError:
            seconds = inf
        if not 0 <= seconds < inf:
            raise self.wrong(
                f"{self._header[column]} {row[column]!r}: must be a number of seconds, at least 0"
            )
        return seconds

    def _tokens(self, row: list[str], column: int, least: int) -> int:
        try:
            tokens = int(row[column])
        except ValueError:
            tokens = -1
        if tokens < least:
            raise self.wrong(
                f"{self._header[column]} {row[column]!r}: must be a whole number, at least {least}"
            )
        return tokens

    def wrong(self, reason: str) -> ConfigError:
        return ConfigError(f"{self._path}:{max(1, self._reader.line_num)}: {reason}")


def read(path: Path, columns: Columns | None = None) -> Iterator[Request]:
    """
    Read a trace file.

    Args:
        path: CSV with a header line; gzip is recognised by its first bytes.
        columns: Names of columns, where they differ.

    Yields:
        Requests in order of arrival.

    Raises:
        ConfigError: the file cannot be read, or a row is wrong: file, line, reason.
    """
    with _opened(path) as lines:
        rows = _Rows(path, lines, columns or Columns())
        try:
            yield from _ordered(rows)
        except csv.Error as exc:
            raise rows.wrong(str(exc)) from exc


def _ordered(rows: _Rows) -> Iterator[Request]:
    """Put rows that come a little late where they belong."""
    pending: list[tuple[float, int, Request]] = []
    latest = 0.0
    for number, request in enumerate(rows):
        arrival = request.arrival
        if arrival < latest - REORDER_SECONDS:
            raise rows.wrong(
                f"arrival {arrival} comes after a row with {latest}: rows must be in order of "
                f"arrival, give or take {REORDER_SECONDS:g} s"
            )
        latest = max(latest, arrival)
        heappush(pending, (arrival, number, request))
        while pending[0][0] < latest - REORDER_SECONDS:
            yield heappop(pending)[2]
    while pending:
        yield heappop(pending)[2]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file as text, unpacked; whatever is wrong with the file as a whole is a ConfigError."""
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == _GZIP
            raw = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines:
                yield lines
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text: {exc.reason}") from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc


# --- choosing and scaling ------------------------------------------------------------------------


def select(
    requests: Iterable[Request], *, start: float = 0.0, end: float = inf, keep_every: int = 1
) -> Iterator[Request]:
    """
    Cut a window out of a trace and keep every k-th request: the share of one of k equal replicas.

    Args:
        requests: In order of arrival.
        start: Seconds in the trace's clock; becomes 0.
        end: Seconds in the trace's clock; what arrives then or later is left out.
        keep_every: Counted from the first request of the trace, not of the window.
    """
    for number, request in enumerate(requests):
        if request.arrival >= end:
            return
        if request.arrival >= start and number % keep_every == 0:
            yield replace(request, arrival=request.arrival - start) if start else request


def scale(requests: Iterable[Request], factor: float, seed: int = 0) -> Iterator[Request]:
    """
    Multiply the rate of arrivals, lengths and the hour of the day unchanged.

    Below 1 each request is kept with that probability. Above 1 each comes as often as the factor says
    (2.5: twice, and every other one three times); the copies arrive at random within COPY_SECONDS of
    it, as those of independent users would: at once, they would be a burst that nobody sent. So
    what varies over minutes and hours varies ``factor`` times as much, and what varies over seconds
    does not become burstier than the trace.

    Args:
        requests: In order of arrival.
        factor: Above 0.
        seed: The same seed gives the same traffic.
    """
    if factor == 1:
        yield from requests
        return
    rng = Random(f"{seed} scale")
    pending: list[tuple[float, int, Request]] = []
    pushed = 0
    for request in requests:
        copies = int(factor) + (rng.random() < factor % 1)
        for copy in range(copies):
            late = rng.uniform(-COPY_SECONDS, COPY_SECONDS) if copy else 0.0
            arrival = abs(request.arrival + late)
            made = replace(request, arrival=arrival) if copy else request
            heappush(pending, (arrival, pushed, made))
            pushed += 1
        while pending and pending[0][0] <= request.arrival - COPY_SECONDS:
            yield heappop(pending)[2]
    while pending:
        yield heappop(pending)[2]


def with_prefix_hits(requests: Iterable[Request], share: float) -> Iterator[Request]:
    """Let the prefix cache hold that share of every prompt, 0 to 1."""
    for request in requests:
        yield replace(request, cached_tokens=int(share * request.prompt_tokens))


def repeat(arrivals: Arrivals, period: float) -> Iterator[Request]:
    """
    Play traffic again and again.

    Args:
        arrivals: The traffic, from 0 on.
        period: Seconds after which it begins anew; later arrivals are left out.
    """
    begin = 0.0
    played = True
    while played:
        played = False
        for request in arrivals():
            if request.arrival >= period:
                break
            played = True
            yield replace(request, arrival=begin + request.arrival)
        begin += period


# --- what a trace holds --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """
    What traffic amounts to.

    Attributes:
        requests: How many.
        first: Arrival of the first, seconds; 0 where there is none.
        last: Arrival of the last.
        prompt_tokens: Sum over requests.
        output_tokens: Sum over requests.
        longest_prompt: Tokens.
    """

    requests: int
    first: float
    last: float
    prompt_tokens: int
    output_tokens: int
    longest_prompt: int


def survey(requests: Iterable[Request]) -> Survey:
    """Read traffic once from end to end: what is wrong with it shows before anything starts."""
    count = prompts = outputs = longest = 0
    first = last = 0.0
    for request in requests:
        if not count:
            first = request.arrival
        count += 1
        last = request.arrival
        prompts += request.prompt_tokens
        outputs += request.output_tokens
        longest = max(longest, request.prompt_tokens)
    assert isfinite(last)  # noqa: S101 - the reader lets nothing else through
    return Survey(
        requests=count,
        first=first,
        last=last,
        prompt_tokens=prompts,
        output_tokens=outputs,
        longest_prompt=longest,
    )
