"""The rules of grafana/dashboard-linter, each as a test of the same name; exceptions in dashboards/.lint."""

from __future__ import annotations

import re

import pytest
import yaml

UIDS = ("headroom-fleet", "headroom-plan", "headroom-engine")
# Of Grafana's list of units, those that are used here and no others.
UNITS = {"short", "none", "string", "percentunit", "s", "bytes", "watt", "celsius", "reqps", "ops"}
SELECTOR = re.compile(r"[a-zA-Z_:][\w:]*\{[^}]*\}")
COUNTER = re.compile(r"(\w+)\(([a-z_]+_total)\{[^}]*\}\[|([a-z_]+_total)\{")

pytestmark = pytest.mark.parametrize("uid", UIDS)


def panels(document):
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def variables(document):
    return {each["name"]: each for each in document["templating"]["list"]}


def targets(document):
    return [(panel["title"], target) for panel in panels(document) for target in panel["targets"]]


def without(documents, root, uid, label):
    """Panels with a selector that does not follow the label's choice, and those that may be so."""
    document = documents[uid]
    found = {
        title
        for title, target in targets(document)
        for selector in SELECTOR.findall(target["expr"])
        if f'{label}=~"${label}"' not in selector
    }
    lint = yaml.safe_load((root / "grafana" / "dashboards" / ".lint").read_text())
    entries = lint["exclusions"][f"target-{label}-rule"]["entries"]
    return found, {each["panel"] for each in entries if each["dashboard"] == document["title"]}


def test_template_datasource_rule(documents, uid):
    (found,) = (each for each in variables(documents[uid]).values() if each["type"] == "datasource")
    assert (found["name"], found["label"], found["query"]) == (
        "datasource",
        "Data source",
        "prometheus",
    )


@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_rule_and_template_instance_rule(documents, uid, name):
    found = variables(documents[uid])[name]
    assert found["datasource"]["uid"] == "${datasource}"
    assert (found["type"], found["label"], found["multi"], found["allValue"]) == (
        "query",
        name.title(),
        True,
        ".+",
    )


def test_template_label_promql_rule(documents, uid):
    for name, found in variables(documents[uid]).items():
        if found["type"] == "query":
            assert re.fullmatch(rf"label_values\([a-z_]+(\{{.*\}})?, {name}\)", found["query"])


def test_template_on_time_change_reload_rule(documents, uid):
    found = [each for each in variables(documents[uid]).values() if each["type"] == "query"]
    assert [each["refresh"] for each in found] == [2] * len(found)


def test_panel_datasource_rule(documents, uid):
    for panel in panels(documents[uid]):
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


def test_panel_title_description_rule(documents, uid):
    for panel in panels(documents[uid]):
        assert panel["title"]
        assert panel["description"].endswith((".", ")", "?"))


def test_panel_units_rule(documents, uid):
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in panels(documents[uid])} <= UNITS


def test_panel_no_targets_rule(documents, uid):
    assert all(panel["targets"] for panel in panels(documents[uid]))


def test_target_rate_interval_rule(documents, uid):
    for title, target in targets(documents[uid]):
        ranges = re.findall(r"\b(?:rate|irate)\([^\[]*\[([^\]]*)\]", target["expr"])
        assert set(ranges) <= {"$__rate_interval"}, title


def test_target_counter_agg_rule(documents, uid):
    for title, target in targets(documents[uid]):
        for function, _, bare in COUNTER.findall(target["expr"]):
            assert not bare, title
            assert function in {"rate", "irate", "increase"}, title


@pytest.mark.parametrize("label", ["job", "instance"])
def test_target_job_rule_and_target_instance_rule(documents, root, uid, label):
    found, excepted = without(documents, root, uid, label)
    assert found == excepted


def test_uneditable_dashboard_rule(documents, uid):
    assert documents[uid]["editable"] is False
