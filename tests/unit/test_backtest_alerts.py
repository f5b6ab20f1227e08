"""Pending, firing, resolved: by hand, as invariants, and against Prometheus' own rule tests."""

from __future__ import annotations

import json
import random
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.backtest.alerts import Firing, alert_labels, firings
from headroom_exporter.backtest.prometheus import Series, program
from headroom_exporter.backtest.rules import AlertRule
from headroom_exporter.errors import HeadroomError

STEP = 30.0
LABELS = (("engine", "a"),)


def rule(for_seconds: float = 0.0, keep: float = 0.0, **labels: str) -> AlertRule:
    return AlertRule(
        name="One",
        expr="x > 0",
        interval=STEP,
        for_seconds=for_seconds,
        keep_firing_for=keep,
        labels=tuple(labels.items()),
    )


def grid(pattern: str) -> list[float]:
    return [index * STEP for index in range(len(pattern))]


def series(pattern: str, labels: tuple[tuple[str, str], ...] = LABELS) -> Series:
    """``#`` is an evaluation at which the condition held; its value is its number."""
    held = [index for index, mark in enumerate(pattern) if mark == "#"]
    times = [index * STEP for index in held]
    return Series(labels=labels, times=times, values=[float(index) for index in held])


def run(pattern: str, alert: AlertRule) -> list[tuple[float, float | None, float | None]]:
    found = firings(alert, [series(pattern)], grid(pattern))
    return [(each.pending_at, each.fired_at, each.resolved_at) for each in found]


def test_without_for_it_fires_at_once():
    assert run("..##..", rule()) == [(60, 60, 120)]


def test_it_fires_once_the_condition_has_held_for_long_enough():
    assert run("..####..", rule(60)) == [(60, 120, 180)]


def test_just_too_short_it_never_fires():
    assert run("..##....", rule(60)) == [(60, None, 120)]


def test_for_between_two_evaluations_is_met_at_the_later():
    assert run("#####", rule(45)) == [(0, 60, None)]


def test_a_gap_while_pending_begins_anew():
    assert run("##.###", rule(60)) == [(0, None, 60), (90, 150, None)]


def test_it_is_kept_firing_until_the_condition_was_gone_for_long_enough():
    assert run("##......", rule(0, 60)) == [(0, 0, 120)]


def test_a_condition_that_comes_back_while_kept_is_the_same_alert():
    assert run("##.#.#....", rule(30, 60)) == [(0, 30, 240)]


def test_each_absence_is_kept_anew():
    assert run("#.#.#...", rule(0, 60)) == [(0, 0, 210)]


def test_what_never_fired_is_not_kept():
    assert run("##.#......", rule(60, 300)) == [(0, None, 60), (90, None, 120)]


def test_still_up_at_the_end_is_not_resolved():
    assert run("...##", rule(0, 60)) == [(90, 90, None)]
    assert run("...##.", rule(0, 60)) == [(90, 90, None)]


def test_its_value_is_that_of_firing_or_of_the_begin_where_it_never_fired():
    found = firings(rule(60), [series(".##.####")], grid(".##.####"))
    assert [each.value for each in found] == [1.0, 6.0]


def test_a_firing_says_all_there_is_to_say():
    (found,) = firings(rule(severity="info"), [series("#.")], grid("#."))
    assert found == Firing(
        alert="One",
        severity="info",
        labels=(("engine", "a"), ("severity", "info")),
        pending_at=0.0,
        fired_at=0.0,
        resolved_at=30.0,
        value=0.0,
    )


def test_each_label_set_is_an_alert_of_its_own():
    both = [series("##..", (("engine", "b"),)), series(".##.", (("engine", "a"),))]
    found = firings(rule(), both, grid("####"))
    assert [(dict(each.labels)["engine"], each.pending_at) for each in found] == [
        ("b", 0),
        ("a", 30),
    ]


def test_series_that_take_turns_under_the_same_labels_are_one_alert():
    first = series("##..", (("__name__", "x"), ("engine", "a")))
    second = series("..##", (("__name__", "y"), ("engine", "a")))
    found = firings(rule(90), [second, first], grid("####"))
    assert [(each.pending_at, each.fired_at) for each in found] == [(0, 90)]


def test_two_series_that_are_the_same_alert_at_one_time_are_an_error():
    both = [series("##", (("engine", "a"),)), series(".#", (("engine", "b"),))]
    with pytest.raises(HeadroomError, match="One: two series have the same labels"):
        firings(rule(engine="all"), both, grid("##"))


def test_labels_of_the_rule_win_and_can_be_made_of_labels():
    alert = rule(engine="e-{{ $labels.engine }}", rank="{{$labels.rank}}", gone="{{ $labels.no }}")
    labels = {"__name__": "x", "engine": "a", "rank": "0", "job": "j"}
    assert alert_labels(alert, labels) == (("engine", "e-a"), ("job", "j"), ("rank", "0"))


def test_an_empty_label_takes_the_label_away():
    assert alert_labels(rule(engine=""), {"engine": "a", "job": "j"}) == (("job", "j"),)


@pytest.mark.parametrize(
    "template", ["{{ $value }}", "{{ $labels.a | toUpper }}", '{{ query "x" }}']
)
def test_labels_made_of_anything_else_are_refused(template):
    with pytest.raises(HeadroomError, match=r"One: label text: .* allowed: text and \{\{ \$labels"):
        alert_labels(rule(text=template), {"a": "b"})


patterns = st.text(alphabet="#.", min_size=1, max_size=60)
seconds = st.sampled_from([0.0, 15.0, 30.0, 45.0, 60.0, 300.0])


@given(patterns, seconds, seconds)
def test_episodes_follow_each_other_and_cover_the_condition(pattern, for_seconds, keep):
    times, alert = grid(pattern), rule(for_seconds, keep)
    found = run(pattern, alert)
    ends = [(begin, len(pattern) * STEP if end is None else end) for begin, _, end in found]
    assert all(before[1] <= after[0] for before, after in pairwise(ends))
    for at, mark in zip(times, pattern, strict=True):
        up = any(begin <= at < end for begin, end in ends)
        assert up or mark == "."
    for begin, fired, end in found:
        assert pattern[int(begin / STEP)] == "#"
        if fired is not None:
            assert fired - begin >= for_seconds
            assert "." not in pattern[int(begin / STEP) : int(fired / STEP) + 1]
        if end is not None:
            assert pattern[int(end / STEP)] == "."


@given(patterns, seconds, seconds)
def test_keeping_an_alert_never_makes_it_fire_more_often_nor_later(pattern, for_seconds, keep):
    kept = [fired for _, fired, _ in run(pattern, rule(for_seconds, keep)) if fired is not None]
    plain = [fired for _, fired, _ in run(pattern, rule(for_seconds)) if fired is not None]
    assert set(kept) <= set(plain)
    assert kept[:1] == plain[:1]


@given(patterns, seconds)
def test_a_longer_for_never_fires_earlier(pattern, for_seconds):
    shorter = [fired for _, fired, _ in run(pattern, rule(for_seconds)) if fired is not None]
    longer = [fired for _, fired, _ in run(pattern, rule(for_seconds + STEP)) if fired is not None]
    assert len(longer) <= len(shorter)
    assert not longer or longer[0] > shorter[0]


# --- against Prometheus ---------------------------------------------------------------------------

EDGES = (
    "####......####",
    "##.##.###.####",
    "#.#..#...#....#.....#",
    "#######.#.#..#..#...##...###....",
    "..##..###..####..#####......",
)
DURATIONS = ((0, 0), (30, 0), (45, 0), (60, 60), (0, 30), (0, 45), (60, 90), (90, 30), (30, 300))


def shuffled(seed: int) -> str:
    chance = random.Random(seed)
    return "".join(chance.choices("#.", weights=[chance.random() + 0.3, 0.8], k=50))


def firing_at(pattern: str, alert: AlertRule, at: float) -> bool:
    return any(
        fired is not None and fired <= at and (end is None or at < end)
        for _, fired, end in run(pattern, alert)
    )


def expected(patterns_: dict[str, str], alert: AlertRule, at: float) -> list[dict[str, object]]:
    return [
        {"exp_labels": {"engine": name, "where": f"at-{name}"}}
        for name, pattern in patterns_.items()
        if firing_at(pattern, alert, at)
    ]


def test_prometheus_fires_at_the_same_evaluations(tmp_path):
    """Every evaluation of every pattern: `promtool test rules` fails on one alert more or less."""
    patterns_ = {f"p{number}": pattern for number, pattern in enumerate(EDGES)}
    patterns_ |= {f"r{seed}": shuffled(seed) for seed in range(8)}
    length = max(map(len, patterns_.values()))
    patterns_ = {name: pattern.ljust(length, ".") for name, pattern in patterns_.items()}
    rules, cases = [], []
    for number, (for_seconds, keep) in enumerate(DURATIONS):
        rules.append(
            {
                "alert": f"A{number}",
                "expr": "x > 0",
                "for": f"{for_seconds}s",
                "keep_firing_for": f"{keep}s",
                "labels": {"where": "at-{{ $labels.engine }}"},
            }
        )
        alert = rule(for_seconds, keep)
        cases += [
            {
                "eval_time": f"{int(at)}s",
                "alertname": f"A{number}",
                "exp_alerts": expected(patterns_, alert, at),
            }
            for at in grid("." * length)
        ]
    values = [
        {
            "series": f'x{{engine="{name}"}}',
            "values": " ".join("1" if mark == "#" else "0" for mark in pattern),
        }
        for name, pattern in patterns_.items()
    ]
    test = {"interval": "30s", "input_series": values, "alert_rule_test": cases}
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    file = tmp_path / "test.yaml"
    file.write_text(
        json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": [test]})
    )
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:4000]
    # The cases tell the durations apart: not all alerts fire at all times, nor none.
    fired = [bool(case["exp_alerts"]) for case in cases]
    assert 100 < sum(fired) < len(fired)
