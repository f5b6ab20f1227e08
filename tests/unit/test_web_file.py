"""The web configuration file: what it says, what it refuses, and that errors help without leaking."""

import contextlib
import re
import ssl
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.errors import ConfigError
from headroom_exporter.web.file import RateLimit, WebFile, read_web_file
from headroom_exporter.web.tls import Pem, TlsConfig, build_context

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
PAIR = "tls_server_config:\n  cert_file: c.pem\n  key_file: k.pem\n"


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "web.yml"

    def read(text: str | bytes) -> WebFile:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_web_file(path)

    return read


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "tls_server_config:\n", "{}"])
def test_an_empty_file_asks_for_nothing(read, text):
    file = read(text)
    assert file.tls is None
    assert file.users == {}
    assert file.headers == {}
    assert file.rate_limit is None
    assert file.warnings == ()


def test_every_key_of_the_toolkit_is_understood(read, tmp_path):
    file = read(
        f"""
tls_server_config:
  cert_file: certs/server.pem
  key_file: /etc/keys/server.key
  client_ca_file: ca.pem
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [prometheus.example, "::1"]
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
    - TLS_AES_128_GCM_SHA256
    - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP384]
http_server_config:
  http2: false
  headers:
    Content-Security-Policy: default-src 'none'
    X-Frame-Options: deny
    X-Content-Type-Options: nosniff
    X-XSS-Protection: 0
    Strict-Transport-Security: max-age=31536000
basic_auth_users:
  alice: {HASH}
  42: {HASH}
rate_limit:
  interval: 1m1.5s
  burst: 7
"""
    )
    assert file.tls is not None
    # Relative to the file, not to the working directory.
    assert file.pem_paths == (
        tmp_path / "certs/server.pem",
        Path("/etc/keys/server.key"),
        tmp_path / "ca.pem",
    )
    assert file.tls.client_auth is ssl.CERT_REQUIRED
    assert file.tls.client_allowed_sans == {"prometheus.example", "::1"}
    assert file.tls.min_version is ssl.TLSVersion.TLSv1_2
    assert file.tls.max_version is ssl.TLSVersion.TLSv1_3
    assert file.tls.ciphers == ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256")
    assert file.tls.prefer_server_ciphers is False
    assert file.tls.curve == "secp384r1"
    assert file.headers == {
        "Content-Security-Policy": "default-src 'none'",
        "X-Frame-Options": "deny",
        "X-Content-Type-Options": "nosniff",
        "X-XSS-Protection": "0",
        "Strict-Transport-Security": "max-age=31536000",
    }
    assert file.users == {"alice": HASH, "42": HASH}
    assert file.rate_limit == RateLimit(interval=61.5, burst=7)
    assert file.warnings == ()


def test_defaults_are_the_toolkits(read):
    tls = read(PAIR).tls
    assert tls is not None
    assert tls.client_auth is ssl.CERT_NONE
    assert tls.client_ca is None
    assert (tls.min_version, tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert tls.prefer_server_ciphers is True
    assert tls.ciphers == ()
    assert tls.curve is None


def test_blank_and_null_values_count_as_not_given(read):
    file = read(
        PAIR + '  client_ca_file: ""\n  client_auth_type:\n  client_allowed_sans: ~\n'
        "http_server_config:\n  headers:\n    X-Frame-Options: ''\n"
        "basic_auth_users:\nrate_limit: {interval: 0, burst: 0}\n"
    )
    assert file.tls is not None
    assert file.tls.client_ca is None
    assert file.headers == {}
    assert file.users == {}
    assert file.rate_limit is None


def test_pem_texts_may_stand_in_the_file_itself(read):
    file = read("tls_server_config:\n  cert: CERT\n  key: |\n    SECRET\n")
    assert file.tls is not None
    assert file.tls.cert.text == "CERT"
    assert file.tls.key.text == "SECRET\n"
    assert file.pem_paths == ()
    assert "SECRET" not in repr(file)


def test_only_tls13_suites_leave_only_tls13(read):
    tls = read(PAIR + "  cipher_suites: [TLS_AES_256_GCM_SHA384]\n").tls
    assert tls is not None
    assert tls.min_version is ssl.TLSVersion.TLSv1_3
    assert tls.ciphers == ()


def test_hashes_do_not_show_in_the_records_text(read):
    assert HASH[10:] not in repr(read(f"basic_auth_users: {{a: {HASH}}}"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http_server_config: {http2: true}", ["http_server_config.http2", "HTTP/1.1 only"]),
        (f"basic_auth_users: {{a: {HASH}}}", ["basic_auth_users without TLS"]),
    ],
)
def test_what_is_allowed_but_not_as_it_seems_is_warned_of(read, text, parts):
    (warning,) = read(text).warnings
    for part in parts:
        assert part in warning


def test_http2_left_at_its_default_is_no_warning(read):
    assert read("http_server_config: {headers: {}}").warnings == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tls: {}", ["web.yml: tls: unknown key", "tls_server_config, http_server_config"]),
        (PAIR + "  certfile: x", ["tls_server_config.certfile: unknown key", "cert_file"]),
        (PAIR + "  min_version: TLS10", ["tls_server_config.min_version", "'TLS10'", "TLS12, T"]),
        (PAIR + "  max_version: TLS11", ["tls_server_config.max_version", "'TLS11'", "TLS12"]),
        (
            PAIR + "  min_version: TLS13\n  max_version: TLS12",
            ["tls_server_config.min_version", "'TLS13'", "not above max_version"],
        ),
        (
            PAIR + "  client_auth_type: RequireAnyClientCert",
            ["tls_server_config.client_auth_type", "RequireAndVerifyClientCert", "verifies every"],
        ),
        (PAIR + "  client_auth_type: RequestClientCert", ["client_auth_type", "verifies every"]),
        (PAIR + "  client_auth_type: Yes", ["client_auth_type", "'Yes'", "NoClientCert"]),
        (
            PAIR + "  client_auth_type: VerifyClientCertIfGiven",
            ["tls_server_config.client_ca_file: missing", "VerifyClientCertIfGiven needs it"],
        ),
        (PAIR + "  client_ca_file: ca.pem", ["client_ca_file", "NoClientCert"]),
        (
            PAIR + "  client_allowed_sans: [a]",
            ["client_allowed_sans", "['a']", "RequireAndVerifyClientCert"],
        ),
        (
            PAIR
            + "  client_auth_type: VerifyClientCertIfGiven\n"
            + "  client_ca_file: ca.pem\n"
            + "  client_allowed_sans: [a]",
            ["client_allowed_sans", "RequireAndVerifyClientCert"],
        ),
        (
            PAIR
            + "  client_auth_type: RequireAndVerifyClientCert\n"
            + "  client_ca_file: ca.pem\n"
            + "  client_allowed_sans: []",
            ["client_allowed_sans", "admit nobody"],
        ),
        (PAIR + "  client_allowed_sans: a", ["client_allowed_sans", "'a'", "a list"]),
        (PAIR + "  cipher_suites: [RC4]", ["cipher_suites", "'RC4'", "TLS_ECDHE_RSA_WITH"]),
        (
            PAIR + "  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]",
            ["cipher_suites", "for TLS12"],
        ),
        (PAIR + "  curve_preferences: [P1]", ["curve_preferences", "'P1'", "CurveP256, CurveP384"]),
        (
            PAIR + "  curve_preferences: [X25519, CurveP256]",
            ["curve_preferences", "['X25519', 'CurveP256']", "one curve"],
        ),
        (
            PAIR + "  prefer_server_cipher_suites: 2",
            ["tls_server_config.prefer_server_cipher_suites", "'2'", "true, false"],
        ),
        ("tls_server_config: {min_version: TLS13}", ["cert_file: missing"]),
        ("tls_server_config: {cert_file: c.pem}", ["key_file: missing"]),
        (PAIR + "  cert: text", ["tls_server_config.cert_file", "'c.pem'", "one of the two"]),
        ("http_server_config: {http2: maybe}", ["http_server_config.http2", "'maybe'", "true"]),
        (
            "http_server_config: {headers: {x-frame-options: deny}}",
            ["http_server_config.headers.x-frame-options: unknown key", "X-Frame-Options"],
        ),
        (
            "http_server_config: {headers: {X-Frame-Options: all}}",
            ["http_server_config.headers.X-Frame-Options", "'all'", "deny, sameorigin"],
        ),
        (
            'http_server_config: {headers: {X-XSS-Protection: "0\\r\\nSet-Cookie: a"}}',
            ["headers.X-XSS-Protection", "printable ASCII"],
        ),
        ("rate_limit: {interval: 5, burst: 1}", ["rate_limit.interval", "'5'", "500ms"]),
        ("rate_limit: {interval: 1s, burst: -1}", ["rate_limit.burst", "'-1'", "whole number"]),
        ("rate_limit: {interval: 1s}", ["rate_limit.burst", "admit nobody"]),
        ("basic_auth_users: {'a:b': " + HASH + "}", ["basic_auth_users.a:b", "without a colon"]),
        ("a: 1\na: 2", ["web.yml: a: given twice, on lines 1 and 2"]),
        ("tls_server_config: {cert_file: [a]}", ["cert_file", "['a']", "a text"]),
        ("a: [", ["web.yml: line 2, column 1: not YAML"]),
        ("[" * 20_000, ["web.yml: line 1: nested too deeply"]),
        (b"\xff\xfe\xfa", ["web.yml: must be UTF-8 text"]),
    ],
)
def test_a_refusal_names_file_key_value_and_what_is_allowed(read, text, parts):
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    for part in ["web.yml", *parts]:
        assert part in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: hunter2}",
        "basic_auth_users: {alice: !hunter2}",
        "basic_auth_users: {alice: !hunter2 x}",
        "basic_auth_users: {alice: *hunter2}",
        "basic_auth_users: {alice: &hunter2}",
        "basic_auth_users:\n  alice: hunter2\n  alice: hunter2\n",
        "basic_auth_users: {alice: %hunter2}",
        'basic_auth_users: {alice: "\\hunter2"}',
        "basic_auth_users: {alice: hunter2\x00}",
        "basic_auth_users: {alice: [hunter2]}",
        "basic_auth_users: hunter2",
        "basic_auth_users: [hunter2]",
        "basic_auth_users: {alice: $2y$31$" + "hunter2" + "a" * 46 + "}",
        "basic_auth_users:\n  alice: 'hunter2\n",
        "basic_auth_users:\n  alice: hunter2\n  bob: @hunter2\n",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n",
        "tls_server_config: {key: [hunter2], cert_file: c.pem}",
        "tls_server_config: {key: hunter2, key_file: k.pem, cert_file: c.pem}",
        "tls_server_config: {key: hunter2}",
    ],
)
def test_an_error_never_shows_a_secret(read, text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("500ms", 0.5), ("1s", 1), ("1h2m3s", 3723), ("1.5h", 5400), ("20us", 2e-5), ("7µs", 7e-6)],
)
def test_durations_are_written_as_in_go(read, interval, seconds):
    limit = read(f"rate_limit: {{interval: {interval}, burst: 1}}").rate_limit
    assert limit is not None
    assert limit.interval == pytest.approx(seconds)


@pytest.mark.parametrize("interval", ["0s", "0"])
def test_an_interval_of_zero_is_no_limit(read, interval):
    assert read(f"rate_limit: {{interval: {interval}, burst: 3}}").rate_limit is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=re.escape(f"{tmp_path}/no.yml: cannot be read: No such file")
    ):
        read_web_file(tmp_path / "no.yml")


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_file_or_a_config_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        assert read_web_file(path).path == path


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just(HASH)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
keys = {
    "tls_server_config": [
        *("cert", "cert_file", "key", "key_file", "client_ca", "client_ca_file"),
        *("client_auth_type", "client_allowed_sans", "min_version", "max_version"),
        *("cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
    ],
    "http_server_config": ["http2", "headers"],
    "basic_auth_users": ["a", "", ":"],
    "rate_limit": ["interval", "burst"],
}


@given(
    tree=st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(values, st.dictionaries(st.sampled_from(inner), values))
            for name, inner in keys.items()
        },
    )
)
def test_any_value_anywhere_is_a_file_or_a_config_error(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree.yml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False))
    try:
        file = read_web_file(path)
        if file.tls is not None:
            build_context(file.tls)
    except ConfigError:
        return
    assert file.tls is None  # no random text is a certificate


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_an_impossible_path_is_a_config_error(path):
    pem = Pem(key="web.yml: tls_server_config.cert_file", path=Path(path))
    with pytest.raises(ConfigError, match="cert_file"):
        build_context(TlsConfig(cert=pem, key=pem))
