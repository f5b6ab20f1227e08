"""Recorded samples through a real Prometheus: what fires, when, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.prometheus import _end as end
from headroom_exporter.backtest.prometheus import make_blocks, program, serve
from headroom_exporter.errors import HeadroomError

RULES = Path(__file__).parents[1] / "fixtures" / "rules_small"
START = 1_767_225_600.0
HOUR = 3600


def demand(engine: str, at: int) -> float:
    """Of 10 that fit: a is overloaded for ten minutes, b for half a minute."""
    if engine == "a":
        return 12 if 600 <= at < 1200 else 5
    return 20 if 2430 <= at < 2460 else 4


def down(at: int) -> bool:
    return 1800 <= at < 1860


def recording(path: Path, seconds: int = HOUR, *, start: float = START) -> Path:
    with path.open("w") as out:
        for at in range(0, seconds, 15):
            for engine in ("a", "b"):
                target = f'engine="{engine}",job="headroom-exporter"'
                gone = engine == "a" and down(at)
                out.write(f"up{{{target}}} {int(not gone)} {start + at:.3f}\n")
                if not gone:
                    values = (demand(engine, at), 10, at * 2)
                    names = ("small_demand", "small_limit", "small_requests_total")
                    for name, value in zip(names, values, strict=True):
                        out.write(f"{name}{{{target}}} {value} {start + at:.3f}\n")
        out.write("# EOF\n")
    return path


def rule_file(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def alert(expr: str, **more: str) -> str:
    lines = "".join(f"        {key}: {value}\n" for key, value in more.items())
    return (
        "groups:\n  - name: one\n    rules:\n      - alert: One\n"
        f"        expr: {expr}\n{lines}        labels: {{severity: info}}\n"
    )


COUNTED = """
groups:
  - {name: one, interval: 1m, rules: [{record: 'a:b', expr: sum(up)}]}
  - {name: two, rules: [{alert: A, expr: 'count_over_time(a:b[1h]) > 3'}]}
"""


def running() -> list[str]:
    """Command lines of programs this test's process started that are still there."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[1]
            if parent == str(os.getpid()):
                found.append((status.parent / "cmdline").read_text())
        except OSError:
            continue
    return [line for line in found if "prometheus" in line]


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hour")
    return evaluate(
        recording(folder / "samples.txt"),
        [RULES],
        start=START,
        seconds=HOUR,
        extra_queries={
            "load": 'engine:small_load:ratio{engine="a"}',
            "peak": 'engine:small_load:max5m{engine="b"}',
            "none": "absent(up)",
            "odd": '0 / 0 * small_limit{engine="a"}',
        },
        workdir=folder,
    )


def times(hour, name: str, engine: str) -> list[tuple[float, float | None, float | None]]:
    return [
        (each.pending_at, each.fired_at, each.resolved_at)
        for each in hour.firings
        if each.alert == name and dict(each.labels)["engine"] == engine
    ]


def test_an_alert_is_pending_fires_is_kept_and_resolves(hour):
    assert times(hour, "SmallOverload", "a") == [(600, 720, 1380)]


def test_an_alert_whose_condition_ends_too_soon_never_fires(hour):
    assert times(hour, "SmallOverload", "b") == [(2430, None, 2460)]


def test_an_alert_without_for_fires_at_once_and_ends_with_its_condition(hour):
    assert times(hour, "SmallDown", "a") == [(1800, 1800, 1860)]
    assert times(hour, "SmallDown", "b") == []


def test_what_a_slow_group_recorded_lasts_until_its_next_evaluation(hour):
    assert times(hour, "SmallSlowPeak", "b") == [(2700, 2760, 3000)]


def test_an_alert_carries_labels_severity_and_value(hour):
    (firing,) = (each for each in hour.firings if each.fired_at == 720)
    assert (firing.severity, firing.value) == ("critical", 1.2)
    assert firing.labels == (
        ("engine", "a"),
        ("job", "headroom-exporter"),
        ("kind", "load"),
        ("severity", "critical"),
        ("where", "a/load"),
    )


def test_firings_come_in_the_order_in_which_they_began(hour):
    begun = [each.pending_at for each in hour.firings]
    assert begun == sorted(begun)


def test_what_a_failed_scrape_did_not_see_is_gone_at_once(hour):
    (load,) = hour.series["load"]
    assert list(load.times) == [at for at in range(0, HOUR, 30) if not down(at)]
    assert list(load.values) == [demand("a", int(at)) / 10 for at in load.times]


def scraped(engine: str, value: str) -> str:
    """An hour of scrapes in promtool's notation; a failed scrape leaves a staleness marker."""
    marks = []
    for at in range(0, HOUR, 15):
        if engine == "a" and down(at):
            marks.append("stale" if not down(at - 15) else "_")
        else:
            marks.append(f"{demand(engine, at):g}" if value == "demand" else value)
    return " ".join(marks)


def series_for_promtool() -> list[dict[str, str]]:
    found = []
    for engine in ("a", "b"):
        target = f'engine="{engine}",job="headroom-exporter"'
        ups = " ".join(str(int(not (engine == "a" and down(at)))) for at in range(0, HOUR, 15))
        found += [
            {"series": f"up{{{target}}}", "values": ups},
            {"series": f"small_demand{{{target}}}", "values": scraped(engine, "demand")},
            {"series": f"small_limit{{{target}}}", "values": scraped(engine, "10")},
        ]
    return found


def test_prometheus_own_rule_tests_fire_at_the_same_evaluations(hour, tmp_path):
    """With a lookback of five minutes and staleness markers, as in a running Prometheus."""
    cases = []
    for alert_name in ("SmallOverload", "SmallDown"):
        for at in range(0, HOUR, 30):
            up = [
                {"exp_labels": dict(each.labels)}
                for each in hour.firings
                if each.alert == alert_name
                and each.fired_at is not None
                and each.fired_at <= at < (each.resolved_at or math.inf)
            ]
            cases.append({"eval_time": f"{at}s", "alertname": alert_name, "exp_alerts": up})
    for case in cases:
        summary = "More than fits." if case["alertname"] == "SmallOverload" else "Down."
        for each in case["exp_alerts"]:
            each["exp_annotations"] = {"summary": summary}
    test = {
        "rule_files": [str(file) for file in sorted(RULES.glob("*/*.yaml"), reverse=True)],
        "group_eval_order": ["small-recording", "small-recording-slow", "small-alerts"],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series_for_promtool(),
                "alert_rule_test": cases,
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(test))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:4000]
    assert sum(bool(case["exp_alerts"]) for case in cases) == (1380 - 720 + 60) / 30


def test_extra_queries_are_answered_by_name(hour):
    (peak,) = hour.series["peak"]
    # What is not a number is an answer too.
    (odd,) = hour.series["odd"]
    assert peak.labels[0] == ("__name__", "engine:small_load:max5m")
    assert dict(zip(peak.times, peak.values, strict=True))[2970] == 2.0
    assert hour.series["none"] == ()
    assert all(math.isnan(value) for value in odd.values)


def test_the_rules_come_back_as_prometheus_parsed_them(hour):
    overload = hour.rules[0]
    assert (overload.name, overload.severity) == ("SmallOverload", "critical")
    assert (overload.for_seconds, overload.keep_firing_for) == (120, 180)
    assert overload.annotations == (("summary", "More than fits."),)


def test_nothing_is_left_behind(hour, tmp_path):
    evaluate(
        recording(tmp_path / "samples.txt", 60), [RULES], start=START, seconds=60, workdir=tmp_path
    )
    assert [each.name for each in tmp_path.iterdir()] == ["samples.txt"]
    assert running() == []


def test_samples_of_more_files_are_seen_too(tmp_path):
    more = tmp_path / "more.txt"
    more.write_text(f'vllm:num_requests_running{{e="a"}} 3 {START + 30:.3f}\n# EOF\n')
    found = evaluate(
        recording(tmp_path / "samples.txt", 120),
        [rule_file(tmp_path, alert("vllm:num_requests_running > 2"))],
        start=START,
        seconds=120,
        extra_samples=[more],
    )
    (firing,) = found.firings
    assert (firing.fired_at, firing.resolved_at, firing.value) == (30, 60, 3)


def test_an_alert_that_is_up_at_the_end_is_not_resolved(tmp_path):
    found = evaluate(
        recording(tmp_path / "samples.txt", 120),
        [rule_file(tmp_path, alert("sum(up)", **{"for": "1m"}))],
        start=START,
        seconds=120,
    )
    (firing,) = found.firings
    assert (firing.pending_at, firing.fired_at, firing.resolved_at) == (0, 60, None)


def test_evaluations_at_tenths_of_a_second_miss_nothing(tmp_path):
    path = tmp_path / "samples.om"
    lines = [f"small_demand 12 {START + step / 10:.3f}\n" for step in range(20)]
    path.write_text("".join(lines) + "# EOF\n")
    rules = [rule_file(tmp_path, alert("small_demand > 10", **{"for": "1s"}))]
    found = evaluate(
        path, rules, start=START, seconds=2, scrape_interval=0.1, evaluation_interval=0.1
    )
    (only,) = found.firings
    assert (only.pending_at, only.fired_at, only.resolved_at) == (0.0, 1.0, None)


def test_an_interrupt_while_it_ends_leaves_no_process():
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    # As Ctrl-C for the second time.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            end(child)
        assert child.returncode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGALRM, before)
        child.kill()
        child.wait()
        child.stdout.close()


def test_more_points_than_one_query_may_have_are_put_together(tmp_path):
    seconds = 12_000 * 30
    with (tmp_path / "samples.txt").open("w") as out:
        for at in range(0, seconds, 30):
            out.write(f"small {at} {START + at:.3f}\n")
        out.write("# EOF\n")
    make_blocks(tmp_path / "samples.txt", tmp_path / "data")
    with serve(tmp_path, origin=START, evaluation_interval=30, lookback=29) as prometheus:
        (found,) = prometheus.query_range("small", seconds=seconds, step=30)
    assert list(found.times) == list(found.values) == list(range(0, seconds, 30))


def test_values_and_labels_survive_being_recorded(tmp_path):
    strange = 'new\\nline \\"quoted\\" back\\\\slash'
    samples = tmp_path / "samples.txt"
    samples.write_text(
        f'small{{text="{strange}",kind="inf"}} +Inf {START:.3f}\n'
        f'small{{text="{strange}",kind="nan"}} NaN {START:.3f}\n'
        f'small{{text="{strange}",kind="tiny"}} 5e-324 {START:.3f}\n# EOF\n'
    )
    rules = rule_file(
        tmp_path, "groups: [{name: one, rules: [{record: 'a:small:it', expr: small}]}]"
    )
    found = evaluate(samples, [rules], start=START, seconds=30, extra_queries={"it": "a:small:it"})
    by_kind = {dict(each.labels)["kind"]: each for each in found.series["it"]}
    texts = {dict(each.labels)["text"] for each in by_kind.values()}
    assert texts == {'new\nline "quoted" back\\slash'}
    assert by_kind["inf"].values[0] == math.inf
    assert math.isnan(by_kind["nan"].values[0])
    assert by_kind["tiny"].values[0] == 5e-324


def test_two_metrics_that_take_turns_are_recorded_as_one_series(tmp_path):
    samples = tmp_path / "samples.txt"
    samples.write_text(f"old 1 {START:.3f}\nnew 2 {START + 30:.3f}\n# EOF\n")
    rules = rule_file(
        tmp_path, "groups: [{name: one, rules: [{record: 'a:b:c', expr: new or old}]}]"
    )
    found = evaluate(samples, [rules], start=START, seconds=60, extra_queries={"it": "a:b:c"})
    (series,) = found.series["it"]
    assert (list(series.times), list(series.values)) == ([0, 30], [1, 2])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("groups: [{name: one, rules: [{alert: A, expr: 'up >'}]}]", "promtool check rules"),
        ("groups: [{name: one, limit: 3, rules: [{alert: A, expr: up}]}]", "one: limit 3"),
        (alert("'{__name__=~\"small.*\"}'"), "One: '__name__=~' is not supported"),
        (alert("ALERTS"), "One: 'ALERTS' is not supported"),
        (alert('up{job="x"} @ start()'), r"One: '@ start\(' is not supported"),
        (
            "groups: [{name: one, interval: 20s, rules: [{alert: A, expr: up}]}]",
            "evaluation interval 20 s; allowed: multiples of the scrape interval 15 s",
        ),
        (
            "groups: [{name: one, rules: [{record: 'a:b', expr: 'sum(a:b)'}]}]",
            "themselves: a:b;",
        ),
        (
            "groups: [{name: one, rules: [{record: 'a:b', expr: up, labels: {engine: x}}]}]",
            "a:b: two series have the same labels {'engine': 'x', 'job': 'headroom-exporter'}",
        ),
        (
            "groups: [{name: one, rules: [{alert: A, expr: up, labels: {engine: x}}]}]",
            "A: two series have the same labels",
        ),
        (
            COUNTED,
            "A: counts samples of a:b, which the backtest repeats every 30 s",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path, text, error):
    rules = rule_file(tmp_path, text)
    with pytest.raises(HeadroomError, match=error):
        evaluate(recording(tmp_path / "samples.txt", 60), [rules], start=START, seconds=60)
    assert running() == []


def test_a_start_between_evaluations_is_refused(tmp_path):
    samples = recording(tmp_path / "samples.txt", 60, start=START + 15)
    with pytest.raises(HeadroomError, match="allowed: multiples of the evaluation interval 30 s"):
        evaluate(samples, [RULES], start=START + 15, seconds=60)


def test_samples_that_are_no_openmetrics_are_refused_with_promtools_words(tmp_path):
    samples = tmp_path / "samples.txt"
    samples.write_text("small 1 1\n")
    with pytest.raises(HeadroomError, match="does not end with # EOF"):
        evaluate(samples, [RULES], start=START, seconds=60)


def test_an_expression_prometheus_refuses_is_an_error_with_its_words(tmp_path):
    samples = recording(tmp_path / "samples.txt", 60)
    with pytest.raises(HeadroomError, match=r"sum\(: Prometheus refuses it: .*parse error"):
        evaluate(samples, [RULES], start=START, seconds=60, extra_queries={"x": "sum("})
    assert running() == []


def test_a_missing_prometheus_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HeadroomError, match="install the Debian package prometheus"):
        evaluate(tmp_path / "samples.txt", [RULES], start=START, seconds=60)


def test_a_prometheus_that_does_not_start_says_why(tmp_path):
    (tmp_path / "data").write_text("no directory")
    with (
        pytest.raises(HeadroomError, match=r"did not start; its log ends: [\s\S]*not a directory"),
        serve(tmp_path, origin=START, evaluation_interval=30, lookback=15),
    ):
        pass
    assert running() == []
