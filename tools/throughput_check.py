"""
Hold the simulator's step-time model against published throughput tables and a recorded overload.

    python tools/throughput_check.py            print the tables of docs/throughput.md
    python tools/throughput_check.py --write    write them, the pictures and constants.json

Development only: nothing of this is in the package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from throughput import blocks, chart, constants, replay

ROOT = Path(__file__).resolve().parents[1]
DOC = ROOT / "docs" / "throughput.md"
IMAGES = ROOT / "docs" / "images"


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 2 where docs/throughput.md lacks a block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--write", action="store_true", help="write docs/ and constants.json")
    write = parser.parse_args(arguments).write
    entries = {entry.name: entry for entry in constants.build()}
    live = replay.recorded()
    model = replay.simulated(entries["rtx4090-llama-3.1-8b"].profile())
    found = blocks.all_blocks(entries, live, model)
    if not write:
        print("\n\n".join(found.values()))
        return 0
    try:
        text = blocks.insert(DOC.read_text(encoding="utf-8"), found)
    except ValueError as error:
        print(f"{DOC.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 2
    DOC.write_text(text, encoding="utf-8")
    constants.PATH.write_text(constants.dump(list(entries.values())), encoding="utf-8")
    (IMAGES / "throughput-curve.svg").write_text(chart.curve(entries), encoding="utf-8")
    (IMAGES / "throughput-replay.svg").write_text(chart.overload(live, model), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
