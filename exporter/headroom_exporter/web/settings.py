"""The web configuration in force, kept fresh: the file and its certificates are followed."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any, Self

from headroom_exporter.errors import ConfigError
from headroom_exporter.web.file import read_web_file
from headroom_exporter.web.tls import build_context

if TYPE_CHECKING:
    from pathlib import Path

    from headroom_exporter.web.file import WebFile

log = logging.getLogger(__name__)


class WebSettings:
    """
    The web configuration in force: follows the file and its certificates while the server runs.

    Whoever needs it asks at the moment of use (each request, each new connection), and the files
    are looked at then: a handful of stat calls, microseconds. So a renewed certificate serves the
    very next connection, there is no timer to run or to stop, and an idle exporter does nothing.
    What cannot be used is logged once, and what was in force stays. Switching TLS itself on or off
    needs a restart.

    Raises:
        ConfigError: the file or a certificate cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = _mark(path)
        self._wanted = self.file = read_web_file(path)
        self._pem_marks: object = _marks(self.file)
        self._context = build_context(self.file.tls) if self.file.tls else None
        _warn(self.file)

    def current(self) -> WebFile:
        """The file in force, after a look at whether anything changed on disk."""
        mark = _mark(self._path)
        if mark != self._mark:
            self._mark = mark
            self._read()
        # Marks are taken before the files are read: a change in between is seen the next time.
        marks = _marks(self._wanted)
        if marks != self._pem_marks:
            self._pem_marks = marks
            self._apply()
        return self.file

    def server_context(self) -> ssl.SSLContext | None:
        """For the listening socket: gives every new connection the settings of that moment."""
        return None if self._context is None else _FreshContext(self)

    def _read(self) -> None:
        try:
            self._wanted = read_web_file(self._path)
        except ConfigError as error:
            log.error("web configuration not reloaded, the old one stays", extra={"error": error})  # noqa: TRY400
        else:
            self._pem_marks = None

    def _apply(self) -> None:
        try:
            if (self._wanted.tls is None) != (self._context is None):
                raise ConfigError(  # noqa: TRY301
                    f"{self._path}: tls_server_config: switching TLS on or off needs a restart"
                )
            context = build_context(self._wanted.tls) if self._wanted.tls else None
        except ConfigError as error:
            log.error("web configuration not reloaded, the old one stays", extra={"error": error})  # noqa: TRY400
            return
        if self._wanted is not self.file:
            _warn(self._wanted)
        self.file, self._context = self._wanted, context
        log.info("web configuration reloaded", extra={"file": self._path})

    def fresh_context(self) -> ssl.SSLContext:
        """The context for a connection that begins now."""
        self.current()
        if self._context is None:
            raise AssertionError("asked for TLS where there is none")
        return self._context


class _FreshContext(ssl.SSLContext):
    """
    Hands each new connection to the context in force.

    Why not change the live context: load_cert_chain leaves a certificate of another key type in
    place, load_verify_locations only ever adds authorities, and tickets of the old sessions go on.
    Why not sni_callback: a context swapped there brings its certificate but not its versions, nor
    whether a client certificate is asked for. asyncio calls wrap_bio once for each connection.
    """

    _settings: WebSettings

    def __new__(cls, settings: WebSettings) -> Self:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._settings = settings
        return self

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._settings.fresh_context().wrap_bio(*args, **kwargs)


def _warn(file: WebFile) -> None:
    for warning in file.warnings:
        log.warning("%s", warning)


def _marks(file: WebFile) -> tuple[object, ...]:
    return tuple(map(_mark, file.pem_paths))


def _mark(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; follows links, as Kubernetes swaps one to renew a secret."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
