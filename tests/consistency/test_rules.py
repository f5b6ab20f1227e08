"""The rules, their promtool tests, the catalog and the runbooks say the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from headroom_exporter.catalog import BY_NAME, Kind

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "rules"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
SEVERITIES = {"critical", "warning", "info"}
KINDS = ("fires: ", "stays silent: ", "data missing: ")

# Labels that the scrape adds; pod and node only where it runs on Kubernetes.
TARGET_LABELS = {"job", "instance", "cluster", "namespace", "pod", "node"}
# Read by dashboards only.
FOR_DASHBOARDS = ("engine:headroom_constraint:ratio_rate10m",)

OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "group_left", "group_right"}
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile", "group"}
TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*")|\[[^\]]*\]|(?P<name>[a-zA-Z_:][\w:]*)'
    r"|\d[\w.]*|(?P<sign>[{}()=,!~<>+*/%^@-])|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule as it stands in its file."""

    file: Path
    group: str
    name: str
    body: dict[str, Any]

    @property
    def expr(self) -> str:
        return str(self.body["expr"])


def files(folder: str) -> list[Path]:
    found = sorted((RULES / folder).glob("*.yaml"))
    assert found
    return found


def groups() -> list[tuple[Path, dict[str, Any]]]:
    return [
        (path, group)
        for path in files("recording") + files("alerts")
        for group in yaml.safe_load(path.read_text())["groups"]
    ]


def rules(kind: str) -> list[Rule]:
    return [
        Rule(file=path, group=group["name"], name=body[kind], body=body)
        for path, group in groups()
        for body in group["rules"]
        if kind in body
    ]


ALERTS = rules("alert")
RECORDED = rules("record")
NAMES = sorted({rule.name for rule in ALERTS})
each_alert_rule = pytest.mark.parametrize(
    "rule", ALERTS, ids=lambda rule: f"{rule.name}-{rule.body['labels']['severity']}"
)
each_alert = pytest.mark.parametrize("alert", NAMES)
each_recorded = pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: rule.name)


# --- reading PromQL ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Metrics that an expression reads, labels matched on each, labels it groups by."""

    metrics: frozenset[str]
    matched: frozenset[tuple[str, str]]
    grouped: frozenset[str]


def tokens(expr: str) -> list[str]:
    found, at = [], 0
    expr = re.sub(r"#.*", "", expr)
    while at < len(expr):
        match = TOKEN.match(expr, at)
        assert match, f"cannot read {expr[at:]!r}"
        if match.lastgroup:
            found.append(match[0])
        at = match.end()
    return found


def reads(expr: str) -> Reads:
    """Enough of PromQL for our rules: names, matchers in braces, label lists after by, on and the like."""
    words, metrics, matched, grouped = tokens(expr), set(), set(), set()
    inside = last = ""
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if word == "{":
            inside = last
        elif word == "}" or (word == ")" and inside == "("):
            inside = ""
        elif not re.match(r"[a-zA-Z_:]", word):
            continue
        elif word in GROUPING and following == "(":
            inside = "("
        elif inside == "(":
            grouped.add(word)
        elif inside:
            matched.add((inside, word))
        elif following != "(" and word not in OPERATORS | GROUPING | AGGREGATIONS:
            metrics.add(word)
            last = word
    return Reads(metrics=frozenset(metrics), matched=frozenset(matched), grouped=frozenset(grouped))


def labels_of(metric: str) -> set[str]:
    """
    All labels a metric may have; of a recorded one, those of what it is made of.

    Raises:
        KeyError: neither in the catalog nor recorded.
    """
    if metric == "up":
        return set(TARGET_LABELS)
    family = re.sub(r"_(bucket|count|sum)$", "", metric)
    spec = BY_NAME.get(family)
    if spec is not None and spec.kind == Kind.HISTOGRAM:
        if family == metric:
            raise KeyError(metric)
        return {*spec.labels, *TARGET_LABELS, *({"le"} if metric.endswith("_bucket") else ())}
    if metric in BY_NAME:
        return {*BY_NAME[metric].labels, *TARGET_LABELS}
    sources = [rule for rule in RECORDED if rule.name == metric]
    if not sources:
        raise KeyError(metric)
    own = {label for rule in sources for label in rule.body.get("labels", {})}
    read = {name for rule in sources for name in reads(rule.expr).metrics} - {metric}
    return own.union(*(labels_of(name) for name in read))


def unknown_in(expr: str) -> list[str]:
    """What an expression names that does not exist."""
    found, wrong, known = reads(expr), list[str](), set[str]()
    for metric in found.metrics:
        try:
            known |= labels_of(metric)
        except KeyError:
            wrong.append(metric)
    wrong += [
        f"{metric}{{{label}}}"
        for metric, label in found.matched
        if metric not in wrong and label not in labels_of(metric)
    ]
    return sorted(wrong) + sorted(found.grouped - known - TARGET_LABELS)


def queries(rule: Rule) -> list[str]:
    """Expressions in an alert's texts, each ``%q`` filled in."""
    texts = " ".join(map(str, rule.body.get("annotations", {}).values()))
    return [
        re.sub(r"%q", '"x"', expr)
        for expr in re.findall(r'printf "((?:[^"\\]|\\.)*)"[^}|]*\| query', texts)
    ]


# --- promtool ------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.fail("promtool is missing: install the Debian package prometheus", pytrace=False)
    return subprocess.run(
        [binary, *map(str, arguments)], capture_output=True, text=True, timeout=110
    )


def test_promtool_accepts_all_rules() -> None:
    done = promtool("check", "rules", *files("recording"), *files("alerts"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"SUCCESS: \d+ rules found", done.stdout)) == len(
        files("recording") + files("alerts")
    )


@each_alert
def test_promtool_tests_of_the_alert_pass(alert: str) -> None:
    done = promtool("test", "rules", RULES / "tests" / f"{alert}_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_queries_in_texts_are_promql(tmp_path: Path) -> None:
    found = sorted({expr for rule in ALERTS for expr in queries(rule)})
    assert found
    path = tmp_path / "queries.yaml"
    body = [{"record": f"query:{i}", "expr": expr} for i, expr in enumerate(found)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": body}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


# --- names ---------------------------------------------------------------------------------------


def test_a_name_that_does_not_exist_is_found() -> None:
    """The reader of PromQL above, on what it must not overlook."""
    assert unknown_in("headroom_runing_sequences > 1") == ["headroom_runing_sequences"]
    assert unknown_in("rate(headroom_demand_sequences[5m])") == ["headroom_demand_sequences"]
    assert unknown_in('headroom_plan_limit{dim="x"}') == ["headroom_plan_limit{dim}"]
    assert unknown_in("sum without (gpu) (headroom_ratio)") == ["gpu"]
    assert unknown_in("up and on (pod, rank) up unless engine:headroom_no:rate5m") == [
        "engine:headroom_no:rate5m",
        "rank",
    ]
    assert unknown_in('max by (le) (rate(headroom_demand_sequences_bucket{rank="0"}[5m]))') == []


@pytest.mark.parametrize("rule", RECORDED + ALERTS, ids=lambda rule: rule.name)
def test_every_metric_and_label_of_a_rule_exists(rule: Rule) -> None:
    assert reads(rule.expr).metrics
    assert [unknown_in(expr) for expr in (rule.expr, *queries(rule)) if unknown_in(expr)] == []


@each_recorded
def test_recorded_names_follow_level_metric_operations(rule: Rule) -> None:
    assert re.fullmatch(r"(rank|engine|model|instance):headroom_[a-z_]+:[a-z][a-z0-9_]*", rule.name)


def test_every_recorded_name_is_read() -> None:
    read = {
        name
        for rule in RECORDED + ALERTS
        for expr in (rule.expr, *queries(rule))
        for name in reads(expr).metrics
    }
    unread = {rule.name for rule in RECORDED} - read
    assert unread == set(FOR_DASHBOARDS)


@pytest.mark.parametrize("group", [group for _, group in groups()], ids=lambda g: g["name"])
def test_a_group_runs_more_often_than_prometheus_looks_back(group: dict[str, Any]) -> None:
    """Five minutes by default; a slower group's results are gone when the alerts look."""
    amount, unit = re.fullmatch(r"(\d+)([sm])", group["interval"]).groups()  # type: ignore[union-attr]
    assert int(amount) * {"s": 1, "m": 60}[unit] < 300


# --- what an alert must have ---------------------------------------------------------------------


@each_alert_rule
def test_an_alert_says_how_bad_what_and_where_to_read_on(rule: Rule) -> None:
    texts = rule.body["annotations"]
    assert set(texts) == {"summary", "description", "runbook_url", "dashboard"}
    assert set(rule.body["labels"]) == {"severity"}
    assert rule.body["labels"]["severity"] in SEVERITIES
    assert all(texts.values())
    assert texts["runbook_url"].endswith(f"/docs/runbooks/{rule.name}.md")
    assert texts["dashboard"].startswith("/d/headroom-")


@each_alert_rule
def test_a_summary_names_whom_it_concerns_and_does_not_move(rule: Rule) -> None:
    summary = rule.body["annotations"]["summary"]
    assert "$labels." in summary
    assert "$value" not in summary


def test_only_pages_are_critical() -> None:
    critical = {rule.file.name for rule in ALERTS if rule.body["labels"]["severity"] == "critical"}
    assert critical == {"pages.yaml"}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("Headroom*.md")) == NAMES


# --- what an alert's tests must have -------------------------------------------------------------


def cases(alert: str) -> list[dict[str, Any]]:
    found = yaml.safe_load((RULES / "tests" / f"{alert}_test.yaml").read_text())["tests"]
    assert isinstance(found, list)
    return found


def test_every_alert_has_a_test_file_and_every_test_file_an_alert() -> None:
    found = [path.name.removesuffix("_test.yaml") for path in files("tests")]
    assert sorted(found) == NAMES


@each_alert
def test_an_alert_is_tested_firing_silent_and_without_data(alert: str) -> None:
    names = [case["name"] for case in cases(alert)]
    assert len(set(names)) == len(names)
    assert [kind for kind in KINDS if not any(name.startswith(kind) for name in names)] == []


@each_alert_rule
def test_each_severity_of_an_alert_is_read_in_full(rule: Rule) -> None:
    """What a person reads at night was once read by a test, filled in."""
    read = [
        expected["exp_labels"]["severity"]
        for case in cases(rule.name)
        for check in case.get("alert_rule_test", [])
        for expected in check.get("exp_alerts", [])
        if expected.get("exp_annotations", {}).keys() == rule.body["annotations"].keys()
    ]
    assert rule.body["labels"]["severity"] in read


@each_alert
def test_no_case_is_without_a_check(alert: str) -> None:
    """And a case that fires or clears says so of the alert its file is named after."""
    for case in cases(alert):
        checks = case.get("promql_expr_test", []) + case.get("alert_rule_test", [])
        assert checks, case["name"]
        assert f"{alert}" in str(checks), case["name"]


def seconds(duration: str) -> int:
    found = re.findall(r"(\d+)([smhd])", str(duration))
    assert "".join(map("".join, found)) == str(duration)
    return sum(
        int(amount) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for amount, unit in found
    )


@each_alert
def test_cases_look_when_rules_are_evaluated(alert: str) -> None:
    """Between two evaluations ``ALERTS`` may be empty, and silence proven by nothing."""
    path = RULES / "tests" / f"{alert}_test.yaml"
    interval = seconds(yaml.safe_load(path.read_text())["evaluation_interval"])
    times = [
        check["eval_time"]
        for case in cases(alert)
        for check in case.get("promql_expr_test", []) + case.get("alert_rule_test", [])
    ]
    assert [time for time in times if seconds(time) % interval] == []
