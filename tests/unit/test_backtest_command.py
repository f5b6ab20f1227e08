"""``backtest``: what its flags mean, what it refuses, what it says; nothing is played here."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import headroom_exporter
from headroom_exporter import backtest_flags
from headroom_exporter.backtest import AlertRule, Evaluation, Firing, Series, command
from headroom_exporter.backtest.page import page
from headroom_exporter.backtest.picture import picture
from headroom_exporter.backtest.play import Felt
from headroom_exporter.backtest.report import QUERIES, Report, Stage, build, document, pages
from headroom_exporter.backtest.text import ASCII, marks_for, row, text, ticks
from headroom_exporter.backtest.truth import Breach, Minute
from headroom_exporter.backtest.words import clock, headline, lasting, verdict
from headroom_exporter.cli import main
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.errors import ConfigError, HeadroomError
from headroom_exporter.samples import Constraint
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.traffic import Survey

SECONDS = 7200.0
STEP = 30.0
SERVER = (("engine", "simulated"), ("instance", "simulated:9890"), ("job", "headroom-exporter"))
PLAN = PlanConfig(
    name="chat", concurrency=24, prompt_tokens=Lengths(p95=4900), ttft_p95_seconds=2.0
)
RULES = (
    AlertRule(
        name="HeadroomExhausted",
        expr="a > 1 < 2",
        interval=STEP,
        for_seconds=30.0,
        keep_firing_for=1800.0,
        labels=(("severity", "critical"),),
        annotations=(("runbook_url", "https://runbooks.example/HeadroomExhausted.md"),),
    ),
    AlertRule(
        name="HeadroomPlanOutgrown", expr="b", interval=STEP, labels=(("severity", "warning"),)
    ),
)


def firing(
    alert: str = "HeadroomExhausted",
    severity: str = "critical",
    *,
    at: float = 2970.0,
    end: float | None = 5000.0,
    waits: float = 30.0,
    value: float = 0.5,
    **labels: str,
) -> Firing:
    pairs = {**dict(SERVER), "severity": severity, **labels}
    return Firing(
        alert=alert,
        severity=severity,
        labels=tuple(sorted(pairs.items())),
        pending_at=at - waits,
        fired_at=at,
        resolved_at=end,
        value=value,
    )


def waiting(alert: str = "HeadroomSpikeUnsafe") -> Firing:
    return Firing(
        alert=alert,
        severity="warning",
        labels=SERVER,
        pending_at=6000.0,
        fired_at=None,
        resolved_at=6300.0,
        value=1.5,
    )


def series(values: dict[float, float], **labels: str) -> Series:
    pairs = tuple(sorted({**dict(SERVER), **labels}.items()))
    return Series(labels=pairs, times=list(values), values=list(values.values()))


def flat(value: float, **labels: str) -> Series:
    return series({index * STEP: value for index in range(int(SECONDS / STEP))}, **labels)


def answers(**more: tuple[Series, ...]) -> dict[str, tuple[Series, ...]]:
    found = {
        "demand_mean": (flat(18.0),),
        "demand_peak": (flat(30.0),),
        "capacity": (flat(25.0, constraint="kv_cache"), flat(256.0, constraint="slots")),
        "ttft_p95": (flat(0.5),),
        "tpot_p95": (flat(0.05),),
        "exhausted": (flat(0.1),),
        "binding": (flat(0.8, constraint="kv_cache"),),
    }
    assert set(found) == set(QUERIES)
    return found | more


def minutes(begin: float = 3060.0, end: float = 3660.0) -> tuple[Minute, ...]:
    return tuple(
        Minute(
            at=60.0 * index,
            requests=100,
            late=0.12 if begin <= 60.0 * index < end else 0.01,
            slow=0.0,
            rejected=0.0,
        )
        for index in range(int(SECONDS / 60))
    )


def report(
    *firings: Firing,
    breaches: tuple[Breach, ...] = (
        Breach(begin=3060.0, end=3660.0, constraint=Constraint.KV_CACHE),
    ),
    lost: int = 0,
    rules: tuple[AlertRule, ...] = RULES,
    plan: PlanConfig = PLAN,
    trace: str = "day.csv",
    **more: tuple[Series, ...],
) -> Report:
    stage = Stage(
        trace=trace,
        offset=3600.0,
        seconds=SECONDS,
        survey=Survey(
            requests=1000,
            first=0.0,
            last=7199.0,
            prompt_tokens=1_000_000,
            output_tokens=200_000,
            longest_prompt=4000,
        ),
        profile=find("rtx4090-llama-3.1-8b"),
        plan=plan,
        plan_file=Path("plan.yaml"),
        notes=("a note",),
        rule_files=(Path("/rules/recording/headroom.yaml"), Path("/rules/alerts/pages.yaml")),
    )
    felt = Felt(minutes=minutes(), breaches=breaches, requests=1000, lost=lost)
    evaluation = Evaluation(firings=firings, series=answers(**more), rules=rules)
    return build(stage, felt, evaluation, 6.0)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0:00"),
        (59, "0:00"),
        (60, "0:01"),
        (3600, "1:00"),
        (86_399, "23:59"),
        (100_000, "27:46"),
    ],
)
def test_a_moment_is_hours_and_minutes_of_the_traffics_clock(seconds, said):
    assert clock(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (30, "30 s"),
        (60, "1 min"),
        (90, "1.5 min"),
        (595, "10 min"),
        (3600, "1 h"),
        (3900, "1 h 05 min"),
        (86_400, "1 d"),
        (100_800, "1 d 4 h"),
    ],
)
def test_a_duration_is_said_in_its_own_unit(seconds, said):
    assert lasting(seconds) == said


SHORT = Breach(begin=600.0, end=720.0)
LATER = Breach(begin=6600.0, end=7000.0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            report(firing()),
            (
                "Every sustained breach was paged for (1 of 1), the first time 1.5 min before it began;"
                " no false pages."
            ),
        ),
        (
            report(firing(at=3060.0)),
            "Every sustained breach was paged for (1 of 1), the first time as it began; no false pages.",
        ),
        (
            report(firing(at=3660.0)),
            (
                "Every sustained breach was paged for (1 of 1), the first time 10 min after it began;"
                " no false pages."
            ),
        ),
        (report(), "Users felt 1 sustained breach, and nobody was paged for it; no false pages."),
        (
            report(firing(end=3300.0), breaches=(*report().felt.breaches, LATER)),
            (
                "1 of 2 sustained breaches were paged for, the first time 1.5 min before it began;"
                " no false pages."
            ),
        ),
        (report(breaches=(SHORT,)), "Users felt no sustained breach, and nothing paged."),
        (report(firing(), breaches=()), "Users felt no sustained breach; 1 false page."),
    ],
)
def test_the_headline_is_the_finding(found, said):
    assert headline(found) == said


@pytest.mark.parametrize(
    ("at", "good"), [(2970.0, True), (3060.0, True), (3120.0, None), (3240.0, False)]
)
def test_a_page_soon_after_the_begin_is_neither_good_nor_bad(at, good):
    (first,) = (each for each in verdict(report(firing(at=at))) if each[0] == "first page")
    assert first[2] is good


# --- pages ---------------------------------------------------------------------------------------


def test_only_pages_for_lack_of_headroom_are_scored():
    binding = [series({2970.0: 0.9}, constraint="kv_cache")]
    given = (
        firing(),
        firing("HeadroomEngineDown"),
        firing("HeadroomPlanOutgrown", "warning"),
        waiting(),
    )
    (found,) = pages(given, binding, SECONDS)
    assert (found.alert, found.begin, found.end) == ("HeadroomExhausted", 2970.0, 5000.0)


def test_a_page_names_what_bound_as_it_fired():
    binding = [
        series({2940.0: 0.9, 3000.0: 0.9}, constraint="slots"),
        series({2970.0: 0.9}, constraint="kv_cache"),
    ]
    assert pages([firing()], binding, SECONDS)[0].constraint == "kv_cache"
    assert pages([firing(at=1500.0)], binding, SECONDS)[0].constraint is None


def test_rules_that_record_what_binds_without_its_labels_name_nothing():
    bare = Series(labels=(), times=[2970.0], values=[0.9])
    assert pages([firing()], [bare], SECONDS)[0].constraint is None


def test_a_page_that_is_up_at_the_end_ends_with_the_recording():
    assert pages([firing(end=None)], [], SECONDS)[0].end == SECONDS


def test_the_right_constraint_is_counted():
    assert (report(firing()).score.named, report(firing()).score.nameable) == (1, 1)
    wrong = report(firing(), binding=(flat(0.8, constraint="slots"),))
    assert (wrong.score.named, wrong.score.nameable) == (0, 1)


# --- JSON ----------------------------------------------------------------------------------------


def test_the_document_is_strict_json_and_says_what_the_record_says():
    found = report(firing(value=math.inf), waiting(), ttft_p95=(series({0: 1.0, 30: math.inf}),))
    said = json.loads(json.dumps(document(found), allow_nan=False))
    assert (said["format"], said["version"], said["simulated"]) == (
        "headroom-exporter backtest",
        1,
        True,
    )
    assert said["traffic"]["clock_offset_seconds"] == 3600
    assert said["plan"]["ttft_p95_seconds"] == 2.0
    assert [each["alert"] for each in said["alerts"]] == [
        "HeadroomExhausted",
        "HeadroomSpikeUnsafe",
    ]
    assert said["alerts"][0]["fired_at"] == 2970
    assert said["alerts"][0]["constraint"] == "kv_cache"
    assert said["alerts"][1]["fired_at"] is None
    assert said["users"]["breaches"] == [
        {"begin": 3060, "end": 3660, "constraint": "kv_cache", "sustained": True}
    ]
    assert sum(each["breach"] for each in said["users"]["minutes"]) == 10
    assert said["score"]["lead"] == 90
    assert set(said["series"]) == set(QUERIES)


def test_what_is_no_number_is_left_out_of_the_document():
    found = report(firing(value=math.inf), ttft_p95=(series({0: 1.0, 30: math.inf, 60: math.nan}),))
    said = document(found)
    assert said["alerts"][0]["value"] is None
    (line,) = said["series"]["ttft_p95"]["lines"]
    assert (line["times"], line["values"]) == ([0], [1.0])


# --- the terminal --------------------------------------------------------------------------------


def test_what_lasts_less_than_a_column_still_shows():
    assert row(10, 60.0, [("x", [(185.0, 190.0)])], ".") == "...x......"
    assert row(10, 60.0, [("x", [(600.0, 600.0)])], ".") == ".........x"


def test_a_row_shows_spans_to_their_end_and_no_further():
    assert row(10, 60.0, [("x", [(120.0, 300.0)])], ".") == "..xxx....."
    assert row(4, 60.0, [("-", [(0.0, 240.0)]), ("#", [(120.0, 180.0)])], ".") == "--#-"


def test_the_marks_of_the_axis_are_round_moments_of_the_traffics_clock():
    assert ticks(0.0, 3600.0, 6) == [0.0, 600, 1200, 1800, 2400, 3000, 3600]
    assert ticks(1000.0, 7200.0, 8) == [800.0 + index * 900 for index in range(8)]
    assert all((1000 + at) % 900 == 0 for at in ticks(1000.0, 7200.0, 8))


def test_the_report_has_a_time_line_tables_and_the_verdict():
    outgrown = firing("HeadroomPlanOutgrown", "warning", at=600.0, end=None, dimension="ttft_p95")
    said = text(report(firing(), outgrown, waiting(), lost=7), width=80)
    lines = said.splitlines()
    (users,) = (line for line in lines if line.startswith("users "))
    (exhausted,) = (line for line in lines if line.startswith("HeadroomExhausted "))
    assert len(users) == len(exhausted) < 80
    # The page came before users felt it, and both lines have one time axis.
    assert exhausted.index("█") <= users.index("▒") < exhausted.rindex("█")
    assert re.search(
        r"critical +HeadroomExhausted +bound by kv_cache +1:49 +1:49 +2:23 +34 min", said
    )
    assert re.search(
        r"warning +HeadroomPlanOutgrown +dimension ttft_p95 .* at the end +1 h 50", said
    )
    assert re.search(r"1:51 +2:01 +10 min +sustained +kv_cache", said)
    assert "7 requests were lost" in said
    assert "✓ false pages: 0 of 1" in said
    assert "note     a note" in said
    assert "HeadroomSpikeUnsafe" in said


def test_an_uneventful_report_says_so():
    said = text(report(breaches=()))
    assert "No alert fired." in said
    assert "Users missed the plan in no minute." in said


def test_an_output_without_block_elements_gets_letters():
    assert marks_for("ascii") == ASCII
    assert marks_for(None) == ASCII
    assert marks_for("utf-8") != ASCII
    said = text(report(firing()), marks=ASCII)
    assert "#" in said
    assert "█" not in said


# --- the page ------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Every tag that was opened and not closed, and every attribute that could load something."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[tuple[str, str | None]] = []
        self.links: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "xlink:href", "style") or "url(" in (
                value or ""
            ).replace("url(#", ""):
                self.loads.append((name, value))
            if name == "href":
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def svg(found: Report) -> ET.Element:
    return ET.fromstring(picture(found))  # noqa: S314 - our own


def of_class(root: ET.Element, *names: str) -> list[ET.Element]:
    return [each for each in root.iter() if set(names) <= set(each.get("class", "").split())]


def test_the_page_is_whole_and_loads_nothing():
    html = page(report(firing(), waiting()))
    found = Reader(html)
    assert found.open == []
    assert found.loads == []
    assert not found.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    assert all(link is not None and link.startswith("https://") for link in found.links)


def test_the_page_says_that_the_engine_is_simulated_and_what_its_profile_is_worth():
    html = page(report(firing()))
    assert "SIMULATED engine" in html
    assert find("rtx4090-llama-3.1-8b").quality in html
    assert "docs/simulator-validation.md" in html


def test_the_page_shows_the_rules_with_their_thresholds():
    html = page(report())
    assert "<pre>a &gt; 1 &lt; 2</pre>" in html
    assert "recording/headroom.yaml, alerts/pages.yaml" in html


def test_names_of_other_people_do_no_harm():
    evil = '<script>alert("1")</script>'
    rule = AlertRule(
        name=evil,
        expr=evil,
        interval=STEP,
        labels=(("severity", evil),),
        annotations=(("runbook_url", f"javascript:{evil}"),),
    )
    alert = firing(evil, evil, dimension=evil)
    html = page(report(alert, rules=(rule,), trace=evil, plan=PlanConfig(name=evil)))
    found = Reader(html)
    assert "script" not in found.tags
    assert not any(link is not None and link.startswith("javascript") for link in found.links)
    assert found.open == []


def test_breaches_lie_behind_the_panels_where_they_were():
    root = svg(report(firing(), breaches=(SHORT, *report().felt.breaches)))
    (short,) = of_class(root, "breach", "short")
    (long,) = of_class(root, "breach", "sustained")
    width = float(long.get("width", "0")) / float(short.get("width", "0"))
    assert width == pytest.approx(600 / 120, rel=0.02)
    assert float(short.get("x", "0")) < float(long.get("x", "0"))
    (bar,) = of_class(root, "bar", "firing")
    # The page fired 90 s before the breach began, on the same axis of time.
    pixels = float(long.get("width", "0")) / 600
    ahead = (float(long.get("x", "0")) - float(bar.get("x", "0"))) / pixels
    assert ahead == pytest.approx(90, abs=2)


def test_a_firing_alert_covers_another_that_is_pending_for_the_same_name():
    pending = waiting("HeadroomPlanOutgrown")
    root = svg(report(firing("HeadroomPlanOutgrown", "warning", end=None), pending))
    kinds = [each.get("class", "") for each in of_class(root, "bar")]
    assert "firing" in kinds[-1]
    assert "pending" in kinds[0]


def test_a_ceiling_far_above_demand_is_told_in_words():
    root = svg(report())
    words = " ".join(root.itertext())
    assert "beyond the picture: slots 256" in words
    assert "ceiling: kv_cache" in words
    assert "ceiling: slots" not in words


def test_a_queue_of_thousands_does_not_press_the_ceilings_flat():
    root = svg(report(demand_peak=(flat(8000.0),)))
    (ceiling,) = (each for each in of_class(root, "line-kv_cache") if "L" in each.get("d", ""))
    height = float(re.findall(r" ([\d.]+)", ceiling.get("d", ""))[0])
    assert 100 < height < 230
    assert "demand up to 8,000" in " ".join(root.itertext())


def test_what_is_not_known_leaves_a_gap():
    known = dict.fromkeys((0.0, 30.0, 60.0, 3000.0, 3030.0), 0.5)
    root = svg(report(ttft_p95=(series(known),)))
    (line,) = (each for each in of_class(root, "latency") if "L" in each.get("d", ""))
    assert line.get("d", "").count("M") == 2


def test_a_report_without_any_series_is_still_a_page():
    nothing = dict.fromkeys(QUERIES, ())
    found = Reader(page(report(**nothing)))
    assert found.open == []


def test_a_week_does_not_make_a_page_of_megabytes():
    long = {index * 0.3: float(index % 7) for index in range(20_000)}
    assert len(page(report(demand_mean=(series(long),), demand_peak=(series(long),)))) < 100_000


# --- flags ---------------------------------------------------------------------------------------


def plan_file(folder: Path, content: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(content)
    return path


MODEL = "meta-llama/Llama-3.1-8B"


def test_the_plan_that_matches_the_profiles_model_holds(tmp_path):
    content = f"plans: [{{name: a, match: {{model_name: {MODEL}}}}}, {{name: b, match: {{model_name: x}}}}]"
    plan, note = command.read_plan(plan_file(tmp_path, content), MODEL)
    assert (plan.name, note) == ("a", None)


def test_a_whole_configuration_is_read_too(tmp_path):
    content = (
        "engines: [{name: chat, url: 'http://10.0.0.1:8000'}]\npoll: {interval: 2s}\n"
        "plans: [{name: a, match: {engine: chat}, concurrency: 7}, {name: b, match: {model_name: x}}]"
    )
    plan, note = command.read_plan(plan_file(tmp_path, content), MODEL)
    assert (plan.concurrency, note) == (7, None)


def test_the_only_plan_holds_and_the_reader_is_told(tmp_path):
    plan, note = command.read_plan(
        plan_file(tmp_path, "plans: [{name: a, match: {model_name: x}}]"), MODEL
    )
    assert plan.name == "a"
    assert note is not None
    assert MODEL in note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("poll: {interval: 2s}", r"plan.yaml: plans: must hold the plan"),
        (
            "plans: [{name: a, match: {model_name: x}}, {name: b, match: {model_name: y}}]",
            r"plan.yaml: plans: none of a, b matches meta-llama/Llama-3.1-8B",
        ),
        (
            (
                "engines: [{name: e}, {name: f}]\n"
                "plans: [{name: a, match: {engine: e}}, {name: b, match: {engine: f}}]"
            ),
            r"plan.yaml: plans: a, b each hold for",
        ),
        (
            "plans: [{slo: {ttft_p95_seconds: -1}}]",
            r"plan.yaml: plans\[0\].slo.ttft_p95_seconds: -1: must be a number above 0",
        ),
        ("plans: [{sloo: 1}]", r"plan.yaml: plans\[0\].sloo: unknown key; did you mean"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_with_file_key_and_reason(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said):
        command.read_plan(plan_file(tmp_path, content), MODEL)


def backtest(tmp_path: Path, *arguments: str) -> list[str]:
    plan = plan_file(tmp_path, "plans: [{slo: {ttft_p95_seconds: 2}}]")
    trace = "synthetic:poisson?rate=1&duration=60"
    return ["backtest", "--plan", str(plan), "--trace", trace, *arguments]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "missing/page.html"], "--out: missing/page.html: must be a file in a directory"),
        (["--json", "/"], "--json: /: must be a file in a directory"),
        (["--rules", "nowhere"], "--rules: nowhere: no rule files"),
        (["--profile", "nothing"], "profile nothing: must be one of"),
        (["--trace", "missing.csv"], "missing.csv"),
        (["--event", "explode@3"], "explode"),
        (["--from", "60"], "no request between --from and --to"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(
    tmp_path, capsys, monkeypatch, arguments, said
):
    def fail(*_args, **_kwargs):
        raise AssertionError("played")

    monkeypatch.setattr(command, "play", fail)
    assert main(backtest(tmp_path, *arguments)) == 2
    assert said in capsys.readouterr().err


def test_rules_that_only_promtool_can_read_are_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "play", None)
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: []", encoding="utf-16")
    assert main(backtest(tmp_path, "--rules", str(rules))) == 2
    assert f"--rules: {rules}: cannot be read" in capsys.readouterr().err


def test_rules_that_promtool_refuses_are_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "play", None)
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: a, rules: [{alert: A, expr: 'rate('}]}]")
    assert main(backtest(tmp_path, "--rules", str(rules))) == 2
    assert "rules.yaml" in capsys.readouterr().err


def test_a_missing_prometheus_is_named_with_its_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command, "play", None)
    assert main(backtest(tmp_path)) == 1
    assert "prometheus: not found on PATH; install the Debian package prometheus" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("missing", ["--trace", "--plan"])
def test_trace_and_plan_must_be_given(tmp_path, capsys, missing):
    arguments = backtest(tmp_path)
    at = arguments.index(missing)
    with pytest.raises(SystemExit) as caught:
        main(arguments[:at] + arguments[at + 2 :])
    assert caught.value.code == 2
    assert missing in capsys.readouterr().err


def test_the_traffic_and_engine_flags_are_those_of_simulate():
    parser = argparse.ArgumentParser()
    backtest_flags.add_arguments(parser)
    given = parser.parse_args(
        ["--trace", "t", "--plan", "p", "--from", "60", "--scale", "2", "--ranks", "2"]
    )
    assert (given.start, given.scale, given.ranks, given.event) == (60, 2, 2, [])


def test_a_plan_that_promises_no_latency_is_remarked_on(tmp_path):
    parser = argparse.ArgumentParser()
    backtest_flags.add_arguments(parser)
    plan = plan_file(tmp_path, "plans: [{name: bare, concurrency: 3}]")
    trace = "synthetic:poisson?rate=1&duration=60"
    arguments = parser.parse_args(["--trace", trace, "--plan", str(plan)])
    stage = command._stage(
        arguments, command.make_frontend(arguments), command.read_traffic(arguments)
    )
    (note,) = stage.notes
    assert "promises neither TTFT nor TPOT" in note


# --- what is shipped -----------------------------------------------------------------------------


def test_beside_the_sources_the_shipped_rules_are_those_of_the_repository():
    found = command.shipped_rules()
    assert found.resolve() == Path(__file__).parents[2] / "rules"
    assert len(command._rules(None)) >= 4


def test_rules_that_are_missing_are_told(tmp_path, monkeypatch):
    package = tmp_path / "a" / "headroom_exporter"
    monkeypatch.setattr(headroom_exporter, "__file__", str(package / "__init__.py"))
    with pytest.raises(HeadroomError, match="shipped rules are missing; name yours with --rules"):
        command.shipped_rules()


def test_an_installed_package_brings_its_rules(tmp_path, monkeypatch):
    package = tmp_path / "site" / "headroom_exporter"
    (package / "backtest" / "shipped" / "alerts").mkdir(parents=True)
    monkeypatch.setattr(headroom_exporter, "__file__", str(package / "__init__.py"))
    assert command.shipped_rules() == package / "backtest" / "shipped"


def test_the_sidecar_imports_nothing_of_the_backtest():
    script = (
        "import sys; from headroom_exporter import cli; cli._parser(); import headroom_exporter.app;"
        "print([name for name in sys.modules if name.startswith('headroom_exporter.backtest.')"
        " or name in ('headroom_exporter.backtest', 'headroom_exporter.simulate.command')])"
    )
    source = str(Path(headroom_exporter.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_documentation_names_every_key_of_the_document():
    said = (Path(__file__).parents[2] / "docs" / "backtesting.md").read_text()
    found = document(report(firing()))
    keys = {*found, *found["users"], *found["score"], *found["traffic"], *found["alerts"][0]}
    keys |= {*found["users"]["minutes"][0], *found["users"]["breaches"][0], *found["rules"][0]}
    keys |= set(found["series"]["capacity"])
    # A rule's record is not the document's: severity stands in its labels.
    missing = {key for key in keys if not re.search(rf"`{key}[`\[.]", said)}
    assert missing == set()
