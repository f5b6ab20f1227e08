"""What a recorded run comes to: the time line as a golden, and what it must mean."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from golden import replay
from headroom_exporter.samples import Constraint

if TYPE_CHECKING:
    from golden.files import Golden
    from golden.replay import Moment

DATA = Path(__file__).parent / "data" / "replay"

# Phases of the ramp, in seconds: 2, 8, 16, 28 and 40 clients that each wait for their answer, then down.
CALM = (6.0, 18.0)
SIXTEEN_CLIENTS = (35.0, 47.0)
# The first seconds of a phase, while the batch fills, are left out.
FULL_HOUSE = ((52.0, 73.0), (77.0, 97.0))
POOL_TOKENS = 71 * 128


@pytest.fixture(scope="module")
def ramp() -> list[Moment]:
    return list(replay.moments("ramp"))


@pytest.fixture(scope="module")
def slots() -> list[Moment]:
    return list(replay.moments("slots"))


def between(seen: list[Moment], span: tuple[float, float]) -> list[Moment]:
    found = [moment for moment in seen if span[0] <= moment.t < span[1]]
    assert len(found) > 20
    return found


def running(seen: list[Moment]) -> list[float]:
    return [moment.running for moment in seen if moment.running is not None]


def test_the_time_line_of_the_ramp(golden: Golden, ramp: list[Moment]) -> None:
    golden.check(DATA / "ramp.txt", replay.time_line(ramp))


def test_the_time_line_of_the_slots(golden: Golden, slots: list[Moment]) -> None:
    golden.check(DATA / "slots.txt", replay.time_line(slots))


def test_exhausted_while_it_preempts(ramp: list[Moment]) -> None:
    """From the poll that shows a preemption on, however long the next one takes."""
    preempting = [
        after
        for before, after in pairwise(ramp)
        if (after.preemptions or 0) > (before.preemptions or 0)
    ]
    assert len(preempting) > 100
    assert {(moment.state, moment.reason) for moment in preempting} == {("exhausted", "preempting")}


def test_exhausted_throughout_the_overload_and_not_before(ramp: list[Moment]) -> None:
    first = next(moment.t for moment in ramp if (moment.preemptions or 0) > 0)
    exhausted_first = next(moment.t for moment in ramp if moment.state == "exhausted")
    assert exhausted_first <= first
    for span in FULL_HOUSE:
        assert {moment.state for moment in between(ramp, span)} == {"exhausted"}
    assert "exhausted" not in {moment.state for moment in ramp if moment.t < 48}


def test_the_cache_is_known_to_bind_from_the_calm_phase_on(ramp: list[Moment]) -> None:
    known = next(moment.t for moment in ramp if moment.binding is not None)
    assert known < CALM[1]
    assert {moment.binding for moment in ramp if moment.t >= known} == {"kv_cache"}


def test_two_clients_traffic_foretells_the_ceiling(ramp: list[Moment]) -> None:
    """Pool over mean footprint, from the calm phase alone, is what really runs when it is full."""
    footprint = between(ramp, CALM)[-1].tokens_per_sequence
    assert footprint is not None
    predicted = POOL_TOKENS / footprint
    for span in FULL_HOUSE:
        assert predicted == pytest.approx(fmean(running(between(ramp, span))), rel=0.15)


def test_the_capacity_lies_between_no_preemption_and_the_ceiling(ramp: list[Moment]) -> None:
    """Sixteen clients never preempt; the ceiling of the full house preempts ten times a second."""
    assert between(ramp, SIXTEEN_CLIENTS)[-1].preemptions == 0
    ceiling = min(fmean(running(between(ramp, span))) for span in FULL_HOUSE)
    capacities = [
        moment.capacities[Constraint.KV_CACHE]
        for moment in ramp
        if CALM[1] <= moment.t < FULL_HOUSE[0][0]
    ]
    assert len(capacities) > 100
    assert min(capacities) >= 16
    assert max(capacities) < ceiling


def test_headroom_comes_back_when_the_clients_go(ramp: list[Moment], slots: list[Moment]) -> None:
    for seen, last_overload in ((ramp, 100.0), (slots, 75.0)):
        late = [moment for moment in seen if moment.t > last_overload + 6]
        assert len(late) > 30
        assert {(moment.state, moment.reason) for moment in late} == {("ok", "fits")}


def test_the_slots_are_inferred_from_a_plateau(slots: list[Moment]) -> None:
    """16 slots, unknown to us, and a cache that stays at a fifth."""
    waited = next(moment.t for moment in slots if (moment.waiting or 0) >= 1)
    inferred = [moment for moment in slots if "inferred" in moment.slots]
    assert {moment.slots["inferred"] for moment in inferred} == {16.0}
    assert inferred[0].t - waited < 8
    assert {moment.binding for moment in slots if moment.t >= inferred[0].t} == {"slots"}


def test_a_queue_is_exhaustion_before_its_cause_is_known(slots: list[Moment]) -> None:
    """Requests wait for something: no more than runs now fits, and nothing is blamed yet."""
    inferred = next(moment.t for moment in slots if "inferred" in moment.slots)
    waiting = [m for m in slots if m.reason == "waiting" and m.t < inferred]
    assert len(waiting) > 10
    assert {(m.state, m.binding, m.sustainable) for m in waiting} == {("exhausted", None, 16.0)}


def test_no_slots_are_made_up_where_the_cache_binds(ramp: list[Moment]) -> None:
    """That engine had 48 slots and never ran more than 30."""
    assert max(running(ramp)) > 25
    assert all("inferred" not in moment.slots for moment in ramp)


def test_shares_stay_shares_and_unknown_stays_absent(
    ramp: list[Moment], slots: list[Moment]
) -> None:
    for moment in (*ramp, *slots):
        assert moment.usage is None or 0 <= moment.usage <= 1
        assert (moment.sustainable is None) == (moment.headroom is None)
        assert moment.state is not None
        if not moment.capacities:
            assert (moment.state, moment.binding) == ("unknown", None)
