"""
Does an exporter live at 127.0.0.1:9890? Exit code 0 or 1; for the image's HEALTHCHECK.

``python -ISB healthcheck [PORT]``. It takes 8 MiB, where ``headroom-exporter status`` takes 21: Docker
runs it every half minute, beside a sidecar whose megabytes are counted. Hence ``_socket`` and nothing above.

A TLS listener hangs up on the plain request. That counts as alive: nobody but the running event loop
hangs up; a stuck one leaves the connection open, and the check runs into its timeout.
"""

# ruff: noqa: INP001, T201

import _socket
import sys

_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# Shorter than the HEALTHCHECK's own.
_TIMEOUT_SECONDS = 3.0
_TLS_ALERT = b"\x15"


def answer(port: int) -> bytes:
    """First bytes of the answer; empty where the listener hung up."""
    client = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    client.settimeout(_TIMEOUT_SECONDS)
    client.connect(("127.0.0.1", port))
    try:
        client.send(_REQUEST)
        return client.recv(64)
    except ConnectionError:
        return b""


def main(arguments: list[str]) -> int:
    """Exit code; says on standard output what was wrong, which `docker inspect` shows."""
    port = int(arguments[0]) if arguments else 9890
    try:
        first = answer(port)
    except OSError as error:
        print(f"127.0.0.1:{port}: {error}")
        return 1
    status = first.split(b"\r\n")[0]
    if not first or first.startswith(_TLS_ALERT) or status.startswith(b"HTTP/1.1 200"):
        return 0
    print(f"127.0.0.1:{port}/healthz: {status.decode(errors='replace')}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
