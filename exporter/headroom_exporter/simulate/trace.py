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
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.requests import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A row may come so much too late: Mooncake's own timestamps are batches of 3 s.
REORDER_SECONDS = 10.0
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
