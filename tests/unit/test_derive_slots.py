"""How many slots the engine has: what is taken for a plateau, and what is not."""

from __future__ import annotations

import pytest

from headroom_exporter.derive.slots import PlateauMeter, effective_slots


def play(levels, *, step=0.25, start=0.0, meter=None, **changes):
    """Feed running levels to a meter, as a queue would hold them; ``changes`` says what differs."""
    meter = meter or PlateauMeter()
    seen = {"waiting": 8.0, "usage": 0.3, "preempting": False, "admitting": True} | changes
    for poll, running in enumerate(levels, start=1):
        meter.add(start + poll * step, running=float(running), **seen)
    return meter


def test_a_level_held_while_requests_wait_is_the_slots():
    assert play([16] * 25).value == 16


def test_one_less_between_a_finish_and_the_next_step_does_not_disturb():
    assert play([16, 16, 15, 16, 16, 16, 15, 16] * 4).value == 16


def test_two_less_is_another_level():
    assert play([16, 16, 16, 14] * 8).value is None


def test_eight_of_ten_at_the_top_are_enough():
    assert play(([16] * 4 + [15] * 4 + [12] * 2) * 4).value == 16
    assert play(([16] * 4 + [15] * 3 + [12] * 3) * 4).value is None


@pytest.mark.parametrize("changes", [{"waiting": 1.0}, {"usage": 0.9}, {"prompt_share": 0.7}])
def test_one_waiting_and_just_room_for_a_prompt_are_enough(changes):
    assert play([16] * 25, **changes).value == 16


def test_a_large_batch_may_lack_five_percent():
    assert play([256, 250, 256, 245, 256, 256, 256, 248, 256] * 4).value == 256


@pytest.mark.parametrize(
    ("levels", "step"),
    [
        ([16] * 20, 0.25),  # 4.75 s: too short
        ([16] * 7, 1.0),  # 7 samples: too few
    ],
)
def test_too_short_a_plateau_is_none(levels, step):
    assert play(levels, step=step).value is None


@pytest.mark.parametrize(("levels", "step"), [([16] * 21, 0.25), ([16] * 8, 1.0)])
def test_just_long_enough_a_plateau_counts(levels, step):
    assert play(levels, step=step).value == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"waiting": 0.0},
        {"preempting": True},
        {"usage": 0.91},
        {"usage": None},
        {"usage": 0.6, "prompt_share": 0.45},  # the next prompt does not fit into the cache
        {"admitting": False},  # nobody enters: one long prompt, or an engine that hangs
    ],
)
def test_what_something_else_may_hold_is_no_plateau(changes):
    assert play([16] * 100, **changes).value is None


def test_a_moment_without_a_queue_starts_the_plateau_anew():
    meter = play([16] * 20)
    meter.add(5.1, running=16.0, waiting=0.0, usage=0.3, preempting=False, admitting=True)
    assert play([16] * 20, meter=meter, start=5.1).value is None
    assert play([16] * 3, meter=meter, start=10.1).value == 16


def test_a_pause_in_the_polls_starts_the_plateau_anew():
    meter = play([16] * 20)
    meter.interrupt()
    assert play([16] * 2, meter=meter, start=20.0).value is None


@pytest.mark.parametrize(
    "levels",
    [
        list(range(10, 60)),  # rising
        list(range(60, 10, -1)),  # falling
        [20, 18, 16, 14, 12, 14, 16, 18] * 6,  # swinging
        [24, 21, 19, 23, 17, 20, 22, 18] * 6,  # as a pool that preempts
        [16, 15, 15] * 12,  # a drift through neighbouring levels: most below the top
    ],
)
def test_a_level_that_drifts_is_no_plateau(levels):
    assert play(levels).value is None


def test_more_running_than_the_value_drops_it():
    meter = play([16] * 25)
    meter.add(7.0, running=17.0, waiting=0.0, usage=0.3, preempting=False, admitting=True)
    assert meter.value is None


def test_the_value_stays_when_the_queue_is_gone():
    meter = play([16] * 25)
    assert play([3] * 400, meter=meter, start=7.0, waiting=0.0).value == 16


def test_a_plateau_below_what_has_run_before_is_not_the_limit():
    meter = play([24] * 4, waiting=0.0)
    assert play([16] * 100, meter=meter, start=2.0).value is None
    assert play([24] * 130, meter=meter, start=30.0).value == 24


def test_a_few_admissions_are_enough_one_is_not():
    def turned_over(times):
        meter = PlateauMeter()
        for poll in range(1, 60):
            meter.add(
                poll * 0.25,
                running=16.0,
                waiting=3.0,
                usage=0.2,
                preempting=False,
                admitting=poll <= times,
            )
        return meter.value

    assert turned_over(2) is None
    assert turned_over(3) == 16


# --- which limit to reckon with ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bases", "seen", "expected"),
    [
        ({}, 5.0, None),
        ({"plan": 64.0}, 5.0, 64.0),
        ({"args": 32.0}, 5.0, 32.0),
        ({"inferred": 16.0}, 5.0, 16.0),
        # The plan's before the command line's.
        ({"plan": 64.0, "args": 32.0}, 5.0, 64.0),
        ({"plan": 32.0, "args": 64.0}, 5.0, 32.0),
        # A plateau below what was declared is the real limit; one above it changes nothing.
        ({"plan": 64.0, "args": 48.0, "inferred": 16.0}, 16.0, 16.0),
        ({"args": 48.0, "inferred": 64.0}, 16.0, 48.0),
        # What was seen beats what was declared.
        ({"plan": 16.0}, 20.0, None),
        ({"plan": 16.0, "args": 32.0}, 20.0, 32.0),
        ({"plan": 16.0, "inferred": 24.0}, 24.0, 24.0),
        ({"plan": 16.0, "args": 18.0, "inferred": 24.0}, 24.0, 24.0),
        ({"inferred": 16.0}, 20.0, None),
        ({"plan": 64.0, "inferred": 16.0}, 20.0, 64.0),
        # All slots in use is no contradiction.
        ({"plan": 16.0}, 16.0, 16.0),
    ],
)
def test_the_slots_to_reckon_with(bases, seen, expected):
    assert effective_slots(bases, seen) == expected
