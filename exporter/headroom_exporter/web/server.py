"""The sockets: listen addresses, and serving an application on them, over TLS where it is set."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from headroom_exporter.errors import ConfigError, ListenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headroom_exporter.web.settings import WebSettings

log = logging.getLogger(__name__)

Address = tuple[str | None, int]

# Longer than two scrape intervals of a minute, so that Prometheus keeps its connection.
_KEEPALIVE_SECONDS = 130.0
_HANDSHAKE_SECONDS = 10.0
_SHUTDOWN_SECONDS = 2.0
# The rest of a body is not waited for long.
_LINGER_SECONDS = 2.0
# Two Prometheis, probes and some people need ten. Each may hold a page of some 100 KB unread.
_MAX_CONNECTIONS = 256

# Looking up a name with an empty or a longer label is not even possible.
_NAME = r"(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)?"
_HOST_PORT = re.compile(rf"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>{_NAME})):(?P<port>[0-9]{{1,5}})")


# --- addresses -----------------------------------------------------------------------------------


def parse_listen(text: str) -> Address:
    """
    Read a listen address as Prometheus writes them: ``:9890``, ``127.0.0.1:0``, ``[::1]:9890``.

    Returns:
        Host (None for all addresses of the machine) and port (0 for one the system picks).

    Raises:
        ConfigError: not of that form.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise _no_address(text)
    if match["six"] is None:
        return match["host"] or None, int(match["port"])
    try:
        IPv6Address(match["six"])
    except AddressValueError:
        raise _no_address(text) from None
    return match["six"], int(match["port"])


def _no_address(text: str) -> ConfigError:
    return ConfigError(
        f"--web.listen-address: {text!r} is no address to listen on; allowed: HOST:PORT, :PORT, "
        "[IPV6]:PORT with a port from 0 to 65535"
    )


async def _bind(address: Address) -> list[socket.socket]:
    """Sockets that listen already, so that a port in use is known before anything starts."""
    host, port = address
    bound: list[socket.socket] = []
    try:
        if host is None or host == "::":
            return [_bind_all(port)]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, place in dict.fromkeys(found):
            bound.append(socket.create_server(place, family=family))
    except OSError as error:
        _close(bound)
        raise ListenError(
            f"--web.listen-address: {_shown(address)} cannot be used: {_reason(error)}; "
            "allowed: an address of this machine and a free port"
        ) from error
    return bound


def _reason(error: OSError) -> str:
    """What the system says, without the address that ``create_server`` adds to it."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _bind_all(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6, as Go's ``:PORT``; IPv4 alone where the kernel has no IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if host and ":" in host else f"{host or ''}:{port}"


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


# --- serving -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server; ``addresses`` are (host, port) as bound, one for each socket."""

    addresses: tuple[tuple[str, int], ...]
    runner: web.AppRunner
    listeners: tuple[asyncio.Server, ...]

    async def close(self) -> None:
        """Accept no more, give requests in progress two seconds, close the rest."""
        for listener in self.listeners:
            listener.close()
        await self.runner.cleanup()


async def serve(
    app: web.Application, addresses: Sequence[Address], settings: WebSettings | None = None
) -> Server:
    """
    Listen on every address and answer, over TLS where the web configuration has it.

    Raises:
        ListenError: an address cannot be used; none is open then.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets += await _bind(address)
    except ListenError:
        _close(sockets)
        raise
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_protocol_log(),
        keepalive_timeout=_KEEPALIVE_SECONDS,
        lingering_time=_LINGER_SECONDS,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    context = settings.server_context() if settings is not None else None
    loop = asyncio.get_running_loop()
    listeners = [
        await loop.create_server(
            _bounded(runner),
            sock=each,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if context is not None else None,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS if context is not None else None,
        )
        for each in sockets
    ]
    places = tuple((each.getsockname()[0], each.getsockname()[1]) for each in sockets)
    for place in places:
        log.info("listening", extra={"address": _shown(place), "tls": context is not None})
    return Server(addresses=places, runner=runner, listeners=tuple(listeners))


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _bounded(runner: web.AppRunner) -> Callable[[], asyncio.BaseProtocol]:
    server = runner.server
    if server is None:
        raise AssertionError("asked for before the runner's setup")

    def protocol() -> asyncio.BaseProtocol:
        # Descriptors are what the poller needs to reach its engines: visitors must not take all.
        return server() if len(server.connections) < _MAX_CONNECTIONS else _Refusal()

    return protocol


def _protocol_log() -> logging.Logger:
    """Aiohttp's own log, without a traceback for each port scanner that does not speak HTTP."""
    protocol_log = logging.getLogger(f"{__name__}.protocol")
    protocol_log.addFilter(_is_ours)
    return protocol_log


def _is_ours(record: logging.LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    return not isinstance(fault, HttpProcessingError)
