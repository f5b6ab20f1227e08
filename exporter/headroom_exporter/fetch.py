"""One bounded request to an engine, and the HTTP client that all of them share."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from headroom_exporter.errors import Malformed, NotThere, SourceError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.config import EngineConfig

# vLLM 0.33 with eight ranks is 0.4 MB; nothing honest is near this.
MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_JSON_BYTES = 1024 * 1024

# Body, monotonic seconds halfway between asking and answer, duration in seconds.
Fetched = tuple[bytes, float, float]

# llama.cpp says 501 where it was started without --metrics, older Tritons 400 to any path but /metrics.
NOT_THERE = frozenset({400, 404, 405, 501})


class Fetcher:
    """
    Asks one engine.

    Args:
        config: Where it is, and what proves who asks and who answers.
        timeout: Deadline of one request, seconds.
        session: HTTP client of the whole exporter.
        monotonic: Seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        timeout: float,
        session: aiohttp.ClientSession,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._timeout = timeout
        self._session = session
        self._monotonic = monotonic
        self._tls: ssl.SSLContext | bool | None = None
        self.base = URL(config.url.rstrip("/"))

    def url(self, path: str) -> URL:
        """An address below the engine's."""
        return URL(f"{self.base}{path}")

    async def get(self, url: URL, limit: int) -> Fetched:
        """
        One bounded request.

        Raises:
            Unreachable: refused (kind ``refused``), no answer in time (``timeout``), anything else on the
                way (``unreachable``).
            Malformed: status other than 200 (``status``), larger than ``limit`` (``too_large``), encoded.
        """
        began = self._monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._read(url, limit)
        except TimeoutError as exc:
            raise Unreachable(f"no answer within {self._timeout:g} s", kind="timeout") from exc
        except aiohttp.ClientConnectorError as exc:
            if isinstance(exc.os_error, ConnectionRefusedError):
                where = f"{url.host}:{url.port}"
                raise Unreachable(f"nothing listens on {where}", kind="refused") from exc
            raise Unreachable(str(exc)) from exc
        except (aiohttp.ClientError, OSError) as exc:
            # Its text may hold what the server sent, and the long address of the filtered page.
            raise Unreachable(f"{type(exc).__name__}: {str(exc)[:120]}") from exc
        ended = self._monotonic()
        return body, (began + ended) / 2, ended - began

    async def json(self, path: str) -> Any:
        """
        One page of JSON, of at most MAX_JSON_BYTES, decoded.

        Raises:
            Unreachable, Malformed: as ``get``; Malformed of kind ``json`` where it is none.
        """
        body, _, _ = await self.get(self.url(path), MAX_JSON_BYTES)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise Malformed(f"{path} is not JSON: {type(exc).__name__}", kind="json") from exc

    async def _read(self, url: URL, limit: int) -> bytes:
        if self._tls is None:
            self._tls = _tls(self._config)
        async with self._session.get(
            url, headers=self._headers(), allow_redirects=False, ssl=self._tls
        ) as answer:
            if answer.status != 200:
                reason = (answer.reason or "")[:60]
                wrong = NotThere if answer.status in NOT_THERE else Malformed
                raise wrong(
                    f"status {answer.status} {reason}".rstrip(), kind="status", status=answer.status
                )
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                # Never asked for: unpacking what a stranger packed is how a kilobyte becomes a gigabyte.
                raise Malformed(
                    f"the answer is encoded ({encoding[:20]}) though identity was asked"
                )
            chunks, size = [], 0
            async for chunk in answer.content.iter_chunked(65536):
                size += len(chunk)
                if size > limit:
                    raise Malformed(f"the answer is larger than {limit} bytes", kind="too_large")
                chunks.append(chunk)
            return b"".join(chunks)

    def _headers(self) -> dict[str, str]:
        if self._config.bearer_token_file is None:
            return {}
        try:
            # Read each time, so that a rotated secret is picked up; it is a small file in memory.
            token = Path(self._config.bearer_token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise SourceError(
                f"bearer_token_file {self._config.bearer_token_file}: {exc}", kind="credentials"
            ) from exc
        if not token or not token.isprintable():
            # The token itself is never shown.
            raise SourceError(
                f"bearer_token_file {self._config.bearer_token_file}: must hold one line of printable "
                "characters",
                kind="credentials",
            )
        return {"Authorization": f"Bearer {token}"}


def _tls(config: EngineConfig) -> ssl.SSLContext | bool:
    """
    How the server's certificate is checked; True is aiohttp's word for "as usual".

    Raises:
        SourceError: ``tls.ca_file`` cannot be used now; a mounted secret may come later than we do.
    """
    if config.insecure_skip_verify:
        return False
    if config.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except OSError as exc:
        raise SourceError(
            f"tls.ca_file {config.ca_file}: {exc.strerror or exc}; must be PEM certificates",
            kind="credentials",
        ) from exc


def make_session() -> aiohttp.ClientSession:
    """
    The HTTP client of all engines: kept-alive connections, no cookies, nothing decompressed.

    Headers are few and fixed, since each poll sends them.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=75),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"},
        max_line_size=8190,
        max_field_size=8190,
    )
