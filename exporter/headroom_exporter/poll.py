"""
The poll loop of one engine: two rhythms, one request in flight, deadlines, back-off.

The engine must never be harmed: each request has a deadline and a size limit, no redirect is followed,
a slow engine is asked more seldom, a failing one backs off with jitter, and a page that is dear to parse
slows the polls down.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarl import URL

from headroom_exporter.engines.base import Beside, Engine, Rhythm, Series
from headroom_exporter.errors import Malformed, NotThere, SourceError
from headroom_exporter.fetch import MAX_BODY_BYTES, Fetcher
from headroom_exporter.find import Finder, taken_away

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import aiohttp

    from headroom_exporter.config import EngineConfig, PollConfig
    from headroom_exporter.track import EngineTrack

log = logging.getLogger(__name__)

FACTS_ATTEMPTS = 5
# A page beside the engine's own that did not answer in time is left in peace for so long.
REST_SECONDS = 60.0
# Parsing may take at most this share of one core, whatever the page.
MAX_PARSE_SHARE = 0.05
FILTERED, FULL = "filtered", "full"
# Where the series from the server's command line stand among those of its pages.
COMMAND_LINE = "(command line)"


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
        self._clocks = clocks or Clocks()
        self._fetcher = Fetcher(config, poll.timeout, session, self._clocks.monotonic)
        self._finder = Finder(config, self._fetcher, track)
        self._fast_url: URL | None = None
        # Where the engine's page is; None until it is found, and again when nothing listens any more.
        self._path: str | None = None
        self._beside: dict[str, Mapping[str, Series]] = {}
        # The engine that told it.
        self._beside_of: Engine | None = None
        self._facts_told: set[str] = set()
        # Pages that did not answer in time, and until when they are left in peace.
        self._unasked_until: dict[str, float] = {}
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
        if error.kind in ("refused", "no_samples") or isinstance(error, NotThere):
            self._path = None
        if error.kind == "refused":
            self._finder.refused()
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
            body, at, duration = await self._fetcher.get(self._fast_url, MAX_BODY_BYTES)
            if self._take(body, full=False, at=at, duration=duration):
                if len(body) >= self._filter_limit:
                    self._next_full, self._track.poll_mode = 0.0, None
                return
            # 200 with no series: the filter stopped working (several API servers answer so).
            self._track.poll_mode = None
        full = now >= self._next_full or self._track.poll_mode is None or self._track.facts_wanted
        await self._poll_page(full=full)

    async def _poll_page(self, *, full: bool) -> None:
        """Poll the unfiltered page; with a full one, learn what else is to be known."""
        if self._path is None:
            full = True
            self._path, (body, at, duration) = await self._finder.find()
        else:
            body, at, duration = await self._fetcher.get(
                self._fetcher.url(self._path), MAX_BODY_BYTES
            )
            if self._finder.must_not_read(self._path, body):
                # Another server took the address while nobody looked.
                self._path = None
                raise taken_away()
        fresh = full and self._track.facts_wanted
        if fresh:
            self._track.poll_mode = None
            self._facts_left, self._probes_left = FACTS_ATTEMPTS, FACTS_ATTEMPTS
            self._facts_told.clear()
        # Before the page is taken: it may be they that name the model.
        await self._ask_beside(body, full=full)
        taken = self._take(body, full=full, at=at, duration=duration)
        if fresh:
            # Only the page itself may have told that another engine has begun to speak.
            self._track.facts_wanted = self._track.engine is not self._beside_of
        if not taken:
            raise Malformed("the page has no series of the engine any more", kind="no_samples")
        if not full:
            return
        self._next_full = self._clocks.monotonic() + self._poll.full_interval
        # Gauges appear with the engine's first step; what the filter asks for must grow with the page.
        if self._track.poll_mode is None or self._track.fast_names_seen != self._probed_names:
            await self._probe(body)

    def _take(self, body: bytes, *, full: bool, at: float, duration: float) -> bool:
        began = time.thread_time()
        try:
            return self._track.take(
                body,
                full=full,
                at=at,
                wall=self._clocks.wall(),
                duration=duration,
                beside=self._all_beside(),
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
        expected = engine.page(full_body, wanted).series
        url = self._filter_url(engine, set(expected))
        try:
            body, _, _ = await self._fetcher.get(url, MAX_BODY_BYTES)
            answered = engine.page(body, wanted).series
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
        return URL(f"{self._fetcher.base}{engine.filtered_path}?{query}", encoded=True)

    # --- what stands beside the page ---

    def _all_beside(self) -> dict[str, Series]:
        return {name: series for page in self._beside.values() for name, series in page.items()}

    async def _ask_beside(self, body: bytes, *, full: bool) -> None:
        """Ask the engine's pages of JSON whose turn it is; each is optional."""
        engine = self._track.engine
        if engine is None:
            return
        if engine is not self._beside_of:
            # Another kind took the address: nothing the old one told is true of it.
            self._beside.clear()
            self._beside_of = engine
        for page in engine.beside:
            if page.rhythm is Rhythm.FAST:
                self._beside[page.path] = await self._ask_again(engine, page, body)
        if full and self._facts_left:
            await self._ask_facts(engine)

    async def _ask_again(self, engine: Engine, page: Beside, body: bytes) -> Mapping[str, Series]:
        """A page that is asked with each poll, but not while it has nothing to tell or cannot keep up."""
        now = self._clocks.monotonic()
        if now < self._unasked_until.get(page.path, now) or not _is_due(engine, page, body):
            return {}
        told = await self._series_beside(page)
        if told is None:
            self._unasked_until[page.path] = now + REST_SECONDS
        return told or {}

    async def _ask_facts(self, engine: Engine) -> None:
        """Version, limits: asked a few times after a start, until each has been told."""
        self._facts_left -= 1
        facts = [page for page in engine.beside if page.rhythm is Rhythm.START]
        for page in facts:
            if page.path in self._facts_told:
                continue
            told = await self._series_beside(page)
            if told is None:
                # The others would not be answered in time either, and the page grows old meanwhile.
                break
            # Old facts hold until new ones are known: one failed poll must not make the slots unknown.
            if told:
                self._beside[page.path] = told
                self._facts_told.add(page.path)
        if engine.command_line is not None:
            self._beside[COMMAND_LINE] = engine.command_line(self._config.url)
        if self._facts_told.issuperset(page.path for page in facts):
            self._facts_left = 0

    async def _series_beside(self, page: Beside) -> Mapping[str, Series] | None:
        """What a page of JSON tells: {} where it answers otherwise than it should, None where not at all."""
        try:
            return page.series(await self._fetcher.json(page.path))
        except SourceError as exc:
            log.debug(
                "no answer",
                extra={"engine": self._config.name, "path": page.path, "why": str(exc)},
            )
            return {} if isinstance(exc, Malformed) else None


def _is_due(engine: Engine, page: Beside, body: bytes) -> bool:
    """Whether a page is to be asked, given what the engine's own page says now."""
    gauge = page.while_above_zero
    return gauge is None or bool(engine.page(body, frozenset({gauge})).value(gauge))
