"""A visitor of the status page: bytes that a browser fetches, and what the visit costs the exporter."""

from __future__ import annotations

import json
import posixpath
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from bench import fleet
from bench.process import MIB, Memory, cpu_seconds, memory
from bench.report import Part, Row
from vllm.scrape import get

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Part("Status page: bytes of GET / and of every file that it loads")
VISIT = Part("Status page: the exporter beside one engine at 4 Hz, with and without one visitor")
# 150 KB, read strictly.
MOST_BYTES = 150_000
MOST_MIB = 48.0
# As app.js asks.
PERIOD_SECONDS = 1.0
LINKED = re.compile(r'<(?:script|link)\b[^>]*?\b(?:src|href)="([^"]+)"')
IMPORTED = re.compile(r'^import\b[^"\n]*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Files by path with their bytes; CPU (share of a core) and memory before and while visited."""

    files: dict[str, int]
    idle: float
    visited: float
    before: Memory
    after: Memory


def rows(directory: Path, *, seconds: float) -> list[Row]:
    """
    Start the exporter, leave it alone, then visit it.

    Args:
        directory: For the configuration and the log.
        seconds: How long each half is; a multiple of 10, since full polls are 10 s apart.
    """
    with fleet.serving(1) as addresses:
        with fleet.exporting(addresses, directory) as (address, _):
            # This one leaves the byte code behind of what only visitors need.
            _ask(address, None)
        with fleet.exporting(addresses, directory) as (address, pid):
            seen = _visit(address, pid, seconds)
    return [*_size_rows(seen), *_visit_rows(seen)]


def _visit(address: str, pid: int, seconds: float) -> Visit:
    time.sleep(fleet.WARM_UP_SECONDS)
    idle = _share(pid, seconds)
    before = memory(pid)
    files = load(address)
    visited = _share(pid, seconds, address)
    return Visit(files=files, idle=idle, visited=visited, before=before, after=memory(pid))


def load(address: str) -> dict[str, int]:
    """What a browser fetches for the page: path and bytes, of what it links and what that imports."""
    found: dict[str, int] = {}
    wanted = [""]
    while wanted:
        path = wanted.pop()
        if path in found:
            continue
        text = get(f"{address}/{path}")
        found[path] = len(text.encode())
        folder = posixpath.dirname(path)
        pattern = LINKED if path == "" else IMPORTED
        wanted += [
            posixpath.normpath(posixpath.join(folder, reference))
            for reference in pattern.findall(text)
        ]
    return found


def _share(pid: int, seconds: float, address: str | None = None) -> float:
    """CPU it takes, as a share of a core, while asked as the page asks or left alone (None)."""
    cpu, began, last = cpu_seconds(pid), time.monotonic(), None
    while time.monotonic() - began < seconds:
        if address is not None:
            last = _ask(address, last)
        time.sleep(PERIOD_SECONDS)
    return (cpu_seconds(pid) - cpu) / (time.monotonic() - began)


def _ask(address: str, last: float | None) -> float | None:
    """The state, and the rows of its first rank since the last one: the whole past at first."""
    rank = json.loads(get(f"{address}/api/v1/state"))["ranks"][0]
    query = {key: rank[key] for key in ("engine", "rank", "model_name")}
    if last is not None:
        query["since"] = last
    times = json.loads(get(f"{address}/api/v1/history?{urlencode(query)}"))["columns"]["time"]
    return times[-1] if times else last


def _size_rows(seen: Visit) -> list[Row]:
    largest = max(seen.files, key=lambda path: seen.files[path])
    return [
        SIZE.row(
            f"GET / and its {len(seen.files) - 1} files, not compressed",
            sum(seen.files.values()),
            "bytes",
            most=MOST_BYTES,
        ),
        SIZE.row(f"of these {posixpath.basename(largest)}", seen.files[largest], "bytes"),
    ]


def _visit_rows(seen: Visit) -> list[Row]:
    before, after = seen.before.resident / MIB, seen.after.resident / MIB
    return [
        VISIT.row("resident, no visitor", before, "MiB", most=MOST_MIB),
        VISIT.row("resident, one visitor", after, "MiB", most=MOST_MIB),
        VISIT.row("one visitor over none, resident", after / before, "x"),
        VISIT.row("CPU of a core, no visitor", 100 * seen.idle, "%"),
        VISIT.row("CPU of a core, one visitor who asks once a second", 100 * seen.visited, "%"),
    ]
