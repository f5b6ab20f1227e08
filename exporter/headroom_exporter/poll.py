"""
The poll loop of one engine: two rhythms, one request in flight, deadlines, back-off.

The engine must never be harmed: each request has a deadline and a size limit, no redirect is followed,
a slow engine is asked more seldom, a failing one backs off with jitter, and a page that is dear to parse
slows the polls down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from headroom_exporter.engines import Engine, arguments, parse_page
from headroom_exporter.errors import Malformed, SourceError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from headroom_exporter.config import EngineConfig, PollConfig
    from headroom_exporter.track import EngineTrack

log = logging.getLogger(__name__)

# vLLM 0.33 with eight ranks is 0.4 MB; nothing honest is near this.
MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_FACTS_BYTES = 1024 * 1024
FACTS_ATTEMPTS = 5
# Parsing may take at most this share of one core, whatever the page.
MAX_PARSE_SHARE = 0.05
FILTERED, FULL = "filtered", "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Monotonic and Unix seconds, and how to sleep; injected so that tests need no real time."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class EnginePoller:
    """
    Polls one engine for ever.

    Args:
        config: Where it is.
        poll: Intervals and limits.
        track: What is known of it; fed here.
        publish: Called after every poll.
        session: HTTP client of the whole exporter.
    """

    def __init__(
        self,
        config: EngineConfig,
        poll: PollConfig,
        track: EngineTrack,
        publish: Callable[[], None],
        session: aiohttp.ClientSession,
        clocks: Clocks | None = None,
    ) -> None:
        self._config = config
        self._poll = poll
        self._track = track
        self._publish = publish
        self._session = session
        self._clocks = clocks or Clocks()
        self._tls: ssl.SSLContext | bool | None = None
        self._base = URL(config.url.rstrip("/"))
        self._fast_url: URL | None = None
        self._failures = 0
        self._facts_left = 0
        self._probes_left = 0
        # A "filtered" page from this size on was not filtered.
        self._filter_limit = 0.0
        self._probed_names: frozenset[str] = frozenset()
        self._next_full = 0.0
        self._parse_seconds = 0.0
        self._reported: str | None = ""

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            began = self._clocks.monotonic()
            await self.tick()
            elapsed = self._clocks.monotonic() - began
            await self._clocks.sleep(self._pause(elapsed))

    async def tick(self) -> None:
        """One poll; whatever goes wrong in it is counted and logged, never raised."""
        try:
            await self._poll_once()
        except SourceError as error:
            self._fail(error)
        except Exception as exc:
            log.exception("bug while polling", extra={"engine": self._config.name})
            self._fail(SourceError(f"bug: {exc!r}", kind="bug"))
        else:
            self._failures = 0
            self._report(None)
        self._publish()

    def _fail(self, error: SourceError) -> None:
        self._failures += 1
        self._next_full = 0.0
        self._track.fail(error)
        self._report(error)

    def _report(self, error: SourceError | None) -> None:
        """One log line per change of state."""
        kind = None if error is None else error.kind
        if kind == self._reported:
            return
        self._reported = kind
        where = {"engine": self._config.name, "url": self._config.url}
        if error is None:
            log.info("engine is up", extra={**where, "poll_mode": self._track.poll_mode})
        else:
            log.warning("engine poll failed", extra={**where, "kind": kind, "reason": str(error)})

    def _pause(self, elapsed: float) -> float:
        """Seconds until the next poll."""
        fallback = self._track.poll_mode == FULL
        interval = self._poll.fallback_interval if fallback else self._poll.interval
        if self._failures:
            longest = max(self._poll.max_backoff, interval)
            back_off = min(longest, interval * 2.0 ** min(self._failures - 1, 10))
            # Jitter keeps a fleet from knocking in step.
            return back_off * random.uniform(0.8, 1.2)  # noqa: S311
        # An engine that answers slowly gets at least as long a rest as it worked.
        rest = max(interval - elapsed, min(elapsed, self._poll.timeout))
        return max(rest, self._parse_seconds / MAX_PARSE_SHARE)

    # --- one poll ---

    async def _poll_once(self) -> None:
        now = self._clocks.monotonic()
        fast = self._track.poll_mode == FILTERED and self._fast_url is not None
        if fast and now < self._next_full and not self._track.facts_wanted:
            assert self._fast_url is not None  # noqa: S101 - for the type checker
            body, at, duration = await self._get(self._fast_url, MAX_BODY_BYTES)
            if self._take(body, full=False, at=at, duration=duration):
                if len(body) >= self._filter_limit:
                    self._next_full, self._track.poll_mode = 0.0, None
                return
            # 200 with no series: the filter stopped working (several API servers answer so).
            self._track.poll_mode = None
        full = now >= self._next_full or self._track.poll_mode is None or self._track.facts_wanted
        await self._poll_page(full=full)

    async def _poll_page(self, *, full: bool) -> None:
        """Poll the unfiltered page; after a full one, learn what else is to be known."""
        path = "/metrics" if self._track.engine is None else self._track.engine.metrics_path
        body, at, duration = await self._get(self._url(path), MAX_BODY_BYTES)
        taken = self._take(body, full=full, at=at, duration=duration)
        if not taken:
            raise Malformed("the page has no series of the engine any more", kind="no_samples")
        if not full:
            return
        self._next_full = self._clocks.monotonic() + self._poll.full_interval
        if self._track.facts_wanted:
            self._track.facts_wanted = False
            self._track.poll_mode = None
            self._facts_left, self._probes_left = FACTS_ATTEMPTS, FACTS_ATTEMPTS
        if self._facts_left:
            await self._ask_facts()
        # Gauges appear with the engine's first step; what the filter asks for must grow with the page.
        if self._track.poll_mode is None or self._track.fast_names_seen != self._probed_names:
            await self._probe(body)

    def _take(self, body: bytes, *, full: bool, at: float, duration: float) -> bool:
        began = time.thread_time()
        try:
            return self._track.take(
                body, full=full, at=at, wall=self._clocks.wall(), duration=duration
            )
        finally:
            self._parse_seconds = time.thread_time() - began

    async def _probe(self, full_body: bytes) -> None:
        """
        Find out whether the filtered page can be trusted: it must hold every fast series of the full one.

        A filter that is ignored, an empty 200, an error: then the full page it is.
        """
        engine = self._track.engine
        self._probed_names = self._track.fast_names_seen
        if engine is None or engine.filtered_path is None:
            self._track.poll_mode = FULL
            return
        wanted = frozenset(engine.fast_names)
        expected = parse_page(full_body, wanted).series
        url = self._filter_url(engine, set(expected))
        try:
            body, _, _ = await self._get(url, MAX_BODY_BYTES)
            answered = parse_page(body, wanted).series
        except SourceError as error:
            log.debug("filter probe failed", extra={"engine": self._config.name, "why": str(error)})
            self._probes_left -= 1
            # Perhaps only slow: ask again after the next full page, a few times.
            self._track.poll_mode = FULL if self._probes_left <= 0 else None
            return
        complete = all(len(answered.get(name, ())) >= len(expected[name]) for name in expected)
        self._filter_limit = len(full_body) / 2
        small = len(body) < self._filter_limit
        works = bool(expected) and complete and small
        self._track.poll_mode = FILTERED if works else FULL
        self._fast_url = url if works else None

    def _filter_url(self, engine: Engine, present: set[str]) -> URL:
        """The filtered page's address; asks only for names that this version has, to keep it short."""
        names = [name for name in engine.fast_names if name in present]
        query = "&".join(f"name[]={name}" for name in names)
        return URL(f"{self._base}{engine.filtered_path}?{query}", encoded=True)

    # --- facts ---

    async def _ask_facts(self) -> None:
        """Version, longest sequence, slots: each optional, asked a few times after a start."""
        self._facts_left -= 1
        version = await self._get_json("/version")
        text = version.get("version") if isinstance(version, dict) else None
        if isinstance(text, str):
            self._track.version = text[:64]
        models = await self._get_json("/v1/models")
        length = _max_model_length(models)
        if length is not None:
            self._track.max_model_length = length
        # Old facts hold until new ones are known: one failed poll must not make the slots unknown.
        self._track.argument_slots = arguments.max_num_seqs(self._config.url)
        if isinstance(text, str) and length is not None:
            self._facts_left = 0

    async def _get_json(self, path: str) -> Any:
        try:
            body, _, _ = await self._get(self._url(path), MAX_FACTS_BYTES)
            return json.loads(body)
        except (SourceError, ValueError, RecursionError) as exc:
            log.debug(
                "no answer", extra={"engine": self._config.name, "path": path, "why": str(exc)}
            )
            return None

    # --- HTTP ---

    def _url(self, path: str) -> URL:
        return URL(f"{self._base}{path}")

    async def _get(self, url: URL, limit: int) -> tuple[bytes, float, float]:
        """
        One bounded request.

        Returns:
            Body, monotonic seconds halfway between asking and answer, duration in seconds.

        Raises:
            Unreachable: refused (kind ``refused``), no answer in time (``timeout``), anything else on the
                way (``unreachable``).
            Malformed: status other than 200 (``status``), larger than ``limit`` (``too_large``), encoded.
        """
        began = self._clocks.monotonic()
        try:
            async with asyncio.timeout(self._poll.timeout):
                body = await self._read(url, limit)
        except TimeoutError as exc:
            raise Unreachable(f"no answer within {self._poll.timeout:g} s", kind="timeout") from exc
        except aiohttp.ClientConnectorError as exc:
            if isinstance(exc.os_error, ConnectionRefusedError):
                where = f"{url.host}:{url.port}"
                raise Unreachable(f"nothing listens on {where}", kind="refused") from exc
            raise Unreachable(str(exc)) from exc
        except (aiohttp.ClientError, OSError) as exc:
            # Its text may hold what the server sent, and the long address of the filtered page.
            raise Unreachable(f"{type(exc).__name__}: {str(exc)[:120]}") from exc
        ended = self._clocks.monotonic()
        return body, (began + ended) / 2, ended - began

    async def _read(self, url: URL, limit: int) -> bytes:
        if self._tls is None:
            self._tls = _tls(self._config)
        async with self._session.get(
            url, headers=self._headers(), allow_redirects=False, ssl=self._tls
        ) as answer:
            if answer.status != 200:
                reason = (answer.reason or "")[:60]
                raise Malformed(f"status {answer.status} {reason}".rstrip(), kind="status")
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


def _max_model_length(models: Any) -> int | None:
    """max_model_len of the first model that /v1/models lists."""
    listed = models.get("data") if isinstance(models, dict) else None
    for model in listed if isinstance(listed, list) else []:
        length = model.get("max_model_len") if isinstance(model, dict) else None
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return None


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
