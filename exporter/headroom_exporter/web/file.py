"""
The web configuration file: TLS, client certificates, response headers, basic auth, rate limit.

The format is the one every Prometheus exporter has from exporter-toolkit
(https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md), so one file
serves them all. What Python's TLS cannot do is refused by name; nothing that protects is ignored.

Differences from the toolkit, all to the stricter side:
- ``client_auth_type`` RequestClientCert and RequireAnyClientCert are refused: Python's TLS verifies
  every certificate it asks for, so it cannot accept one unverified.
- A type that verifies needs ``client_ca_file`` or ``client_ca``; the toolkit falls back to the
  system's public authorities, whose customers are not your scrapers.
- TLS10 and TLS11 are refused, and more than one entry in ``curve_preferences``: neither can be set.
- bcrypt costs above 18 are refused: one check would take more than seconds of CPU.
- ``tls_server_config`` with any key needs certificate and key; the toolkit serves plain HTTP when
  only minor keys are set.
- YAML's tags and merge keys are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.config.strict_yaml import read_text, read_yaml, text_or_null
from headroom_exporter.config.text import summary
from headroom_exporter.errors import ConfigError
from headroom_exporter.web.file_tls import read_tls
from headroom_exporter.web.section import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headroom_exporter.web.tls import TlsConfig

# Header -> allowed values; None for any printable text.
HEADERS: Mapping[str, tuple[str, ...] | None] = {
    "Content-Security-Policy": None,
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": None,
    "Strict-Transport-Security": None,
}
MAX_BCRYPT_COST = 18

_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([\d.]+)([a-zµ]+)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


# --- what the file says --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A token bucket: one request each ``interval`` seconds, ``burst`` at once."""

    interval: float
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFile:
    """
    The whole file.

    Attributes:
        users: Name -> bcrypt hash; empty: no basic auth.
        warnings: What the reader should know though it is allowed.
    """

    path: Path
    tls: TlsConfig | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    users: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    rate_limit: RateLimit | None = None
    warnings: tuple[str, ...] = ()

    @property
    def pem_paths(self) -> tuple[Path, ...]:
        """The certificate files it names."""
        if self.tls is None:
            return ()
        pems = (self.tls.cert, self.tls.key, self.tls.client_ca)
        return tuple(pem.path for pem in pems if pem is not None and pem.path is not None)


# --- reading it ----------------------------------------------------------------------------------


def read_web_file(path: Path) -> WebFile:
    """
    Read a web configuration file; certificates are not opened yet.

    Raises:
        ConfigError: unreadable, not YAML, an unknown key, a value that is not possible.
    """
    # Scalars are text, as Go reads them into strings (X-XSS-Protection: 0).
    data, complaints = read_yaml(read_text(path), str(path), unquoted=text_or_null)
    if complaints:
        raise ConfigError(summary(complaints, str(path)))
    root = Section(
        path,
        "",
        data,
        ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"),
    )
    http = root.section("http_server_config", ("http2", "headers"))
    tls, users = read_tls(root), _users(root)
    warnings = []
    if http.text("http2") is not None and http.flag("http2", default=True):
        warnings.append(f"{http.place('http2')}: true, but this server speaks HTTP/1.1 only")
    if users and tls is None:
        warnings.append(f"{path}: basic_auth_users without TLS: passwords travel readable")
    return WebFile(
        path=path,
        tls=tls,
        headers=MappingProxyType(_headers(http)),
        users=MappingProxyType(users),
        rate_limit=_rate_limit(root),
        warnings=tuple(warnings),
    )


def _headers(http: Section) -> dict[str, str]:
    section = http.section("headers", tuple(HEADERS))
    headers = {}
    for key in section.data:
        value, allowed = section.text(key), HEADERS[key]
        if value is None:
            continue
        if allowed is not None and value not in allowed:
            raise section.error(key, value, ", ".join(allowed))
        if not (value.isascii() and value.isprintable()):
            raise section.error(key, value, "printable ASCII")
        headers[key] = value
    return headers


def _users(root: Section) -> dict[str, str]:
    section = root.section("basic_auth_users", None)
    users = {}
    for name in section.data:
        hashed = section.text(name, secret=True) or ""
        match = _BCRYPT.fullmatch(hashed)
        # The hash itself stays out of messages: logs travel further than secrets should.
        if match is None or not 4 <= int(match[1]) <= MAX_BCRYPT_COST:
            raise ConfigError(
                f"{section.place(name)}: the value (not shown) is not possible; allowed: a bcrypt "
                f"hash, $2b$COST$..., of a cost from 4 to {MAX_BCRYPT_COST}"
            )
        if not name or ":" in name:
            raise section.error(name, name, "a name without a colon")
        users[name] = hashed
    return users


def _rate_limit(root: Section) -> RateLimit | None:
    section = root.section("rate_limit", ("interval", "burst"))
    interval, burst = section.text("interval") or "0", section.text("burst") or "0"
    if interval == "0":
        seconds = 0.0
    elif _DURATION.fullmatch(interval):
        parts = _DURATION_PART.findall(interval)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        raise section.error("interval", interval, "0 or a duration such as 500ms, 1s, 1m30s")
    if not (burst.isascii() and burst.isdecimal() and len(burst) <= 9):
        raise section.error("burst", burst, "a whole number")
    if not seconds:
        return None
    if burst.strip("0") == "":
        raise section.error("burst", burst, "at least 1 (0 would admit nobody)")
    return RateLimit(interval=seconds, burst=int(burst))
