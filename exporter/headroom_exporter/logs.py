"""
Log lines: one record is one line, as logfmt or as JSON.

Fields of every line: ``ts`` (RFC 3339, UTC, milliseconds), ``level``, ``logger``, ``msg``; then
``exc`` and ``stack`` where there are any; then what the caller passed by logging's ``extra=``. A
value that is None is left out. Whatever a value holds (newlines, quotes, control characters, half a
surrogate pair), the line stays one line, and the JSON stays JSON.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

# An engine may answer with megabytes and an error may quote them; a line that long helps nobody.
_MAX_VALUE = 8192

_LEVEL_NAMES = {"WARNING": "warn", "CRITICAL": "error"}
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_.\-/]")
_NOT_BARE = frozenset(' "=\\')


def setup(level: str = "info", fmt: str = "logfmt", stream: TextIO | None = None) -> None:
    """
    Send every log record of the process to one stream; a second call replaces the first.

    Args:
        level: ``debug``, ``info``, ``warn`` or ``error``; the least that is written.
        fmt: ``logfmt`` or ``json``.
        stream: Where lines go; standard error when not given.

    Raises:
        ConfigError: an unknown level or format.
    """
    if level not in LEVELS:
        raise ConfigError(f"--log.level: {level!r} is not a level; allowed: {', '.join(LEVELS)}")
    if fmt not in FORMATS:
        raise ConfigError(f"--log.format: {fmt!r} is not a format; allowed: {', '.join(FORMATS)}")
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(LineFormatter(FORMATS[fmt]))
    root = logging.getLogger()
    # Only our own earlier handler: whoever put another there (a test's recorder) wants it.
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # Python prints a warning as two bare lines on standard error; as a record it keeps the format.
    logging.captureWarnings(capture=True)


class _Handler(logging.StreamHandler[TextIO]):
    """A type of its own, so that setup knows its handler again."""


class LineFormatter(logging.Formatter):
    """Turn a record into fields and let ``render`` write them."""

    def __init__(self, render: Callable[[Mapping[str, object]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        return self._render(self._fields(record))

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        created = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = {
            "ts": created.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z",
            "level": _LEVEL_NAMES.get(record.levelname, record.levelname.lower()),
            "logger": record.name,
            "msg": _message(record),
        }
        if record.exc_info:
            fields["exc"] = _cut(self.formatException(record.exc_info))
        if record.stack_info:
            fields["stack"] = _cut(record.stack_info)
        for key, value in vars(record).items():
            if key not in _RECORD_FIELDS and value is not None:
                fields[_free(str(key), fields)] = _plain(value)
        return fields


def as_json(fields: Mapping[str, object]) -> str:
    """ASCII only, so no reader can find a line end in it that Python did not see."""
    return json.dumps(fields, allow_nan=False)


def as_logfmt(fields: Mapping[str, object]) -> str:
    """``key=value`` pairs; a quoted value is escaped as in JSON, so it can be read back as JSON."""
    return " ".join(f"{_key(key)}={_quote(value)}" for key, value in fields.items())


FORMATS: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "logfmt": as_logfmt,
    "json": as_json,
}


def _message(record: logging.LogRecord) -> str:
    try:
        return _cut(record.getMessage())
    except Exception:  # noqa: BLE001 - a wrong format string must not cost the line, nor split it
        return _cut(f"{_text(record.msg)} {_text(record.args)}")


def _free(key: str, taken: Mapping[str, object]) -> str:
    """A name not yet in use: a caller's ``level`` becomes ``level_``."""
    while key in taken:
        key += "_"
    return key


def _plain(value: object) -> object:
    """What JSON can hold as it is (and every reader can take back), else its text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return _cut(_text(value))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - someone else's __str__
        return f"<{type(value).__name__}: {type(error).__name__} in str()>"


def _cut(text: str) -> str:
    """Head and tail of a text that is too long: the tail of a traceback says what happened."""
    if len(text) <= _MAX_VALUE:
        return text
    half = _MAX_VALUE // 2
    return f"{text[:half]} ...[{len(text) - 2 * half} characters left out]... {text[-half:]}"


def _key(key: str) -> str:
    return _NOT_IN_KEYS.sub("_", key) or "_"


def _quote(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text and text.isprintable() and not _NOT_BARE.intersection(text):
        return text
    return f'"{"".join(map(_escape, text))}"'


def _escape(char: str) -> str:
    # Printable text stays readable in any script; the rest is \n, \t, \uXXXX as JSON has it.
    return json.dumps(char)[1:-1] if char in '"\\' or not char.isprintable() else char
