"""Inference servers of pods, each on a loopback address of its own; a page says whose it is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} 0.25
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="{model}"}} 17.0
"""


class FakeEngines:
    """Servers by address; ``asked`` counts requests by model name."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.asked: dict[str, int] = {}
        self._servers: dict[str, asyncio.Server] = {}
        self._writers: dict[str, set[asyncio.StreamWriter]] = {}

    async def start(self, address: str, model: str) -> None:
        """Serve a page of this model; the first server chooses the port of all."""
        text = PAGE.format(model=model)
        writers = self._writers[address] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._writers.get(address) is not writers:
                # Accepted just before the end.
                writer.transport.abort()
                return
            writers.add(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    self.asked[model] = self.asked.get(model, 0) + 1
                    path = head.split(b" ", 2)[1]
                    found = path == b"/metrics"
                    body = text.encode() if found else b""
                    status = "200 OK" if found else "404 Not Found"
                    writer.write(
                        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                    )
                    await writer.drain()
            writers.discard(writer)
            writer.close()

        server = await asyncio.start_server(serve, address, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._servers[address] = server

    async def stop(self, address: str) -> None:
        """The pod is gone: nothing listens, and its connections are cut."""
        server = self._servers.pop(address)
        # What was accepted needs a moment to become a connection: a server that is closed meanwhile
        # leaves its socket open (Python 3.11).
        for socket in server.sockets:
            asyncio.get_running_loop().remove_reader(socket.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        server.close()
        for writer in self._writers.pop(address):
            writer.transport.abort()
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for address in list(self._servers):
            await self.stop(address)
