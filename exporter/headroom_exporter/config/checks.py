"""Checks of single values: each takes what YAML gave and returns what a record holds, or refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from headroom_exporter.config.text import seconds, show
from headroom_exporter.engines import ENGINES

Check = Callable[[Any], Any]

# What ``kind`` may be.
KINDS = ("auto", *(engine.name for engine in ENGINES))

_DURATION = re.compile(
    r"(?:(?P<h>[0-9.]+)h)?(?:(?P<m>[0-9.]+)m)?(?:(?P<s>[0-9.]+)s)?(?:(?P<ms>[0-9.]+)ms)?"
)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# A name, or an IPv4 address; looking up one with an empty or longer label is not even possible.
_HOST = re.compile(r"[0-9a-z_-]{1,63}(\.[0-9a-z_-]{1,63})*\.?")
_DEVICE = re.compile(r"[0-9]{1,4}(:[0-9]{1,4})?|(GPU|MIG)-[0-9A-Za-z/-]{1,120}")


class BadValue(Exception):  # noqa: N818 - never leaves the reader of the file
    """
    A value that is not allowed; the text says what is.

    ``shown`` replaces the value in the message where the value itself must not be printed.
    """

    def __init__(self, allowed: str, *, shown: str | None = None) -> None:
        super().__init__(allowed)
        self.shown = shown


def number(allowed: str, holds: Callable[[float], bool]) -> Check:
    """A check for numbers; ``allowed`` reads on from "must be"."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadValue(f"must be {allowed}")
        read = float(value)
        if not math.isfinite(read) or not holds(read):
            raise BadValue(f"must be {allowed}")
        # Far outside anything a GPU does: a slip of the keyboard, and it would overflow later.
        if read and not 1e-9 <= abs(read) <= 1e12:
            raise BadValue(f"must be {allowed}, in size from 1e-9 to 1e12")
        return read

    return check


def duration(low: float, high: float) -> Check:
    """A check for durations, in seconds both inclusive; they are written 250ms, 1m30s or 90."""
    allowed = (
        f"must be a duration from {seconds(low)} to {seconds(high)}, such as 250ms, 1s or 1m30s"
    )

    def check(value: Any) -> float:
        read = _in_seconds(value) if isinstance(value, str) else value
        if isinstance(read, bool) or not isinstance(read, int | float):
            raise BadValue(allowed)
        if not low <= read <= high:
            raise BadValue(allowed)
        return float(read)

    return check


def _in_seconds(text: str) -> float | None:
    """What a written duration lasts; None where it is none."""
    found = _DURATION.fullmatch(text)
    parts = {unit: part for unit, part in found.groupdict().items() if part} if found else {}
    try:
        return math.fsum(float(part) * _UNITS[unit] for unit, part in parts.items())
    except ValueError:  # 1.2.3s
        return None


def text(longest: int) -> Check:
    """A check for names and paths: printable, so that they fit labels, logs and YAML as they are."""
    allowed = f"must be text of 1 to {longest} printable characters"

    def check(value: Any) -> str:
        if isinstance(value, bool | int | float):
            raise BadValue(f"{allowed}; put it in quotes")
        if not isinstance(value, str) or not 1 <= len(value) <= longest or not value.isprintable():
            raise BadValue(allowed)
        return value

    return check


def _name(pattern: re.Pattern[str], longest: int, allowed: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not pattern.fullmatch(value):
            raise BadValue(f"must be {allowed}")
        return value

    return check


# As Kubernetes has them (RFC 1123 and RFC 6335), so that they are safe in addresses and selectors.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
node = _name(
    re.compile(rf"{_LABEL}(\.{_LABEL})*"), 253, "a node's name: lower-case letters, digits, - and ."
)
namespace = _name(
    re.compile(_LABEL), 63, "a namespace's name: at most 63 lower-case letters, digits and -"
)
port_name = _name(
    re.compile(_LABEL), 15, "a port's name: at most 15 lower-case letters, digits and -"
)


def label_selector(value: Any) -> str:
    """A label selector; only the API server knows its syntax, so only its size and its text are seen to."""
    if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
        raise BadValue(
            "must be a label selector of at most 1024 printable characters, such as app=vllm"
        )
    return value.strip()


def absolute_path(value: Any) -> str:
    """A path that begins with a slash; a socket's, so no longer than the kernel takes."""
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]{1,106}", value):
        raise BadValue("must be an absolute path of at most 107 characters without spaces")
    return value


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise BadValue("must be true or false")
    return value


def kind(value: Any) -> str:
    """One of KINDS."""
    if value not in KINDS:
        raise BadValue(f"must be one of {', '.join(KINDS)}")
    return str(value)


def device(value: Any) -> str:
    """A GPU: its NVML index, or the UUID of a card or a MIG instance as ``nvidia-smi -L`` has it."""
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise BadValue(
            "must be an index such as 0 (of a MIG instance 0:1), or a UUID that "
            "begins with GPU- or MIG-"
        )
    return name


def url(value: Any) -> str:
    """A base address; the parts that would be lost or leaked (query, credentials) are refused."""
    hint = "must be a base address such as http://127.0.0.1:8000 or https://host:8443"
    if not isinstance(value, str):
        raise BadValue(hint)
    shown = _without_secrets(value)
    if "@" in value:
        raise BadValue("must hold no credentials; use bearer_token_file", shown=shown)
    if not re.fullmatch(r"https?://[!-~]+", value) or re.search(r"[\\<>\"^`{|}]", value):
        raise BadValue(hint, shown=shown)
    if "?" in value or "#" in value:
        raise BadValue("must hold no query and no fragment", shown=shown)
    if not _has_host(value):
        raise BadValue(hint, shown=shown)
    base = value.rstrip("/")
    if base.endswith("/metrics"):
        raise BadValue(
            f"must be the base address {base.removesuffix('/metrics')}: /metrics is added to it",
            shown=shown,
        )
    return base


def _has_host(address: str) -> bool:
    """Whether there is a host one can look up, and a port one can connect to."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    return port != 0 and (":" in host or _HOST.fullmatch(host) is not None)


def _without_secrets(address: str) -> str:
    """The value as a message may show it: no user, no password, no query."""
    base, mark, _ = address.partition("?")
    if "@" in address:
        # All that precedes the last @: a password may itself hold a slash or a question mark.
        base, mark, _ = f"***@{address.rpartition('@')[2]}".partition("?")
    return show(base + ("?***" if mark else ""))
