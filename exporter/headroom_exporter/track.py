"""
What is known of one engine: pages in, EngineState out. No I/O, no clock; replays run through it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.derive.memory import RankMemory
from headroom_exporter.engines import BY_NAME, ENGINES, Engine, recognise
from headroom_exporter.engines.base import MAX_RANKS, Series, is_blank
from headroom_exporter.errors import Malformed, SourceError
from headroom_exporter.samples import EngineSample, EngineState, RankSample, RankState, nothing

log = logging.getLogger(__name__)

Key = tuple[str, str]
PlanOf = Callable[[str, str], PlanConfig | None]

# A rank or model that has not been seen for this long is forgotten, its integrals too.
FORGET_SECONDS = 3600.0
# Ranks and models remembered, present or not: names that change with every page must not fill the memory.
MAX_REMEMBERED = 2 * MAX_RANKS
# Of a page nobody recognised, for the message.
FIRST_BYTES = 128 * 1024
# Two polls further apart than this many intervals have a gap between them, not a level.
GAP_INTERVALS = 3.0
MIN_GAP_SECONDS = 5.0
# Fields that a fast page does not carry are kept from the last full one.
SLOW_FIELDS = (
    "prefix_queries",
    "prefix_hits",
    "finished",
    "rejected",
    "histograms",
    "kv_capacity_tokens",
    "block_tokens",
)


@dataclass(slots=True)
class _Rank:
    memory: RankMemory
    state: RankState
    full: RankSample | None = None
    seen_at: float = 0.0


class EngineTrack:
    """
    One polled server.

    Args:
        config: Its name and kind.
        poll: Intervals, from which gaps and staleness follow.
        plan_of: The plan for an engine and a model.
    """

    def __init__(self, config: EngineConfig, poll: PollConfig, plan_of: PlanOf) -> None:
        self._config = config
        self._plan_of = plan_of
        slowest = max(poll.interval, poll.fallback_interval)
        # An engine that answers just within the deadline gets as long a rest: that is slow, not a gap.
        self._max_gap = max(MIN_GAP_SECONDS, GAP_INTERVALS * slowest, 2.0 * poll.timeout + slowest)
        self._stale_after = self._max_gap
        self._ranks: dict[Key, _Rank] = {}
        self._errors: dict[str, float] = {}
        self._unobserved = 0.0
        self._up = False
        self._last_at: float | None = None
        self._last_wall: float | None = None
        self._duration: float | None = None
        self._last_error: str | None = None
        self._started: float | None = None
        self._version: str | None = None
        self._max_model_length: int | None = None
        self.engine: Engine | None = None
        # Whose ranks are held; ``engine`` is None while it is to be found out anew.
        self._ranks_of: Engine | None = None
        self.poll_mode: str | None = None
        self.fast_names_seen: frozenset[str] = frozenset()
        # Set when the facts about the engine must be asked again: at the start and after a restart.
        self.facts_wanted = True

    # --- pages ---

    def take(
        self,
        body: bytes,
        *,
        full: bool,
        at: float,
        wall: float,
        duration: float,
        beside: Mapping[str, Series] | None = None,
    ) -> bool:
        """
        Take one page in.

        Args:
            body: The answer's body.
            full: Read everything; else only the fast fields.
            at: Monotonic seconds at which the engine rendered it.
            wall: Unix seconds, for the timestamp metric.
            duration: Seconds the request took.
            beside: What the engine's other pages said.

        Returns:
            Whether the page held any rank. A filtered page may not: then the filter does not work there.

        Raises:
            Malformed: The page cannot be trusted; nothing of it was taken.
        """
        sample = self._read(body, full=full, beside=beside or nothing())
        idle = self.engine is not None and self.engine.empty_is_idle
        if not full and not sample.ranks and not idle:
            return False
        if self._last_at is not None and at <= self._last_at:
            return True
        self._note_restart(sample, after_failure=not self._up)
        if full:
            # A fast page may not carry them.
            self._version, self._max_model_length = sample.version, sample.max_model_length
        if self._last_at is not None and at - self._last_at > self._max_gap:
            self._unobserved += at - self._last_at
        if sample.dropped:
            self._count_dropped(sample.dropped)
        self._observe(sample, full=full, at=at)
        self._up, self._last_error = True, None
        self._last_at, self._last_wall, self._duration = at, wall, duration
        return True

    def recognise(self, path: str, body: bytes) -> Engine:
        """
        Whose page this is, from its samples.

        Raises:
            Malformed: Nobody's that we know (``no_samples``), another engine's than the configured kind
                (``wrong_kind``), several engines' at once (``mixed``), or no page at all.
        """
        forced = BY_NAME.get(self._config.kind)
        if forced is not None and path in forced.paths:
            page = forced.page(body, forced.full_names)
            if forced.fits(page.series) or (forced.empty_is_idle and is_blank(body)):
                return self.is_of(forced)
        found = recognise(path, body)
        if found is None:
            raise Malformed(self._unknown(body), kind="no_samples")
        if forced is not None:
            raise Malformed(
                f"kind is {forced.name} but the page is of {found.name}", kind="wrong_kind"
            )
        return self.is_of(found)

    def is_of(self, engine: Engine) -> Engine:
        """Note whose the page is; another engine than before takes nothing over from it."""
        if self._ranks_of is not None and self._ranks_of is not engine:
            # Another server took the address: nothing learnt of the old one holds.
            self._ranks.clear()
            self._version = self._max_model_length = None
            self.facts_wanted = True
        self.engine = self._ranks_of = engine
        self.fast_names_seen = frozenset()
        return engine

    def _unknown(self, body: bytes) -> str:
        """What to say of a page nobody recognised."""
        seen, forced = _first_names(body), BY_NAME.get(self._config.kind)
        if forced is not None:
            return (
                f"the page has no series of {forced.title}; it has {seen}. {forced.silent}".rstrip()
            )
        known = ", ".join(engine.name for engine in ENGINES)
        return f"the page has no series of a known engine ({known}); it has {seen}. {_hint(body)}"

    def _read(self, body: bytes, *, full: bool, beside: Mapping[str, Series]) -> EngineSample:
        engine = self.engine or self.recognise("/metrics", body)
        if full and engine.wraps:
            # The engine inside publishes its first series later than what runs it.
            engine = self.recognise("/metrics", body)
        names = engine.full_names if full else frozenset(engine.fast_names)
        page = engine.page(body, names)
        if full and not engine.fits(page.series) and not self._is_unused(engine, body):
            self.engine = None
            raise Malformed(self._unknown(body), kind="no_samples")
        if full:
            self.fast_names_seen = frozenset(engine.fast_names).intersection(page.series)
        return engine.read(page.beside(beside))

    def _is_unused(self, engine: Engine, body: bytes) -> bool:
        """
        Whether an engine that shows nothing is one that nobody has used yet.

        One that has shown series before began anew, or is another: unless it is configured, it must be
        found out which.
        """
        known = self._config.kind == engine.name or not self.fast_names_seen
        return engine.empty_is_idle and known and is_blank(body)

    def _note_restart(self, sample: EngineSample, *, after_failure: bool) -> None:
        changed = None not in (sample.started, self._started) and sample.started != self._started
        if changed:
            for rank in self._ranks.values():
                rank.memory.restart()
        if changed or after_failure:
            self.facts_wanted = True
        if sample.started is not None:
            self._started = sample.started

    def _observe(self, sample: EngineSample, *, full: bool, at: float) -> None:
        present: set[Key] = set()
        for fresh in sample.ranks:
            key = (fresh.rank, fresh.model_name)
            present.add(key)
            rank = self._ranks.get(key)
            if rank is None:
                rank = self._ranks[key] = self._new_rank(key, at)
            if full:
                rank.full = fresh
            self._update(rank, _merge(fresh, None if full else rank.full), at)
        self._let_go(self._ranks.keys() - present, at)

    def _let_go(self, absent: set[Key], at: float) -> None:
        """Show no sample of ranks that are absent; forget those that are too many or too long away."""
        surplus = len(self._ranks) - MAX_REMEMBERED
        longest_away_first = sorted(absent, key=lambda key: (self._ranks[key].seen_at, key))
        for i, key in enumerate(longest_away_first):
            rank = self._ranks[key]
            rank.state = replace(rank.state, sample=None, derived=None)
            if i < surplus or at - rank.seen_at > FORGET_SECONDS:
                del self._ranks[key]

    def _new_rank(self, key: Key, at: float) -> _Rank:
        assert self.engine is not None  # noqa: S101 - for the type checker: a sample has been read
        memory = RankMemory(self._max_gap, self.engine.cadence)
        state = RankState(rank=key[0], model_name=key[1], memory=memory.snapshot(at))
        return _Rank(memory=memory, state=state, seen_at=at)

    def _update(self, rank: _Rank, sample: RankSample, at: float) -> None:
        plan = self._plan_of(self._config.name, sample.model_name)
        derived = rank.memory.observe(at, sample, plan)
        rank.seen_at = at
        rank.state = RankState(
            rank=sample.rank,
            model_name=sample.model_name,
            memory=rank.memory.snapshot(at, plan),
            sample=sample,
            derived=derived,
        )

    def _count_dropped(self, dropped: int) -> None:
        if "dropped_ranks" not in self._errors:
            log.warning(
                "the page holds more series than are read; the rest is left out",
                extra={"engine": self._config.name, "left_out": dropped},
            )
        self._errors["dropped_ranks"] = self._errors.get("dropped_ranks", 0.0) + dropped

    # --- failures ---

    def fail(self, error: SourceError) -> None:
        """
        Count a failed poll.

        Samples stay until they are stale, since a slow answer does not make them wrong; but a refused
        connection means that nothing listens any more, so they go at once.
        """
        self._up, self._last_error = False, str(error)
        self._errors[error.kind] = self._errors.get(error.kind, 0.0) + 1
        if error.kind == "refused":
            for rank in self._ranks.values():
                rank.state = replace(rank.state, sample=None, derived=None)

    def forget_step_time(self) -> None:
        """Drop every step-time fit: the clocks of the GPU changed."""
        for rank in self._ranks.values():
            rank.memory.forget_step_time()

    # --- result ---

    @property
    def up(self) -> bool:
        """Whether the last poll succeeded."""
        return self._up

    @property
    def name(self) -> str:
        """The ``engine`` label."""
        return self._config.name

    def state(self) -> EngineState:
        """The engine as a scrape shows it."""
        engine = self.engine
        ages = [age for rank in self._ranks.values() if (age := rank.memory.gauge_age) is not None]
        return EngineState(
            name=self._config.name,
            up=self._up,
            stale_after=self._stale_after,
            ranks=tuple(rank.state for _, rank in sorted(self._ranks.items())),
            kind=None if engine is None else engine.name,
            version=self._version,
            poll_mode=self.poll_mode,
            kv_usage_means=None if engine is None else engine.kv_usage,
            gauge_age=max(ages, default=None),
            max_model_length=self._max_model_length,
            last_success=self._last_wall,
            last_success_monotonic=self._last_at,
            poll_duration=self._duration,
            errors=MappingProxyType(dict(self._errors)),
            unobserved_seconds=self._unobserved,
            last_error=self._last_error,
        )


def _merge(fresh: RankSample, full: RankSample | None) -> RankSample:
    """A fast sample completed with what only the last full page told."""
    if full is None:
        return fresh
    return RankSample(
        **{
            field.name: getattr(full if field.name in SLOW_FIELDS else fresh, field.name)
            for field in fields(RankSample)
        }
    )


def _first_lines(body: bytes) -> list[str]:
    """The first lines of any page; an idle vLLM of one rank fills half of these bytes."""
    return body[:FIRST_BYTES].decode("utf-8", "replace").splitlines()[:2000]


def _hint(body: bytes) -> str:
    """What may be wrong with a page nobody recognised, by the names that it declares or holds."""
    named: set[str] = set()
    for line in _first_lines(body):
        words = line.split(" ", 3)
        comment = line.startswith("#") and len(words) > 2
        named.add(words[2] if comment else line.partition("{")[0].partition(" ")[0])
    hints = [engine.silent for engine in ENGINES if not engine.markers.isdisjoint(named)]
    if not hints and is_blank(body):
        unused = [engine.name for engine in ENGINES if engine.empty_is_idle and not engine.parse]
        return f"One that nobody has used yet ({', '.join(unused)}) has such a page: set its kind."
    hints = hints or [e.silent for e in ENGINES if not e.full_names.isdisjoint(named)]
    return " ".join(filter(None, hints)) or "docs/engines.md says what each must be started with."


def _first_names(body: bytes) -> str:
    """A few sample names of a page nobody recognised, for the message."""
    names: dict[str, None] = {}
    for line in _first_lines(body):
        if line and not line.startswith("#"):
            names[line.partition("{")[0].partition(" ")[0][:60]] = None
        if len(names) == 5:
            break
    return ", ".join(names) + ", …" if names else "no samples at all"
