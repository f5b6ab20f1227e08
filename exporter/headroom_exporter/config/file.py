"""The configuration file: YAML in, by the table of table.py, and out again."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom_exporter.config import Config, EngineConfig, PlanConfig
from headroom_exporter.config.checks import BadValue
from headroom_exporter.config.strict_yaml import read_text, read_yaml
from headroom_exporter.config.table import (
    ABSENT,
    CONFIG,
    POD_PLAN,
    Each,
    Group,
    Keys,
    Leaf,
    Record,
)
from headroom_exporter.config.text import complaint, join, scalar, show, show_key, summary
from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where the API server has the pod's own token mounted.
_OWN_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder


def load(path: Path) -> Config:
    """
    Read the configuration file; relative paths in it are relative to its directory.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or says what is not allowed. One line
            for each complaint: FILE: key path: value: what is allowed.
    """
    # Not resolve(): a mounted ConfigMap is a link that moves, and its directory is what stays.
    return parse(read_text(path), str(path), directory=path.absolute().parent)


def parse(text: str, source: str, *, directory: Path | None = None) -> Config:
    """
    Read a configuration from its text.

    Args:
        text: YAML; nothing, or only comments, gives the defaults.
        source: What messages call the file.
        directory: Where relative paths begin; None leaves them as they are written.

    Raises:
        ConfigError: as ``load``.
    """
    raw, complaints = read_yaml(text, source)
    reader = _Reader(source, complaints)
    config = reader.value(CONFIG, {} if raw is None else raw, "", 0)
    if reader.complaints:
        raise ConfigError(summary(reader.complaints, source))
    assert isinstance(config, Config)  # noqa: S101 - for the type checker: the table says so
    if directory is not None:
        config = replace(config, engines=tuple(_rooted(e, directory) for e in config.engines))
    stolen = [
        complaint(
            source,
            f"engines[{place}].bearer_token_file",
            show(engine.bearer_token_file),
            "must not be this pod's own token, nor lie in /proc: it would go to whoever answers at the "
            "url; mount a token that is made for the engine, at another place",
        )
        for place, engine in enumerate(config.engines)
        if engine.bearer_token_file is not None and _is_own_token(engine.bearer_token_file)
    ]
    if stolen:
        raise ConfigError(summary(stolen, source))
    return config


def parse_plan(text: str, source: str) -> PlanConfig:
    """
    Read a single plan: the keys of one of ``plans`` but ``match``.

    Raises:
        ConfigError: as ``load``.
    """
    raw, complaints = read_yaml(text, source)
    reader = _Reader(source, complaints)
    plan = reader.value(POD_PLAN, {} if raw is None else raw, "", 0)
    if reader.complaints:
        raise ConfigError(summary(reader.complaints, source))
    assert isinstance(plan, PlanConfig)  # noqa: S101 - for the type checker: the table says so
    return plan


def _rooted(engine: EngineConfig, directory: Path) -> EngineConfig:
    def root(path: str | None) -> str | None:
        return None if path is None else str(directory / path)

    return replace(
        engine, bearer_token_file=root(engine.bearer_token_file), ca_file=root(engine.ca_file)
    )


def _is_own_token(path: str) -> bool:
    """
    Whether a file is the service account's token, however the path gets there.

    Whoever may write the configuration (a ConfigMap) must not be able to send the token of node mode, which
    reads pods, to an address of theirs. They can make no links; but what /proc leads to may appear later.
    """
    found = Path(os.path.realpath(path))
    return any(found.is_relative_to(os.path.realpath(place)) for place in (_OWN_TOKEN, "/proc"))


# --- reading -------------------------------------------------------------------------------------


class _Reader:
    """Walks plain values beside the table; keeps every complaint instead of stopping at the first."""

    def __init__(self, source: str, complaints: list[str]) -> None:
        self._source = source
        self.complaints = complaints

    def _complain(self, path: str, value: Any, allowed: str, *, shown: str | None = None) -> None:
        """Keep one line; with no value to show, ``value`` is ABSENT."""
        found = "" if value is ABSENT else shown or show(value)
        self.complaints.append(complaint(self._source, path, found, allowed))

    def value(self, spec: Leaf | Record, value: Any, path: str, index: int) -> Any:
        """One value of the right type; ABSENT after a complaint."""
        if isinstance(spec, Record):
            return self._record(spec, value, path, index)
        try:
            return spec.check(value)
        except BadValue as error:
            self._complain(path, value, str(error), shown=error.shown)
            return ABSENT

    def _record(self, spec: Record, value: Any, path: str, index: int) -> Any:
        before = len(self.complaints)
        values = self._keys(spec.keys, value, path)
        # What stands together is only judged once each part is sound.
        if len(self.complaints) == before and spec.complete is not None:
            for key, bad, allowed in spec.complete(values, index):
                self._complain(join(path, key), bad, allowed)
        return ABSENT if len(self.complaints) > before else spec.make(**values)

    def _keys(self, keys: Keys, value: Any, path: str) -> dict[str, Any]:
        """Field name to value for the keys that are there and sound."""
        if not isinstance(value, dict):
            self._complain(path, value, f"must be a mapping of {', '.join(keys)}")
            return {}
        for key in value:
            if key not in keys:
                self._complain(join(path, show_key(key)), ABSENT, _unknown(key, keys))
        found: dict[str, Any] = {}
        for key, spec in keys.items():
            if key in value:
                found |= self._field(key, spec, value[key], join(path, key))
        return {name: part for name, part in found.items() if part is not ABSENT}

    def _field(
        self, key: str, spec: Leaf | Group | Record | Each, value: Any, path: str
    ) -> dict[str, Any]:
        # A section with all its lines commented out says nothing, which is allowed.
        if value is None and not isinstance(spec, Leaf):
            return {}
        if isinstance(spec, Group):
            return self._keys(spec.keys, value, path)
        if isinstance(spec, Each):
            return {key: self._each(spec, value, path)}
        name = spec.attribute if isinstance(spec, Leaf) and spec.attribute else key
        return {name: self.value(spec, value, path, 0)}

    def _each(self, spec: Each, value: Any, path: str) -> Any:
        if not isinstance(value, list):
            self._complain(path, value, "must be a list")
            return ABSENT
        items = [
            self.value(spec.item, item, f"{path}[{index}]", index)
            for index, item in enumerate(value)
        ]
        return tuple(item for item in items if item is not ABSENT)


def _unknown(key: str, keys: Keys) -> str:
    """What to say of an unknown key: the closest known one, here or a level below."""
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    below = {
        _plain(name): f"{group}.{name}"
        for group, spec in keys.items()
        if isinstance(spec, Group | Record)
        for name in spec.keys
    }
    known = below | {_plain(name): name for name in keys}
    close = get_close_matches(_plain(key), list(known), n=1)
    if close:
        return f"unknown key; did you mean {known[close[0]]}?"
    return f"unknown key; known here: {', '.join(keys)}"


def _plain(key: str) -> str:
    """maxNumSeqs, max-num-seqs and max_num_seqs are one slip apart."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


# --- writing -------------------------------------------------------------------------------------


def to_yaml(config: Config) -> str:
    """
    The effective configuration, defaults included, as ``parse`` reads it back to an equal record.

    Undeclared plan numbers, files and patterns are left out: there is no value to write for them.
    """
    return "\n".join(_lines(CONFIG.keys, config, "")) + "\n"


def _lines(keys: Keys, record: Any, indent: str) -> Iterator[str]:
    deeper = indent + "  "
    for key, spec in keys.items():
        head = f"{indent}{key}:"
        if isinstance(spec, Leaf):
            value = getattr(record, spec.attribute or key)
            if value is not None:
                yield f"{head} {scalar(value)}{spec.unit}"
        elif isinstance(spec, Each):
            yield from _items(head, spec.item, getattr(record, key), deeper)
        else:
            part = record if isinstance(spec, Group) else getattr(record, key)
            # A section that was left out and has no default: node mode.
            lines = [] if part is None else list(_lines(spec.keys, part, deeper))
            yield from [head, *lines] if lines else []


def _items(head: str, item: Leaf | Record, values: tuple[Any, ...], indent: str) -> Iterator[str]:
    if isinstance(item, Leaf) or not values:
        yield f"{head} [{', '.join(scalar(value) for value in values)}]"
        return
    yield head
    for value in values:
        first, *others = _lines(item.keys, value, indent + "  ")
        yield f"{indent}- {first.lstrip()}"
        yield from others
