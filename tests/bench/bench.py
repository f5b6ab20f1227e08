"""
Measure what the exporter costs, print a table, assert nothing.

    python tests/bench/bench.py [--quick] [--no-vllm] [--json FILE]

Takes about ten minutes of two cores. Needs the environment of tools/install_vllm.py for the part on a
real vLLM (HEADROOM_VLLM_VENV says where it is, .venv-vllm where not set), and the Debian package
prometheus for the backtest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# As a script Python puts this directory first, where "bench" would be this file.
sys.path[0] = str(TESTS)
sys.path.insert(1, str(TESTS.parent / "exporter"))

from bench import (  # noqa: E402
    backtesting,
    engine_cost,
    fleet,
    micro,
    process,
    replaying,
    report,
    status_page,
    visiting,
)
from headroom_exporter.backtest.prometheus import program  # noqa: E402
from headroom_exporter.errors import HeadroomError  # noqa: E402

VENV_VARIABLE = "HEADROOM_VLLM_VENV"
COUNTS = (1, 8, 32)
NO_VLLM = "The part on a real vLLM was left out (--no-vllm)."


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns 0 whatever came out."""
    arguments = _arguments(argv)
    # A measurement that is told to end takes what it started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, about = time.monotonic(), report.machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        os.environ[process.CODE_VARIABLE] = str(Path(directory) / "code")
        rows = _measure(arguments, Path(directory))
    print(report.table(rows))
    print(f"\n{about}\n{_today()}, took {time.monotonic() - began:.0f} s")
    if arguments.no_vllm:
        print(NO_VLLM)
    if arguments.json is not None:
        document = {"date": _today(), "machine": about, "rows": [row.as_json() for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the exporter costs.")
    parser.add_argument("--quick", action="store_true", help="shorter, so less exact")
    parser.add_argument("--no-vllm", action="store_true", help="leave out the real vLLM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args(argv)
    environment = Path(os.environ.get(VENV_VARIABLE) or TESTS.parent / ".venv-vllm")
    arguments.vllm = environment / "bin" / "python"
    if not arguments.no_vllm and not arguments.vllm.exists():
        parser.error(
            f"{environment} holds no vLLM: run tools/install_vllm.py, set {VENV_VARIABLE}, "
            "or leave that part out with --no-vllm"
        )
    try:
        program("prometheus"), program("promtool")
    except HeadroomError as error:
        # Told now, not after ten minutes.
        parser.error(str(error))
    return arguments


def _measure(arguments: argparse.Namespace, directory: Path) -> list[report.Row]:
    quick = arguments.quick
    rows: list[report.Row] = []
    if not arguments.no_vllm:
        _say("starting a real vLLM and polling it")
        rows += engine_cost.rows(arguments.vllm, directory, quick=quick)
    _say("importing")
    rows += fleet.floor_rows()
    fleets = []
    for count in COUNTS:
        _say(f"exporter and naive loop beside {count} engines")
        seconds, scrapes = (10.0, 20) if quick else (20.0, 50)
        fleets.append(fleet.measure(count, directory, seconds=seconds, scrapes=scrapes))
    for rows_of in (fleet.polling_rows, fleet.scraping_rows):
        rows += [row for each in fleets for row in rows_of(each)]
    _say("single steps")
    rows += micro.rows()
    _say("the status page")
    rows += status_page.rows()
    rows += visiting.rows(directory, seconds=10.0 if quick else 30.0)
    virtual = "an hour" if quick else "a day"
    _say(f"{virtual} in virtual time")
    rows += replaying.rows(quick=quick)
    _say(f"a backtest of {virtual}")
    return rows + backtesting.rows(directory, quick=quick)


def _say(doing: str) -> None:
    print(f"... {doing}", file=sys.stderr, flush=True)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
