"""Runs of a real vLLM as tests/vllm/record_workloads.py keeps them."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "simulator"
CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """
    One request as the client saw it; seconds from the list's time 0.

    Attributes:
        queued: When the engine's scheduler got it; None where the steps were not logged.
        engine_first: End of the step that gave its first token; None likewise.
        engine_finished: End of the step that gave its last; None likewise.
    """

    sent: float
    prompt: int
    output: int
    first_token: float
    finished: float
    queued: float | None
    engine_first: float | None
    engine_finished: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """Gauges as the exporter reads them."""

    at: float
    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One step of the engine, from the log inside its scheduler.

    Attributes:
        start: Seconds from the list's time 0.
        seconds: To the start of the next step where one follows at once; without what the log took.
            None where the engine then had nothing to do.
        sequences: Sequences it computed.
        tokens: Tokens it computed.
        prompt: Those of them that belong to prompts.
        resident: Tokens the running sequences held as it began.
        running: Sequences it left running; waiting likewise.
        free: Blocks it left free.
    """

    start: float
    seconds: float | None
    sequences: int
    tokens: int
    prompt: int
    resident: int
    running: int
    waiting: int
    free: int

    @property
    def prompts(self) -> int:
        """Prompts it computed, or parts of them: what is not decoded is one token a sequence."""
        return self.sequences - (self.tokens - self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    One run.

    Attributes:
        name: Workload and number of the repetition.
        summary: Settings of the server, and its counters; see record_workloads.py.
        requests: In the order of the list.
    """

    name: str
    workload: str
    summary: dict[str, Any]
    requests: list[Sent]
    polls: list[Poll]

    @property
    def preemptions(self) -> int:
        """As vLLM counted them."""
        return int(self.summary["preemptions"])

    @property
    def busy_steps(self) -> dict[str, float] | None:
        """Sums over its steps (see run_files.busy_steps); None where they were not logged."""
        found: dict[str, float] | None = self.summary.get("busy_steps")
        return found


def names(folder: Path) -> list[str]:
    """Runs in a folder, in order."""
    return sorted(path.name.removesuffix(".json") for path in folder.glob("*.json"))


def names_with_steps(folder: Path) -> list[str]:
    """Those of them whose every step was kept."""
    return [name for name in names(folder) if (folder / f"{name}.steps.csv.gz").exists()]


def load(folder: Path, name: str) -> Run:
    """
    Read a run.

    Raises:
        OSError: a file is missing.
    """
    summary = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Run(
        name=name,
        workload=summary["workload"],
        summary=summary,
        requests=[
            Sent(
                sent=float(row["sent_s"]),
                prompt=int(row["prompt_tokens"]),
                output=int(row["output_tokens"]),
                first_token=float(row["first_token_s"]),
                finished=float(row["finished_s"]),
                queued=_optional(row, "queued_s"),
                engine_first=_optional(row, "engine_first_token_s"),
                engine_finished=_optional(row, "engine_finished_s"),
            )
            for row in _rows(folder / f"{name}.requests.csv.gz")
        ],
        polls=[
            Poll(
                at=float(row["at_s"]),
                running=float(row["running"]),
                waiting=float(row["waiting"]),
                kv_usage=float(row["kv_usage"]),
            )
            for row in _rows(folder / f"{name}.polls.csv.gz")
        ],
    )


def steps(folder: Path, name: str) -> list[Step]:
    """Every step of a run whose steps were logged."""
    rows = [
        {column: int(value) for column, value in row.items()}
        for row in _rows(folder / f"{name}.steps.csv.gz")
    ]
    return [
        Step(
            start=row["start_us"] / 1e6,
            seconds=_seconds(row, following),
            sequences=row["sequences"],
            tokens=row["tokens"],
            prompt=row["prompt_tokens"],
            resident=row["resident"],
            running=row["running"],
            waiting=row["waiting"],
            free=row["free"],
        )
        for row, following in zip(rows, [*rows[1:], None], strict=True)
    ]


def _seconds(row: dict[str, int], following: dict[str, int] | None) -> float | None:
    """Only where something is left does the next step begin as soon as it can."""
    if following is None or not row["running"] + row["waiting"]:
        return None
    return (following["start_us"] - row["start_us"] - row["log_us"]) / 1e6


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _optional(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if column in row else None
