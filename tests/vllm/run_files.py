"""The files of a recorded run: requests, polls, steps and a summary."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# As in step_log.py, which only vLLM's interpreter can import.
STEP = struct.Struct("<ddd8i")
REQUEST_COLUMNS = "arrival_s,prompt_tokens,output_tokens,sent_s,first_token_s,finished_s"
ENGINE_COLUMNS = "queued_s,engine_first_token_s,engine_finished_s"
STEP_COLUMNS = (
    "start_us",
    "log_us",
    "sequences",
    "tokens",
    "prompt_tokens",
    "resident",
    "preempted",
    "running",
    "waiting",
    "free",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """
    What one run gave.

    Attributes:
        polled: Names of the polled values.
        start: Monotonic seconds of the list's time 0; all other times are as measured.
        results: Sent, first token, last token, status; in the order of the list.
        polls: Time and values of each.
        summary: For the .json file.
    """

    polled: tuple[str, ...]
    start: float
    rows: list[tuple[float, int, int]]
    results: list[tuple[float, float, float, int]]
    polls: list[tuple[float, ...]]
    summary: dict[str, Any]


# --- the files -----------------------------------------------------------------------------------


def write(recorded: Recorded, scratch: Path, stem: Path, *, logged: bool, keep_steps: bool) -> None:
    """
    Write a run's files, ``stem`` and an ending each.

    Args:
        recorded: The run.
        scratch: Where step_log.py wrote.
        stem: Path without an ending.
        logged: Whether it did.
        keep_steps: Write every step, not only their sums.
    """
    start = recorded.start
    header = REQUEST_COLUMNS
    lines: list[list[object]] = [
        [*row, *(f"{at - start:.5f}" for at in result[:3])]
        for row, result in zip(recorded.rows, recorded.results, strict=True)
    ]
    summary = recorded.summary
    if logged:
        header += "," + ENGINE_COLUMNS
        engine = engine_times((scratch / "requests.csv").read_text(encoding="utf-8"), start)
        lines = [[*line, *engine[number]] for number, line in enumerate(lines)]
        steps = step_lines(STEP.iter_unpack((scratch / "steps.bin").read_bytes()), start)
        summary["busy_steps"] = busy_steps(steps)
        if keep_steps:
            write_csv(Path(f"{stem}.steps.csv.gz"), ",".join(STEP_COLUMNS), steps)
    write_csv(Path(f"{stem}.requests.csv.gz"), header, lines)
    polls = [
        [f"{at - start:.4f}", *(f"{value:.6g}" for value in rest)] for at, *rest in recorded.polls
    ]
    write_csv(Path(f"{stem}.polls.csv.gz"), ",".join(["at_s", *recorded.polled]), polls)
    text = json.dumps(summary, indent=1)
    Path(f"{stem}.json").write_text(text + "\n", encoding="utf-8")


def busy_steps(steps: Sequence[Sequence[int]]) -> dict[str, float]:
    """
    Sums over the steps that another followed at once: how long they took, and what they computed.

    Seconds are from start to start, without what the log itself took.
    """
    column = {name: number for number, name in enumerate(STEP_COLUMNS)}
    sums = dict.fromkeys(("steps", "seconds", "sequences", "resident", "prompt_tokens"), 0.0)
    for step, following in pairwise(steps):
        if step[column["running"]] + step[column["waiting"]]:
            microseconds = following[column["start_us"]] - step[column["start_us"]]
            sums["steps"] += 1
            sums["seconds"] += (microseconds - step[column["log_us"]]) / 1e6
            for name in ("sequences", "resident", "prompt_tokens"):
                sums[name] += step[column[name]]
    return {name: round(value, 6) for name, value in sums.items()}


def engine_times(text: str, start: float) -> dict[int, list[str]]:
    """When the engine got each request, had its first token and its last; by its number in the list."""
    found = {}
    for line in text.splitlines():
        name, *times = line.split(",")
        match = re.match(r"cmpl-r(\d+)-", name)
        # The warm-up's requests have numbers too.
        if match is not None and float(times[0]) > start:
            found[int(match[1])] = [f"{float(at) - start:.6f}" for at in times]
    return found


def step_lines(steps: Iterable[tuple[Any, ...]], start: float) -> list[list[int]]:
    """Steps from the list's time 0 on, times in whole microseconds."""
    return [
        [round((begin - start) * 1e6), round(own * 1e6), *what]
        for begin, _, own, *what in steps
        if begin > start
    ]


def write_csv(path: Path, header: str, lines: Iterable[Sequence[object]]) -> None:
    """Write a gzip file that depends on its content alone."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header.split(","), *lines])
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
