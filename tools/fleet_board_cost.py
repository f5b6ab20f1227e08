"""
Measure the fleet board at 1,000 engines: write the table into docs/dashboards.md.

    python tools/fleet_board_cost.py [--engines 1000]

The samples are those of the trial's overloaded engine, written once for each engine under names of its own:
40 models in 4 namespaces, 25 replicas each; what the rules recorded for it, and its alerts, likewise. The
hour and a half of the trial is repeated as far back as the board's queries look: a day for the sums of a
model, six hours (what the board opens with) for what is drawn over time, half an hour for the rest. Each
query is asked three times, over time at the panel's own step; the middle time counts.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "grafana"))

from headroom_boards import fleet  # noqa: E402 - after the path
from headroom_boards.model import substitute  # noqa: E402
from headroom_boards.trial import SECONDS, SMALL, STEP, Trial, record, serving  # noqa: E402

from headroom_exporter.backtest.prometheus import make_blocks, write_samples  # noqa: E402
from headroom_exporter.backtest.record import EPOCH  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_boards.trial import Answer

PAGE = ROOT / "docs" / "dashboards.md"
OPEN, CLOSE = "<!-- fleet cost: begin -->", "<!-- fleet cost: end -->"
REPLICAS, NAMESPACES, TIMES = 25, 4, 3
LIMIT_SECONDS = 1.0
HOUR = 3600.0
END = 24 * HOUR
_NAME = re.compile(r"\b(ALERTS|headroom_\w+|\w+:headroom_[\w:]+)(?=\{)")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 where a panel takes longer than a second."""
    parser = argparse.ArgumentParser(description="Measure the fleet board on many engines.")
    parser.add_argument("--engines", type=int, default=1000)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="headroom-fleet-") as name:
        one, many = Path(name) / "one", Path(name) / "many"
        one.mkdir()
        many.mkdir()
        with serving(one, record(one)) as address:
            text = _multiplied(Trial(address=address), many, chosen.engines)
        make_blocks(text, many / "data")
        text.unlink()
        with serving(many, many / "data") as address:
            rows = list(_measured(Trial(address=address)))
    slow = [title for title, seconds, _ in rows if seconds > LIMIT_SECONDS]
    _write(rows, chosen.engines)
    for title in slow:
        print(f"{title}: longer than {LIMIT_SECONDS:g} s")
    return int(bool(slow))


def _multiplied(trial: Trial, folder: Path, engines: int) -> Path:
    """OpenMetrics text of that many engines, with every metric that the board reads."""
    text = folder / "many.om"
    with text.open("w", encoding="utf-8") as out:
        for name, back in _read().items():
            per_model = name.startswith("model:")
            who = f'model_name="{SMALL}"' if per_model else 'engine="chat-1"'
            for answer in trial.range(f"{name}{{{who}}}"):
                pairs = _repeated(answer, back)
                for labels in _copies(answer, engines, per_model=per_model):
                    write_samples(out, name, tuple(sorted(labels.items())), EPOCH, pairs)
        out.write("# EOF\n")
    return text


def _read() -> dict[str, float]:
    """Each metric that the board reads, and how far back, seconds."""
    found: dict[str, float] = {}
    for panel in fleet.board().panels:
        for query in panel.queries:
            for name in _NAME.findall(query.expr):
                back = HOUR / 2 if panel.instant and "offset" not in query.expr else 6 * HOUR
                back = 24 * HOUR if name.startswith("model:") else back
                found[name] = max(back, found.get(name, 0.0))
    return found


def _repeated(answer: Answer, back: float) -> list[tuple[float, float]]:
    """The answer, over and over, up to the end."""
    by_time = dict(zip(answer.times, answer.values, strict=True))
    steps = range(int((END - back) // STEP), int(END // STEP))
    ago = [(step * STEP, SECONDS - STEP - (END - STEP - step * STEP) % SECONDS) for step in steps]
    return [(at, by_time[was]) for at, was in ago if was in by_time]


def _copies(answer: Answer, engines: int, *, per_model: bool) -> Iterator[dict[str, str]]:
    """Labels of each copy of a series; a model's namespace follows from its number."""
    kept = {key: text for key, text in answer.labels.items() if key != "__name__"}
    for number in range(0, engines, REPLICAS if per_model else 1):
        model = number // REPLICAS
        labels = {**kept, "namespace": f"team-{model % NAMESPACES}"}
        if "model_name" in kept:
            labels["model_name"] = f"example/model-{model}"
        if not per_model:
            labels |= {
                "engine": f"engine-{number}",
                "instance": f"10.0.{number // 250}.{number % 250}:9890",
            }
        yield labels


def _measured(trial: Trial) -> Iterator[tuple[str, float, int]]:
    """Title, seconds and series of each panel: its queries one after the other."""
    board = fleet.board()
    for panel in board.panels:
        seconds, series = 0.0, 0
        for query in panel.queries:
            expr = substitute(query.expr, {}, board)
            times = []
            for _ in range(TIMES):
                before = time.perf_counter()
                if panel.instant:
                    found = trial.instant(expr, at=END - STEP)
                else:
                    found = trial.range(expr, step=panel.step, begin=END - 6 * HOUR, end=END)
                times.append(time.perf_counter() - before)
            seconds += statistics.median(times)
            series += len(found)
        yield panel.title, seconds, series


def _write(rows: list[tuple[str, float, int]], engines: int) -> None:
    setting = (
        f"{engines:,} engines of one rank, {engines // REPLICAS} models, the six hours that the board opens"
        f" with at its steps of {fleet.STEP} s; Prometheus 2.42 on {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.0f}; a panel's queries one after the other, each the middle of {TIMES}."
    )
    lines = [
        setting,
        "",
        "| panel | queries, seconds | series |",
        "|---|---:|---:|",
        *(f"| {title} | {seconds:.3f} | {series} |" for title, seconds, series in rows),
    ]
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{OPEN}\n\n{table}\n\n{CLOSE}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
