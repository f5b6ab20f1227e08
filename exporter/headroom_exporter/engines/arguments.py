"""max_num_seqs from the engine's command line, where its process is visible (shared PID namespace)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_PORT = 8000
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
SERVER_MODULE = "vllm.entrypoints.openai.api_server"


def max_num_seqs(url: str, proc: Path = Path("/proc")) -> float | None:
    """
    The limit that the vLLM server behind ``url`` was started with.

    ``--max-num-active-seqs`` (0.31 and later) lowers the running limit below ``--max-num-seqs``.

    Returns:
        None where no such process is visible, where one was started without the flag (the default depends
        on the device, so it is not guessed), or where two processes contradict each other: with the
        node's processes in sight, several pods serve on the same port.
    """
    parts = urlsplit(url)
    if parts.hostname not in LOCAL_HOSTS:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = {
        _limit(arguments)
        for arguments in _command_lines(proc)
        if is_vllm_server(arguments) and (_option(arguments, "--port") or DEFAULT_PORT) == port
    }
    limit = found.pop() if len(found) == 1 else None
    return None if limit is None else float(limit)


def is_vllm_server(arguments: Sequence[str]) -> bool:
    """Whether a command line starts vLLM's API server."""
    if SERVER_MODULE in arguments:
        return True
    return any(
        os.path.basename(first) == "vllm" and second == "serve"  # noqa: PTH119 - a string, not a file
        for first, second in itertools.pairwise(arguments)
    )


def _limit(arguments: Sequence[str]) -> int | None:
    limits = [_option(arguments, "--max-num-seqs"), _option(arguments, "--max-num-active-seqs")]
    return min((limit for limit in limits if limit), default=None)


def _option(arguments: Sequence[str], name: str) -> int | None:
    """
    Value of ``--name N`` or ``--name=N``, the last one given, as argparse does.

    vLLM takes ``_`` for ``-`` anywhere in a name.
    """
    value = None
    for i, argument in enumerate(arguments):
        option, equals, inline = argument.partition("=")
        if option[:2] == "--" and "--" + option[2:].replace("_", "-") == name:
            value = inline if equals else "".join(arguments[i + 1 : i + 2])
    # No limit has ten digits, and int() refuses thousands.
    return int(value) if value is not None and value.isdecimal() and len(value) < 10 else None


def _command_lines(proc: Path) -> Iterable[list[str]]:
    try:
        entries = [entry for entry in os.scandir(proc) if entry.name.isdecimal()]
    except OSError:
        return
    for entry in entries:
        try:
            raw = Path(entry.path, "cmdline").read_bytes()[:65536]
        except OSError:
            continue
        if b"vllm" in raw:
            yield raw.decode("utf-8", "replace").rstrip("\0").split("\0")
