"""
A page on its way: simulated engines, the exporter, a real Prometheus and Alertmanager, a webhook.

All with the shipped files. Their durations are divided by pager.stack.FACTOR, so that fifteen minutes of
waiting take half a minute; a second Prometheus loads them untouched beside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import HTTPError

import pytest
import yaml

from headroom_exporter.simulate.profiles import find
from pager.compress import DURATION_KEYS, document, leaves, milliseconds
from pager.engine import Engine
from pager.processes import Process, program
from pager.shapes import Shapes
from pager.stack import (
    FACTOR,
    SHIPPED_ALERTMANAGER,
    SHIPPED_PROMETHEUS,
    SHIPPED_RULES,
    TOKEN,
    PagerPath,
    Prometheus,
    Watched,
    alertmanager,
    shipped_prometheus,
)
from pager.webhook import Notification, Webhook, as_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

# Far more than any of it takes on an idle machine.
WAIT_SECONDS = 240.0
pytestmark = pytest.mark.timeout(900)

# Slots bind: 8 of them, and a cache for many more.
PROFILE = replace(find("tiny-cpu"), max_num_seqs=8, num_gpu_blocks=400)
CALM, OVERLOAD = 2, 40
PLAN = {
    "concurrency": 6,
    # Else the exporter infers them from five seconds of a full house: an age, where two minutes are four
    # seconds.
    "max_num_seqs": 8,
    "slo": {"ttft_p95_seconds": 0.5, "tpot_p95_seconds": 0.05},
}
# What the live deployment is not, for rules that join what it does not have.
OTHER_SHAPES = ("two_ranks", "eight_gpus", "mig", "everything_known", "one_of_two_down", "no_gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """
    What happened: engine ``full`` was overloaded and recovered, ``gone`` was killed and came back.

    Attributes:
        calm: Notifications before any of it.
        page: The first page about ``full``; ``resolved`` is its end.
        held_back: HeadroomBudgetBurn of ``full`` as Alertmanager kept it while that page stood.
        down: The page about ``gone``; ``up`` is its end.
        notifications: All, in order.
        compressed: Rules with their health in the Prometheus that sent all this.
        shipped: The same of the one that loaded the files untouched.
        refused: Expressions the latter could not evaluate, with its words.
    """

    calm: list[Notification]
    page: Notification
    held_back: dict[str, Any]
    resolved: Notification
    down: Notification
    up: Notification
    notifications: list[Notification]
    compressed: list[dict[str, Any]]
    shipped: list[dict[str, Any]]
    refused: dict[str, str]


# --- the story -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("pager")
    with ExitStack() as stack:
        full = stack.enter_context(Engine(PROFILE, clients=CALM))
        gone = stack.enter_context(Engine(PROFILE, clients=CALM))
        engines = [Watched(name="full", url=full.url), Watched(name="gone", url=gone.url)]
        path = stack.enter_context(PagerPath(directory, engines, PLAN))
        shapes = stack.enter_context(Shapes(OTHER_SHAPES))
        shipped = stack.enter_context(
            shipped_prometheus(directory / "shipped", path.exporter.address, shapes)
        )
        until(lambda: calmly_measured(path.prometheus), "both engines measured")
        calm = path.webhook.notifications

        gone.stop()
        full.crowd.clients = OVERLOAD
        page = path.webhook.wait(lambda each: pages(each, "HeadroomExhausted"), WAIT_SECONDS)
        held_back = until(
            lambda: held(path.alertmanager, "HeadroomBudgetBurn"), "a second page held back"
        )
        full.crowd.clients = CALM
        down = path.webhook.wait(lambda each: pages(each, "HeadroomEngineDown"), WAIT_SECONDS)
        stack.enter_context(Engine(PROFILE, clients=CALM, port=gone.port))
        resolved = path.webhook.wait(lambda each: ends(each, page), WAIT_SECONDS)
        up = path.webhook.wait(lambda each: ends(each, down), WAIT_SECONDS)
        until(lambda: evaluated(shipped), "every fast group of the shipped rules evaluated")
        return Story(
            calm=calm,
            page=page,
            held_back=held_back,
            resolved=resolved,
            down=down,
            up=up,
            notifications=path.webhook.notifications,
            compressed=path.prometheus.rules(),
            shipped=shipped.rules(),
            refused=refused(shipped),
        )


def until(look: Callable[[], T | None], what: str) -> T:
    """Look again and again until there is something."""
    end = time.monotonic() + WAIT_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < end, f"not {what} within {WAIT_SECONDS} s"
        time.sleep(0.2)
    return found


def calmly_measured(prometheus: Prometheus) -> bool | None:
    """Both engines have shown for a while that they have headroom."""
    found = prometheus.query(
        "min_over_time(headroom_ratio[10s]) > 0 and count_over_time(headroom_ratio[10s]) > 15"
    )
    return True if found.keys() == {"full", "gone"} else None


def pages(notification: Notification, alert: str) -> bool:
    return notification.receiver == "pager" and alert in notification.names("firing")


def ends(notification: Notification, page: Notification) -> bool:
    """It is the last word on the incident that the page opened."""
    body = notification.body
    return body["groupKey"] == page.body["groupKey"] and body["status"] == "resolved"


def held(process: Process, alert: str) -> dict[str, Any] | None:
    """The alert, where Alertmanager has it and keeps it from being sent."""
    found = json.loads(process.get(f"/api/v2/alerts?filter=alertname={alert}&inhibited=true"))
    return next((each for each in found if each["status"]["inhibitedBy"]), None)


def evaluated(prometheus: Prometheus) -> bool | None:
    """Slow groups may take minutes to begin; their expressions are tried by ``refused``."""
    groups = prometheus.api("rules")["groups"]
    fast = [group for group in groups if group["interval"] <= 60]
    assert len(fast) >= 4
    done = all(not group["lastEvaluation"].startswith("0001") for group in fast)
    return True if done and prometheus.query("up{instance='mig'}") else None


def refused(prometheus: Prometheus) -> dict[str, str]:
    words = {}
    for rule in prometheus.rules():
        try:
            prometheus.query(rule["query"])
        except HTTPError as error:
            words[rule["name"]] = error.read().decode()
    return words


# --- what arrived --------------------------------------------------------------------------------


def test_calm_traffic_wakes_nobody(story: Story) -> None:
    assert [each.names("firing") for each in story.calm if each.receiver == "pager"] == []


def test_an_overload_pages_with_engine_model_severity_and_cluster(story: Story) -> None:
    (alert,) = story.page.alerts("firing")
    labels = dict(alert["labels"])
    assert labels.pop("instance").startswith("127.0.0.1:")
    assert labels == {
        "alertname": "HeadroomExhausted",
        "cluster": "one",
        "engine": "full",
        "job": "headroom-exporter",
        "model_name": "tiny",
        "severity": "critical",
    }
    assert story.page.body["groupLabels"] == {"cluster": "one", "model_name": "tiny"}


def test_the_page_says_what_binds_and_where_to_read_on(story: Story) -> None:
    (alert,) = story.page.alerts("firing")
    summary = alert["annotations"]["summary"]
    assert "full" in summary
    assert "tiny" in summary
    assert re.search(r"\bslots\b", summary), summary
    assert alert["annotations"]["runbook_url"].endswith("/HeadroomExhausted.md")


def test_every_text_is_rendered_whole(story: Story) -> None:
    """The templates run queries: one that fails leaves its error or a hole in the text."""
    texts = [
        text
        for notification in story.notifications
        for alert in notification.body["alerts"]
        for text in alert["annotations"].values()
    ]
    assert texts
    for text in texts:
        assert not re.search(r"<error|<no value>|<nil>|%!|NaN|Inf\b|\{\{|\}\}|\(\)|  ", text), text


def test_users_waiting_is_one_page_and_not_two(story: Story) -> None:
    """The budget burns meanwhile as well; it is held back by the page that stands."""
    assert story.held_back["labels"]["engine"] == "full"
    before = story.notifications[: story.notifications.index(story.resolved)]
    both = {"HeadroomExhausted", "HeadroomBudgetBurn"}
    assert not any(both <= each.names("firing") for each in before)
    about = {each.body["groupKey"] for each in story.notifications if both & each.names("firing")}
    assert about == {story.page.body["groupKey"]}


def test_recovery_resolves_the_page(story: Story) -> None:
    assert story.resolved.receiver == "pager"
    assert story.resolved.names("firing") == set()
    reported = {
        name
        for each in story.notifications
        if each.body["groupKey"] == story.page.body["groupKey"]
        for name in each.names("resolved")
    }
    assert "HeadroomExhausted" in reported


def test_a_dead_engine_pages_and_resolves_when_it_answers_again(story: Story) -> None:
    (alert,) = story.down.alerts("firing")
    assert alert["labels"]["engine"] == "gone"
    assert "gone" in alert["annotations"]["summary"]
    assert story.up.names("resolved") == {"HeadroomEngineDown"}


def test_the_receiver_is_called_with_its_own_token_from_a_file(story: Story) -> None:
    for each in story.notifications:
        assert each.authorization == "Bearer " + TOKEN.format(receiver=each.receiver)


def test_a_page_fits_a_short_message_and_says_what_to_do_first(story: Story) -> None:
    print("\n".join(as_read(each) for each in story.notifications))  # for people: pytest -s
    for page in (story.page, story.down):
        for alert in page.alerts("firing"):
            assert len(alert["annotations"]["summary"]) <= 160
            assert "First: " in alert["annotations"]["description"]


# --- the rules on live data ----------------------------------------------------------------------


def test_no_rule_fails_on_live_data(story: Story) -> None:
    failed = {
        rule["name"]: rule["lastError"]
        for rule in story.compressed + story.shipped
        if rule["health"] == "err"
    }
    assert failed == {}
    assert story.refused == {}


def test_every_rule_of_the_compressed_files_was_evaluated(story: Story) -> None:
    assert {rule["health"] for rule in story.compressed} == {"ok"}
    assert len(story.compressed) == len(story.shipped) > 40


# --- the files -----------------------------------------------------------------------------------

DURATION = re.compile(r"\b(?:\d+(?:ms|[smhdwy]))+\b")


@pytest.mark.parametrize(
    "file", [*SHIPPED_RULES, SHIPPED_PROMETHEUS, SHIPPED_ALERTMANAGER], ids=lambda file: file.name
)
def test_compressing_time_changes_durations_and_nothing_else(file: Path) -> None:
    shipped = yaml.safe_load(file.read_text(encoding="utf-8"))
    before = list(leaves(shipped))
    after = list(leaves(document(shipped, FACTOR)))
    assert [keys for keys, _ in before] == [keys for keys, _ in after]
    changed = 0
    for (keys, old), (_, new) in zip(before, after, strict=True):
        if keys[-1] not in DURATION_KEYS | {"expr"}:
            assert new == old, keys
            continue
        assert DURATION.sub("DURATION", new) == DURATION.sub("DURATION", old), keys
        pairs = list(zip(DURATION.findall(old), DURATION.findall(new), strict=True))
        assert [milliseconds(b) * FACTOR for _, b in pairs] == [milliseconds(a) for a, _ in pairs]
        changed += len(pairs)
    assert changed


def alerts_of_the_rules() -> list[tuple[str, str]]:
    """Every alert with its severity."""
    groups = [
        group
        for file in SHIPPED_RULES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    return sorted(
        {
            (rule["alert"], rule["labels"]["severity"])
            for group in groups
            for rule in group["rules"]
            if "alert" in rule
        }
    )


RECEIVERS = {"critical": "pager", "warning": "tickets", "info": "review"}


def test_amtool_finds_the_configuration_sound() -> None:
    amtool("check-config", str(SHIPPED_ALERTMANAGER))


def amtool(*arguments: str) -> None:
    done = subprocess.run([program("amtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_scrape_configuration_sound_and_every_rule_file_loaded() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(SHIPPED_PROMETHEUS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHIPPED_RULES)} rule files found" in done.stdout


@pytest.mark.parametrize(("alert", "severity"), alerts_of_the_rules())
def test_an_alert_goes_where_its_severity_says(alert: str, severity: str) -> None:
    command = ["config", "routes", "test", "--config.file", str(SHIPPED_ALERTMANAGER)]
    command += [f"--verify.receivers={RECEIVERS[severity]}"]
    amtool(*command, f"alertname={alert}", f"severity={severity}", "model_name=m")


def test_an_unknown_alert_wakes_nobody_and_is_not_lost() -> None:
    command = ["config", "routes", "test", "--config.file", str(SHIPPED_ALERTMANAGER)]
    amtool(*command, "--verify.receivers=tickets", "alertname=Other", "severity=critical")


# --- who is muted by whom ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An Alertmanager with the shipped file that nothing is connected to."""
    directory = tmp_path_factory.mktemp("quiet")
    with Webhook() as webhook, alertmanager(directory, webhook) as process:
        yield process


SEVERITIES = dict(reversed(alerts_of_the_rules()))
ENGINE = {"engine": "e", "model_name": "m"}
GPU = {"gpu": "0"}


def test_every_alert_named_in_the_configuration_exists() -> None:
    text = SHIPPED_ALERTMANAGER.read_text(encoding="utf-8")
    settings = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    named = set(re.findall(r"\bHeadroom\w+\b(?!\.)", settings))
    assert len(named) >= 8
    assert named <= SEVERITIES.keys()


@pytest.mark.parametrize(
    ("cause", "symptom", "muted"),
    [
        ("HeadroomExhausted", "HeadroomBudgetBurn", True),
        ("HeadroomBudgetBurn", "HeadroomExhausted", False),
        ("HeadroomExhausted", "HeadroomBudgetBurnSlow", True),
        ("HeadroomBudgetBurn", "HeadroomBudgetBurnSlow", True),
        ("HeadroomBudgetBurn", "HeadroomSpikeUnsafe", True),
        ("HeadroomExhausted", "HeadroomPreemptions", True),
        ("HeadroomExhausted", "HeadroomBatchingStalled", True),
        ("HeadroomExhausted", "HeadroomPlanOutgrown", False),
        ("HeadroomExhausted", "HeadroomPromptsOutgrewPlan", False),
        ("HeadroomRequestLargerThanPool", "HeadroomPreemptions", True),
        ("HeadroomRequestLargerThanPool", "HeadroomExhausted", False),
        ("HeadroomBudgetBurnSlow", "HeadroomBudgetBurn", False),
        ("HeadroomEngineDown", "HeadroomPlanOutgrown", True),
        ("HeadroomEngineDown", "HeadroomPlanOversized", True),
        ("HeadroomEngineDown", "HeadroomExhausted", False),
        ("HeadroomEngineDown", "HeadroomGpuUnhealthy", False),
        ("HeadroomGpuUnhealthy", "HeadroomGpuThrottled", True),
        ("HeadroomGpuThrottled", "HeadroomGpuUnhealthy", False),
        ("HeadroomGpuUnhealthy", "HeadroomExhausted", False),
    ],
)
def test_a_cause_mutes_its_symptoms_of_the_same_engine_or_card_only(
    quiet: Process, cause: str, symptom: str, muted: bool
) -> None:
    case = f"{cause}-{symptom}"
    here, elsewhere = {"instance": case}, {"instance": f"{case}-elsewhere"}
    post(quiet, [labels(cause, here), labels(symptom, here), labels(symptom, elsewhere)])
    # Causes are taken in one after the other: when a later one mutes, these have had their say.
    last = {"instance": f"{case}-last"}
    post(quiet, [labels("HeadroomExhausted", last), labels("HeadroomBudgetBurn", last)])
    until(lambda: muted_at(quiet, last["instance"]), "the last cause taken in")
    assert muted_at(quiet, here["instance"], symptom) == (True if muted else None)
    assert muted_at(quiet, elsewhere["instance"], symptom) is None


def labels(alert: str, more: dict[str, str]) -> dict[str, str]:
    own = {"alertname": alert, "severity": SEVERITIES[alert], "cluster": "one", **more}
    if alert == "HeadroomEngineDown":
        return {**own, "engine": ENGINE["engine"]}
    return {**own, **(GPU if alert.startswith("HeadroomGpu") else ENGINE)}


def post(process: Process, alerts: list[dict[str, str]]) -> None:
    began = datetime.now(UTC).isoformat()
    body = json.dumps([{"labels": each, "startsAt": began} for each in alerts]).encode()
    request = urllib.request.Request(
        f"{process.url}/api/v2/alerts", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def muted_at(process: Process, instance: str, alert: str = "HeadroomBudgetBurn") -> bool | None:
    """Whether this alert is there and muted; None where it is there and is not."""
    every = json.loads(process.get("/api/v2/alerts"))
    (found,) = (
        each
        for each in every
        if (each["labels"]["instance"], each["labels"]["alertname"]) == (instance, alert)
    )
    return True if found["status"]["inhibitedBy"] else None
