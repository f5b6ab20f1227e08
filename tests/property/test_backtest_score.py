"""Invariants of the score."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.backtest.score import FORESIGHT_SECONDS, Page, score
from headroom_exporter.backtest.truth import Breach
from headroom_exporter.samples import Constraint

CONSTRAINTS = st.none() | st.sampled_from(Constraint)


@st.composite
def breach_lists(draw: st.DrawFn) -> list[Breach]:
    """Apart and in order, as truth gives them."""
    found, at = [], 0
    for gap, minutes in draw(
        st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), max_size=6)
    ):
        begin = at + gap
        at = begin + minutes
        found.append(Breach(begin=begin * 60.0, end=at * 60.0, constraint=draw(CONSTRAINTS)))
    return found


@st.composite
def pages(draw: st.DrawFn) -> Page:
    begin = 30.0 * draw(st.integers(0, 2500))
    return Page(
        alert=draw(st.sampled_from("AB")),
        engine="e",
        begin=begin,
        end=begin + 30.0 * draw(st.integers(1, 500)),
        constraint=draw(CONSTRAINTS),
    )


PAGES = st.lists(pages(), max_size=8)


@given(PAGES, breach_lists())
def test_counts_hold_together(several, breaches):
    found = score(several, breaches)
    assert found.caught + found.missed == sum(each.sustained for each in breaches)
    assert 0 <= found.named <= found.nameable <= found.pages - found.false_pages
    assert found.pages == len(several)
    assert found.flaps <= max(0, len(several) - 1)
    if not any(each.sustained for each in breaches):
        assert found.false_pages == found.pages


@given(PAGES, breach_lists())
def test_the_lead_is_within_the_foresight_and_the_first_breach(several, breaches):
    found = score(several, breaches)
    first = next((each for each in breaches if each.sustained), None)
    if found.lead is not None:
        assert first is not None
        assert first.begin - first.end <= found.lead <= FORESIGHT_SECONDS
        assert found.caught >= 1
    if not several:
        assert found.lead is None


@given(PAGES, breach_lists(), st.randoms(use_true_random=False))
def test_the_order_of_pages_does_not_matter(several, breaches, random):
    shuffled = list(several)
    random.shuffle(shuffled)
    assert score(shuffled, breaches) == score(several, breaches)


@given(PAGES, pages(), breach_lists())
def test_one_more_page_never_catches_less_nor_shortens_the_lead(several, more, breaches):
    before, after = score(several, breaches), score([*several, more], breaches)
    assert after.caught >= before.caught
    assert after.false_pages >= before.false_pages
    if before.lead is not None:
        assert after.lead is not None
        assert after.lead >= before.lead


@given(PAGES, breach_lists())
def test_a_page_is_false_by_the_definition_word_by_word(several, breaches):
    sustained = [each for each in breaches if each.sustained]
    expected = 0
    for page in several:
        going_on = any(each.begin <= page.begin <= each.end for each in sustained)
        beginning = any(0 <= each.begin - page.begin <= 30 * 60 for each in sustained)
        expected += not going_on and not beginning
    assert score(several, breaches).false_pages == expected


@given(PAGES, breach_lists())
def test_short_breaches_change_nothing(several, breaches):
    lasting = [each for each in breaches if each.sustained]
    assert score(several, lasting) == score(several, breaches)
