"""
Hold the simulated engine against recorded runs of a real vLLM, on the same requests.

    python tools/validate_simulator.py                  print the tables of docs/simulator-validation.md
    python tools/validate_simulator.py --write          write them into the page
    python tools/validate_simulator.py --record DIR     record anew into DIR first, with the vLLM of
                                                        HEADROOM_VLLM_VENV (about an hour), and
                                                        compare with constants fitted to that machine

The exit status is 1 where a figure that was within its limit no longer is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from agreement import recorded, report
from throughput.blocks import insert

from headroom_exporter.simulate import profiles

ROOT = Path(__file__).resolve().parents[1]
DOC = ROOT / "docs" / "simulator-validation.md"
PROFILE = "tiny-cpu"
# Every workload is run so often, once more without a log of its steps.
REPETITIONS = 3
# All steps are kept: to fit to, and to compare decisions with.
KEPT = (recorded.CALIBRATION, "kv", "prompts")
# Outside its limits, and said so on the page: the profile knows one price for a prompt token.
KNOWN_OFF = ("prompts",)
COMPARED = ("calm", "slots", "kv", "bursty", "prompts")


def record(folder: Path) -> None:
    """
    Run every workload on a real vLLM.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "vllm.record_workloads", str(folder)]
    for arguments in (
        [*COMPARED, "--stock"],
        [*KEPT, "--keep-steps"],
        [recorded.CALIBRATION, "--keep-steps"],
        [*COMPARED, "--repeat", str(REPETITIONS)],
    ):
        subprocess.run([*command, *arguments], check=True, env=environment)


def blocks(folder: Path, *, fitted: bool) -> tuple[dict[str, str], list[report.Workload]]:
    """
    Every table by name, and the workloads.

    Args:
        folder: Recorded runs.
        fitted: Use the constants that this folder's calibration gives, not those of the profile.
    """
    constants, front_end = report.calibrate(folder)
    profile = profiles.find(PROFILE)
    if fitted:
        profile = constants.into(profile)
    found = report.workloads(folder, profile, front_end)
    return {
        "summary": report.summary_table(found),
        "own-speed": report.own_speed_table(found),
        "workloads": report.workload_tables(found),
        "constants": report.constants_table(constants, front_end),
        "batches": report.batch_table(constants),
        "prompt-cost": report.prompt_table(constants),
        "decisions": report.checked_table(report.checked(folder, profile)),
        "machine": report.machine_table(found),
    }, found


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where a figure is off; 2 where the page lacks a block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--write", action="store_true", help="write docs/simulator-validation.md")
    parser.add_argument("--record", type=Path, metavar="DIR", help="record anew, compare with that")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="compare with these recorded runs")
    chosen = parser.parse_args(arguments)
    if chosen.record:
        record(chosen.record)
    folder = chosen.record or chosen.runs or recorded.FOLDER
    made, found = blocks(folder, fitted=folder != recorded.FOLDER)
    if not chosen.write:
        print("\n\n".join(made.values()))
    else:
        try:
            text = insert(DOC.read_text(encoding="utf-8"), made)
        except ValueError as error:
            print(f"{DOC.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        DOC.write_text(text, encoding="utf-8")
    off = [
        f"{workload.name}: {figure.kind}: {report.percent(figure.error)}, limit {figure.limit:.0%}"
        for workload in found
        for figure in workload.figures
        if workload.name not in KNOWN_OFF and not figure.agrees
    ]
    print("\n".join(off), file=sys.stderr)
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
