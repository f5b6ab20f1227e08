"""Pages against breaches: caught, lead, false pages, flaps, the constraint's name."""

from __future__ import annotations

import pytest

from headroom_exporter.backtest.score import Page, Score, score
from headroom_exporter.backtest.truth import Breach
from headroom_exporter.samples import Constraint

HOUR = 3600.0
HALF = 1800.0
MINUTE = 60.0


def page(begin: float, end: float, alert: str = "A", constraint: str | None = None) -> Page:
    return Page(alert=alert, engine="llm-0", begin=begin, end=end, constraint=constraint)


def breach(
    begin: float, end: float | None = None, constraint: Constraint | None = Constraint.KV_CACHE
) -> Breach:
    return Breach(begin=begin, end=begin + 600 if end is None else end, constraint=constraint)


# A sustained breach from 2 h on, for ten minutes.
BREACH = breach(2 * HOUR)


def one(begin: float, end: float) -> Score:
    """A single page against that breach."""
    return score([page(begin, end)], [BREACH])


# --- nothing happens -------------------------------------------------------------------------------


def test_silence_in_calm_traffic_is_nothing_at_all():
    assert score([], []) == Score()


def test_silence_through_a_sustained_breach_is_a_miss_without_a_lead():
    assert score([], [BREACH]) == Score(missed=1)


def test_a_page_in_calm_traffic_is_false():
    assert score([page(0, 60)], []) == Score(false_pages=1, pages=1)


# --- one page, one breach --------------------------------------------------------------------------


def test_a_page_before_a_breach_catches_it_with_that_lead():
    found = one(2 * HOUR - 300, 3 * HOUR)
    assert (found.caught, found.missed, found.lead, found.false_pages) == (1, 0, 300.0, 0)


def test_a_page_within_a_breach_catches_it_with_a_negative_lead():
    found = one(2 * HOUR + 120, 3 * HOUR)
    assert (found.caught, found.lead, found.false_pages) == (1, -120.0, 0)


def test_a_page_at_the_very_begin_has_no_lead_and_none_missing():
    assert one(2 * HOUR, 3 * HOUR).lead == 0.0


def test_a_page_at_the_end_of_a_breach_is_still_for_it():
    found = one(2 * HOUR + 600, 3 * HOUR)
    assert (found.caught, found.lead, found.false_pages) == (1, -600.0, 0)


def test_a_page_after_the_end_is_false_and_the_breach_missed():
    found = one(2 * HOUR + 601, 3 * HOUR)
    assert (found.caught, found.missed, found.lead, found.false_pages) == (0, 1, None, 1)


def test_a_page_exactly_half_an_hour_before_is_not_false():
    found = one(2 * HOUR - HALF, 2 * HOUR)
    assert (found.caught, found.lead, found.false_pages) == (1, HALF, 0)


def test_a_page_that_was_over_more_than_half_an_hour_before_is_false_and_catches_nothing():
    found = one(2 * HOUR - HALF - 90, 2 * HOUR - HALF - 1)
    assert (found.caught, found.missed, found.lead, found.false_pages) == (0, 1, None, 1)


def test_a_page_that_came_too_early_and_lasts_is_false_and_its_lead_is_capped():
    found = one(0.0, 3 * HOUR)
    assert (found.caught, found.lead, found.false_pages) == (1, HALF, 1)


def test_a_page_that_resolved_shortly_before_still_catches():
    found = one(2 * HOUR - 1200, 2 * HOUR - 900)
    assert (found.caught, found.lead) == (1, 1200.0)


# --- what is no sustained breach -------------------------------------------------------------------


def test_a_breach_of_four_minutes_asks_for_no_page():
    short = breach(HOUR, HOUR + 4 * MINUTE)
    assert score([], [short]) == Score()
    assert score([page(HOUR, HOUR + 60)], [short]) == Score(false_pages=1, pages=1)


def test_five_minutes_ask_for_one():
    assert score([], [breach(HOUR, HOUR + 5 * MINUTE)]).missed == 1


def test_the_lead_is_that_of_the_first_sustained_breach():
    short, long = breach(HOUR, HOUR + 60), breach(2 * HOUR)
    assert score([page(2 * HOUR - 60, 3 * HOUR)], [short, long]).lead == 60.0


# --- several ---------------------------------------------------------------------------------------


def test_the_first_of_several_pages_gives_the_lead_in_any_order():
    pages = [page(2 * HOUR + 60, 3 * HOUR, "B"), page(2 * HOUR - 240, 3 * HOUR, "A")]
    assert score(pages, [BREACH]).lead == score(pages[::-1], [BREACH]).lead == 240.0


def test_a_page_still_firing_when_a_second_breach_begins_catches_both():
    both = [breach(HOUR), breach(5 * HOUR)]
    found = score([page(HOUR - 120, 6 * HOUR)], both)
    assert (found.caught, found.missed, found.lead, found.false_pages) == (2, 0, 120.0, 0)


def test_a_page_that_resolved_long_before_a_second_breach_leaves_it_missed():
    both = [breach(HOUR), breach(5 * HOUR)]
    found = score([page(HOUR - 120, 2 * HOUR)], both)
    assert (found.caught, found.missed) == (1, 1)


def test_a_missed_first_breach_has_no_lead_though_the_second_is_caught():
    both = [breach(HOUR), breach(5 * HOUR)]
    found = score([page(5 * HOUR - 120, 6 * HOUR)], both)
    assert (found.caught, found.missed, found.lead) == (1, 1, None)


def test_a_page_between_two_breaches_is_for_the_one_that_is_near():
    both = [breach(HOUR), breach(5 * HOUR)]
    assert score([page(3 * HOUR, 3 * HOUR + 60)], both).false_pages == 1
    assert score([page(5 * HOUR - HALF, 5 * HOUR)], both).false_pages == 0


# --- flaps -----------------------------------------------------------------------------------------


def flaps(*spans: tuple[float, float], alert: str = "A") -> int:
    return score([page(begin, end, alert) for begin, end in spans], []).flaps


def test_a_page_soon_after_all_had_resolved_is_a_flap():
    assert flaps((0, 600), (600 + HALF - 1, 9000)) == 1


def test_a_page_half_an_hour_after_all_had_resolved_is_none():
    assert flaps((0, 600), (600 + HALF, 9000)) == 0


def test_a_page_at_the_moment_the_last_resolved_goes_on_with_it():
    assert flaps((0, 600), (600, 9000)) == 0


def test_each_return_is_a_flap_in_any_order():
    assert flaps((2000, 2100), (0, 600), (1000, 1100)) == 2


def test_another_alert_pages_the_same_person_again():
    assert score([page(0, 600, "A"), page(700, 900, "B")], []).flaps == 1
    assert score([page(0, 600, "A"), page(300, 900, "B")], []).flaps == 0


def test_while_another_page_is_up_nobody_is_paged_again():
    assert flaps((0, 600), (30, 900)) == 0
    assert flaps((0, 600), (0, 600)) == 0
    # The long one is still up when the second short one comes.
    assert flaps((0, 5000), (10, 20), (1000, 1100)) == 0
    assert flaps((0, 5000), (10, 20), (5100, 5200)) == 1


# --- the constraint's name -------------------------------------------------------------------------


def named(said: str | None, truth: Constraint | None) -> tuple[int, int]:
    found = score([page(2 * HOUR, 3 * HOUR, "A", said)], [breach(2 * HOUR, constraint=truth)])
    return found.named, found.nameable


def test_a_page_that_names_what_bound_is_named_right():
    assert named("kv_cache", Constraint.KV_CACHE) == (1, 1)


@pytest.mark.parametrize("said", ["slots", None])
def test_a_page_that_names_something_else_or_nothing_is_not(said):
    assert named(said, Constraint.KV_CACHE) == (0, 1)


@pytest.mark.parametrize("said", ["slots", None])
def test_where_the_cause_is_unknown_nothing_can_be_named(said):
    assert named(said, None) == (0, 0)


def test_a_false_page_cannot_name_anything():
    found = score([page(0, 60, "A", "kv_cache")], [BREACH])
    assert (found.named, found.nameable, found.false_pages) == (0, 0, 1)


def test_a_page_names_the_breach_it_is_for():
    both = [breach(HOUR, constraint=Constraint.SLOTS), breach(5 * HOUR)]
    pages = [page(HOUR, HOUR + 60, "A", "slots"), page(5 * HOUR, 6 * HOUR, "A", "slots")]
    found = score(pages, both)
    assert (found.named, found.nameable) == (1, 2)
