# ruff: noqa: INP001 - a script beside a package
"""
Write the boards' JSON.

    python grafana/build.py            write grafana/dashboards/*.json
    python grafana/build.py --check    write nothing; exit status 1 and a diff where one is out of date
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from headroom_boards import engine, fleet, plan
from headroom_boards.sdk import to_json

FOLDER = Path(__file__).resolve().parent / "dashboards"


def files() -> dict[str, str]:
    """Name of each file, and what must stand in it."""
    return {
        f"{board.uid}.json": to_json(board)
        for board in (fleet.board(), plan.board(), engine.board())
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="Write the boards' JSON.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, show what would change"
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where (default: grafana/dashboards)"
    )
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder
    wanted = files()
    if not chosen.check:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text, encoding="utf-8")
        return 0
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    for name in sorted(wanted.keys() | there.keys()):
        sys.stdout.writelines(
            difflib.unified_diff(
                there.get(name, "").splitlines(keepends=True),
                wanted.get(name, "").splitlines(keepends=True),
                name,
                "as grafana/build.py writes it",
            )
        )
    if there != wanted:
        sys.stderr.write(f"{folder} is out of date: run python grafana/build.py\n")
    return int(there != wanted)


if __name__ == "__main__":
    sys.exit(main())
