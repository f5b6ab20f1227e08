"""What users felt: minutes, breaches and their causes, from requests made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headroom_exporter.backtest.truth import Breach, Causes, Minute, Requests, breaches
from headroom_exporter.config import PlanConfig
from headroom_exporter.samples import Constraint
from headroom_exporter.simulate.requests import Finished, Request

PLAN = PlanConfig(ttft_p95_seconds=2.0, tpot_p95_seconds=0.25)


def ended(
    arrival: float = 0.0,
    *,
    ttft: float | None = 1.0,
    tokens: int = 5,
    tpot: float = 0.125,
    reason: str = "stop",
    wait: float = 0.0,
) -> Finished:
    """A request that ended; without a first token it was given up after ``wait``."""
    first = None if ttft is None else arrival + ttft
    return Finished(
        request=Request(arrival=arrival, prompt_tokens=10, output_tokens=max(tokens, 1)),
        scheduled=None,
        first_token=first,
        finished=arrival + wait if first is None else first + (tokens - 1) * tpot,
        output_tokens=tokens,
        preemptions=0,
        reason=reason,
    )


def fine(arrival: float = 0.0) -> Finished:
    return ended(arrival)


def late(arrival: float = 0.0) -> Finished:
    return ended(arrival, ttft=3.0)


def slow(arrival: float = 0.0) -> Finished:
    return ended(arrival, tpot=0.5)


def gone(reason: str, arrival: float = 0.0) -> Finished:
    return ended(arrival, ttft=None, tokens=0, reason=reason)


def noted(records: list[Finished], plan: PlanConfig = PLAN) -> Requests:
    requests = Requests(plan)
    for record in records:
        requests.note(record)
    return requests


def minute(records: list[Finished], plan: PlanConfig = PLAN) -> Minute:
    """The first minute of these."""
    return noted(records, plan).minutes(60.0)[0]


# --- one request -----------------------------------------------------------------------------------


def share(record: Finished, plan: PlanConfig = PLAN) -> tuple[float | None, ...]:
    """Late, slow and rejected with 19 fine ones beside it; of 20 requests, 0.05 is this one."""
    one = minute([record, *(fine() for _ in range(19))], plan)
    return (one.late, one.slow, one.rejected)


def test_a_first_token_exactly_as_late_as_planned_is_in_time():
    assert share(ended(ttft=2.0)) == (0, 0, 0)


def test_a_first_token_later_than_planned_is_late():
    assert share(ended(ttft=2.001)) == (0.05, 0, 0)


def test_tokens_exactly_as_slow_as_planned_are_in_time():
    assert share(ended(tpot=0.25)) == (0, 0, 0)


def test_tokens_slower_than_planned_are_slow():
    assert share(ended(tpot=0.2501)) == (0, 0.05, 0)


def test_the_first_token_is_no_part_of_the_time_per_output_token():
    # Four gaps of 0.25 s, though 1 s / 5 tokens + the first would be something else.
    assert share(ended(tokens=5, tpot=0.25)) == (0, 0, 0)
    assert share(ended(tokens=2, tpot=0.26)) == (0, 0.05, 0)


def test_one_output_token_has_no_time_per_output_token():
    assert share(ended(tokens=1, tpot=99.0)) == (0, 0, 0)


def test_late_and_slow_is_late_alone():
    assert share(ended(ttft=3.0, tpot=1.0)) == (0.05, 0, 0)


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_an_answer_that_began_is_judged_however_it_ended(reason):
    assert share(ended(ttft=3.0, reason=reason)) == (0.05, 0, 0)
    assert share(ended(tpot=0.5, reason=reason)) == (0, 0.05, 0)
    assert share(ended(reason=reason)) == (0, 0, 0)


def test_what_the_plan_leaves_open_nobody_can_miss():
    assert share(ended(ttft=99.0), PlanConfig(tpot_p95_seconds=0.25)) == (0, 0, 0)
    assert share(ended(tpot=99.0), PlanConfig(ttft_p95_seconds=2.0)) == (0, 0, 0)
    in_vain = ended(ttft=None, tokens=0, reason="abort", wait=99.0)
    assert minute([in_vain] * 30, PlanConfig(tpot_p95_seconds=0.25)).requests == 0


def test_a_client_that_left_before_it_could_be_served_in_time_says_nothing():
    left = ended(ttft=None, tokens=0, reason="abort", wait=2.0)
    assert minute([left, *(fine() for _ in range(19))]).requests == 19


def test_a_client_that_waited_in_vain_for_longer_than_planned_was_served_late():
    assert share(ended(ttft=None, tokens=0, reason="abort", wait=2.01)) == (0.05, 0, 0)


def test_a_rejected_request_counts_and_is_no_late_one():
    assert share(gone("rejected")) == (0, 0, 0.05)


def test_a_request_too_long_for_the_model_says_nothing():
    requests = noted([gone("refused")] * 30)
    assert (len(requests), requests.lost, requests.minutes(60.0)[0].requests) == (0, 0, 0)


def test_lost_requests_are_counted_apart():
    requests = noted([*(gone("lost") for _ in range(30)), *(fine() for _ in range(20))])
    assert (len(requests), requests.lost) == (20, 30)
    (one,) = requests.minutes(60.0)
    assert (one.requests, one.breach) == (20, False)


def test_who_had_waited_too_long_when_the_server_ended_was_late_and_not_lost():
    late = noted([ended(ttft=30.0, reason="lost") for _ in range(20)])
    assert (len(late), late.lost) == (20, 0)
    assert late.minutes(60.0)[0].late == 1.0
    served = noted([ended(ttft=0.5, reason="lost") for _ in range(20)])
    assert (len(served), served.lost) == (0, 20)


# --- requests that never ended ---------------------------------------------------------------------


def sent(arrivals: list[float], until: float = 1e9) -> tuple[Requests, list[Request]]:
    requests = Requests(PLAN)
    made = [Request(arrival=at, prompt_tokens=1, output_tokens=1) for at in arrivals]
    return requests, list(requests.sent(made, until))


def test_only_what_arrives_before_the_end_is_sent():
    assert [each.arrival for each in sent([0.0, 59.9, 60.0, 61.0], 60.0)[1]] == [0.0, 59.9]


def test_who_still_waits_at_the_end_was_served_late_if_longer_than_planned():
    requests, _ = sent([*(0.0 for _ in range(25)), *(58.0 for _ in range(5))])
    requests.give_up(60.0)
    (one,) = requests.minutes(60.0)
    assert (one.requests, one.late) == (25, 1.0)


def test_what_ended_is_not_given_up_too():
    requests, made = sent([0.0] * 20)
    for request in made:
        requests.note(
            Finished(
                request=request,
                scheduled=0.0,
                first_token=1.0,
                finished=1.0,
                output_tokens=1,
                preemptions=0,
                reason="stop",
            )
        )
    requests.give_up(1e6)
    (one,) = requests.minutes(60.0)
    assert (one.requests, one.late) == (20, 0)


def test_giving_up_twice_counts_once():
    requests, _ = sent([0.0] * 20)
    requests.give_up(1e6)
    requests.give_up(1e6)
    assert len(requests) == 20


def test_without_a_planned_ttft_nobody_can_be_given_up():
    requests = Requests(PlanConfig(tpot_p95_seconds=0.1))
    list(requests.sent([Request(arrival=0.0, prompt_tokens=1, output_tokens=1)], 60.0))
    requests.give_up(1e6)
    assert len(requests) == 0


# --- one minute ------------------------------------------------------------------------------------


def test_nineteen_requests_are_too_few_to_judge():
    one = minute([late()] * 19)
    assert (one.requests, one.late, one.slow, one.rejected) == (19, None, None, None)
    assert not one.breach


def test_twenty_requests_are_enough():
    one = minute([late()] * 20)
    assert (one.requests, one.late, one.breach) == (20, 1.0, True)


@pytest.mark.parametrize("total", [20, 40, 60, 100, 140, 1980])
def test_exactly_five_percent_missed_is_no_breach_and_one_more_is(total):
    missed = total // 20
    for of_ttft in range(missed + 1):
        bad = [late()] * of_ttft + [slow()] * (missed - of_ttft)
        assert not minute(bad + [fine()] * (total - missed)).breach
    assert minute([late()] * (missed + 1) + [fine()] * (total - missed - 1)).breach


def test_ttft_and_tpot_are_missed_together():
    both = [late()] * 3 + [slow()] * 3
    assert minute(both + [fine()] * 94).breach
    assert not minute(both[:5] + [fine()] * 95).breach


@pytest.mark.parametrize("total", [100, 300, 700])
def test_exactly_one_percent_rejected_is_no_breach_and_one_more_is(total):
    turned = total // 100
    assert not minute([gone("rejected")] * turned + [fine()] * (total - turned)).breach
    assert minute([gone("rejected")] * (turned + 1) + [fine()] * (total - turned - 1)).breach


def test_rejected_requests_are_not_added_to_those_that_missed():
    mixed = [gone("rejected")] + [late()] * 5 + [fine()] * 94
    assert not minute(mixed).breach


# --- minute after minute ---------------------------------------------------------------------------


def flow(pattern: str, each: int = 20) -> list[Minute]:
    """A minute for each letter: ``f`` fine, ``l`` late, ``s`` slow, ``r`` rejected, ``.`` nothing."""
    kinds = {"f": fine, "l": late, "s": slow, "r": lambda at: gone("rejected", at)}
    records = [
        kinds[letter](index * 60.0)
        for index, letter in enumerate(pattern)
        for _ in range(each if letter != "." else 0)
    ]
    return noted(records).minutes(60.0 * len(pattern))


def marks(minutes: list[Minute]) -> str:
    return "".join("#" if each.breach else "." for each in minutes)


def test_a_minute_is_judged_with_the_four_before():
    assert marks(flow("ffflfffffff")) == "...#####..."


def test_a_minute_without_traffic_is_judged_by_the_four_before():
    assert marks(flow("l......")) == "#####.."
    assert [each.requests for each in flow("l......")] == [20, 20, 20, 20, 20, 0, 0]


def test_little_traffic_is_judged_once_five_minutes_hold_enough():
    assert marks(flow("llllllll", each=4)) == "....####"
    assert marks(flow("llllllll", each=3)) == "........"


def test_a_request_belongs_to_the_minute_in_which_it_arrived():
    requests = noted([late(59.999)] * 20 + [fine(60.0)] * 20)
    assert [each.late for each in requests.minutes(120.0)] == [1.0, 0.5]


def test_only_whole_minutes_are_judged():
    requests = noted([late(10.0)] * 20 + [late(70.0)] * 20)
    assert [each.at for each in requests.minutes(119.9)] == [0.0]
    assert [each.requests for each in requests.minutes(119.9)] == [20]
    assert requests.minutes(59.0) == []


def test_no_requests_are_no_breach():
    assert marks(noted([]).minutes(300.0)) == "....."


# --- breaches --------------------------------------------------------------------------------------


def made(pattern: str) -> list[Minute]:
    return [
        Minute(at=index * 60.0, requests=20, late=float(mark == "#"), slow=0.0, rejected=0.0)
        for index, mark in enumerate(pattern)
    ]


def spans(pattern: str) -> list[tuple[float, float, bool]]:
    return [(each.begin, each.end, each.sustained) for each in breaches(made(pattern))]


def test_breach_minutes_in_a_row_are_one_breach():
    assert spans(".##..#.") == [(60, 180, False), (300, 360, False)]


def test_five_breach_minutes_in_a_row_are_a_sustained_breach_and_four_are_not():
    assert spans("####.") == [(0, 240, False)]
    assert spans("#####.") == [(0, 300, True)]


def test_a_minute_without_breach_ends_the_row():
    assert spans("###.###") == [(0, 180, False), (240, 420, False)]


def test_a_breach_can_last_until_the_end():
    assert spans("..#####") == [(120, 420, True)]


def test_no_minutes_hold_no_breach():
    assert breaches([]) == []
    assert spans("....") == []


# --- what bound ------------------------------------------------------------------------------------


def server(*queues: tuple[int, Constraint | None]) -> SimpleNamespace:
    """A server whose ranks have so many waiting, for a reason."""
    engines = [SimpleNamespace(waiting=count, blocked=why) for count, why in queues]
    return SimpleNamespace(engines=engines)


KV, SLOTS, PREFILL = Constraint.KV_CACHE, Constraint.SLOTS, Constraint.PREFILL


def looked(*looks: tuple[float, int, Constraint | None]) -> Causes:
    causes = Causes()
    for at, count, why in looks:
        causes.look(at, server((count, why)))
    return causes


def test_the_cause_is_what_most_waiting_time_was_spent_on():
    causes = looked((0, 3, KV), (1, 1, SLOTS), (2, 1, SLOTS))
    assert causes.between(0, 60) == KV
    causes.look(3, server((2, SLOTS)))
    assert causes.between(0, 60) == SLOTS


def test_every_rank_counts():
    causes = Causes()
    causes.look(0, server((3, KV), (2, SLOTS), (2, SLOTS)))
    assert causes.between(0, 60) == SLOTS


def test_where_nothing_waits_no_cause_is_known():
    assert looked((0, 0, None)).between(0, 60) is None
    assert Causes().between(-300, 60) is None


def test_the_minute_after_the_end_says_nothing_of_a_breach():
    causes = looked((59.0, 1, KV), (60.0, 9, SLOTS))
    assert causes.between(0, 60) == KV
    assert causes.between(0, 61) == SLOTS


def test_what_is_seen_five_minutes_before_a_breach_and_during_it_says_what_bound():
    minutes = made("......#....")  # begins at 360, ends at 420
    assert breaches(minutes, looked((59, 9, SLOTS), (60, 1, KV)))[0].constraint == KV
    assert breaches(minutes, looked((419, 1, KV), (420, 9, SLOTS)))[0].constraint == KV
    assert breaches(minutes, looked((59, 9, SLOTS), (420, 9, SLOTS)))[0].constraint is None


def test_a_breach_of_slow_tokens_is_latency_whatever_waits():
    found = breaches(flow("ss"), looked((0, 9, KV)))
    assert [each.constraint for each in found] == [Constraint.LATENCY]


def test_late_first_tokens_and_rejections_have_the_cause_of_the_queue():
    assert breaches(flow("ll"), looked((0, 9, KV)))[0].constraint == KV
    assert breaches(flow("rr"), looked((0, 9, PREFILL)))[0].constraint == PREFILL


def test_late_and_slow_in_equal_parts_has_the_cause_of_the_queue():
    minutes = [Minute(at=0.0, requests=20, late=0.1, slow=0.1, rejected=0.0)]
    assert breaches(minutes, looked((0, 1, KV)))[0].constraint == KV


def test_without_a_look_at_the_queues_the_cause_is_unknown():
    assert breaches(made("#")) == [Breach(begin=0.0, end=60.0, constraint=None)]
