"""``headroom-exporter status``: what ``GET /api/v1/state`` answers, as a table in the terminal."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import shutil
import sys
import textwrap
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

from headroom_exporter.errors import Malformed, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_URL = "http://127.0.0.1:9890"
PATH = "/api/v1/state"
TIMEOUT_SECONDS = 5.0
MAX_BYTES = 32 * 1024 * 1024
VERSION = 1
# Ranks whose verdict is spelled out below the table.
MAX_VERDICTS = 4

_UNKNOWN = "–"
_ICONS = {"ok": "✓", "low": "!", "exhausted": "✕", "unknown": "?"}
_HEADS = ("STATE", "ENGINE", "RANK", "DEMAND", "LIMIT", "ROOM", "BINDS", "SPIKE", "KV", "MODEL")
_RIGHT = frozenset({"DEMAND", "LIMIT", "ROOM", "SPIKE", "KV"})


def run(url: str, *, watch: float | None, as_json: bool) -> int:
    """
    Print the state once, or again and again.

    Args:
        url: The exporter's address, with or without a path; ``NAME:PASSWORD@`` where it wants them.
        watch: Seconds between two pictures; None for one picture.
        as_json: The document itself, a line each, instead of the table.

    Returns:
        Exit status: 0.

    Raises:
        Unreachable: No answer, and not told to watch.
        Malformed: An answer that is none of ours, and not told to watch.
    """
    try:
        if watch is None:
            _write(picture(fetch(url), as_json=as_json))
        else:
            _watch(url, watch, as_json=as_json)
    except BrokenPipeError:
        # Whoever read the lines has seen enough. Else Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _watch(url: str, seconds: float, *, as_json: bool) -> NoReturn:
    """Print again and again; an exporter that is away is said, and asked again."""
    while True:
        try:
            text = picture(fetch(url), as_json=as_json)
        except (Unreachable, Malformed) as error:
            text = f"{error}\n"
        # On a terminal the last picture is written over; a file gets one after the other.
        home = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not as_json else ""
        _write(home + text)
        time.sleep(seconds)


def picture(document: Mapping[str, Any], *, as_json: bool) -> str:
    """What is printed of one document."""
    if as_json:
        return json.dumps(document, ensure_ascii=False) + "\n"
    # Nothing is cut for a file or a pipe.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    return "".join(f"{line}\n" for line in render(document, width=width))


# --- asking --------------------------------------------------------------------------------------


def fetch(url: str) -> dict[str, Any]:
    """
    The document of an exporter.

    Raises:
        Unreachable: Refused, no answer in time, no such host, a status other than 200.
        Malformed: The answer is not a document of the version this program reads.
    """
    address, headers = _address(url)
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - http(s), see _address
    # No proxy: an exporter is a neighbour.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _StayHere)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            body = answer.read(MAX_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(f"{address}: status {error.code}{_hint(error.code)}") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = getattr(error, "reason", None) or error
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Unreachable(f"{address}: no answer: {text}. Does an exporter run there?") from None
    return _read(address, body)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send name and password on to wherever it points."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _read(address: str, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "ranks" not in document:
        raise Malformed(f"{address}: the answer is not a headroom-exporter's")
    if document.get("version") != VERSION:
        raise Malformed(
            f"{address}: the document's version is {document.get('version')!r}; "
            f"this program reads version {VERSION}"
        )
    return document


def _address(url: str) -> tuple[str, dict[str, str]]:
    """
    The API's address, and the header with name and password where the URL has them.

    Raises:
        Unreachable: No address of an exporter can be made of it.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # Not the address itself: a name and a password can stand in it.
        shown = url.rpartition("@")[2]
        raise Unreachable(f"{shown!r}: must be like {DEFAULT_URL}, or https://host:port")
    place = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/").removesuffix(PATH).removesuffix("/metrics")
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return urlunsplit((parts.scheme, place, path + PATH, "", "")), headers


def _hint(status: int) -> str:
    if 300 <= status < 400:
        return "; it points elsewhere, which is not followed: name that address"
    return {
        401: "; it wants a name and a password: http://NAME:PASSWORD@host:port",
        404: "; an older headroom-exporter, or something else",
        429: "; too many requests",
    }.get(status, "")


# --- drawing -------------------------------------------------------------------------------------


def render(document: Mapping[str, Any], *, width: int = 100) -> list[str]:
    """
    Draw a document of version 1: a table of all ranks, least headroom first, then verdicts.

    Args:
        document: As ``GET /api/v1/state`` answers it.
        width: Columns; longer rows are cut, longer sentences wrapped, addresses left whole.
    """
    exporter = document["exporter"]
    when = time.strftime("%H:%M:%S", time.localtime(document["time"]))
    simulated = "   SIMULATED" if exporter["simulated"] else ""
    lines = [f"headroom-exporter {exporter['version']}   {when}{simulated}", ""]
    lines += [line[:width] for line in _table([_row(rank) for rank in document["ranks"]])]
    lines += [
        f"? unknown  {engine['name']}: {engine['verdict']['sentence']}"
        for engine in document["engines"]
        if engine["verdict"] is not None
        and all(rank["engine"] != engine["name"] for rank in document["ranks"])
    ]
    for line in _verdicts(document["ranks"]):
        lines += textwrap.wrap(
            line, max(20, width), subsequent_indent="    ", break_long_words=False
        ) or [""]
    return [_printable(line).rstrip() for line in lines]


def _row(rank: Mapping[str, Any]) -> tuple[str, ...]:
    state, usage = rank["state"], rank["kv_cache"]["usage_ratio"]
    return (
        f"{_ICONS.get(state, '?')} {state}",
        rank["engine"],
        rank["rank"],
        _number(rank["demand"]),
        _number(rank["sustainable"]),
        _signed(rank["headroom"]["sequences"]),
        rank["binding"] or _UNKNOWN,
        _multiple(rank["spike_multiple"]),
        _UNKNOWN if usage is None else f"{usage:.0%}",
        rank["model_name"],
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["no rank is known yet"]
    widths = [max(len(row[i]) for row in (_HEADS, *rows)) for i in range(len(_HEADS))]
    return [
        "  ".join(
            cell.rjust(size) if head in _RIGHT else cell.ljust(size)
            for cell, size, head in zip(row, widths, _HEADS, strict=True)
        )
        for row in (_HEADS, *rows)
    ]


def _verdicts(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first few in words: they are the worst."""
    lines = []
    for rank in ranks[:MAX_VERDICTS]:
        verdict = rank["verdict"]
        lines += ["", f"{rank['engine']} rank {rank['rank']}: {verdict['sentence']}"]
        if verdict["advice"]:
            lines.append(f"  {verdict['advice']}")
        lines += [f"  - {note['text']}" for note in verdict["notes"]]
        if verdict["runbook"]:
            lines.append(f"  {verdict['runbook']}")
    left = len(ranks) - MAX_VERDICTS
    return [*lines, "", f"and {left} more"] if left > 0 else lines


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _signed(value: float | None) -> str:
    # Towards less room, as on the page: 6.9 more are 6 that fit.
    return _UNKNOWN if value is None else f"{math.floor(value):+,}"


def _multiple(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{math.floor(value * 10 + 1e-9) / 10:g}x"


def _printable(line: str) -> str:
    """A line that cannot move the cursor, whatever an engine calls its model."""
    return "".join(char if char.isprintable() else "?" for char in line)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
