"""
Thousands of engines' history from the blocks of two.

promtool makes a block of what two engines said; here its index is written anew, with every series under
thousands of names that all point at the same chunks. Prometheus decodes them for each series, as it would
chunks of its own; what it does not pay is the page cache that thousands of different chunks would take.

The layout is that of version 2 of the index, as Prometheus documents it (tsdb/docs/format/index.md):
symbols, series, postings, the table of postings' offsets, and where each of them begins.
"""

from __future__ import annotations

import json
import shutil
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.errors import HeadroomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

Pair = tuple[str, str]
Labels = tuple[Pair, ...]

_MAGIC = b"\xba\xaa\xd7\x00\x02"
_TOC = struct.Struct(">6Q")
_CHECK_BYTES = 4
_ALIGNED = 16
_ALL: Pair = ("", "")


def multiply(
    block: Path, to: Path, copies: Callable[[Mapping[str, str]], Iterable[Mapping[str, str]]]
) -> int:
    """
    Write a block with every series of another under the labels of its copies.

    Args:
        block: A block that promtool made; unchanged.
        to: Directory that gets the new one, under the same name.
        copies: A series' labels to those of its copies; none leaves it out.

    Returns:
        How many series it has.

    Raises:
        HeadroomError: the index is not of version 2.
    """
    series = [
        (tuple(sorted(labels.items())), one.chunks)
        for one in _read(block / "index")
        for labels in copies(dict(one.labels))
    ]
    series.sort(key=lambda each: each[0])
    new = to / block.name
    shutil.copytree(block, new)
    with (new / "index").open("wb") as out:
        _Index(out).write(series)
    meta = json.loads((new / "meta.json").read_text(encoding="utf-8"))
    meta["stats"]["numSeries"] = len(series)
    (new / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return len(series)


# --- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    labels: Labels
    # As they stand in the index: number, times and places of its chunks.
    chunks: bytes


def _read(index: Path) -> Iterator[_Series]:
    data = index.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        raise HeadroomError(f"{index}: begins with {data[:5]!r}; allowed: {_MAGIC!r}, version 2")
    symbols_at, series_at, end, *_ = _TOC.unpack(data[-_TOC.size - _CHECK_BYTES : -_CHECK_BYTES])
    symbols = _symbols(data, symbols_at)
    at = series_at
    while at < end:
        size, begin = _uvarint(data, at)
        if size:
            yield _series(data[begin : begin + size], symbols)
            begin += size + _CHECK_BYTES
        at = -(-begin // _ALIGNED) * _ALIGNED


def _symbols(data: bytes, at: int) -> list[str]:
    (count,) = struct.unpack_from(">I", data, at + 4)
    at, found = at + 8, list[str]()
    for _ in range(count):
        size, at = _uvarint(data, at)
        found.append(data[at : at + size].decode())
        at += size
    return found


def _series(data: bytes, symbols: list[str]) -> _Series:
    count, at = _uvarint(data, 0)
    labels: list[Pair] = []
    for _ in range(count):
        name, at = _uvarint(data, at)
        value, at = _uvarint(data, at)
        labels.append((symbols[name], symbols[value]))
    return _Series(labels=tuple(labels), chunks=data[at:])


def _uvarint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


# --- writing ---------------------------------------------------------------------------------------


class _Index:
    """An index being written, section by section."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0

    def write(self, series: list[tuple[Labels, bytes]]) -> None:
        """Write everything; the series are sorted by their labels."""
        self._put(_MAGIC)
        names = sorted({text for labels, _ in series for pair in labels for text in pair} | {""})
        symbols_at = self._at
        self._section(len(names), (_counted(name) for name in names))
        number = {name: _packed(place) for place, name in enumerate(names)}
        self._align(_ALIGNED)
        series_at = self._at
        postings = self._series(series, number)
        self._align(4)
        postings_at = self._at
        offsets = dict(self._postings(postings))
        # What stood here once, tables of labels' values, nobody reads any more: an empty table.
        values_at = self._at
        self._section(0, ())
        table_at = self._at
        self._section(len(offsets), (_offset(pair, at) for pair, at in offsets.items()))
        toc = _TOC.pack(symbols_at, series_at, values_at, values_at, postings_at, table_at)
        self._put(toc + _check(toc))

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._at += len(data)

    def _align(self, to: int) -> None:
        self._put(b"\0" * (-self._at % to))

    def _section(self, count: int, entries: Iterable[bytes]) -> None:
        content = struct.pack(">I", count) + b"".join(entries)
        self._put(struct.pack(">I", len(content)) + content + _check(content))

    def _series(
        self, series: list[tuple[Labels, bytes]], number: Mapping[str, bytes]
    ) -> dict[Pair, array[int]]:
        """Where each series stands, by the labels that it has: in units of the alignment."""
        postings: dict[Pair, array[int]] = {_ALL: array("I")}
        packed: dict[Pair, bytes] = {}
        for labels, chunks in series:
            place = self._at // _ALIGNED
            postings[_ALL].append(place)
            for pair in labels:
                if pair not in packed:
                    packed[pair] = number[pair[0]] + number[pair[1]]
                    postings[pair] = array("I")
                postings[pair].append(place)
            content = _packed(len(labels)) + b"".join([packed[pair] for pair in labels]) + chunks
            self._put(_packed(len(content)) + content + _check(content))
            self._align(_ALIGNED)
        return postings

    def _postings(self, postings: dict[Pair, array[int]]) -> Iterator[tuple[Pair, int]]:
        for pair in sorted(postings):
            self._align(4)
            at, places = self._at, postings[pair]
            places.byteswap()
            self._section(len(places), (places.tobytes(),))
            yield pair, at


def _offset(pair: Pair, at: int) -> bytes:
    return b"\x02" + _counted(pair[0]) + _counted(pair[1]) + _packed(at)


def _counted(text: str) -> bytes:
    data = text.encode()
    return _packed(len(data)) + data


def _packed(value: int) -> bytes:
    """A number as uvarint: seven bits a byte, the lowest first."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _table() -> tuple[int, ...]:
    """Of CRC-32C (RFC 3720, appendix B.4), reflected."""
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        found.append(value)
    return tuple(found)


_TABLE = _table()


def _check(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return struct.pack(">I", crc ^ 0xFFFFFFFF)
