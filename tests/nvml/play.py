"""
Reads GPUs as told on standard input, one JSON answer a line: open, close, read, advance SECONDS.

Runs over the fake library, see build.py. The clock only moves when told.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from types import MappingProxyType
from typing import Any

from headroom_exporter.errors import SourceError
from headroom_exporter.gpus.nvml import NvmlGpus


def plain(value: Any) -> Any:
    """As JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [entry.name for entry in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, MappingProxyType):
        return dict(value)
    return value


class Player:
    """One source and its clock."""

    def __init__(self, devices: tuple[str, ...]) -> None:
        self.now = 0.0
        self.is_open = False
        self.source = NvmlGpus(devices, monotonic=lambda: self.now)

    def do(self, command: str) -> Any:
        verb, _, argument = command.partition(" ")
        if verb == "advance":
            self.now += float(argument)
        elif verb == "close":
            self.source.close()
            self.is_open = False
        elif verb == "read":
            if not self.is_open:
                self.source.open()
                self.is_open = True
            answer = plain(self.source.read())
            answer["gpus"] = {gpu["index"]: gpu for gpu in answer["gpus"]}
            return answer
        return {}


def main() -> None:
    player = Player(tuple(sys.argv[1:]))
    for line in sys.stdin:
        try:
            answer = player.do(line.strip())
        except SourceError as error:
            answer = {
                "error": type(error).__name__,
                "kind": error.kind,
                "message": str(error),
                "pynvml": "pynvml" in sys.modules,
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
