"""Invariants of what users felt."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.backtest.truth import (
    MIN_REQUESTS,
    Minute,
    Requests,
    breaches,
)
from headroom_exporter.config import PlanConfig
from headroom_exporter.simulate.requests import Finished, Request

PLAN = PlanConfig(ttft_p95_seconds=2.0, tpot_p95_seconds=0.25)
SECONDS = 600.0


def finished(arrival: float, ttft: float | None, tpot: float, tokens: int, reason: str) -> Finished:
    first = None if ttft is None else arrival + ttft
    return Finished(
        request=Request(arrival=arrival, prompt_tokens=1, output_tokens=1),
        scheduled=None,
        first_token=first,
        finished=arrival + 5.0 if first is None else first + (tokens - 1) * tpot,
        output_tokens=tokens,
        preemptions=0,
        reason=reason,
    )


def fine(arrival: float) -> Finished:
    return finished(arrival, 1.0, 0.1, 5, "stop")


ARRIVAL = st.integers(0, int(SECONDS) - 1).map(float)
ANSWERED = st.builds(
    finished,
    ARRIVAL,
    st.sampled_from([0.5, 2.0, 3.0]),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.integers(1, 5),
    st.sampled_from(["stop", "length", "abort"]),
)
UNANSWERED = st.builds(
    finished,
    ARRIVAL,
    st.none(),
    st.just(0.0),
    st.just(0),
    st.sampled_from(["abort", "rejected", "refused", "lost"]),
)


def crowd(arrival: float, count: int, record: Finished) -> list[Finished]:
    """Many of one kind at one time, so that minutes reach the least number."""
    ttft = None if record.first_token is None else record.first_token - record.request.arrival
    return [finished(arrival, ttft, 0.1, record.output_tokens, record.reason) for _ in range(count)]


CROWDS = st.lists(
    st.builds(crowd, ARRIVAL, st.integers(1, 60), ANSWERED | UNANSWERED), max_size=8
).map(lambda several: [each for one in several for each in one])
RECORDS = st.builds(list.__add__, CROWDS, st.lists(ANSWERED | UNANSWERED, max_size=60))


def minutes(records: list[Finished]) -> list[Minute]:
    requests = Requests(PLAN)
    for record in records:
        requests.note(record)
    return requests.minutes(SECONDS)


@given(RECORDS, st.randoms(use_true_random=False))
def test_the_order_of_requests_does_not_matter(records, random):
    shuffled = list(records)
    random.shuffle(shuffled)
    assert minutes(shuffled) == minutes(records)


@given(RECORDS, ARRIVAL)
def test_one_more_fine_request_never_makes_a_breach_of_minutes_that_have_enough(records, arrival):
    before = minutes(records)
    for old, new in zip(before, minutes([*records, fine(arrival)]), strict=True):
        if old.requests >= MIN_REQUESTS and not old.breach:
            assert not new.breach
        # Below that it can: it may be the twentieth. Then the others had missed enough already.
        if new.breach and not old.breach:
            assert old.requests == MIN_REQUESTS - 1


@given(RECORDS, ARRIVAL)
def test_a_minute_sees_only_the_requests_of_its_five_minutes(records, arrival):
    index = int(arrival // 60)
    late = [finished(arrival, 9.0, 0.1, 5, "stop") for _ in range(30)]
    pairs = zip(minutes(records), minutes([*records, *late]), strict=True)
    for at, (old, new) in enumerate(pairs):
        if index <= at < index + 5:
            assert new.requests == old.requests + 30
        else:
            assert new == old


@given(RECORDS)
def test_shares_are_shares_or_unknown_together(records):
    for minute in minutes(records):
        shares = (minute.late, minute.slow, minute.rejected)
        if minute.requests < MIN_REQUESTS:
            assert shares == (None, None, None)
            assert not minute.breach
        else:
            assert all(share is not None and 0 <= share <= 1 for share in shares)
            assert sum(share or 0.0 for share in shares) <= 1 + 1e-9


def waited(record):
    """Until the first token, or until there was none to wait for any more."""
    known = record.finished if record.first_token is None else record.first_token
    return known - record.request.arrival


@given(RECORDS)
def test_every_request_counts_in_five_minutes_or_is_lost_or_says_nothing(records):
    requests = Requests(PLAN)
    for record in records:
        requests.note(record)
    silent = sum(each.reason == "refused" for each in records)
    lost = sum(each.reason == "lost" and waited(each) <= PLAN.ttft_p95_seconds for each in records)
    assert requests.lost == lost
    assert len(requests) == len(records) - lost - silent
    seen = sum(each.requests for each in requests.minutes(SECONDS + 240))
    assert seen == 5 * len(requests)


PATTERN = st.lists(st.booleans(), max_size=80)


@given(PATTERN)
def test_breaches_are_exactly_the_breach_minutes(pattern):
    made = [
        Minute(at=index * 60.0, requests=20, late=float(mark), slow=0.0, rejected=0.0)
        for index, mark in enumerate(pattern)
    ]
    found = breaches(made)
    inside = [any(each.begin <= minute.at < each.end for each in found) for minute in made]
    assert inside == pattern
    # Apart by at least a minute: what follows each other is one.
    assert all(two.begin > one.end for one, two in pairwise(found))
    assert all(each.sustained == (each.end - each.begin >= 300) for each in found)
