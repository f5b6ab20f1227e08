"""TLS contexts from PEM texts, in files or in memory; client certificates checked by name."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """One PEM text: in a file (watched for change) or written into the web configuration."""

    key: str
    path: Path | None = None
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """
    ``tls_server_config``.

    Attributes:
        client_ca: Who signs client certificates; None exactly when none is asked for.
        ciphers: OpenSSL names, in order of preference; empty for the library's default.
        curve: OpenSSL name of the only curve allowed; None for the library's default.
        client_allowed_sans: A client certificate must hold one of these; empty for any.
    """

    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    client_allowed_sans: frozenset[str] = frozenset()
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True
    curve: str | None = None


def build_context(tls: TlsConfig) -> ssl.SSLContext:
    """
    A server context with the certificates as they are on disk now.

    Raises:
        ConfigError: a file cannot be read, is no certificate, or key and certificate do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = tls.min_version, tls.max_version
    # A TLS 1.2 client could otherwise make us compute handshakes without end on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if tls.prefer_server_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    if tls.ciphers:
        _set_ciphers(context, tls)
    if tls.curve is not None:
        context.set_ecdh_curve(tls.curve)
    _load_certificate(context, tls)
    if tls.client_ca is not None:
        _load_client_ca(context, tls.client_ca)
        context.verify_mode = tls.client_auth
    if tls.client_allowed_sans:
        context.sslobject_class = _checking_sans(tls.client_allowed_sans)
    return context


def _set_ciphers(context: ssl.SSLContext, tls: TlsConfig) -> None:
    try:
        context.set_ciphers(":".join(tls.ciphers))
        missing = set(tls.ciphers) - {cipher["name"] for cipher in context.get_ciphers()}
    except ssl.SSLError:
        missing = set(tls.ciphers)
    if missing:
        raise ConfigError(
            f"tls_server_config.cipher_suites: {ssl.OPENSSL_VERSION} does not have "
            f"{', '.join(sorted(missing))}; allowed: what it has"
        )


def _load_certificate(context: ssl.SSLContext, tls: TlsConfig) -> None:
    def refuse() -> str:
        # Without this OpenSSL asks for a passphrase on the terminal and waits.
        raise ConfigError(f"{tls.key.key}: the key is encrypted; allowed: one without passphrase")

    with _as_path(tls.cert) as cert, _as_path(tls.key) as key:
        try:
            context.load_cert_chain(cert, key, password=refuse)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{tls.cert.key}, {tls.key.key}: {_shown(tls.cert)} with {_shown(tls.key)} cannot "
                f"be used: {error}; allowed: a PEM certificate chain and its private key"
            ) from error


def _load_client_ca(context: ssl.SSLContext, pem: Pem) -> None:
    # As in Go, any certificate of the file is an anchor, an intermediate one too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with _as_path(pem) as path:
        try:
            context.load_verify_locations(cafile=path)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{pem.key}: {_shown(pem)} cannot be used: {error}; allowed: PEM certificates"
            ) from error


def _shown(pem: Pem) -> str:
    return str(pem.path) if pem.path is not None else "the text"


@contextmanager
def _as_path(pem: Pem) -> Iterator[str]:
    """A path OpenSSL can open; a text gets one in memory only, so that no key reaches a disk."""
    if pem.path is not None:
        try:
            pem.path.open("rb").close()
        except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate in the path
            raise ConfigError(f"{pem.key}: {error}; allowed: a readable PEM file") from error
        yield str(pem.path)
        return
    with open(os.memfd_create("pem"), "wb") as memory:  # noqa: PTH123 - a descriptor, not a path
        memory.write(pem.text.encode(errors="replace"))
        memory.flush()
        yield f"/proc/self/fd/{memory.fileno()}"


def _checking_sans(allowed: frozenset[str]) -> type[ssl.SSLObject]:
    class CheckingSans(ssl.SSLObject):
        """Ends the handshake of a client whose verified certificate holds none of the names."""

        def do_handshake(self) -> None:
            super().do_handshake()
            peer: Mapping[str, Any] = self.getpeercert() or {}
            names = [same_spelling(value) for _, value in peer.get("subjectAltName", ())]
            if allowed.isdisjoint(names):
                # TLS 1.3 clients see only a closed connection, so the reason has to stand here.
                log.info("client certificate without an allowed SAN", extra={"sans": names})
                raise ssl.SSLCertVerificationError("no allowed SAN in the client certificate")

    return CheckingSans


def same_spelling(name: str) -> str:
    """One spelling for each IP address (OpenSSL writes 0:0:0:0:0:0:0:1); other names unchanged."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name
