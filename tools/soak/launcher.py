"""
The exporter as its command starts it, but for two things that a pod or a person would give it.

    launcher.py FOLDER ARGUMENT...

The service account's token and authority are read from FOLDER/serviceaccount, not from /var/run. At SIGUSR1
one line about tasks and objects is added to FOLDER/census.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path
from typing import Any

from headroom_exporter import cli
from headroom_exporter.discovery import api


def census(path: Path) -> None:
    """What no metric tells: asyncio tasks by the first word of their names, and objects that gc knows."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return
    kinds: dict[str, int] = {}
    for task in tasks:
        name = task.get_name()
        word = "unnamed" if name.startswith("Task-") else name.partition(" ")[0]
        kinds[word] = kinds.get(word, 0) + 1
    line = {"tasks": len(tasks), "kinds": kinds, "objects": len(gc.get_objects())}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    folder = Path(sys.argv[1])
    api.SERVICE_ACCOUNT = folder / "serviceaccount"

    def handle(*_: Any) -> None:
        census(folder / "census")

    signal.signal(signal.SIGUSR1, handle)
    sys.argv = ["headroom-exporter", *sys.argv[2:]]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
