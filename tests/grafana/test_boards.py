"""The committed boards: what the code writes, of Grafana's types, in step with alerts and catalog."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from headroom_boards.layout import fit
from headroom_boards.model import Kind, Metrics, Query
from headroom_boards.names import check, limit_in_alert

from headroom_exporter.errors import HeadroomError

UIDS = ("headroom-fleet", "headroom-plan", "headroom-engine")
# What a threshold may be: a value that means the same under every plan, or a number out of an alert.
MEANINGFUL = {None, 0.0, 1.0}


def build(root, *arguments):
    return subprocess.run(
        [sys.executable, str(root / "grafana" / "build.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_committed_files_are_what_the_code_writes(root):
    done = build(root, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_that_differs_is_shown_and_fails_the_check(root, tmp_path):
    assert build(root, "--folder", str(tmp_path)).returncode == 0
    changed = tmp_path / "headroom-plan.json"
    changed.write_text(changed.read_text().replace('"refresh": "30s"', '"refresh": "1s"'))
    done = build(root, "--check", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert '-  "refresh": "1s"' in done.stdout
    assert "is out of date: run python grafana/build.py" in done.stderr


def test_a_board_that_is_left_over_fails_the_check(root, tmp_path):
    assert build(root, "--folder", str(tmp_path)).returncode == 0
    (tmp_path / "old.json").write_text("{}\n")
    assert build(root, "--check", "--folder", str(tmp_path)).returncode == 1


def lost(before, after, path=""):
    """What stands in one document and not, or otherwise, in another; additions do not count."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{path}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, f"{path}[]")
    elif before != after:
        yield path


@pytest.mark.parametrize("uid", UIDS)
def test_grafanas_types_read_the_board_and_lose_nothing(documents, uid):
    plugins.register_default_plugins()
    document = documents[uid]
    again = json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))
    # Grafana's Prometheus plugin knows these two, the SDK does not.
    annotation = "/annotations/list[]"
    assert set(lost(document, again)) == {f"{annotation}/titleFormat", f"{annotation}/textFormat"}


@pytest.mark.parametrize(
    "expr",
    [
        "headroom_no_such_thing",
        "rate(headroom_no_such_thing_total{job=~'x'}[1m])",
        "engine:headroom_use:ratio7m",
        "headroom_demand_sequences_total",
        "vllm_up{}",
    ],
)
def test_a_metric_that_nobody_exports_or_records_cannot_be_put_on_a_board(expr):
    with pytest.raises(HeadroomError, match="allowed: names of catalog"):
        Query(expr=expr, expects=(1, 1))


def test_names_in_label_values_are_no_metrics():
    assert check('headroom_state{state="headroom_x:y"}')


def test_a_selector_follows_only_the_choices_that_its_metric_has():
    chosen = Metrics(chosen=("job", "engine", "rank"))
    assert chosen("headroom_state", state="ok") == (
        'headroom_state{job=~"$job", engine=~"$engine", rank=~"$rank", state="ok"}'
    )
    assert chosen("headroom_gpu_power_watts") == 'headroom_gpu_power_watts{job=~"$job"}'
    assert chosen("model:headroom_demand_sequences:sum5m") == (
        "model:headroom_demand_sequences:sum5m{}"
    )


def test_a_number_that_an_alert_no_longer_has_is_an_error():
    with pytest.raises(HeadroomError, match="stands 0 times"):
        limit_in_alert("HeadroomBudgetBurn", "[77h]) >")
    with pytest.raises(HeadroomError, match="HeadroomNoSuch: allowed: an alert"):
        limit_in_alert("HeadroomNoSuch", ">")


def test_every_link_of_an_alert_leads_to_a_board_and_a_choice_it_has(root, documents):
    links = set()
    for path in sorted((root / "rules" / "alerts").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            links |= {rule["annotations"]["dashboard"] for rule in group["rules"]}
    assert links
    for link in links:
        uid, *choices = re.findall(r"/d/([\w-]+)|var-(\w+)=", link)
        variables = {each["name"] for each in documents[uid[0]]["templating"]["list"]}
        assert {name for _, name in choices} <= variables, link


def test_every_link_of_a_board_leads_to_a_board_and_a_choice_it_has(documents):
    for document in documents.values():
        text = json.dumps(document)
        for uid, rest in re.findall(r"/d/([\w-]+)([^\"]*)\"", text):
            variables = {each["name"] for each in documents[uid]["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", rest)) <= variables
        titles = {link["title"] for link in document["links"]}
        assert len(titles) == 3
        assert "Runbooks" in titles


@pytest.mark.parametrize("uid", UIDS)
def test_titles_ask_and_no_two_are_the_same(boards, uid):
    titles = [panel.title for panel in boards[uid].panels]
    assert len(set(titles)) == len(titles)
    assert all(re.search(r"\?( \(.*\))?$", title) for title in titles)


@pytest.mark.parametrize("uid", UIDS)
def test_a_title_fits_above_its_panel(boards, uid):
    # Some 8 characters a column, on a screen of 1,600 pixels.
    long = [panel.title for panel in boards[uid].panels if len(panel.title) > 8 * panel.width]
    assert long == []


@pytest.mark.parametrize("uid", UIDS)
def test_a_panel_over_time_asks_no_more_often_than_rules_record(documents, uid):
    for panel in documents[uid]["panels"]:
        over_time = any(target.get("range") for target in panel.get("targets", []))
        assert panel.get("interval") in ({"30s", "120s"} if over_time else {None})


@pytest.mark.parametrize("uid", UIDS)
def test_thresholds_mean_the_same_under_every_plan_or_come_from_an_alert(boards, uid):
    allowed = MEANINGFUL | {
        limit_in_alert("HeadroomBatchingStalled", ") <"),
        limit_in_alert("HeadroomBudgetBurn", "[1h]) / 120 >") / 0.01,
        limit_in_alert("HeadroomBudgetBurn", "[6h]) / 720 >") / 0.01,
        0.05,  # what a 95th percentile leaves
    }
    for panel in boards[uid].panels:
        steps = [*panel.steps, *(step for query in panel.queries for step in query.steps)]
        assert {value for value, _ in steps} <= allowed, panel.title


@pytest.mark.parametrize("uid", UIDS)
def test_nothing_is_filled_with_zeros_and_gaps_stay_gaps(documents, uid):
    for panel in documents[uid]["panels"]:
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        assert "nullValueMode" not in defaults
        assert defaults.get("custom", {}).get("spanNulls", False) is False
        for target in panel.get("targets", []):
            assert "vector(" not in target["expr"]


@pytest.mark.parametrize("uid", UIDS)
def test_what_has_no_value_says_so(boards, uid):
    for panel in boards[uid].panels:
        if panel.kind is not Kind.TABLE:
            assert panel.no_value not in {"", "0"}, panel.title


@pytest.mark.parametrize("uid", UIDS)
def test_panels_have_their_own_ids_lie_inside_the_grid_and_do_not_overlap(documents, uid):
    panels = documents[uid]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = []
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        lines = range(place["y"], place["y"] + place["h"])
        cells.append({(x, y) for x in columns for y in lines})
    assert not any(one & other for one, other in combinations(cells, 2))


def test_a_panel_takes_the_highest_place_that_is_wide_enough(boards):
    panel = boards["headroom-fleet"].panels[0]
    skyline = [5] * 4 + [1] * 3 + [2] * 17
    place = fit(panel, skyline)
    assert (place.x, place.y, panel.width) == (4, 2, 4)
    assert skyline == [5] * 4 + [2 + panel.height] * 4 + [2] * 16


def test_provisioning_names_the_folder_of_the_boards_and_the_default_data_source(root):
    folder = root / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].endswith("/headroom")
    assert provider["allowUiUpdates"] is False
    (source,) = yaml.safe_load((folder / "datasources.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    # Grafana makes $__rate_interval of it: four scrapes.
    assert source["jsonData"]["timeInterval"] == "15s"
