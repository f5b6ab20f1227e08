"""The chart's rules: rules/ itself by default, changed where values say so, and never silently not."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from helm_python import HelmError

from deploy import helm
from deploy.chart_scenes import EVERYTHING
from deploy.manifests import only

RULES = helm.ROOT / "rules"
SHIPPED = {
    "recording": RULES / "recording" / "headroom.yaml",
    **{path.stem: path for path in (RULES / "alerts").glob("*.yaml")},
}
THRESHOLDS = yaml.safe_load((helm.CHART / "files" / "thresholds.yaml").read_text(encoding="utf-8"))
VALUES = {key for key in THRESHOLDS if not key.startswith("alerts.")}


def groups(**rules):
    """Part (recording, pages ...) -> its groups, as the chart renders them."""
    found = helm.manifests({"rules": {"enabled": True, **rules}})
    return {
        each["metadata"]["name"].removeprefix("headroom-exporter-"): each["spec"]["groups"]
        for each in found
        if each["kind"] == "PrometheusRule"
    }


def shipped():
    return {
        part: yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for part, path in SHIPPED.items()
    }


def alerts(found):
    """(group, alert, its number among those of one name) -> rule."""
    seen: dict[str, int] = {}
    every = {}
    for part in found.values():
        for group in part:
            for rule in group["rules"]:
                if "alert" in rule:
                    name = rule["alert"]
                    every[group["name"], name, seen.setdefault(name, 0)] = rule
                    seen[name] += 1
    return every


def changed(**rules):
    """Alert -> {field: (shipped, rendered)} for each that differs from rules/."""
    before, after = alerts(shipped()), alerts(groups(**rules))
    differences = {}
    for key in before.keys() | after.keys():
        old, new = flat(before.get(key)), flat(after.get(key))
        fields = {
            field: (old.get(field), new.get(field))
            for field in old.keys() | new.keys()
            if old.get(field) != new.get(field)
        }
        if fields:
            differences.setdefault(key[1], {}).update(fields)
    return differences


def flat(rule):
    if rule is None:
        return {}
    return {
        f"{key}.{name}" if name else key: text
        for key, value in rule.items()
        for name, text in (value.items() if isinstance(value, dict) else [("", value)])
    }


# --- by default -------------------------------------------------------------------------------------


def test_by_default_the_rules_are_the_shipped_ones():
    assert groups() == shipped()


def test_the_charts_copies_are_the_shipped_files_to_the_byte():
    for path in SHIPPED.values():
        copy = helm.CHART / "files" / "rules" / path.relative_to(RULES)
        assert copy.read_bytes() == path.read_bytes()


def test_off_is_off():
    assert not [each for each in helm.manifests() if each["kind"] == "PrometheusRule"]


def promtool(folder, files):
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tool = shutil.which("promtool")
    assert tool, "promtool is missing; Debian package: prometheus"
    return subprocess.run(
        [tool, "check", "rules", *map(str, sorted(folder.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "given", ["rules: {enabled: true}", EVERYTHING], ids=["default", "everything"]
)
def test_promtool_accepts_what_is_rendered(given, tmp_path):
    found = [each for each in helm.manifests(given) if each["kind"] == "PrometheusRule"]
    assert len(found) == 4
    done = promtool(
        tmp_path,
        {f"{each['metadata']['name']}.yaml": yaml.safe_dump(each["spec"]) for each in found},
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout + done.stderr


def test_rule_files_in_config_maps_are_the_same_rules(tmp_path):
    found = helm.manifests({"rules": {"enabled": True, "kind": "configMap"}})
    data = {
        key: text
        for each in found
        if each["kind"] == "ConfigMap"
        for key, text in each["data"].items()
        if key.startswith("headroom-")
    }
    assert {
        key.removeprefix("headroom-").removesuffix(".yaml"): yaml.safe_load(text)["groups"]
        for key, text in data.items()
    } == shipped()
    done = promtool(tmp_path, data)
    assert done.returncode == 0, done.stderr


# --- what can be switched off -----------------------------------------------------------------------


def test_every_group_has_a_switch_and_every_switch_a_group():
    names = [group["name"] for part in shipped().values() for group in part]
    assert sorted(helm.default_values()["rules"]["groups"]) == sorted(names)


@pytest.mark.parametrize("name", helm.default_values()["rules"]["groups"])
def test_a_group_is_switched_off_alone(name):
    expected = {
        part: [group for group in found if group["name"] != name]
        for part, found in shipped().items()
    }
    expected = {part: found for part, found in expected.items() if found}
    assert groups(groups={name: False}) == expected


@pytest.mark.parametrize("name", sorted({key[1] for key in alerts(shipped())}))
def test_an_alert_is_switched_off_alone(name):
    gone = alerts(shipped()).keys() - alerts(groups(alerts={name: {"enabled": False}})).keys()
    assert {key[1] for key in gone} == {name}
    assert groups(alerts={name: {"enabled": False}})["recording"] == shipped()["recording"]


def test_a_group_without_an_alert_left_is_no_group():
    every = {
        rule["alert"]: {"enabled": False} for group in shipped()["pages"] for rule in group["rules"]
    }
    assert "pages" not in groups(alerts=every)


# --- what can be changed ----------------------------------------------------------------------------


def test_for_severity_and_labels_of_one_alert():
    given = {
        "HeadroomGpuThrottled": {
            "for": "1h",
            "keepFiringFor": "2h",
            "severity": "info",
            "labels": {"team": "hardware"},
        }
    }
    assert changed(alerts=given, alertLabels={}) == {
        "HeadroomGpuThrottled": {
            "for": ("10m", "1h"),
            "keep_firing_for": ("1h", "2h"),
            "labels.severity": ("warning", "info"),
            "labels.team": (None, "hardware"),
        }
    }


def test_a_name_of_two_rules_changes_both():
    rules = alerts(groups(alerts={"HeadroomExporterStale": {"for": "20m"}}))
    assert [rule["for"] for key, rule in rules.items() if key[1] == "HeadroomExporterStale"] == [
        "20m",
        "20m",
    ]


def test_the_page_about_a_dead_engine_tells_the_time_it_waits():
    found = changed(alerts={"HeadroomEngineDown": {"for": "30m"}})["HeadroomEngineDown"]
    assert found["for"] == ("15m", "30m")
    old, new = found["annotations.description"]
    assert "more than a quarter of an hour" in old
    assert "There has been no usable answer for more than 30m. First:" in new


def test_labels_for_routing_are_on_every_alert_and_the_alerts_own_win():
    rules = alerts(
        groups(
            alertLabels={"team": "inference", "page": "yes"},
            alerts={"HeadroomExhausted": {"labels": {"team": "platform"}}},
        )
    )
    for key, rule in rules.items():
        assert rule["labels"]["page"] == "yes"
        expected = "platform" if key[1] == "HeadroomExhausted" else "inference"
        assert rule["labels"]["team"] == expected
        assert rule["labels"]["severity"]


@pytest.mark.parametrize("base", ["https://wiki.example.com/r", "https://wiki.example.com/r/"])
def test_runbooks_and_boards_are_linked_where_they_are(base):
    rules = alerts(groups(runbookBaseUrl=base, dashboardBaseUrl="https://grafana.example.com/"))
    for key, rule in rules.items():
        assert rule["annotations"]["runbook_url"] == f"https://wiki.example.com/r/{key[1]}.md"
        assert rule["annotations"]["dashboard"].startswith(
            "https://grafana.example.com/d/headroom-"
        )


# --- thresholds -------------------------------------------------------------------------------------


def test_every_threshold_of_the_values_has_its_place_and_the_same_default():
    assert helm.default_values()["rules"]["thresholds"] == {
        key: THRESHOLDS[key]["default"] for key in VALUES
    }
    for key in THRESHOLDS.keys() - VALUES:
        _, alert, field = key.split(".")
        (rule,) = (rule for each, rule in alerts(shipped()).items() if each[1] == alert)
        assert rule[field] == THRESHOLDS[key]["default"]


# Another value -> every piece of text that then differs, (alert, field) -> {old: new}.
CHANGES = {
    "exhaustedBudgetRatio": (
        0.02,
        {
            ("HeadroomBudgetBurn", "expr"): {
                "engine:headroom_exhausted:ratio_rate5m > 0.35": (
                    "engine:headroom_exhausted:ratio_rate5m > 0.7"
                ),
                "/ 120 > 0.144": "/ 120 > 0.288",
                "and engine:headroom_exhausted:ratio_rate5m > 0.144": (
                    "and engine:headroom_exhausted:ratio_rate5m > 0.288"
                ),
                "/ 720 > 0.06": "/ 720 > 0.12",
                "[30m]) > 0.06": "[30m]) > 0.12",
                "engine:headroom_exhausted:ratio_rate5m > 0.1\n": (
                    "engine:headroom_exhausted:ratio_rate5m > 0.2\n"
                ),
            }
        },
    ),
    "busyUseRatio": (0.9, {("HeadroomBudgetBurn", "expr"): {"<= 0.8": "<= 0.9"}}),
    "rejectedRatio": (
        0.05,
        {("HeadroomExhausted", "expr"): {"ratio_rate5m > 0.01": "ratio_rate5m > 0.05"}},
    ),
    "lowBudgetRatio": (
        0.005,
        {
            ("HeadroomBudgetBurnSlow", "expr"): {
                "[1d]) > 0.03": "[1d]) > 0.015",
                "[2h]) > 0.03": "[2h]) > 0.015",
                "[3d]) > 0.01": "[3d]) > 0.005",
                "[6h]) > 0.01": "[6h]) > 0.005",
            },
            ("HeadroomBudgetBurnSlow", "annotations.description"): {
                "the budget is 1 %": "the budget is 0.5 %"
            },
        },
    ),
    "planExceededRatio": (1.25, {("HeadroomPlanOutgrown", "expr"): {"> 1": "> 1.25"}}),
    "planOversizedRatio": (0.1, {("HeadroomPlanOversized", "expr"): {"< 0.25": "< 0.1"}}),
    "promptsOverPlanRatio": (0.2, {("HeadroomPromptsOutgrewPlan", "expr"): {"> 0.075": "> 0.2"}}),
    "forecastDays": (
        30,
        {
            ("HeadroomExhaustionForecast", "expr"): {"< 14": "< 30"},
            ("HeadroomExhaustionForecast", "annotations.summary"): {
                "within two weeks": "within 30 days"
            },
        },
    ),
    "preemptionsPerRequest": (0.5, {("HeadroomPreemptions", "expr"): {"> 0.1": "> 0.5"}}),
    "gpuMemoryForeignBytes": (
        4000000000,
        {("HeadroomGpuMemoryForeign", "expr"): {"> 5e8": "> 4e+09"}},
    ),
    "gpuMemoryForeignRatio": (0.1, {("HeadroomGpuMemoryForeign", "expr"): {"> 0.02": "> 0.1"}}),
    "gpuThrottledRatio": (0.75, {("HeadroomGpuThrottled", "expr"): {"> 0.5": "> 0.75"}}),
}


def test_every_threshold_is_changed_once_here():
    assert CHANGES.keys() == VALUES


@pytest.mark.parametrize("key", CHANGES)
def test_a_threshold_changes_its_numbers_and_nothing_else(key, tmp_path):
    value, texts = CHANGES[key]
    expected: dict[str, dict[str, tuple[str, str]]] = {}
    before = {each[1]: flat(rule) for each, rule in alerts(shipped()).items()}
    for (alert, field), pieces in texts.items():
        old = new = before[alert][field]
        for piece, other in pieces.items():
            assert piece in new
            new = new.replace(piece, other)
        expected.setdefault(alert, {})[field] = (old, new)
    assert changed(thresholds={key: value}) == expected
    done = promtool(
        tmp_path,
        {
            f"{part}.yaml": yaml.safe_dump({"groups": found})
            for part, found in groups(thresholds={key: value}).items()
        },
    )
    assert done.returncode == 0, done.stderr


def test_no_edit_reaches_into_a_longer_number():
    for key, threshold in THRESHOLDS.items():
        for edit in threshold["edits"]:
            rules = [rule for each, rule in alerts(shipped()).items() if each[1] == edit["alert"]]
            for rule in rules:
                text = rule["expr"] if edit["in"] == "expr" else rule["annotations"][edit["in"]]
                for found in re.finditer(re.escape(edit["from"]), text):
                    rest = text[found.end() :][:1]
                    ends_in_number = edit["from"][-1].isdigit()
                    assert not (ends_in_number and re.match(r"[0-9.eE]", rest)), (key, edit["from"])


def test_a_default_says_in_values_what_the_rule_says():
    """``from`` is ``to`` with the default in it, or a text in words."""
    for key, threshold in THRESHOLDS.items():
        for edit in threshold["edits"]:
            if edit["in"] != "expr":
                continue
            (number,) = re.findall(
                re.escape(edit["to"]).replace(re.escape("{}"), "([0-9.e]+)"), edit["from"]
            )
            assert float(number) == pytest.approx(threshold["default"] * edit.get("factor", 1)), key


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("> 0.35\n", "> 0.4\n", "exhaustedBudgetRatio"),
        ("<= 0.8\n", "<= 0.80\n", "busyUseRatio"),
        ("alert: HeadroomExhausted\n", "alert: HeadroomFull\n", "HeadroomExhausted"),
        ("name: headroom-pages\n", "name: headroom-urgent\n", "headroom-urgent"),
        ("blob/main/docs/runbooks/HeadroomEngineDown", "x/HeadroomEngineDown", "runbookBaseUrl"),
        ("for more than a quarter of an hour, longer", "for a while, longer", "HeadroomEngineDown"),
    ],
)
def test_a_rule_that_was_reworded_stops_the_rendering(old, new, said, tmp_path):
    chart = tmp_path / "headroom-exporter"
    shutil.copytree(helm.CHART, chart)
    path = chart / "files" / "rules" / "alerts" / "pages.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text.replace("            ", "")
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(HelmError, match=said):
        helm.manifests({"rules": {"enabled": True}}, path=chart)


def test_the_monitors_interval_cannot_be_slower_than_the_rules_windows():
    for interval, allowed in {"1s": True, "30s": True, "31s": False, "1m": False}.items():
        given = {"monitoring": {"kind": "podMonitor", "interval": interval}}
        if allowed:
            endpoints = only(helm.manifests(given), "PodMonitor")["spec"]["podMetricsEndpoints"]
            assert endpoints[0]["interval"] == interval
        else:
            with pytest.raises(HelmError, match="/monitoring/interval"):
                helm.manifests(given)
