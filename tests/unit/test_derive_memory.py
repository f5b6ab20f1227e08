"""One rank's memory: what it integrates, what it learns, what it forgets, and when it does not know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.derive.memory import (
    COUNTERS,
    SLOW_STEP_SECONDS,
    STALE_SECONDS,
    RankMemory,
    completed,
)
from headroom_exporter.derive.step_time import traffic_multiple
from headroom_exporter.samples import (
    Cadence,
    Constraint,
    HeadroomState,
    Histogram,
    RankSample,
)

OK, LOW, EXHAUSTED, UNKNOWN = (
    HeadroomState.OK,
    HeadroomState.LOW,
    HeadroomState.EXHAUSTED,
    HeadroomState.UNKNOWN,
)
SHARE = 0.01
BOUNDS = (0.01, 0.025, 0.05, 0.1)


@dataclass
class Engine:
    """A vLLM in miniature: counters that follow from how many run. Step time is 10 ms + 0.5 ms a sequence."""

    memory: RankMemory = field(default_factory=lambda: RankMemory(max_gap=5.0))
    now: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    share: float = SHARE
    usage: float | None = None
    plan: PlanConfig | None = None
    slots: float | None = None
    # Sequences that come and go each second.
    turnover: float = 4.0
    prompt: float = 100.0
    # Seconds that each prompt token costs.
    cost: float = 0.0
    block: float = 16.0
    counters: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*COUNTERS, "inter_token_seconds"), 0.0)
    )
    begun: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    # Admission reserves the longest answer: what counts is promised, and nothing tells what is used.
    reserves: bool = False

    def step_time(self):
        share = self.cost * self.turnover * self.prompt
        return (0.010 + 0.0005 * self.running) / (1 - share)

    def work(self, seconds):
        """Run for a while."""
        self.now += seconds
        if not self.running:
            return
        steps = seconds / self.step_time()
        gaps, fresh = steps * self.running, self.turnover * seconds
        self.begun += fresh
        self.counters["steps"] += steps
        self.counters["generation_tokens"] += gaps + fresh
        self.counters["step_tokens"] += gaps + fresh * (1 + self.prompt)
        self.counters["prompt_tokens"] += fresh * self.prompt
        self.counters["inter_token_count"] += gaps
        self.counters["inter_token_seconds"] += gaps * self.step_time()

    def sample(self):
        fields = {
            "running": self.running,
            "waiting": self.waiting,
            "kv_usage": self.running * self.share if self.usage is None else self.usage,
            "kv_capacity_tokens": 100_000.0,
            "block_tokens": self.block,
            "histograms": self.histograms,
            "argument_slots": self.slots,
            **self.counters,
        }
        if self.reserves:
            fields["kv_reserved"] = fields.pop("kv_usage")
        kept = {name: value for name, value in fields.items() if name not in self.drop}
        return RankSample(rank="0", model_name="m", **kept)

    def look(self):
        return self.memory.observe(self.now, self.sample(), self.plan)

    def poll(self, seconds, step=0.5, **changes):
        """Poll for a while with these levels; the last answer."""
        for name, value in changes.items():
            setattr(self, name, value)
        derived = None
        for _ in range(round(seconds / step)):
            self.work(step)
            derived = self.look()
        return derived

    def freeze(self, seconds, step=0.5):
        """Polls that find nothing moved."""
        derived = None
        for _ in range(round(seconds / step)):
            self.now += step
            derived = self.look()
        return derived

    def restart(self):
        self.counters = dict.fromkeys(self.counters, 0.0)
        self.begun = 0.0

    def seen(self):
        return self.memory.snapshot(self.now, self.plan)


def calm(**changes):
    """Watched for a minute at eight sequences, of which a hundred fit."""
    engine = Engine(**changes)
    engine.poll(60, running=8.0)
    return engine


# --- state -------------------------------------------------------------------------------------


def test_calm_traffic_is_ok():
    derived = calm().look()
    assert (derived.state, derived.reason) == (OK, "fits")
    assert derived.binding is Constraint.KV_CACHE
    assert derived.sustainable == 100


def test_before_anything_was_learnt_the_state_is_unknown():
    derived = Engine(running=2.0).look()
    assert (derived.state, derived.reason) == (UNKNOWN, "no_capacity_known")
    assert derived.demand == 2.0


def test_one_sample_with_a_waiting_request_is_not_exhaustion_two_are():
    engine = calm()
    assert engine.poll(0.5, waiting=1.0).state is OK
    assert engine.poll(0.5, waiting=0.0).state is OK
    assert engine.poll(0.5, waiting=1.0).state is OK
    derived = engine.poll(0.5)
    assert (derived.state, derived.reason) == (EXHAUSTED, "waiting")
    assert engine.poll(0.5, waiting=0.0).state is OK


def test_a_queue_younger_than_three_steps_is_no_queue():
    engine = Engine()
    for running in (2.0, 10.0, 20.0, 6.0, 30.0, 8.0):
        engine.poll(10, running=running)
    assert engine.seen().fit.fixed is not None
    # Eight sequences: 14 ms a step, so three of them are 42 ms.
    engine.waiting = 1.0
    states = []
    for _ in range(4):
        engine.work(0.02)
        states.append(engine.look().state)
    assert states == [OK, OK, OK, EXHAUSTED]


@pytest.mark.parametrize("waiting", [0.0, 0.4])
def test_less_than_one_waiting_is_none(waiting):
    engine = calm()
    assert engine.poll(5, waiting=waiting).state is OK


def test_demand_below_the_floor_is_low():
    engine = calm()
    assert engine.poll(2, running=80.0).state is OK
    assert engine.poll(2, running=81.0).state is LOW
    assert engine.poll(2, running=100.0).state is EXHAUSTED


def test_preempting_is_exhausted_until_some_seconds_after():
    engine = calm()
    engine.counters["preemptions"] += 1
    derived = engine.poll(0.5)
    assert (derived.state, derived.reason) == (EXHAUSTED, "preempting")
    assert derived.binding is Constraint.KV_CACHE
    assert engine.poll(5.0).state is EXHAUSTED
    assert engine.poll(0.5).state is OK


def test_preemptions_before_the_first_poll_are_not_preempting():
    engine = Engine()
    engine.counters["preemptions"] = 1000.0
    assert engine.poll(60, running=8.0).state is OK


@pytest.mark.parametrize("gauge", ["running", "waiting"])
def test_a_missing_gauge_is_unknown_and_not_zero(gauge):
    engine = calm()
    engine.drop = (gauge,)
    derived = engine.poll(0.5)
    assert (derived.state, derived.reason) == (UNKNOWN, "no_gauges")
    assert (derived.demand, derived.headroom, derived.ratio) == (None, None, None)
    engine.drop = ()
    assert engine.poll(0.5).state is OK


def test_without_a_usage_gauge_the_cache_is_unknown():
    engine = Engine(drop=("kv_usage",))
    derived = engine.poll(60, running=8.0)
    assert derived.state is UNKNOWN
    assert dict(derived.capacities) == {}
    assert engine.seen().kv_occupancy.milliseconds[-1] == 0
    assert engine.seen().effective_batch.milliseconds[-1] == 59_500


@pytest.mark.parametrize("counter", COUNTERS)
def test_without_a_counter_the_gauges_still_count(counter):
    engine = Engine(drop=(counter, "inter_token_seconds"))
    derived = engine.poll(60, running=8.0)
    assert derived.demand == 8.0
    assert engine.seen().demand.milliseconds[-1] == 59_500


# --- stale gauges --------------------------------------------------------------------------------


def test_gauges_that_stand_still_while_sequences_run_become_unknown():
    engine = calm()
    engine.look()
    assert engine.freeze(STALE_SECONDS).state is OK
    derived = engine.freeze(0.5)
    assert (derived.state, derived.reason) == (UNKNOWN, "stale_gauges")
    now = (derived.demand, derived.headroom, derived.ratio, derived.spike_multiple)
    assert now == (None,) * 4


def test_from_stale_gauges_nothing_is_learnt_or_counted_but_the_time():
    engine = calm()
    engine.freeze(STALE_SECONDS + 1)
    before = engine.seen()
    engine.freeze(120)
    after = engine.seen()
    assert after.footprint == before.footprint
    assert after.fit == before.fit
    for field_name in ("effective_batch", "demand", "kv_occupancy", "constraint_seconds"):
        assert getattr(after, field_name) == getattr(before, field_name)
    assert after.state_seconds[UNKNOWN] - before.state_seconds[UNKNOWN] == pytest.approx(120)
    # The peaks of the last minute have left it, and none came in.
    assert dict(after.peak_demand) == {300: 8.0}


def test_an_engine_that_hangs_with_a_queue_teaches_no_slots():
    engine = calm()
    engine.waiting = 5.0
    assert engine.freeze(STALE_SECONDS).max_sequences == {}
    assert engine.freeze(60).max_sequences == {}
    assert engine.freeze(60).state is UNKNOWN


def test_any_movement_ends_staleness():
    engine = calm()
    assert engine.freeze(30).state is UNKNOWN
    assert engine.poll(0.5).state is OK


@pytest.mark.parametrize("change", ["running", "waiting", "usage"])
def test_a_gauge_that_moves_is_not_stale(change):
    engine = calm()
    engine.usage = 0.08
    for poll in range(60):
        setattr(
            engine, change, {"running": 8.0, "waiting": 0.0, "usage": 0.08}[change] + poll % 2 / 4
        )
        engine.freeze(0.5)
    assert engine.look().reason != "stale_gauges"


def test_an_idle_engine_that_stands_still_is_not_stale():
    engine = calm()
    engine.running = 0.0
    assert engine.freeze(600).state is OK


# --- restarts and gaps ---------------------------------------------------------------------------


@pytest.mark.parametrize("counter", COUNTERS)
def test_any_counter_that_goes_back_is_a_restart(counter):
    engine = calm()
    engine.poll(0.5)
    if counter == "preemptions":
        engine.memory = RankMemory(max_gap=5.0)
        engine.counters[counter] = 7.0
        engine.poll(60)
    assert engine.seen().footprint is not None
    engine.counters[counter] -= 1.0
    engine.look()
    assert engine.seen().footprint is None


def test_a_restart_forgets_what_was_learnt_of_the_old_process():
    engine = calm(slots=None)
    engine.poll(30, running=40.0)
    engine.poll(30, running=60.0, waiting=9.0)
    before = engine.seen()
    assert before.footprint is not None
    assert before.fit.fixed is not None
    assert engine.look().max_sequences == {"inferred": 60.0}
    engine.restart()
    engine.running, engine.waiting = 1.0, 0.0
    engine.work(1.0)
    derived = engine.look()
    assert (derived.state, derived.reason) == (UNKNOWN, "no_capacity_known")
    assert derived.max_sequences == {}
    after = engine.seen()
    assert after.footprint is None
    assert (after.fit.fixed, after.fit.windows) == (None, 0.0)


def test_a_restart_integrates_nothing_across_and_takes_nothing_back():
    engine = calm()
    before = engine.seen()
    engine.restart()
    engine.work(1.0)
    engine.look()
    assert engine.seen().demand == before.demand
    assert engine.seen().state_seconds == before.state_seconds
    engine.poll(1.0)
    assert engine.seen().demand.milliseconds[-1] == before.demand.milliseconds[-1] + 1000


def test_a_restart_is_no_preemption_and_no_negative_rate():
    engine = calm()
    engine.counters["preemptions"] = 50.0
    engine.poll(30)
    engine.restart()
    engine.counters["preemptions"] = 3.0
    assert engine.poll(60).state is OK


def test_a_gap_is_not_integrated():
    engine = calm()
    before = engine.seen()
    engine.work(5.5)
    engine.look()
    assert engine.seen().demand == before.demand
    assert engine.seen().state_seconds == before.state_seconds
    engine.work(5.0)
    engine.look()
    assert engine.seen().demand.milliseconds[-1] == before.demand.milliseconds[-1] + 5000


def test_a_gap_forgets_nothing_that_was_learnt():
    engine = calm()
    before = engine.seen()
    engine.work(600.0)
    assert engine.look().sustainable == 100
    assert engine.seen().footprint.mean == pytest.approx(before.footprint.mean)


def test_a_queue_on_both_sides_of_a_gap_did_not_stand_all_along():
    engine = calm()
    engine.poll(0.5, waiting=3.0)
    engine.work(600.0)
    assert engine.look().state is OK
    assert engine.poll(0.5).state is EXHAUSTED


def test_a_plateau_does_not_span_a_gap():
    engine = calm()
    engine.poll(4.5, running=30.0, waiting=5.0)
    engine.work(10.0)
    assert engine.look().max_sequences == {}
    assert engine.poll(1.0).max_sequences == {}
    assert engine.poll(5.0).max_sequences == {"inferred": 30.0}


def test_a_clock_that_stands_still_or_goes_back_integrates_nothing():
    engine = calm()
    before = engine.seen()
    engine.look()
    engine.now -= 3.0
    engine.look()
    assert engine.seen().demand == before.demand


# --- integrals -----------------------------------------------------------------------------------


def test_half_of_an_interval_goes_to_each_of_its_ends():
    engine = Engine()
    engine.running = 2.0
    engine.look()
    engine.work(1.0)
    engine.running = 10.0
    engine.look()
    seen = engine.seen().effective_batch
    assert seen.milliseconds[seen.bounds.index(2)] == 500
    assert seen.milliseconds[-1] == 1000
    assert seen.sum == 2 * 500 + 10 * 500


def test_every_second_has_a_state():
    engine = calm()
    engine.poll(10, waiting=3.0)
    engine.poll(10, waiting=0.0, running=90.0)
    engine.freeze(20)
    seen = engine.seen().state_seconds
    assert sum(seen.values()) == pytest.approx(99.5)
    assert all(seen[state] > 0 for state in HeadroomState)


def test_constraint_seconds_count_the_binding_one():
    engine = calm()
    before = engine.seen().constraint_seconds
    engine.poll(10, slots=12.0)
    after = engine.seen().constraint_seconds
    assert after[Constraint.SLOTS] - before[Constraint.SLOTS] == pytest.approx(9.75)
    assert after[Constraint.KV_CACHE] - before[Constraint.KV_CACHE] == pytest.approx(0.25)
    assert Constraint.PLAN not in after


def test_occupancy_is_integrated_like_the_batch():
    engine = calm()
    seen = engine.seen().kv_occupancy
    assert seen.milliseconds[-1] == 59_500
    assert seen.sum / seen.milliseconds[-1] == pytest.approx(0.08)


def test_peaks_are_of_fixed_windows():
    engine = calm()
    engine.poll(1, running=50.0, waiting=3.0)
    engine.poll(100, running=4.0, waiting=0.0)
    seen = engine.seen()
    assert dict(seen.peak_running) == {60: 4.0, 300: 50.0}
    assert dict(seen.peak_demand) == {60: 4.0, 300: 53.0}
    assert seen.peak_kv_usage[300] == pytest.approx(0.5)


# --- what binds ----------------------------------------------------------------------------------


def test_all_slots_in_use_and_a_queue_bind_slots():
    engine = calm(slots=12.0)
    derived = engine.poll(2, running=12.0, waiting=6.0)
    assert (derived.binding, derived.sustainable) == (Constraint.SLOTS, 12)
    # The gauge dips between steps.
    assert engine.poll(0.5, running=11.0).binding is Constraint.SLOTS


def test_slots_are_inferred_from_a_plateau():
    engine = calm()
    derived = engine.poll(8, running=12.0, waiting=6.0)
    assert derived.max_sequences == {"inferred": 12.0}
    assert (derived.binding, derived.sustainable) == (Constraint.SLOTS, 12)


def test_no_room_for_the_next_prompt_binds_the_cache():
    engine = calm(slots=64.0)
    # The mean prompt is 30 % of the pool.
    engine.histograms = {
        "request_prompt_tokens": Histogram(bounds=(1.0,), counts=(0.0, 10.0), sum=300_000.0)
    }
    derived = engine.poll(8, running=12.0, waiting=6.0, usage=0.75)
    assert derived.binding is Constraint.KV_CACHE
    assert derived.sustainable <= 12


def test_a_queue_while_slots_and_cache_are_free_binds_prefill():
    engine = calm(slots=64.0)
    derived = engine.poll(2, running=12.0, waiting=6.0)
    assert (derived.binding, derived.sustainable) == (Constraint.PREFILL, 12)


def test_a_queue_below_what_has_run_before_binds_prefill():
    engine = calm()
    engine.poll(2, running=20.0)
    derived = engine.poll(10, running=12.0, waiting=6.0)
    assert (derived.binding, derived.sustainable) == (Constraint.PREFILL, 12)


def test_a_queue_for_nobody_knows_what_binds_nothing_but_holds():
    engine = calm()
    derived = engine.poll(2, running=12.0, waiting=6.0)
    assert (derived.binding, derived.sustainable, derived.headroom) == (None, 12, -6)


def test_a_huge_prompt_that_fills_the_pool_is_not_taken_for_slots():
    engine = calm()
    engine.histograms = {
        "request_prompt_tokens": Histogram(bounds=(1.0,), counts=(0.0, 10.0), sum=300_000.0)
    }
    derived = engine.poll(60, running=12.0, waiting=6.0, usage=0.75)
    assert derived.max_sequences == {}


SHORT_PROMPTS = {"request_prompt_tokens": Histogram(bounds=(1.0,), counts=(0.0, 10.0), sum=1_000.0)}


def test_where_admission_reserves_the_next_answer_must_fit_too():
    engine = calm(slots=64.0, histograms=SHORT_PROMPTS, reserves=True)
    derived = engine.poll(2, running=12.0, waiting=6.0, usage=0.95)
    assert derived.binding is Constraint.KV_CACHE
    # What is used as it is needed is short of nothing there.
    engine = calm(slots=64.0, histograms=SHORT_PROMPTS)
    derived = engine.poll(2, running=12.0, waiting=6.0, usage=0.95)
    assert derived.binding is Constraint.PREFILL


@pytest.mark.parametrize("reserves", [True, False])
def test_reservations_that_fill_the_pool_are_not_taken_for_slots(reserves):
    engine = calm(histograms=SHORT_PROMPTS, reserves=reserves)
    derived = engine.poll(60, running=12.0, waiting=6.0)
    assert derived.max_sequences == {"inferred": 12.0}
    engine = calm(histograms=SHORT_PROMPTS, reserves=reserves)
    derived = engine.poll(60, running=8.0, waiting=6.0, usage=0.89)
    assert derived.max_sequences == ({} if reserves else {"inferred": 8.0})


@pytest.mark.parametrize(("block", "fit"), [(1.0, 71), (2001.0, 70)])
def test_the_next_prompt_needs_room_in_whole_blocks(block, fit):
    engine = calm(block=block)
    # The mean of two prompts: 29,950 tokens of 100,000, and half a block.
    engine.histograms = {
        "request_prompt_tokens": Histogram(bounds=(1.0,), counts=(0.0, 2.0), sum=59_900.0)
    }
    assert engine.look().capacities[Constraint.KV_CACHE] == fit


# --- what is learnt ------------------------------------------------------------------------------


def test_the_step_time_of_a_varied_load_is_learnt():
    engine = Engine(turnover=0.0)
    for running in (2.0, 10.0, 20.0, 6.0, 30.0, 14.0):
        engine.poll(10, running=running)
    fit = engine.seen().fit
    assert fit.fixed == pytest.approx(0.010, rel=0.02)
    assert fit.per_sequence == pytest.approx(0.0005, rel=0.02)
    assert engine.look().marginal_gain == pytest.approx((0.010 / 0.017) ** 2, rel=0.05)


def test_prefill_capacity_is_today_s_demand_by_the_time_its_prompts_take():
    engine = Engine(cost=0.0002)
    for prompt in (100.0, 500.0, 200.0, 700.0, 50.0, 400.0):
        for running in (4.0, 20.0, 12.0):
            engine.poll(10, running=running, prompt=prompt)
    fit = engine.seen().fit
    assert fit.per_prefill_token == pytest.approx(0.0002, rel=0.02)
    # Three minutes of 12 on average and 4 prompts a second of 325 tokens: 26 % of the time.
    derived = engine.look()
    assert derived.capacities[Constraint.PREFILL] == pytest.approx(12 * 0.8 / 0.26, abs=2)


def test_a_window_with_an_idle_poll_in_it_is_not_learnt():
    engine = Engine()
    for _ in range(60):
        engine.poll(1.0, running=8.0)
        engine.poll(0.5, running=0.0)
    assert engine.seen().fit.windows == 0


def test_changed_clocks_forget_the_step_time_and_nothing_else():
    engine = Engine(turnover=4.0)
    for running in (2.0, 10.0, 20.0, 6.0, 30.0, 14.0):
        engine.poll(10, running=running)
    assert engine.seen().fit.fixed is not None
    footprint = engine.seen().footprint
    engine.memory.forget_step_time()
    assert engine.seen().fit.windows == 0
    assert engine.seen().footprint == footprint


PLAN = PlanConfig(
    prompt_tokens=Lengths(p50=1000, p95=2000), output_tokens=Lengths(p50=500, p95=1000)
)


def test_an_idle_engine_is_reckoned_with_the_plan_and_a_busy_one_with_what_it_does():
    engine = Engine(plan=PLAN)
    derived = engine.poll(10, running=0.0)
    assert derived.state is OK
    assert engine.seen().footprint.basis == "plan"
    assert 50 < derived.sustainable < 80
    derived = engine.poll(60, running=8.0)
    assert engine.seen().footprint.basis == "live"
    assert derived.sustainable == 100


def test_the_plan_s_pool_stands_in_for_one_the_engine_does_not_tell():
    engine = Engine(plan=PLAN, drop=("kv_capacity_tokens",))
    assert engine.poll(10, running=0.0).state is UNKNOWN
    engine.plan = replace(PLAN, kv_cache_tokens=200_000.0)
    derived = engine.poll(10)
    assert derived.state is OK
    assert derived.sustainable > 100


def paced(shares, mean):
    """An engine at varied load whose gaps between tokens fall into buckets by ``shares`` of 100."""
    engine = Engine(turnover=0.0, plan=PlanConfig(tpot_p95_seconds=0.04))
    counts = [0.0] * 5
    for running in (2.0, 10.0, 20.0, 6.0, 30.0, 14.0):
        for _ in range(4):
            counts = [count + share for count, share in zip(counts, shares, strict=True)]
            engine.histograms = {
                "inter_token_latency_seconds": Histogram(
                    bounds=BOUNDS, counts=tuple(counts), sum=counts[-1] * mean
                )
            }
            engine.poll(2.5, running=running)
    return engine.look().capacities.get(Constraint.LATENCY)


def test_latency_capacity_comes_from_the_fit_and_the_spread_of_inter_token_latency():
    # A p95 at 50 ms, the edge of a narrow bucket, a mean of 25 ms: 10 ms + 0.5 ms x 20 = 40 ms / 2.
    assert paced((0, 50, 95, 100, 100), 0.025) == pytest.approx(20, abs=1)


def test_within_a_wide_bucket_the_spread_is_at_least_what_its_lower_edge_says():
    # Somewhere from 10 to 25 ms, a mean of 12.5 ms: nothing says more than that the p95 is the mean.
    assert paced((20, 99, 100, 100, 100), 0.0125) == pytest.approx(60, abs=1)
    assert paced((99, 100, 100, 100, 100), 0.008) == pytest.approx(60, abs=1)


def test_a_handful_of_prompts_is_no_flow():
    engine = Engine(cost=0.0002)
    lengths = Histogram(bounds=(1000.0,), counts=(100.0, 100.0), sum=40_000.0)
    engine.histograms = {"request_prompt_tokens": lengths}
    for prompt in (100.0, 500.0, 200.0, 700.0, 50.0, 400.0):
        for running in (4.0, 20.0, 12.0):
            engine.poll(10, running=running, prompt=prompt)
    assert Constraint.PREFILL in engine.look().capacities
    engine.poll(400, running=1.0, turnover=0.02)
    assert Constraint.PREFILL not in engine.look().capacities


def test_a_spike_multiplies_the_busier_of_the_last_minute_and_the_last_seconds():
    engine = calm()
    assert engine.look().spike_multiple == pytest.approx(100 / 8)
    # It has come: what counts is what is left of it, in traffic.
    derived = engine.poll(10, running=40.0)
    left = traffic_multiple(engine.seen().fit, 40.0, 100.0)
    assert derived.spike_multiple == pytest.approx(left, rel=0.1)
    # It has gone: for a minute it was part of the mean.
    derived = engine.poll(15, running=4.0)
    minute = (8 * 35 + 40 * 10 + 4 * 15) / 60
    left = traffic_multiple(engine.seen().fit, minute, 100.0)
    assert derived.spike_multiple == pytest.approx(left, rel=0.1)


def test_computed_prompts_that_appear_late_are_no_burst_and_no_negative_rate():
    engine = calm()
    before = engine.memory._prompt_rate.mean(engine.now, at_least=5.0)
    sample = engine.sample()
    engine.now += 0.5
    engine.memory.observe(engine.now, replace(sample, computed_prompt_tokens=3.0))
    after = engine.memory._prompt_rate.mean(engine.now, at_least=5.0)
    assert after == pytest.approx(before)


# --- completions ---------------------------------------------------------------------------------


def test_completed_is_first_tokens_less_what_runs():
    sample = RankSample(
        rank="0",
        model_name="m",
        generation_tokens=211_499.0,
        inter_token_count=210_515.0,
        running=22.0,
    )
    assert completed(sample) == 962


def test_under_speculative_decoding_completed_is_what_finished():
    sample = RankSample(
        rank="0",
        model_name="m",
        generation_tokens=1000.0,
        inter_token_count=300.0,
        running=2.0,
        spec_drafts=300.0,
        finished={"stop": 5.0, "length": 2.0},
    )
    assert completed(sample) == 7
    assert completed(replace(sample, finished={})) is None


@pytest.mark.parametrize("missing", ["generation_tokens", "inter_token_count", "running"])
def test_completed_is_unknown_where_nothing_tells(missing):
    fields = {"generation_tokens": 9.0, "inter_token_count": 2.0, "running": 1.0}
    del fields[missing]
    assert completed(RankSample(rank="0", model_name="m", **fields)) is None


# --- engines that refresh what they say only now and then ------------------------------------------


@dataclass
class Seldom(Engine):
    """Its gauges are those of up to ``age`` seconds ago; its counters move on."""

    age: float = 10.0
    held: tuple[float, float, float, float] | None = None

    def sample(self):
        if self.held is None or self.now - self.held[0] >= self.age:
            self.held = (self.now, self.running, self.waiting, self.running * self.share)
        _, running, waiting, usage = self.held
        fresh = super().sample()
        return replace(fresh, running=running, waiting=waiting, kv_usage=usage)


def seldom(age=10.0, **fields):
    memory = RankMemory(max_gap=5.0, cadence=Cadence(gauge_seconds=age))
    return Seldom(memory=memory, age=age, **fields)


def test_the_same_old_queue_seen_twice_is_no_second_witness():
    engine = seldom(slots=8.0)
    engine.poll(10, running=4.0)
    assert engine.poll(9.0, running=8.0, waiting=3.0).reason != "waiting"
    assert engine.poll(12.0).reason == "waiting"
    fresh = Engine(slots=8.0)
    assert fresh.poll(1.5, running=8.0, waiting=3.0).reason == "waiting"


def test_a_gauge_that_is_only_held_is_no_plateau():
    def inferred(engine):
        engine.poll(60, running=4.0)
        return engine.poll(25, running=8.0, waiting=3.0).max_sequences

    assert inferred(Engine()) == {"inferred": 8.0}
    assert inferred(seldom()) == {}


def test_a_held_gauge_is_not_stale_before_its_time():
    engine = seldom(turnover=0.0)
    engine.poll(20, running=4.0)
    engine.counters = dict(engine.counters)
    frozen = [engine.look().reason for engine.now in (35.0, 39.0, 45.0)]
    assert frozen[0] != "stale_gauges"
    assert frozen[-1] == "stale_gauges"


def test_a_reading_that_is_repeated_teaches_the_footprint_once():
    """What is learnt from a gauge refreshed every ten seconds does not depend on how often it is read."""
    slow, quick = seldom(), seldom()
    for level in (4.0, 9.0, 2.0, 7.0, 5.0) * 8:
        slow.poll(10, step=2.0, running=level)
        quick.poll(10, step=0.5, running=level)
    mean = [engine.memory.snapshot(engine.now).footprint.mean for engine in (slow, quick)]
    assert mean[0] == pytest.approx(mean[1], rel=0.02)
    assert mean[0] == pytest.approx(SHARE, rel=0.02)


def test_gauges_that_are_computed_when_asked_cannot_freeze():
    engine = Engine(memory=RankMemory(max_gap=5.0, cadence=Cadence(gauges_when_asked=True)))
    engine.poll(10, running=1.0)
    for engine.now in (11.0, 15.0, 19.0, 23.0, 27.0, 31.0):
        assert engine.look().reason != "stale_gauges"


def test_gauges_refreshed_every_so_many_steps_are_as_old_as_those_steps():
    engine = Engine(memory=RankMemory(max_gap=5.0, cadence=Cadence(gauge_steps=40)))
    assert engine.poll(0.5, running=4.0) is not None
    assert engine.memory.gauge_age == pytest.approx(40 * SLOW_STEP_SECONDS)
    for running in (4.0, 20.0, 10.0, 30.0) * 10:
        engine.poll(6, running=running)
    assert engine.memory.gauge_age == pytest.approx(40 * engine.step_time(), rel=0.1)
    assert Engine().memory.gauge_age is None


def test_what_is_counted_at_the_finish_does_not_tell_how_many_have_finished():
    sample = RankSample(
        rank="0",
        model_name="m",
        running=4.0,
        generation_tokens=1000.0,
        inter_token_count=2000.0,
        finished={"stop": 7.0},
    )
    assert completed(sample) == -1004.0
    assert completed(sample, Cadence(tokens_at_finish=True)) == 7.0


@dataclass
class Reserving(Engine):
    """Promises each sequence a twentieth of the pool."""

    def sample(self):
        return replace(super().sample(), kv_reserved=self.running * 0.05)


@dataclass
class Telling(Engine):
    """Tells its slots."""

    def sample(self):
        return replace(super().sample(), slots=32.0)


def test_where_admission_reserves_what_is_promised_is_what_the_next_one_lacks():
    """A fifth full of tokens, but promised away: the cache binds."""
    engine = Reserving(slots=100.0)
    calm = engine.poll(60, running=10.0)
    assert calm.capacities[Constraint.KV_CACHE] == pytest.approx(20, abs=1)
    full = engine.poll(20, running=20.0, waiting=3.0)
    assert (full.state, full.binding) == (EXHAUSTED, Constraint.KV_CACHE)


def test_the_server_s_own_slots_go_before_the_plan_s():
    engine = Telling(plan=PlanConfig(max_num_seqs=64.0))
    assert engine.poll(5, running=4.0).capacities[Constraint.SLOTS] == 32
