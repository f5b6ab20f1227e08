"""One rank's memory: fed with (time, sample), it integrates, remembers and derives."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.derive import histograms, kv_cache, step_time
from headroom_exporter.derive.headroom import Evidence, derive
from headroom_exporter.derive.integrate import (
    BATCH_BOUNDS,
    OCCUPANCY_BOUNDS,
    Peak,
    RollingMean,
    SecondsBy,
    TimeHistogram,
)
from headroom_exporter.derive.slots import PlateauMeter
from headroom_exporter.samples import (
    LIMITING,
    Cadence,
    Derived,
    Footprint,
    HeadroomState,
    MemorySnapshot,
    RankSample,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.config import PlanConfig

PEAK_WINDOWS = (60, 300)
# "Lately" for what flickers between steps and polls.
RECENT_SECONDS = 5.0
TREND_SECONDS = 300.0
# Published peak-to-mean ratios of traffic are of one-minute means, so a spike multiplies one; but once the
# spike is here, what counts is what is left of it.
SPIKE_BASE_SECONDS = (60.0, 10.0)
# No step takes this long; and while prompts are computed, the usage gauge moves.
STALE_SECONDS = 10.0
# A request waits for the next step even on an idle engine; a queue this many steps old is a queue.
QUEUE_STEPS = 3
# Of an engine that refreshes its gauges every so many steps, while the time of a step is not known: slow.
SLOW_STEP_SECONDS = 0.1
FRESH = Cadence()
# Fewer prompts within TREND_SECONDS are single events, not a flow.
MIN_FLOW_PROMPTS = 20
COUNTERS = (
    "prompt_tokens",
    "generation_tokens",
    "steps",
    "step_tokens",
    "preemptions",
    "inter_token_count",
)


class RankMemory:
    """
    Everything remembered of one rank.

    Args:
        max_gap: Seconds between two polls beyond which nothing is integrated across them.
        cadence: How seldom this kind of engine refreshes what it says.
    """

    def __init__(self, max_gap: float, cadence: Cadence = FRESH) -> None:
        self._max_gap = max_gap
        self._cadence = cadence
        self._batch = TimeHistogram(BATCH_BOUNDS)
        self._demand = TimeHistogram(BATCH_BOUNDS)
        self._occupancy = TimeHistogram(OCCUPANCY_BOUNDS)
        self._states = SecondsBy(tuple(HeadroomState))
        self._constraints = SecondsBy(LIMITING)
        self._exhausted_by = SecondsBy(LIMITING)
        self._peaks = {
            field: {window: Peak(window) for window in PEAK_WINDOWS}
            for field in ("running", "demand", "kv_usage")
        }
        self.restart()

    def restart(self) -> None:
        """Start again with the engine: what was learnt of the old process says nothing of the new one."""
        self._previous: tuple[float, RankSample, Derived] | None = None
        self._window_start: tuple[float, RankSample] | None = None
        self._footprint = kv_cache.FootprintMeter()
        self._plateau = PlateauMeter()
        self._base_demand = tuple(RollingMean(seconds) for seconds in SPIKE_BASE_SECONDS)
        self._mean_running = RollingMean(TREND_SECONDS)
        self._prompt_rate = RollingMean(TREND_SECONDS)
        self._gaps = histograms.HistogramWindow(TREND_SECONDS)
        self._recent_running = Peak(RECENT_SECONDS)
        self._recent_usage = Peak(RECENT_SECONDS)
        self._seen_running = 0.0
        self._moved: tuple[float, tuple[float | None, ...]] | None = None
        self._preempted_at: float | None = None
        self._waiting_since: float | None = None
        # Seconds that gauges may be old; None where each step refreshes them.
        self.gauge_age: float | None = None
        self._learnt_at: float | None = None
        self._batch_per_step: float | None = None
        self.forget_step_time()

    def forget_step_time(self) -> None:
        """Drop the step-time fit: the clocks changed."""
        self._steps = step_time.StepMeter()
        self._fit = self._steps.read()

    def observe(
        self,
        now: float,
        sample: RankSample,
        plan: PlanConfig | None = None,
    ) -> Derived:
        """
        Take one sample in.

        Args:
            now: Monotonic seconds at which the engine rendered the page; later than the last one's.
            sample: The rank's fields, those of the full page carried over between full polls.
            plan: What was declared for it.
        """
        if self._previous is not None and _restarted(self._previous[1], sample):
            self.restart()
        before = self._previous
        seconds = now - before[0] if before is not None else 0.0
        if before is not None and not 0 < seconds <= self._max_gap:
            before, seconds = None, 0.0
            self._window_start = None
            self._plateau.interrupt()
        self.gauge_age = self._age_of_gauges(sample)
        self._note_movement(now, sample)
        stale = self._is_stale(now, sample)
        if not stale:
            self._learn(now, sample, None if before is None else before[1], seconds)
        persists = self._queue_persists(now, sample, before[1] if before else None)
        derived = derive(self._evidence(now, sample, stale, persists, plan), plan)
        if derived.demand is not None:
            self._peaks_add(now, sample, derived.demand)
        if before is not None:
            self._integrate(seconds, before[1], before[2])
            self._integrate(seconds, sample, derived)
            self._note_demand(now, seconds, before[2], derived)
        self._previous = (now, sample, derived)
        return derived

    # --- learning ---

    def _learn(
        self, now: float, sample: RankSample, before: RankSample | None, seconds: float
    ) -> None:
        running, waiting, usage = sample.running, sample.waiting, _filling(sample)
        if running is None:
            return
        self._recent_running.add(now, running)
        self._seen_running = max(self._seen_running, running)
        # A gauge read twice between two refreshes is one reading, that stands for the time of both.
        since = now - (self._learnt_at or now - seconds) if seconds else 0.0
        independent = not self.gauge_age or since >= self.gauge_age
        if independent or not seconds:
            self._learnt_at = now
        if usage is not None:
            self._recent_usage.add(now, usage)
            if independent:
                done = completed(sample, self._cadence)
                self._footprint.add(now, running, usage, since, done)
        preempted = _delta(before, sample, lambda s: s.preemptions)
        if preempted:
            self._preempted_at = now
        if before is not None and before.running is not None:
            self._mean_running.add(now, (before.running + running) / 2 * seconds, seconds)
        prompts = _computed_prompts(before, sample)
        if waiting is not None and independent:
            self._plateau.add(
                now,
                running=running,
                waiting=waiting,
                usage=usage,
                preempting=self._preempting(now),
                admitting=bool(prompts),
                prompt_share=_prompt_share(sample),
            )
        if prompts is not None:
            self._prompt_rate.add(now, prompts, seconds)
        gaps = sample.histograms.get("inter_token_latency_seconds")
        if gaps is not None:
            self._gaps.add(now, gaps)
        self._learn_step_time(now, sample)

    def _learn_step_time(self, now: float, sample: RankSample) -> None:
        """Close the busy window that began a few seconds ago, or begin the next one."""
        if not sample.running:
            self._window_start = None
            return
        if self._window_start is None:
            self._window_start = (now, sample)
            return
        began, first = self._window_start
        if now - began < step_time.WINDOW_SECONDS:
            return
        self._window_start = (now, sample)
        if now - began <= step_time.MAX_WINDOW_SECONDS:
            seen = step_time.window(first, sample, now - began)
            if seen is not None:
                self._batch_per_step = seen.batch
                self._steps.add(seen)
                self._fit = self._steps.read()

    def _note_demand(self, now: float, seconds: float, before: Derived, after: Derived) -> None:
        if before.demand is not None and after.demand is not None:
            mean = (before.demand + after.demand) / 2
            for base in self._base_demand:
                base.add(now, mean * seconds, seconds)

    def _note_movement(self, now: float, sample: RankSample) -> None:
        image = (
            *(getattr(sample, counter) for counter in COUNTERS),
            sample.running,
            sample.waiting,
            sample.kv_usage,
            sample.kv_reserved,
        )
        if self._moved is None or self._moved[1] != image:
            self._moved = (now, image)

    def _is_stale(self, now: float, sample: RankSample) -> bool:
        """Frozen: sequences run, and for longer than a step could take nothing at all has moved."""
        if self._cadence.gauges_when_asked or not sample.running or self._moved is None:
            return False
        return now - self._moved[0] > STALE_SECONDS + (self.gauge_age or 0.0)

    def _preempting(self, now: float) -> bool:
        return self._preempted_at is not None and now - self._preempted_at <= RECENT_SECONDS

    def _queue_persists(self, now: float, sample: RankSample, before: RankSample | None) -> bool:
        """Waiting at two polls in a row, and for longer than a few steps."""
        if not sample.waiting or sample.waiting < 1:
            self._waiting_since = None
            return False
        if self._waiting_since is None or before is None:
            self._waiting_since = now
            return False
        step = step_time.step_seconds(self._fit, sample.running or 0.0) or 0.0
        waited = now - self._waiting_since
        # The same old reading seen twice is no second witness.
        return waited >= QUEUE_STEPS * step and waited > (self.gauge_age or 0.0)

    def _age_of_gauges(self, sample: RankSample) -> float | None:
        """The most seconds that the gauges of this engine lag behind, as far as its cadence tells."""
        steps, seconds = self._cadence.gauge_steps, self._cadence.gauge_seconds
        if not steps:
            return seconds or None
        step = step_time.step_seconds(self._fit, sample.running or 0.0)
        if step is None:
            lately = self._gaps.read()
            known = lately is not None and lately.count > 0 and lately.sum > 0
            step = lately.sum / lately.count if lately is not None and known else SLOW_STEP_SECONDS
        return max(seconds, steps * step)

    # --- evidence ---

    def _evidence(
        self,
        now: float,
        sample: RankSample,
        stale: bool,
        persists: bool,
        plan: PlanConfig | None,
    ) -> Evidence:
        bases = {
            "server": sample.slots,
            "plan": plan.max_num_seqs if plan else None,
            "args": sample.argument_slots,
            "inferred": self._plateau.value,
        }
        return Evidence(
            running=sample.running,
            waiting=sample.waiting,
            batch=self._batch_per_step,
            waiting_persists=persists,
            preempting=self._preempting(now),
            stale=stale,
            recent_running=self._recent_running.value(now),
            recent_usage=self._recent_usage.value(now),
            seen_running=self._seen_running,
            slots=MappingProxyType({k: float(v) for k, v in bases.items() if v is not None}),
            footprint=self._footprint_now(now, sample, plan),
            fit=self._fit,
            prompt_share=_prompt_share(sample),
            base_demand=self._spike_base(now),
            mean_running=self._mean_running.mean(now, at_least=RECENT_SECONDS),
            prompt_rate=self._steady_prompt_rate(now, sample),
            p95_to_mean=self._p95_to_mean(),
            prompts=sample.histograms.get("request_prompt_tokens"),
        )

    def _spike_base(self, now: float) -> float | None:
        means = [base.mean(now, at_least=RECENT_SECONDS) for base in self._base_demand]
        return max((mean for mean in means if mean is not None), default=None)

    def _footprint_now(
        self, now: float, sample: RankSample, plan: PlanConfig | None
    ) -> Footprint | None:
        live = self._footprint.read(now)
        if live is not None or plan is None:
            return live
        tokens = sample.kv_capacity_tokens or plan.kv_cache_tokens
        return kv_cache.planned_footprint(
            plan.prompt_tokens, plan.output_tokens, tokens, sample.block_tokens
        )

    def _steady_prompt_rate(self, now: float, sample: RankSample) -> float | None:
        """Computed prompt tokens per second; None while too few prompts came to speak of a flow."""
        rate = self._prompt_rate.mean(now, at_least=RECENT_SECONDS)
        prompts = sample.histograms.get("request_prompt_tokens")
        if rate is None or prompts is None or prompts.count <= 0:
            return rate
        # Of a prompt that was found in a cache, little is computed.
        computed = 1.0
        if sample.computed_prompt_tokens is not None and sample.prompt_tokens:
            computed = min(1.0, sample.computed_prompt_tokens / sample.prompt_tokens)
        few = MIN_FLOW_PROMPTS * computed * prompts.sum / prompts.count
        return rate if rate * TREND_SECONDS >= few else None

    def _p95_to_mean(self) -> float | None:
        """
        Spread of inter-token latency: at least this much.

        Inside a bucket whose upper edge is above twice its lower, the lower edge is taken: a guess in
        the middle would move the capacity by its whole width.
        """
        lately = self._gaps.read()
        if lately is None or lately.count <= 0 or lately.sum <= 0:
            return None
        p95 = histograms.quantile_at_least(lately, 0.95)
        return max(1.0, p95 / (lately.sum / lately.count))

    # --- integration ---

    def _integrate(self, seconds: float, sample: RankSample, derived: Derived) -> None:
        """Give half of the interval to this end of it."""
        half = seconds / 2
        self._states.add(derived.state, half)
        if derived.demand is None:
            return
        self._constraints.add(derived.binding, half)
        if derived.state is HeadroomState.EXHAUSTED:
            self._exhausted_by.add(derived.binding, half)
        self._demand.add(derived.demand, half)
        if sample.running is not None:
            self._batch.add(sample.running, half)
        if sample.kv_usage is not None:
            self._occupancy.add(sample.kv_usage, half)

    def _peaks_add(self, now: float, sample: RankSample, demand: float) -> None:
        levels = {"running": sample.running, "demand": demand, "kv_usage": sample.kv_usage}
        for field, level in levels.items():
            if level is not None:
                for peak in self._peaks[field].values():
                    peak.add(now, level)

    def snapshot(self, now: float, plan: PlanConfig | None = None) -> MemorySnapshot:
        """What a scrape shows of this memory."""
        sample = self._previous[1] if self._previous else None
        return MemorySnapshot(
            effective_batch=self._batch.snapshot(),
            demand=self._demand.snapshot(),
            kv_occupancy=self._occupancy.snapshot(),
            peak_running=self._peak_values("running", now),
            peak_demand=self._peak_values("demand", now),
            peak_kv_usage=self._peak_values("kv_usage", now),
            state_seconds=self._states.snapshot(),
            constraint_seconds=self._constraints.snapshot(),
            exhausted_seconds=self._exhausted_by.snapshot(),
            footprint=None if sample is None else self._footprint_now(now, sample, plan),
            fit=self._fit,
        )

    def _peak_values(self, field: str, now: float) -> MappingProxyType[int, float]:
        values = {window: peak.value(now) for window, peak in self._peaks[field].items()}
        return MappingProxyType({w: value for w, value in values.items() if value is not None})


def _restarted(before: RankSample, after: RankSample) -> bool:
    """Whether any counter went back: the process behind it started again."""
    for counter in COUNTERS:
        old, new = getattr(before, counter), getattr(after, counter)
        if old is not None and new is not None and new < old:
            return True
    return False


def _delta(
    before: RankSample | None, after: RankSample, read: Callable[[RankSample], float | None]
) -> float | None:
    if before is None:
        return None
    old, new = read(before), read(after)
    return None if old is None or new is None else new - old


def _filling(sample: RankSample) -> float | None:
    """
    The share of the pool that the next sequence must find free.

    Where admission reserves for the longest answer, what is reserved is gone, full or not.
    """
    return sample.kv_usage if sample.kv_reserved is None else sample.kv_reserved


def completed(sample: RankSample, cadence: Cadence = FRESH) -> float | None:
    """
    Sequences completed since the engine started.

    Each request yields one first token, which no inter-token gap precedes: first tokens = generated tokens
    - gaps, and what has begun and does not run has ended. Both are in the fast poll; the counter of finished
    requests is not. Under speculative decoding a gap spans several tokens, so there it is the counter.
    (Recording vllm-0.32.0-ramp at 75 s: 211499 - 210515 - 22 running = 962 = request_success_total.)
    """
    tokens, gaps, running = sample.generation_tokens, sample.inter_token_count, sample.running
    known = tokens is not None and gaps is not None and running is not None
    known = known and not cadence.tokens_at_finish
    if known and sample.spec_drafts is None:
        return (tokens or 0.0) - (gaps or 0.0) - (running or 0.0)
    return sum(sample.finished.values()) if sample.finished else None


def _computed_prompts(before: RankSample | None, after: RankSample) -> float | None:
    """Prompt tokens computed between two samples; all of them where the engine does not tell them apart."""
    if after.computed_prompt_tokens is None:
        return _delta(before, after, lambda s: s.prompt_tokens)
    return _delta(before, after, lambda s: s.computed_prompt_tokens)


def _prompt_share(sample: RankSample) -> float | None:
    """
    Share of the pool that the next sequence must find free at once: its prompt, whole blocks.

    Where admission reserves, its longest answer too: as much as those that run hold, on the mean.
    """
    if sample.kv_reserved is not None:
        return sample.kv_reserved / sample.running if sample.running else None
    prompts = sample.histograms.get("request_prompt_tokens")
    if prompts is None or prompts.count <= 0 or sample.kv_capacity_tokens is None:
        return None
    mean = prompts.sum / prompts.count
    block = sample.block_tokens or 1.0
    return (mean + (block - 1) / 2) / sample.kv_capacity_tokens
