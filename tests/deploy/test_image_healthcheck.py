"""deploy/image/healthcheck.py: what the image's HEALTHCHECK makes of each kind of listener."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECK = Path(__file__).resolve().parents[2] / "deploy" / "image" / "healthcheck.py"


def check(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-ISB", CHECK, str(port)], capture_output=True, text=True, timeout=20
    )


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection, given to ``serve``; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=once)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def answering(status: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        assert connection.recv(1000).startswith(b"GET /healthz HTTP/1.1\r\n")
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    return serve


def test_an_answer_of_200_is_health():
    with listener(answering(b"200 OK")) as port:
        found = check(port)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"404 Not Found"])
def test_any_other_status_is_not_and_is_shown(status: bytes):
    with listener(answering(status)) as port:
        found = check(port)
    assert found.returncode == 1
    assert found.stdout == f"127.0.0.1:{port}/healthz: HTTP/1.1 {status.decode()}\n"


def test_no_listener_is_not():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = check(unused.getsockname()[1])
    assert found.returncode == 1
    assert "Connection refused" in found.stdout


def test_a_listener_that_never_answers_is_not():
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        found = check(stuck.getsockname()[1])
    assert found.returncode == 1
    assert "timed out" in found.stdout


def test_a_listener_that_speaks_tls_is(tmp_path: Path):
    """The plain request fails its handshake; that it does so takes a running loop."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))

    def serve(connection: socket.socket) -> None:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    with listener(serve) as port:
        found = check(port)
    assert (found.returncode, found.stdout) == (0, "")


def certificate(folder: Path) -> Path:
    """A self-signed one with its key, as one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path
