"""TLS of the web server on real sockets: certificates, client certificates, renewal without restart."""

import asyncio
import datetime as dt
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client import CollectorRegistry

from headroom_exporter.errors import ConfigError
from headroom_exporter.web import WebSettings, build_app, serve

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
REFUSED = (aiohttp.ClientConnectionError, ConnectionError, ssl.SSLError)


# --- certificates --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A certificate and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption(),
        )

    def write(self, folder: Path, name: str) -> None:
        (folder / f"{name}.pem").write_bytes(self.pem)
        (folder / f"{name}.key").write_bytes(self.key_pem())


def make(
    name: str,
    issuer: Signed | None = None,
    sans: Sequence[x509.GeneralName] = (),
    *,
    ca: bool = False,
    kind: str = "ec",
) -> Signed:
    """A certificate signed by ``issuer``, or by itself."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + dt.timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    if not ca:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return Signed(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


LOOPBACK = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),)


@pytest.fixture(scope="module")
def ca() -> Signed:
    return make("test authority", ca=True)


@pytest.fixture
def folder(tmp_path: Path, ca: Signed) -> Path:
    """server.pem, server.key and ca.pem, as a Secret would be mounted."""
    make("first", ca, LOOPBACK).write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    return tmp_path


def settings(folder: Path, *more: str, rest: str = "") -> WebSettings:
    write_config(folder, *more, rest=rest)
    return WebSettings(folder / "web.yml")


def write_config(folder: Path, *more: str, rest: str = "") -> None:
    lines = ["cert_file: server.pem", "key_file: server.key", *more]
    (folder / "web.yml").write_text(
        "tls_server_config:\n" + "".join(f"  {line}\n" for line in lines) + rest
    )


MTLS = ("client_auth_type: RequireAndVerifyClientCert", "client_ca_file: ca.pem")


# --- both ends of a connection -------------------------------------------------------------------


@asynccontextmanager
async def running(web: WebSettings) -> AsyncIterator[int]:
    app = build_app(
        registry=CollectorRegistry(), health=lambda: True, ready=lambda: True, settings=web
    )
    server = await serve(app, [("127.0.0.1", 0)], web)
    try:
        yield server.addresses[0][1]
    finally:
        await server.close()


@pytest.fixture
def client(tmp_path: Path, ca: Signed) -> Callable[..., ssl.SSLContext]:
    """Builds a client's context that trusts the test authority and may show a certificate."""

    def client(show: Signed | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=ca.pem.decode())
        if show is not None:
            place = tmp_path / "client"
            place.mkdir(exist_ok=True)
            show.write(place, "c")
            context.load_cert_chain(place / "c.pem", place / "c.key")
        return context

    return client


async def get(port: int, context: ssl.SSLContext) -> int:
    """Status of one request over a connection of its own."""
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://127.0.0.1:{port}/healthz") as response,
    ):
        return response.status


async def served(port: int, context: ssl.SSLContext) -> str:
    """Common name of the certificate a new connection is shown."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        # The server must also answer: a handshake alone can end after the client's view of it.
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
        await writer.wait_closed()
    return x509.load_der_x509_certificate(der).subject.rfc4514_string().removeprefix("CN=")


# --- plain TLS -----------------------------------------------------------------------------------


async def test_a_page_comes_over_tls_and_not_without(folder, client):
    async with running(settings(folder)) as port, aiohttp.ClientSession() as session:
        assert await get(port, client()) == 200
        with pytest.raises(REFUSED):
            await session.get(f"http://127.0.0.1:{port}/healthz")
        with pytest.raises(REFUSED):
            await get(port, ssl.create_default_context())


async def test_certificate_and_key_may_stand_in_the_file(tmp_path, ca, client):
    pair = make("inline", ca, LOOPBACK)
    text = "tls_server_config:\n"
    for key, pem in (("cert", pair.pem), ("key", pair.key_pem())):
        text += f"  {key}: |\n" + "".join(f"    {line}\n" for line in pem.decode().splitlines())
    (tmp_path / "web.yml").write_text(text)
    async with running(WebSettings(tmp_path / "web.yml")) as port:
        assert await served(port, client()) == "inline"


async def test_a_client_that_would_rather_speak_http2_is_told_http1(folder, client):
    context = client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with running(settings(folder)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        await writer.wait_closed()
    assert chosen == "http/1.1"


async def test_a_minimum_version_refuses_older_clients(folder, client):
    old = client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(settings(folder)) as port:
        assert await get(port, old) == 200
    async with running(settings(folder, "min_version: TLS13")) as port:
        assert await get(port, client()) == 200
        with pytest.raises(REFUSED):
            await get(port, old)


async def test_a_maximum_version_refuses_newer_clients(folder, client):
    new = client()
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    async with running(settings(folder, "max_version: TLS12")) as port:
        assert await get(port, client()) == 200
        with pytest.raises(REFUSED):
            await get(port, new)


async def test_only_the_cipher_suites_of_the_list_are_spoken(folder, client):
    suites = "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]"
    async with running(settings(folder, suites)) as port:
        for cipher, fits in (("AES256-GCM-SHA384", True), ("AES128-GCM-SHA256", False)):
            old = client()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            old.set_ciphers(f"ECDHE-ECDSA-{cipher}")
            if fits:
                assert await get(port, old) == 200
            else:
                with pytest.raises(REFUSED):
                    await get(port, old)


@pytest.mark.parametrize("prefer", [True, False])
async def test_whose_cipher_comes_first_is_as_told(folder, client, prefer):
    ours, theirs = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    web = settings(
        folder,
        "max_version: TLS12",
        "cipher_suites:",
        "  - TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "  - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        f"prefer_server_cipher_suites: {str(prefer).lower()}",
    )
    context = client()
    context.set_ciphers(f"{theirs}:{ours}")
    async with running(web) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        cipher = writer.get_extra_info("cipher")[0]
        writer.close()
        await writer.wait_closed()
    assert cipher == (ours if prefer else theirs)


async def test_only_the_curve_told_is_spoken(tmp_path, client, ca):
    make("rsa", ca, LOOPBACK, kind="rsa").write(tmp_path, "server")
    async with running(settings(tmp_path, "curve_preferences: [CurveP521]")) as port:
        for curve, fits in (("secp521r1", True), ("prime256v1", False)):
            context = client()
            context.set_ecdh_curve(curve)
            if fits:
                assert await get(port, context) == 200
            else:
                with pytest.raises(REFUSED):
                    await get(port, context)


@pytest.mark.parametrize("name", ["CurveP256", "CurveP384", "CurveP521", "X25519"])
def test_every_curve_of_the_toolkit_loads(tmp_path, ca, name):
    make("rsa", ca, LOOPBACK, kind="rsa").write(tmp_path, "server")
    assert settings(tmp_path, f"curve_preferences: [{name}]").server_context() is not None


# --- client certificates -------------------------------------------------------------------------


async def test_a_required_client_certificate_must_be_there_and_ours(folder, ca, client):
    other = make("other authority", ca=True)
    async with running(settings(folder, *MTLS)) as port:
        assert await get(port, client(make("prometheus", ca))) == 200
        for shown in (None, make("stranger", other), make("self-signed")):
            with pytest.raises(REFUSED):
                await get(port, client(shown))


async def test_an_optional_client_certificate_is_verified_when_given(folder, ca, client):
    web = settings(folder, "client_auth_type: VerifyClientCertIfGiven", "client_ca_file: ca.pem")
    async with running(web) as port:
        assert await get(port, client()) == 200
        assert await get(port, client(make("prometheus", ca))) == 200
        with pytest.raises(REFUSED):
            await get(port, client(make("self-signed")))


async def test_an_intermediate_authority_is_anchor_enough(folder, ca, client):
    team = make("team authority", ca, ca=True)
    (folder / "ca.pem").write_bytes(team.pem)
    async with running(settings(folder, *MTLS)) as port:
        assert await get(port, client(make("prometheus", team))) == 200
        with pytest.raises(REFUSED):
            await get(port, client(make("other team", ca)))


@pytest.mark.parametrize(
    ("sans", "admitted"),
    [
        ([x509.DNSName("prometheus.example")], True),
        ([x509.DNSName("grafana.example"), x509.DNSName("prometheus.example")], True),
        ([x509.UniformResourceIdentifier("spiffe://c/prometheus")], True),
        ([x509.RFC822Name("ops@example.org")], True),
        ([x509.IPAddress(ipaddress.ip_address("2001:db8::7"))], True),
        ([x509.DNSName("grafana.example")], False),
        ([x509.DNSName("evil.prometheus.example")], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_only_allowed_sans_are_admitted(folder, ca, client, version, sans, admitted):
    allowed = (
        'client_allowed_sans: [prometheus.example, "spiffe://c/prometheus", ops@example.org, '
        '"2001:DB8:0::7"]'
    )
    context = client(make("prometheus.example", ca, sans))
    context.maximum_version = version
    async with running(settings(folder, *MTLS, allowed)) as port:
        if admitted:
            assert await get(port, context) == 200
        else:
            with pytest.raises(REFUSED):
                await get(port, context)


async def test_a_refused_san_is_logged_with_what_was_shown(folder, ca, client, caplog):
    caplog.set_level(logging.INFO)
    async with running(settings(folder, *MTLS, "client_allowed_sans: [a.example]")) as port:
        with pytest.raises(REFUSED):
            await get(port, client(make("b", ca, [x509.DNSName("b.example")])))
    records = [record for record in caplog.records if "SAN" in record.message]
    assert records  # one for each connection, and the client may try again
    assert all(record.sans == ["b.example"] for record in records)


# --- renewal without restart ---------------------------------------------------------------------


async def test_a_renewed_certificate_serves_the_next_connection(folder, ca, client):
    async with running(settings(folder)) as port:
        assert await served(port, client()) == "first"
        make("second", ca, LOOPBACK).write(folder, "server")
        assert await served(port, client()) == "second"


async def test_an_open_connection_outlives_the_renewal(folder, ca, client):
    connector = aiohttp.TCPConnector(ssl=client())
    async with running(settings(folder)) as port, aiohttp.ClientSession(connector=connector) as s:
        for _ in range(2):
            async with s.get(f"https://127.0.0.1:{port}/healthz") as response:
                assert response.status == 200
            make("second", ca, LOOPBACK).write(folder, "server")


async def test_a_secret_swapped_by_its_link_is_seen(folder, ca, client):
    """As kubelet renews a mounted Secret: files are links through ``..data``, which is replaced."""
    for name in ("first", "second"):
        (folder / name).mkdir()
        make(name, ca, LOOPBACK).write(folder / name, "server")
    (folder / "..data").symlink_to("first")
    for name in ("server.pem", "server.key"):
        (folder / name).unlink()
        (folder / name).symlink_to(f"..data/{name}")
    async with running(settings(folder)) as port:
        assert await served(port, client()) == "first"
        (folder / "..next").symlink_to("second")
        (folder / "..next").rename(folder / "..data")
        assert await served(port, client()) == "second"


async def test_the_old_key_type_is_gone_after_a_renewal(folder, ca, client):
    """In a live OpenSSL context the RSA certificate would stay beside the new one."""
    make("rsa", ca, LOOPBACK, kind="rsa").write(folder, "server")
    rsa_only = client()
    rsa_only.maximum_version = ssl.TLSVersion.TLSv1_2
    rsa_only.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    async with running(settings(folder)) as port:
        assert await served(port, rsa_only) == "rsa"
        make("ec", ca, LOOPBACK).write(folder, "server")
        assert await served(port, client()) == "ec"
        with pytest.raises(REFUSED):
            await served(port, rsa_only)


async def test_an_authority_taken_away_admits_nobody_not_even_by_an_old_session(folder, ca, client):
    context = client(make("prometheus", ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the session is there as the handshake ends

    def visit(port: int, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls,
        ):
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return tls.recv(15), tls.session

    async with running(settings(folder, *MTLS)) as port:
        answer, session = await asyncio.to_thread(visit, port, None)
        assert answer == b"HTTP/1.1 200 OK"
        answer, session = await asyncio.to_thread(visit, port, session)
        assert answer == b"HTTP/1.1 200 OK"
        (folder / "ca.pem").write_bytes(make("new authority", ca=True).pem)
        with pytest.raises(REFUSED):
            await asyncio.to_thread(visit, port, session)


async def test_a_broken_renewal_keeps_the_old_and_is_logged_once(folder, ca, client, caplog):
    async with running(settings(folder)) as port:
        (folder / "server.pem").write_text("not a certificate")
        for _ in range(3):
            assert await served(port, client()) == "first"
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "the old one stays" in record.message
        assert "server.pem" in str(record.error)
        make("third", ca, LOOPBACK).write(folder, "server")
        assert await served(port, client()) == "third"


async def test_a_file_that_vanishes_keeps_the_old(folder, ca, client):
    async with running(settings(folder)) as port:
        (folder / "server.key").unlink()
        assert await served(port, client()) == "first"
        make("second", ca, LOOPBACK).write(folder, "server")
        assert await served(port, client()) == "second"


async def test_certificate_and_key_replaced_one_after_the_other_end_up_in_force(folder, ca, client):
    second = make("second", ca, LOOPBACK)
    async with running(settings(folder)) as port:
        (folder / "server.pem").write_bytes(second.pem)
        assert await served(port, client()) == "first"  # they do not match yet
        (folder / "server.key").write_bytes(second.key_pem())
        assert await served(port, client()) == "second"


async def test_a_changed_web_configuration_holds_for_the_next_connection(folder, ca, client):
    async with running(settings(folder)) as port:
        assert await get(port, client()) == 200
        write_config(folder, *MTLS)
        with pytest.raises(REFUSED):
            await get(port, client())
        assert await get(port, client(make("prometheus", ca))) == 200


async def test_a_broken_web_configuration_keeps_the_old_yet_follows_its_certificates(
    folder, ca, client, caplog
):
    async with running(settings(folder)) as port:
        (folder / "web.yml").write_text("tls_server_config: [")
        assert await served(port, client()) == "first"
        make("second", ca, LOOPBACK).write(folder, "server")
        assert await served(port, client()) == "second"
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_configuration_whose_certificate_comes_later_is_taken_up_then(folder, ca, client):
    async with running(settings(folder)) as port:
        text = (folder / "web.yml").read_text().replace("server.", "later.")
        (folder / "web.yml").write_text(text)
        assert await served(port, client()) == "first"
        make("later", ca, LOOPBACK).write(folder, "later")
        assert await served(port, client()) == "later"


@pytest.mark.parametrize("users", ["", f"basic_auth_users: {{a: {HASH}}}\n"])
async def test_tls_is_not_switched_off_by_a_change_of_the_file(folder, client, caplog, users):
    web = settings(folder)
    async with running(web) as port:
        (folder / "web.yml").write_text(users)
        assert await get(port, client()) == 200
        assert web.file.tls is not None
    assert any("needs a restart" in str(getattr(r, "error", "")) for r in caplog.records)


# --- what cannot be used -------------------------------------------------------------------------


def break_missing(folder: Path) -> None:
    (folder / "server.pem").unlink()


def break_folder(folder: Path) -> None:
    (folder / "server.key").unlink()
    (folder / "server.key").mkdir()


def break_mismatch(folder: Path) -> None:
    (folder / "server.key").write_bytes(make("other").key_pem())


def break_encrypted(folder: Path) -> None:
    (folder / "server.key").write_bytes(make("other").key_pem(b"secret"))


def break_empty(folder: Path) -> None:
    (folder / "server.pem").write_text("")


def break_authority(folder: Path) -> None:
    (folder / "ca.pem").write_text("no authority")


@pytest.mark.parametrize(
    ("breaks", "parts"),
    [
        (break_missing, ["tls_server_config.cert_file", "server.pem", "No such file"]),
        (break_folder, ["tls_server_config.key_file", "server.key", "Is a directory"]),
        (break_mismatch, ["tls_server_config.cert_file", "key_file", "KEY_VALUES_MISMATCH"]),
        (break_encrypted, ["tls_server_config.key_file", "encrypted", "without passphrase"]),
        (break_empty, ["tls_server_config.cert_file", "server.pem", "allowed: a PEM"]),
        (break_authority, ["tls_server_config.client_ca_file", "ca.pem", "PEM certificates"]),
    ],
)
def test_certificates_that_cannot_be_used_are_refused_before_any_port_opens(folder, breaks, parts):
    breaks(folder)
    with pytest.raises(ConfigError) as caught:
        settings(folder, *MTLS)
    for part in ["web.yml", *parts]:
        assert part in str(caught.value)


async def test_a_client_that_never_shakes_hands_does_not_block_others(folder, client):
    async with running(settings(folder)) as port:
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        try:
            assert await get(port, client()) == 200
        finally:
            silent.close()
            await silent.wait_closed()


async def test_looking_for_changes_opens_no_file(folder, client, monkeypatch):
    """One connection costs a few stat calls as long as nothing changed."""
    web = settings(folder)
    opened: list[str] = []
    real = os.stat

    def counting(path, *args, **kwargs):
        opened.append(str(path))
        return real(path, *args, **kwargs)

    before = web.fresh_context()
    monkeypatch.setattr(os, "stat", counting)
    assert web.fresh_context() is before
    monkeypatch.undo()
    assert len(opened) == 3
