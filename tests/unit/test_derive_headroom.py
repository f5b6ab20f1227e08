"""From evidence to headroom: what binds, what is sustainable, which state and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.derive.headroom import Evidence, binding_now, capacities, derive
from headroom_exporter.samples import (
    Constraint,
    Footprint,
    HeadroomState,
    Histogram,
    StepFit,
)

OK, LOW, EXHAUSTED, UNKNOWN = (
    HeadroomState.OK,
    HeadroomState.LOW,
    HeadroomState.EXHAUSTED,
    HeadroomState.UNKNOWN,
)
# Twenty fit, without spread.
TWENTY = Footprint(mean=0.05, stddev=0.0, skewness=0.0, basis="live")
FIT = StepFit(
    fixed=0.012, per_sequence=0.0004, per_prefill_token=0.00003, batch_max=60.0, windows=50.0
)


def evidence(**changes):
    """An engine with 8 of about 20 sequences running and none waiting."""
    seen = Evidence(
        running=8.0,
        waiting=0.0,
        recent_running=8.0,
        recent_usage=0.4,
        seen_running=8.0,
        footprint=TWENTY,
        prompt_share=0.03,
        base_demand=4.0,
    )
    return replace(seen, **changes)


def queue(**changes):
    """The same with a queue that has stood for a while."""
    return evidence(**({"waiting": 5.0, "waiting_persists": True} | changes))


# --- states and reasons --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "state", "reason"),
    [
        (evidence(), OK, "fits"),
        (evidence(running=16.0), OK, "fits"),  # ratio 0.2, exactly the floor
        (evidence(running=17.0), LOW, "below_floor"),
        (evidence(running=15.0, waiting=2.0), LOW, "below_floor"),  # waiting is demand too
        (evidence(running=20.0), EXHAUSTED, "no_headroom"),
        (evidence(running=30.0), EXHAUSTED, "no_headroom"),
        (evidence(waiting=1.0), OK, "fits"),  # one sample with one waiting is none
        (queue(), EXHAUSTED, "waiting"),
        (evidence(preempting=True), EXHAUSTED, "preempting"),
        (queue(preempting=True), EXHAUSTED, "preempting"),
        (evidence(running=None), UNKNOWN, "no_gauges"),
        (evidence(waiting=None), UNKNOWN, "no_gauges"),
        (evidence(running=None, preempting=True), UNKNOWN, "no_gauges"),
        (evidence(stale=True), UNKNOWN, "stale_gauges"),
        (queue(stale=True, preempting=True), UNKNOWN, "stale_gauges"),
        (evidence(footprint=None), UNKNOWN, "no_capacity_known"),
        # Even where no capacity is known, a queue that stands says that there is none left.
        (queue(footprint=None, prompt_share=None), EXHAUSTED, "waiting"),
        (evidence(running=0.0, waiting=0.0), OK, "fits"),
    ],
)
def test_the_state_and_why(seen, state, reason):
    derived = derive(seen, None)
    assert (derived.state, derived.reason) == (state, reason)


@pytest.mark.parametrize(
    ("running", "floor", "state"), [(10.0, 0.5, OK), (11.0, 0.5, LOW), (19.0, 0.0, OK)]
)
def test_the_floor_is_the_plan_s(running, floor, state):
    assert derive(evidence(running=running), PlanConfig(floor_ratio=floor)).state is state


@pytest.mark.parametrize(
    "seen",
    [
        evidence(running=None),
        evidence(waiting=None),
        evidence(stale=True, batch=8.0, fit=FIT),
        queue(stale=True),
        Evidence(),
    ],
)
def test_gauges_that_cannot_be_believed_give_no_number_of_now(seen):
    derived = derive(seen, PlanConfig(concurrency=32))
    assert derived.state is UNKNOWN
    now = (
        derived.demand,
        derived.headroom,
        derived.ratio,
        derived.spike_multiple,
        derived.marginal_gain,
    )
    assert now == (None,) * 5


def test_no_known_capacity_gives_no_headroom_and_no_constraint():
    derived = derive(evidence(footprint=None), PlanConfig(concurrency=32))
    assert derived.demand == 8.0
    assert (derived.sustainable, derived.binding, derived.headroom, derived.ratio) == (None,) * 4
    assert derived.spike_multiple is None
    # The plan is known, but it stops nobody.
    assert dict(derived.capacities) == {Constraint.PLAN: 32}


def test_headroom_is_what_is_sustained_less_what_is_asked():
    derived = derive(evidence(running=8.0, waiting=2.0), None)
    assert derived.sustainable == 20
    assert derived.headroom == 10
    assert derived.ratio == pytest.approx(0.5)


def test_overload_is_negative_headroom():
    derived = derive(evidence(running=25.0), None)
    assert derived.headroom == -5
    assert derived.ratio == pytest.approx(-0.25)


def test_an_engine_that_can_keep_no_plan_is_exhausted_without_a_ratio():
    derived = derive(
        evidence(running=0.0, fit=FIT, p95_to_mean=1.0), PlanConfig(tpot_p95_seconds=0.001)
    )
    assert (derived.state, derived.sustainable, derived.ratio) == (EXHAUSTED, 0, None)
    assert derived.binding is Constraint.LATENCY


# --- capacities ----------------------------------------------------------------------------------


def test_every_known_constraint_has_its_capacity():
    seen = evidence(
        slots={"args": 16.0},
        fit=FIT,
        p95_to_mean=1.25,
        prompt_rate=10_000.0,
        mean_running=12.0,
    )
    plan = PlanConfig(concurrency=10, tpot_p95_seconds=0.04)
    assert capacities(seen, plan) == {
        Constraint.SLOTS: 16,
        Constraint.KV_CACHE: 20,
        Constraint.LATENCY: 50,  # (0.04 / 1.25 - 0.012) / 0.0004
        Constraint.PREFILL: 32,  # 12 x 0.8 / 0.3
        Constraint.PLAN: 10,
    }
    derived = derive(seen, plan)
    assert (derived.binding, derived.sustainable) == (Constraint.SLOTS, 16)


def test_prompts_limit_a_flow_so_a_burst_of_sequences_changes_no_ratio():
    # 40 % of the time goes to prompts: twice as many fit, whether 2 or 9 happen to run just now.
    flow = {"footprint": None, "fit": FIT, "prompt_rate": 0.4 / 0.00003, "mean_running": 2.0}
    lull, burst = evidence(running=2.0, **flow), evidence(running=9.0, **flow)
    assert derive(lull, PlanConfig()).ratio == pytest.approx(0.5)
    assert derive(burst, PlanConfig()).ratio == pytest.approx(0.5)
    assert derive(burst, PlanConfig()).state is OK
    assert derive(burst, PlanConfig()).spike_multiple == pytest.approx(2.0)


def test_what_is_not_known_is_absent():
    assert capacities(Evidence(), PlanConfig()) == {}


def test_the_accepted_overrun_is_the_plan_s():
    spread = replace(TWENTY, stddev=0.03)
    strict = derive(evidence(footprint=spread), PlanConfig(overrun_probability=0.001))
    lax = derive(evidence(footprint=spread), PlanConfig(overrun_probability=0.1))
    assert strict.sustainable < lax.sustainable < 20


def test_prompts_larger_than_resident_sequences_need_room_to_enter():
    derived = derive(evidence(prompt_share=0.25), None)
    assert derived.capacities[Constraint.KV_CACHE] == 16


@pytest.mark.parametrize(
    ("slots", "kv", "binding"),
    [(16.0, TWENTY, "slots"), (24.0, TWENTY, "kv_cache"), (20.0, TWENTY, "slots")],
)
def test_the_least_capacity_binds(slots, kv, binding):
    derived = derive(evidence(slots={"plan": slots}, footprint=kv), None)
    assert derived.binding == binding


# --- what binds now ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (evidence(), None),  # nobody waits
        (evidence(waiting=1.0), None),  # not for long
        (evidence(preempting=True), Constraint.KV_CACHE),
        (queue(preempting=True, slots={"args": 8.0}), Constraint.KV_CACHE),
        (queue(slots={"args": 8.0}), Constraint.SLOTS),
        # The gauge dips between steps; eight ran within the last seconds.
        (queue(running=7.0, slots={"args": 8.0}), Constraint.SLOTS),
        (queue(recent_usage=0.98, slots={"args": 32.0}), Constraint.KV_CACHE),
        # No room for the next prompt whole.
        (queue(recent_usage=0.75, prompt_share=0.3), Constraint.KV_CACHE),
        (queue(recent_usage=0.97, prompt_share=None), Constraint.KV_CACHE),
        # Slots and cache free: prompts are computed too slowly.
        (queue(slots={"args": 32.0}), Constraint.PREFILL),
        (queue(seen_running=20.0), Constraint.PREFILL),
        # Slots unknown, and never has more run: it may be they.
        (queue(), None),
        (queue(recent_usage=None, slots={"args": 32.0}), None),
        (queue(prompt_share=None, footprint=None, slots={"args": 32.0}), None),
        (queue(recent_running=None), None),
        # A declared limit that was exceeded is no limit.
        (queue(slots={"args": 4.0}, seen_running=20.0), Constraint.PREFILL),
    ],
)
def test_what_the_waiting_wait_for(seen, expected):
    assert binding_now(seen) is expected


@pytest.mark.parametrize(
    "seen",
    [
        queue(),
        queue(slots={"args": 8.0}),
        queue(slots={"args": 32.0}),
        queue(recent_usage=0.98),
        queue(footprint=None, prompt_share=None),
        queue(preempting=True),
        queue(footprint=replace(TWENTY, mean=0.001)),
    ],
)
def test_while_a_queue_stands_no_more_is_sustained_than_runs(seen):
    derived = derive(seen, None)
    assert derived.sustainable <= seen.recent_running
    assert derived.headroom < 0


@pytest.mark.parametrize("constraint", [Constraint.SLOTS, Constraint.KV_CACHE, Constraint.PREFILL])
def test_the_constraint_that_binds_now_is_the_binding_one(constraint):
    seen = {
        Constraint.SLOTS: queue(slots={"args": 8.0}),
        Constraint.KV_CACHE: queue(recent_usage=0.98, slots={"args": 32.0}),
        Constraint.PREFILL: queue(slots={"args": 32.0}),
    }[constraint]
    derived = derive(seen, None)
    assert derived.binding is constraint
    assert derived.capacities[constraint] == 8


def test_what_is_seen_to_bind_goes_before_what_is_estimated_to():
    # Slots are full and requests wait for one; the estimate for the cache is lower still.
    seen = queue(slots={"args": 16.0}, recent_running=16.0, footprint=replace(TWENTY, mean=0.08))
    derived = derive(seen, None)
    assert derived.binding is Constraint.SLOTS
    assert derived.sustainable == 12


def test_an_estimate_below_what_runs_stands_while_it_binds():
    tight = replace(TWENTY, mean=0.2)
    derived = derive(queue(recent_usage=0.98, footprint=tight), None)
    assert derived.capacities[Constraint.KV_CACHE] == 5


def test_a_queue_for_nobody_knows_what_names_no_constraint():
    derived = derive(queue(), None)
    assert derived.binding is None
    assert derived.sustainable == 8
    # What is only estimated is still shown as estimated.
    assert derived.capacities[Constraint.KV_CACHE] == 20


def test_the_binding_constraint_wins_a_tie():
    seen = queue(
        slots={"args": 32.0},
        footprint=replace(TWENTY, mean=1 / 8),
        recent_usage=0.4,
        seen_running=8.0,
    )
    assert derive(seen, None).binding is Constraint.PREFILL


# --- the rest ------------------------------------------------------------------------------------


def test_the_spike_multiple_multiplies_the_last_minute():
    assert derive(evidence(base_demand=4.0), None).spike_multiple == pytest.approx(5.0)
    assert derive(evidence(base_demand=40.0), None).spike_multiple == pytest.approx(0.5)


def test_twice_the_traffic_is_more_than_twice_the_sequences():
    # 12 ms + 0.4 ms x batch: 4 take 13.6 ms, 20 take 20 ms; five times the sequences, 3.4 of the traffic.
    seen = evidence(base_demand=4.0, fit=FIT)
    assert derive(seen, None).spike_multiple == pytest.approx(5.0 * 13.6 / 20)
    # What does not fit today is no more than once today's traffic.
    assert derive(evidence(base_demand=19.9, fit=FIT), None).spike_multiple >= 1.0
    assert derive(evidence(base_demand=40.0, fit=FIT), None).spike_multiple == pytest.approx(0.5)


def test_while_requests_wait_no_more_than_the_traffic_of_today_fits():
    # Thirty run in the peak of these seconds, the mean of the minute was ten.
    seen = queue(slots={"args": 30.0}, running=30.0, recent_running=30.0, base_demand=10.0)
    assert derive(seen, None).spike_multiple == pytest.approx(1.0)


def test_a_multiple_of_very_little_is_still_one():
    assert derive(evidence(base_demand=0.05), None).spike_multiple == pytest.approx(400)


@pytest.mark.parametrize("base", [None, 0.0, 0.04])
def test_a_multiple_of_next_to_nothing_says_nothing(base):
    assert derive(evidence(base_demand=base), None).spike_multiple is None


def test_knee_and_marginal_gain_come_from_the_fit():
    derived = derive(evidence(fit=FIT, batch=30.0), None)
    assert derived.knee == pytest.approx(120)
    assert derived.marginal_gain == pytest.approx(0.25)
    assert derive(evidence(fit=FIT), None).marginal_gain is None


def test_prompts_over_the_plan_are_bracketed():
    prompts = Histogram(bounds=(1000.0, 2000.0, 5000.0), counts=(50.0, 80.0, 95.0, 100.0), sum=1.0)
    plan = PlanConfig(prompt_tokens=Lengths(p50=500, p95=3000))
    derived = derive(evidence(prompts=prompts), plan)
    assert derived.prompts_over_plan == (5.0, 20.0)
    assert derived.prompts == 100


def test_without_a_planned_length_no_prompt_is_over_it():
    prompts = Histogram(bounds=(1000.0,), counts=(50.0, 100.0), sum=1.0)
    assert derive(evidence(prompts=prompts), None).prompts_over_plan is None
    assert derive(evidence(), PlanConfig(prompt_tokens=Lengths(p95=9))).prompts_over_plan is None
