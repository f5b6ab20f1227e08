"""
Strict YAML: plain values or an error, and nothing that is kept, dropped or guessed in silence.

Built on PyYAML's events instead of its loaders, which keep the last of two equal keys, read 1e-3 as
text, 010 as 8 and ``no`` as false (YAML 1.1), raise what they like on text such as ``!!bool x``, and
with libyaml overrun the C stack on deep nesting.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from headroom_exporter.config.text import complaint, join, show_key
from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A ConfigMap holds 1 MiB at most; nobody writes more by hand.
_MAX_BYTES = 1 << 20
# Our files are five levels deep; beyond this the text is no configuration, or means harm.
_MAX_DEPTH = 16

_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_text(path: Path) -> str:
    """
    The text of a file.

    Raises:
        ConfigError: it cannot be read, holds more than 1 MiB, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: must hold at most 1 MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # "from None" here and below: what an error holds of the text may be a secret.
        raise ConfigError(f"{path}: must be UTF-8 text: {error.reason}") from None


def core_schema(text: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema, less octal, hexadecimal, infinity and NaN."""
    if text in _NULLS:
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def text_or_null(text: str) -> str | None:
    """An unquoted scalar as Go's YAML puts it into a string: as it is written, or nothing."""
    return None if text in _NULLS else text


def read_yaml(
    text: str, source: str, *, unquoted: Callable[[str], Any] = core_schema
) -> tuple[Any, list[str]]:
    """
    Read the only document of a text.

    Anchors and aliases are plain repetition; merge keys and tags are refused.

    Args:
        text: YAML.
        source: What messages call the file.
        unquoted: What a scalar without quotes means; a quoted one is text.

    Returns:
        The document's value (None where there is none): dict with text keys, list, text, and what
        ``unquoted`` makes. Beside it complaints, ``SOURCE: key path: what is wrong``, of what could
        be read but is not allowed: repeated keys and the like. No message holds a value.

    Raises:
        ConfigError: not YAML, nested too deeply, or more than one document.
    """
    builder = _Builder(source, unquoted)
    return builder.document(text), builder.complaints


class _Builder:
    """Puts values together from PyYAML's events."""

    def __init__(self, source: str, unquoted: Callable[[str], Any]) -> None:
        # Not at the top: it costs 2.8 MiB that a sidecar without a file need not spend.
        import yaml  # noqa: PLC0415

        self._yaml = yaml
        self._source = source
        self._unquoted = unquoted
        self._anchors: dict[str, Any] = {}
        self._events: Iterator[Any] = iter(())
        self.complaints: list[str] = []

    def document(self, text: str) -> Any:
        """The only document of the text; None where there is none."""
        yaml = self._yaml
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._events = iter(yaml.parse(text, Loader=loader))
            next(self._events)  # the stream begins
            if isinstance(next(self._events), yaml.StreamEndEvent):
                return None
            root = self._node(next(self._events), "", 0)
            next(self._events)  # the document ends
            if not isinstance(next(self._events), yaml.StreamEndEvent):
                raise ConfigError(f"{self._source}: must be a single YAML document")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            fault = f"not YAML: {error.problem or error.context}"
            raise ConfigError(complaint(self._source, where, fault)) from None
        except (yaml.YAMLError, UnicodeError) as error:
            # Control characters; half a surrogate pair, which cannot be encoded for libyaml.
            reason = getattr(error, "reason", "unreadable text")
            raise ConfigError(f"{self._source}: not YAML: {reason}") from None
        return root

    def _node(self, event: Any, path: str, depth: int) -> Any:
        yaml = self._yaml
        if depth > _MAX_DEPTH:
            raise self._fault(event, "nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._fault(event, "an alias (*) without its anchor (&) before it")
            return self._anchors[event.anchor]
        if event.tag is not None:
            self._complain(path, "tags (!) are not used here; put text that begins so in quotes")
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] or event.tag is not None
            value = self._unquoted(event.value) if plain else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path, depth)
        else:
            value = self._mapping(path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _sequence(self, path: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            items.append(self._node(event, f"{path}[{len(items)}]", depth + 1))
        return items

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            if not isinstance(event, self._yaml.ScalarEvent):
                raise self._fault(event, "a key must be plain text")
            key, line = event.value, _line(event)
            where = join(path, show_key(key))
            if key == "<<":
                self._complain(where, "merge keys are not supported")
            value = self._node(next(self._events), where, depth + 1)
            if key in pairs:
                self._complain(where, f"given twice, on lines {lines[key]} and {line}")
            elif key != "<<":
                pairs[key] = value
            lines.setdefault(key, line)
        return pairs

    def _complain(self, path: str, fault: str) -> None:
        self.complaints.append(complaint(self._source, path, fault))

    def _fault(self, event: Any, fault: str) -> ConfigError:
        return ConfigError(f"{self._source}: line {_line(event)}: {fault}")


def _line(event: Any) -> int:
    line: int = event.start_mark.line + 1
    return line
