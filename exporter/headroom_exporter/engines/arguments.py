"""What an engine's command line says, where its process is visible (shared PID namespace)."""

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
    port = _local_port(url)
    if port is None:
        return None
    found = {
        _limit(arguments)
        for arguments in _command_lines(proc, b"vllm")
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


def command_line(
    url: str, program: str, *, default_port: int, proc: Path = Path("/proc")
) -> list[str] | None:
    """
    The arguments of the one process of a program that serves behind ``url``.

    Returns:
        None where none is visible, or several are.
    """
    port = _local_port(url)
    if port is None:
        return None
    found = [
        arguments
        for arguments in _command_lines(proc, program.encode())
        if os.path.basename(arguments[0]) == program  # noqa: PTH119 - a string, not a file
        and (option(arguments, "--port") or default_port) == port
    ]
    return found[0] if len(found) == 1 else None


def option(arguments: Sequence[str], *names: str) -> int | None:
    """The whole number above 0 that follows any of the names, the last one given; None where none does."""
    value = None
    for name, following in itertools.pairwise(arguments):
        if name in names:
            value = following
    return int(value) if value is not None and value.isdecimal() and len(value) < 10 else None


def _local_port(url: str) -> int | None:
    """The port of a URL of this machine; None for any other, whose processes are not ours to see."""
    parts = urlsplit(url)
    if parts.hostname not in LOCAL_HOSTS:
        return None
    return parts.port or (443 if parts.scheme == "https" else 80)


def _command_lines(proc: Path, word: bytes) -> Iterable[list[str]]:
    try:
        entries = [entry for entry in os.scandir(proc) if entry.name.isdecimal()]
    except OSError:
        return
    for entry in entries:
        try:
            raw = Path(entry.path, "cmdline").read_bytes()[:65536]
        except OSError:
            continue
        if word in raw:
            yield raw.decode("utf-8", "replace").rstrip("\0").split("\0")
