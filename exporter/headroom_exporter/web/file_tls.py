"""``tls_server_config`` of the web configuration file: Go's names in, what OpenSSL needs out."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from headroom_exporter.errors import ConfigError
from headroom_exporter.web.tls import TlsConfig, same_spelling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.web.section import Section
    from headroom_exporter.web.tls import Pem

CLIENT_AUTH: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
VERSIONS: Mapping[str, ssl.TLSVersion] = {
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
CURVES: Mapping[str, str] = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
# Names of https://pkg.go.dev/crypto/tls#CipherSuites -> names of OpenSSL's ciphers(1).
CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
# Always on with TLS 1.3, there as here; naming them is allowed and changes nothing there.
CIPHERS_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


def read_tls(root: Section) -> TlsConfig | None:
    """
    What TLS the file asks for; None for plain HTTP.

    Raises:
        ConfigError: an unknown key, a value that is not possible, or that Python's TLS cannot do.
    """
    keys = (
        *("cert", "cert_file", "key", "key_file", "client_ca", "client_ca_file"),
        *("client_auth_type", "client_allowed_sans", "min_version", "max_version"),
        *("cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
    )
    section = root.section("tls_server_config", keys)
    if not section.data:
        return None
    cert, key = section.pem("cert"), section.pem("key", secret=True)
    if cert is None or key is None:
        name = "cert" if cert is None else "key"
        raise ConfigError(f"{section.place(f'{name}_file')}: missing; TLS needs it (or {name})")
    client_auth, client_ca = _client_auth(section)
    low = _version(section, "min_version", ssl.TLSVersion.TLSv1_2)
    high = _version(section, "max_version", ssl.TLSVersion.TLSv1_3)
    if low > high:
        raise section.error("min_version", section.text("min_version"), "not above max_version")
    ciphers, low = _ciphers(section, low, high)
    return TlsConfig(
        cert=cert,
        key=key,
        client_ca=client_ca,
        client_auth=client_auth,
        client_allowed_sans=_allowed_sans(section, client_auth),
        min_version=low,
        max_version=high,
        ciphers=ciphers,
        prefer_server_ciphers=section.flag("prefer_server_cipher_suites", default=True),
        curve=_curve(section),
    )


def _client_auth(section: Section) -> tuple[ssl.VerifyMode, Pem | None]:
    key = "client_auth_type"
    name = section.text(key) or "NoClientCert"
    if name not in CLIENT_AUTH:
        hint = ""
        if name in {"RequestClientCert", "RequireAnyClientCert", "RequireClientCert"}:
            hint = " (this server's TLS verifies every client certificate it asks for)"
        raise section.error(key, name, ", ".join(CLIENT_AUTH) + hint)
    mode, client_ca = CLIENT_AUTH[name], section.pem("client_ca")
    if mode is ssl.CERT_NONE and client_ca is not None:
        raise ConfigError(f"{client_ca.key}: of no use with {key} {name}; set one that verifies")
    if mode is not ssl.CERT_NONE and client_ca is None:
        raise ConfigError(f"{section.place('client_ca_file')}: missing; {key} {name} needs it")
    return mode, client_ca


def _allowed_sans(section: Section, mode: ssl.VerifyMode) -> frozenset[str]:
    key = "client_allowed_sans"
    names = section.texts(key)
    if names is None:
        return frozenset()
    if not names:
        raise section.error(key, [], "at least one name (an empty list would admit nobody)")
    if mode is not ssl.CERT_REQUIRED:
        raise section.error(
            key, list(names), "only with client_auth_type RequireAndVerifyClientCert"
        )
    return frozenset(map(same_spelling, names))


def _version(section: Section, key: str, default: ssl.TLSVersion) -> ssl.TLSVersion:
    name = section.text(key)
    if name is None:
        return default
    if name not in VERSIONS:
        raise section.error(key, name, ", ".join(VERSIONS))
    return VERSIONS[name]


def _ciphers(
    section: Section, low: ssl.TLSVersion, high: ssl.TLSVersion
) -> tuple[tuple[str, ...], ssl.TLSVersion]:
    """OpenSSL names, and the lowest version that they leave usable."""
    key = "cipher_suites"
    names = section.texts(key) or ()
    for name in names:
        if name not in CIPHERS and name not in CIPHERS_TLS13:
            raise section.error(key, name, ", ".join((*CIPHERS, *CIPHERS_TLS13)))
    ciphers = tuple(CIPHERS[name] for name in names if name in CIPHERS)
    if names and not ciphers:
        # Only TLS 1.3 suites: in Go a TLS 1.2 client then finds nothing in common. The same here.
        if high < ssl.TLSVersion.TLSv1_3:
            raise section.error(key, list(names), f"one of {', '.join(CIPHERS)} for TLS12")
        low = ssl.TLSVersion.TLSv1_3
    return ciphers, low


def _curve(section: Section) -> str | None:
    key = "curve_preferences"
    names = section.texts(key) or ()
    for name in names:
        if name not in CURVES:
            raise section.error(key, name, ", ".join(CURVES))
    if len(names) > 1:
        raise section.error(key, list(names), "one curve (this server's TLS cannot rank several)")
    return CURVES[names[0]] if names else None
