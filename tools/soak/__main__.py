"""Verbs: run, costs, page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from soak import verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="soak an exporter, print the verdict")
    run.add_argument("--seconds", type=float, default=3600.0)
    run.add_argument("--pods", type=int, default=14)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument(
        "--haste",
        type=float,
        default=1.0,
        help="times as often things go wrong, for so much shorter",
    )
    run.add_argument("--folder", type=Path, help="for all files; a new one")
    costs = verbs.add_parser("costs", help="measure exporters where nothing goes wrong")
    costs.add_argument("--minutes", type=float, default=10.0)
    costs.add_argument("--folder", type=Path, help="for all files; a new one")
    write = verbs.add_parser("page", help="write docs/resources.md from what both left behind")
    write.add_argument(
        "--soak", type=Path, required=True, nargs="+", help="soak.json of a run, or of several"
    )
    write.add_argument("--costs", type=Path, required=True, help="costs.json of a measurement")
    write.add_argument("--note", default="", help="a paragraph about this measurement")
    arguments = parser.parse_args()
    return int(VERBS[arguments.verb](arguments))


def _folder(arguments: argparse.Namespace) -> Path:
    given: Path | None = arguments.folder
    # Absolute: the configuration file names a socket in it.
    return (given or Path(tempfile.mkdtemp(prefix="soak-")) / "files").resolve()


def _run(arguments: argparse.Namespace) -> int:
    from soak.soaking import soak  # noqa: PLC0415

    folder = _folder(arguments)
    found = soak(
        folder,
        arguments.seconds,
        pods=arguments.pods,
        seed=arguments.seed,
        haste=arguments.haste,
    )
    (folder / "soak.json").write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    print("\n".join(verdict.lines(found)))
    wrong = verdict.judge(found)
    print("\n".join(["", *(f"WRONG: {line}" for line in wrong)]) if wrong else "\nnothing is wrong")
    print(f"files: {folder}")
    return 1 if wrong else 0


def _costs(arguments: argparse.Namespace) -> int:
    from soak.costs import measure  # noqa: PLC0415

    folder = _folder(arguments)
    found = [dataclasses.asdict(each) for each in measure(folder, arguments.minutes)]
    (folder / "costs.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for each in found:
        print(each)
    print(f"files: {folder}")
    return 0


def _page(arguments: argparse.Namespace) -> int:
    from soak.page import write  # noqa: PLC0415

    soaks = [json.loads(path.read_text()) for path in arguments.soak]
    write(soaks, json.loads(arguments.costs.read_text()), arguments.note)
    return 0


VERBS = {"run": _run, "costs": _costs, "page": _page}

if __name__ == "__main__":
    sys.exit(main())
