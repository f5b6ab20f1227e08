"""
What is known of one engine: pages in, EngineState out. No I/O, no clock; replays run through it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.derive.memory import RankMemory
from headroom_exporter.engines import ALL_FULL_NAMES, ENGINES, Engine, detect, parse_page
from headroom_exporter.engines.base import MAX_RANKS
from headroom_exporter.errors import Malformed, SourceError
from headroom_exporter.samples import EngineSample, EngineState, RankSample, RankState

log = logging.getLogger(__name__)

Key = tuple[str, str]
PlanOf = Callable[[str, str], PlanConfig | None]

# A rank or model that has not been seen for this long is forgotten, its integrals too.
FORGET_SECONDS = 3600.0
# Ranks and models remembered, present or not: names that change with every page must not fill the memory.
MAX_REMEMBERED = 2 * MAX_RANKS
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
        self.engine: Engine | None = None
        self.poll_mode: str | None = None
        self.fast_names_seen: frozenset[str] = frozenset()
        self.version: str | None = None
        self.max_model_length: int | None = None
        self.argument_slots: float | None = None
        # Set when the facts about the engine must be asked again: at the start and after a restart.
        self.facts_wanted = True

    # --- pages ---

    def take(self, body: bytes, *, full: bool, at: float, wall: float, duration: float) -> bool:
        """
        Take one page in.

        Args:
            body: The answer's body.
            full: Read everything; else only the fast fields.
            at: Monotonic seconds at which the engine rendered it.
            wall: Unix seconds, for the timestamp metric.
            duration: Seconds the request took.

        Returns:
            Whether the page held any rank. A filtered page may not: then the filter does not work there.

        Raises:
            Malformed: The page cannot be trusted; nothing of it was taken.
        """
        sample = self._read(body, full=full)
        if not full and not sample.ranks:
            return False
        if self._last_at is not None and at <= self._last_at:
            return True
        self._note_restart(sample, after_failure=not self._up)
        if self._last_at is not None and at - self._last_at > self._max_gap:
            self._unobserved += at - self._last_at
        if sample.dropped:
            self._count_dropped(sample.dropped)
        self._observe(sample, full=full, at=at)
        self._up, self._last_error = True, None
        self._last_at, self._last_wall, self._duration = at, wall, duration
        return True

    def _read(self, body: bytes, *, full: bool) -> EngineSample:
        engine = self.engine
        if engine is None:
            page = parse_page(body, ALL_FULL_NAMES)
            engine = self._recognise(body, detect(page))
            self.engine = engine
        names = engine.full_names if full else frozenset(engine.fast_names)
        page = parse_page(body, names)
        if full:
            self.fast_names_seen = frozenset(engine.fast_names).intersection(page.series)
        if full and not any(name in page.series for name in engine.markers):
            self.engine = None
            self._recognise(body, None)
        return engine.read(page)

    def _recognise(self, body: bytes, found: Engine | None) -> Engine:
        forced = self._config.kind
        if found is not None and forced in ("auto", found.name):
            return found
        seen = _first_names(body)
        known = ", ".join(engine.name for engine in ENGINES)
        if found is not None:
            raise Malformed(f"kind is {forced} but the page is of {found.name}", kind="wrong_kind")
        raise Malformed(
            f"the page has no series of a known engine ({known}); it has {seen}. "
            "vLLM publishes none when it runs with --disable-log-stats",
            kind="no_samples",
        )

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
        memory = RankMemory(self._max_gap)
        state = RankState(rank=key[0], model_name=key[1], memory=memory.snapshot(at))
        return _Rank(memory=memory, state=state, seen_at=at)

    def _update(self, rank: _Rank, sample: RankSample, at: float) -> None:
        plan = self._plan_of(self._config.name, sample.model_name)
        derived = rank.memory.observe(at, sample, plan, self.argument_slots)
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
        kind = self.engine.name if self.engine is not None else None
        return EngineState(
            name=self._config.name,
            up=self._up,
            stale_after=self._stale_after,
            ranks=tuple(rank.state for _, rank in sorted(self._ranks.items())),
            kind=kind,
            version=self.version,
            poll_mode=self.poll_mode,
            max_model_length=self.max_model_length,
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


def _first_names(body: bytes) -> str:
    """A few sample names of a page nobody recognised, for the message."""
    names: dict[str, None] = {}
    for line in body.decode("utf-8", "replace").splitlines()[:2000]:
        if line and not line.startswith("#"):
            names[line.partition("{")[0].partition(" ")[0][:60]] = None
        if len(names) == 5:
            break
    return ", ".join(names) + ", …" if names else "no samples at all"
