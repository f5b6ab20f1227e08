"""Whatever running does, slots are inferred only from a plateau that nothing else explains."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.derive.slots import PlateauMeter, effective_slots

# Tests run beside others: a slow moment is no failure.
relaxed = settings(deadline=None)

# Plateaus, dips and excursions, often enough to be inferred now and then.
levels = st.lists(st.sampled_from([16] * 12 + [15] * 3 + [14, 12, 17]), min_size=1, max_size=90)
walks = st.lists(st.sampled_from([-3, -2, 2, 3]), min_size=20, max_size=120)


def add(meter, now, running, **changes):
    seen = {"waiting": 5.0, "usage": 0.4, "preempting": False, "admitting": True} | changes
    meter.add(now, running=float(running), **seen)


@relaxed
@given(walks)
def test_running_that_moves_two_or_more_at_every_poll_is_no_plateau(steps):
    meter, running = PlateauMeter(), 10
    for poll, move in enumerate(steps, start=1):
        # Reflected, so that it stays a small batch, of which one is not five percent.
        running += move if 2 <= running + move <= 20 else -move
        add(meter, poll * 0.25, running)
        assert meter.value is None


@relaxed
@given(levels, st.sampled_from(["preempting", "full", "prompt", "unknown", "idle", "stuck"]))
def test_nothing_is_inferred_while_something_else_may_hold(running, reason):
    changes = {
        "preempting": {"preempting": True},
        "full": {"usage": 0.95},
        "prompt": {"usage": 0.5, "prompt_share": 0.6},
        "unknown": {"usage": None},
        "idle": {"waiting": 0.0},
        "stuck": {"admitting": False},
    }[reason]
    meter = PlateauMeter()
    for poll, level in enumerate(running, start=1):
        add(meter, poll * 0.25, level, **changes)
        assert meter.value is None


@relaxed
@given(levels, st.floats(0.1, 2.0))
def test_a_value_is_a_level_held_as_brute_force_sees_it(running, step):
    meter, value = PlateauMeter(), None
    for poll, level in enumerate(running, start=1):
        now = poll * step
        add(meter, now, level)
        if value is not None and level > value:
            value = None
        inside = [seen for i, seen in enumerate(running[:poll], start=1) if i * step >= now - 30]
        first = next(i for i in range(1, poll + 1) if i * step >= now - 30)
        top = max(inside)
        edge = min(top - 1, math.floor(top * 0.95))
        near = [seen for seen in inside if seen >= edge]
        held = (
            len(inside) >= 8
            and now - first * step >= 5.0
            and len(near) >= 0.8 * len(inside)
            and sum(seen == top for seen in inside) * 2 >= len(near)
            and top == max(running[:poll])
        )
        value = top if held else value
        assert meter.value == value


@relaxed
@given(levels, st.floats(0.1, 2.0))
def test_the_value_is_never_below_what_has_run(running, step):
    meter = PlateauMeter()
    for poll, level in enumerate(running, start=1):
        add(meter, poll * step, level)
        assert meter.value is None or meter.value >= max(running[:poll])


slots = st.integers(1, 512).map(float)


@relaxed
@given(st.dictionaries(st.sampled_from(["plan", "args", "inferred"]), slots), st.integers(0, 512))
def test_the_slots_to_reckon_with_are_among_the_known_and_hold_what_was_seen(bases, seen):
    found = effective_slots(bases, float(seen))
    if all(limit < seen for limit in bases.values()):
        assert found is None
    else:
        assert found in bases.values()
        assert found >= seen
