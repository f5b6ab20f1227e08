"""Rule files before Prometheus has samples: which files, which metrics, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.backtest.rules import (
    AlertRule,
    RecordingRule,
    RuleSet,
    fill_step,
    from_api,
    levels,
    metric_names,
    names_in,
    refuse_counts,
    rule_files,
)
from headroom_exporter.errors import HeadroomError

SMALL = Path(__file__).parents[1] / "fixtures" / "rules_small"


def recorded(name: str, expr: str, interval: float = 30.0) -> RecordingRule:
    return RecordingRule(name=name, expr=expr, interval=interval)


def group(**rule: object) -> list[dict[str, object]]:
    rules = [{"type": "alerting", "name": "One", "query": "up", **rule}]
    return [{"name": "g", "file": "f.yaml", "interval": 30, "limit": 0, "rules": rules}]


def test_a_directory_means_its_recording_rules_then_its_alerts():
    names = [str(file.relative_to(SMALL)) for file in rule_files([SMALL])]
    assert names == ["recording/small.yaml", "alerts/small.yaml"]


def test_a_file_named_twice_is_read_once():
    assert rule_files([SMALL, SMALL / "alerts" / "small.yaml"]) == rule_files([SMALL])


@pytest.mark.parametrize("name", ["", "missing.yaml"])
def test_a_place_without_rule_files_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(HeadroomError, match=f"{tmp_path / name}: no rule files; allowed: "):
        rule_files([tmp_path / name])


def test_the_metrics_of_all_rules_are_found_with_their_suffixes():
    known = {"small_demand", "small_limit", "small_requests_total", "up", "small_other", "ratio"}
    assert metric_names(rule_files([SMALL]), known) == known - {"small_other", "ratio"}


def test_a_name_inside_a_longer_one_is_not_found():
    expr = 'histogram_quantile(0.9, rate(wait_seconds_bucket{job="x"}[5m])) > a:wait_seconds'
    known = ["wait_seconds", "wait_seconds_bucket", "wait_seconds_sum"]
    assert names_in(expr, known) == {"wait_seconds_bucket"}


@pytest.mark.parametrize("text", ["- 1", "groups: [{rules: [{alert: A}]}]", "groups: 3"])
def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path, text):
    file = tmp_path / "other.yaml"
    file.write_text(text)
    with pytest.raises(HeadroomError, match=r"other\.yaml: not a Prometheus rule file"):
        metric_names([file], [])


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xff"])
def test_a_file_that_is_no_yaml_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(HeadroomError, match=r"broken\.yaml: cannot be read"):
        metric_names([file], [])


def test_a_file_without_groups_has_no_metrics(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert metric_names([file], ["up"]) == frozenset()


def test_rules_follow_those_they_read():
    third = recorded("c:c:c", "a:a:a + b:b:b")
    first = recorded("a:a:a", "sum(x)")
    second = recorded("b:b:b", "max_over_time(a:a:a[5m])")
    beside = recorded("d:d:d", "y")
    assert levels([third, first, second, beside]) == ((first, beside), (second,), (third,))


def test_who_reads_a_name_waits_for_every_rule_that_records_it():
    early = recorded("a:a:a", "x")
    late = recorded("a:a:a", "b:b:b")
    base = recorded("b:b:b", "y")
    reader = recorded("c:c:c", "a:a:a")
    assert levels([reader, late, early, base]) == ((early, base), (late,), (reader,))


def test_rules_that_read_each_other_are_an_error_that_names_them():
    rules = [recorded("a:a:a", "b:b:b"), recorded("b:b:b", "a:a:a"), recorded("c:c:c", "x")]
    with pytest.raises(HeadroomError, match="themselves: a:a:a, b:b:b; allowed: "):
        levels(rules)


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_whatever_the_order_every_rule_finds_what_it_reads(order, pairs):
    reads = {
        number: {f"r:r:{low}" for low, high in pairs if low < high == number} for number in order
    }
    rules = [recorded(f"r:r:{number}", " + ".join(reads[number]) or "x") for number in order]
    done: set[str] = set()
    for level in levels(rules):
        assert all(reads[int(rule.name[-1])] <= done for rule in level)
        done |= {rule.name for rule in level}
    assert len(done) == 6


def test_rules_are_taken_as_prometheus_parsed_them():
    labels = {"severity": "critical"}
    found = from_api(group(duration=120, keepFiringFor=60, labels=labels, annotations={"a": "b"}))
    assert found.alerts == (
        AlertRule(
            name="One",
            expr="up",
            interval=30.0,
            for_seconds=120.0,
            keep_firing_for=60.0,
            labels=(("severity", "critical"),),
            annotations=(("a", "b"),),
        ),
    )
    assert found.alerts[0].severity == "critical"
    assert found.recordings == ()


def test_an_alert_without_severity_has_an_empty_one():
    assert from_api(group()).alerts[0].severity == ""


def test_a_recording_rule_keeps_its_labels():
    (rule,) = from_api(group(type="recording", name="a:b:c", labels={"x": "1"})).recordings
    assert (rule.name, rule.expr, rule.labels) == ("a:b:c", "up", (("x", "1"),))


@pytest.mark.parametrize(
    "expr",
    [
        "ALERTS{alertname='A'}",
        "ALERTS_FOR_STATE",
        "up @ end()",
        '{__name__=~"a.*"}',
        '{__name__!="a"}',
    ],
)
def test_what_means_something_else_over_a_recording_is_refused(expr):
    with pytest.raises(HeadroomError, match=r"f\.yaml: One: .* is not supported by the backtest: "):
        from_api(group(query=expr))


def test_names_that_only_resemble_the_refused_pass():
    assert from_api(group(query="MY_ALERTS + up @ 1600000000")).alerts


def test_series_are_recorded_at_a_step_that_meets_every_evaluation():
    slow, odd = recorded("a:a:a", "x", 300.0), recorded("b:b:b", "x", 45.0)
    assert fill_step(RuleSet(recordings=(slow,)), 30.0) == 30.0
    assert fill_step(RuleSet(recordings=(slow, odd)), 30.0) == 15.0
    assert fill_step(RuleSet(), 60.0) == 60.0


@pytest.mark.parametrize("function", ["count_over_time", "sum_over_time"])
def test_counting_what_is_repeated_is_refused(function):
    slow = recorded("a:a:a", "x", 300.0)
    reader = AlertRule(name="A", expr=f"{function}(a:a:a[1h]) > 3", interval=30.0)
    with pytest.raises(HeadroomError, match=r"A: counts samples of a:a:a, which .* every 30 s"):
        refuse_counts(RuleSet(recordings=(slow,), alerts=(reader,)), 30.0)


def test_counting_what_is_recorded_at_its_own_rhythm_is_fine():
    usual, slow = recorded("a:a:a", "x"), recorded("b:b:b", "x", 300.0)
    exprs = ("count_over_time(a:a:a[1h])", "avg_over_time(b:b:b[1h])", "count_over_time(raw[1h])")
    readers = tuple(AlertRule(name="A", expr=expr, interval=30.0) for expr in exprs)
    refuse_counts(RuleSet(recordings=(usual, slow), alerts=readers), 30.0)
