"""One mapping of the web configuration file, read so that errors name file, key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.errors import ConfigError
from headroom_exporter.web.tls import Pem

if TYPE_CHECKING:
    from pathlib import Path


class Section:
    """One mapping of the file: gives its values by key and names file, key and value in errors."""

    def __init__(self, file: Path, path: str, data: object, keys: tuple[str, ...] | None) -> None:
        self._file = file
        self._path = path
        if data is not None and not isinstance(data, dict):
            # Not its value: it may be a private key, or a user with a password.
            kind = "a list" if isinstance(data, list) else "a text"
            raise ConfigError(f"{self.place('')}: {kind} is not possible; allowed: a mapping")
        self.data: dict[str, Any] = data or {}
        for key in self.data:
            if keys is not None and key not in keys:
                raise ConfigError(f"{self.place(key)}: unknown key; allowed: {', '.join(keys)}")

    def place(self, key: str) -> str:
        """``FILE: path.to.key``."""
        return f"{self._file}: {'.'.join(part for part in (self._path, key) if part) or 'the file'}"

    def error(self, key: str, value: object, allowed: str) -> ConfigError:
        """What to raise at a value that is not possible."""
        shown = repr(value)
        return ConfigError(
            f"{self.place(key)}: {shown if len(shown) <= 200 else shown[:200] + '...'} "
            f"is not possible; allowed: {allowed}"
        )

    def section(self, key: str, keys: tuple[str, ...] | None) -> Section:
        """The mapping below a key; empty where there is none. ``keys`` None allows any."""
        path = f"{self._path}.{key}" if self._path else key
        return Section(self._file, path, self.data.get(key), keys)

    def text(self, key: str, *, secret: bool = False) -> str | None:
        """None where absent or empty, as in the toolkit."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "..." if secret else value, "a text")
        return value or None

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts; None where absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, value, "a list of texts")
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false, in any case of letters; ``default`` where absent."""
        value = self.text(key)
        if value is None:
            return default
        if value.lower() not in {"true", "false"}:
            raise self.error(key, value, "true, false")
        return value.lower() == "true"

    def pem(self, name: str, *, secret: bool = False) -> Pem | None:
        """``name`` (the text itself) or ``name_file`` (its path), not both."""
        text, path = self.text(name, secret=secret), self.text(f"{name}_file")
        if text is not None and path is not None:
            raise ConfigError(
                f"{self.place(f'{name}_file')}: {path!r} besides {name}; allowed: one of the two"
            )
        if path is not None:
            # Relative to the web configuration, as in the toolkit, whatever the working directory.
            return Pem(key=self.place(f"{name}_file"), path=self._file.parent / path)
        return None if text is None else Pem(key=self.place(name), text=text)
