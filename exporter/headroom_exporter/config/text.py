"""How values and key paths are written: in messages, and in YAML that reads back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_COMPLAINTS = 20


def number(value: float) -> str:
    """The shortest text that reads back as the same number."""
    exact = float(value)
    return str(int(exact)) if exact.is_integer() and abs(exact) < 1e15 else repr(exact)


def seconds(value: float) -> str:
    """A duration as the configuration file writes it."""
    return f"{number(value)}s"


def scalar(value: bool | float | str) -> str:
    """A value in YAML; text always in quotes, so that no reader takes it for something else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return number(value)


def show(value: Any) -> str:
    """A value in a message: one line, not long, nothing of what a list or mapping holds."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return number(value)


def show_key(key: str) -> str:
    """A key of the file in a path; an odd one in quotes, so that the message stays one line."""
    return key if re.fullmatch(r"[\w-]{1,64}", key) else f"[{show(key)}]"


def join(path: str, key: str) -> str:
    """The path of a key below another: ``poll.interval``, ``web['odd key']``."""
    return f"{path}.{key}" if path and not key.startswith("[") else path + key


def complaint(source: str, *parts: str) -> str:
    """One line: ``FILE: key path: value: what is allowed``; parts that are empty are left out."""
    return ": ".join(part for part in (source, *parts) if part)


def summary(complaints: Sequence[str], source: str) -> str:
    """The first twenty complaints, a line each, and how many more there are."""
    more = len(complaints) - _MAX_COMPLAINTS
    last = [f"{source}: and {more} more"] if more > 0 else []
    return "\n".join([*complaints[:_MAX_COMPLAINTS], *last])
