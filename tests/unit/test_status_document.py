"""The State as JSON: all keys always, null for unknown, the numbers of /metrics, and documented."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as read_text

from headroom_exporter.expose import StateCollector, make_registry
from headroom_exporter.samples import GpuState, RankSample, State
from headroom_exporter.status.document import Source, document
from headroom_exporter.status.history import History
from status_scenes import MODEL, PLAN, calm, engine, rank, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom_exporter.config import PlanConfig

DOC = Path(__file__).parents[2] / "docs" / "status-api.md"


def made(
    shown: State, *, plan: PlanConfig | None = PLAN, later: float = 0.0, simulated: bool = False
) -> dict[str, Any]:
    source = Source(
        plan_of=lambda _engine, _model: plan,
        history=History(),
        instance="abc",
        simulated=simulated,
    )
    return document(shown, source, now=time.monotonic() + later, wall=1_700_000_000.12345)


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys; members of a list share one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from keys(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")


def test_its_numbers_are_those_of_metrics():
    shown = calm()
    found = made(shown)["ranks"][0]
    text = generate_latest(
        make_registry(StateCollector(lambda: shown, lambda _e, _m: PLAN))
    ).decode()
    page = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in read_text(text)
        for sample in family.samples
    }

    def value(name: str, *labels: str) -> float:
        return page[(name, *sorted(("0", "chat-0", MODEL, *labels)))]

    assert found["running"] == value("headroom_running_sequences")
    assert found["waiting"] == value("headroom_waiting_sequences")
    assert found["headroom"]["sequences"] == value("headroom_sequences")
    assert found["headroom"]["ratio"] == value("headroom_ratio")
    assert found["sustainable"] == value("headroom_sustainable_sequences")
    assert found["spike_multiple"] == value("headroom_spike_multiple")
    assert found["preemptions"] == value("headroom_preemptions_total")
    assert found["kv_cache"]["free_tokens"] == value("headroom_kv_cache_free_tokens")
    assert found["peaks"]["demand"]["5m"] == value("headroom_peak_demand_sequences", "5m")
    assert found["prompts_over_plan"]["requests"]["lower"] == value(
        "headroom_prompts_over_plan_total", "lower"
    )
    assert found["prompts_over_plan"]["prompts"] == value("headroom_prompts_total")
    assert found["batching"]["knee_sequences"] == value("headroom_knee_sequences")
    for constraint, capacity in found["capacities"].items():
        assert capacity == value("headroom_capacity_sequences", constraint)
        binds = page.get(
            (
                "headroom_binding_constraint",
                *sorted(("0", "chat-0", MODEL, constraint)),
            )
        )
        assert binds in (None, float(constraint == found["binding"]))


def test_what_is_not_known_is_null_and_never_zero():
    found = made(state(engine(bare=True)), plan=None)["ranks"][0]
    assert found["seen"]
    assert (found["running"], found["demand"]) == (7.0, 7.0)
    assert found["sustainable"] is None
    assert found["headroom"] == {"sequences": None, "ratio": None}
    assert set(found["capacities"].values()) == {None}
    assert set(found["batching"].values()) == {None}
    assert found["kv_cache"]["usage_ratio"] is None
    assert found["plan"] is None
    assert found["prompts_over_plan"] is None


def test_infinite_and_not_a_number_are_null():
    shown = rank()
    odd = RankSample(rank="0", model_name=MODEL, running=math.inf, waiting=math.nan, kv_usage=0.5)
    found = made(state(replace(engine(), ranks=(replace(shown, sample=odd),))))
    assert found["ranks"][0]["running"] is None
    assert found["ranks"][0]["waiting"] is None
    json.dumps(found, allow_nan=False)


def test_a_stale_engine_has_no_numbers_but_keeps_its_past():
    found = made(calm(), later=4000.0)
    rank_found, engine_found = found["ranks"][0], found["engines"][0]
    assert not engine_found["up"]
    assert engine_found["verdict"]["sentence"] == "No data for 67 min: its last answer is too old."
    assert not rank_found["seen"]
    assert (rank_found["state"], rank_found["reason"]) == ("unknown", "no_data")
    assert rank_found["running"] is None
    assert rank_found["peaks"]["demand"] == {"1m": None, "5m": None}
    assert rank_found["state_seconds"] == {"ok": 77.0}
    assert engine_found["poll"]["age_seconds"] == pytest.approx(4000.0, abs=5.0)


def test_a_rank_that_left_the_page_is_not_blamed_on_the_engine():
    gone = replace(rank(), sample=None, derived=None)
    found = made(state(replace(engine(), ranks=(gone,))))
    assert found["engines"][0]["up"]
    assert "not on its last page" in found["ranks"][0]["verdict"]["sentence"]


def test_a_refused_connection_is_blamed_on_the_engine_at_once():
    gone = replace(rank(), sample=None, derived=None)
    refused = replace(engine(), up=False, ranks=(gone,), last_error="nothing listens on it")
    found = made(state(refused))
    for place in (found["ranks"][0], found["engines"][0]):
        assert re.fullmatch(
            r"No data for \d s: nothing listens on it\.", place["verdict"]["sentence"]
        )


def test_one_failed_poll_leaves_the_numbers_of_the_last_good_one():
    found = made(state(replace(engine(), up=False, last_error="no answer within 5 s")))
    assert not found["engines"][0]["up"]
    assert found["engines"][0]["verdict"] is None
    assert found["ranks"][0]["seen"]


def test_least_headroom_comes_first_and_the_whole_is_as_bad_as_its_worst():
    shown = state(
        engine("roomy", running=2.0),
        engine("blind", bare=True),
        engine("full", running=26.0),
        engine("half", running=12.0),
    )
    found = made(shown)
    assert [each["engine"] for each in found["ranks"]] == ["full", "blind", "half", "roomy"]
    assert found["state"] == "exhausted"
    assert made(calm())["state"] == "ok"
    away = replace(engine("away"), up=False, last_success_monotonic=None, ranks=())
    assert made(state(engine(), away))["state"] == "unknown"
    assert made(state())["state"] == "unknown"


def test_gpus_that_are_off_or_too_old_show_no_figures():
    off = replace(calm(), gpu=GpuState(up=None))
    assert made(off)["gpus"]["up"] is None
    old = replace(calm(), gpu=replace(calm().gpu, read_at=time.monotonic() - 60.0))
    assert made(old)["gpus"]["up"] is False
    assert made(old)["gpus"]["devices"] == []
    assert made(calm())["gpus"]["devices"][0]["clock_events"] == ["sw_power_cap"]


def test_it_says_when_it_is_simulated():
    assert made(calm(), simulated=True)["exporter"]["simulated"] is True
    assert made(calm())["exporter"]["simulated"] is False


def test_every_key_is_there_whatever_is_known():
    known = set(keys(made(calm())["ranks"][0]))
    for shown in (made(state(engine(bare=True))), made(calm(), later=4000.0)):
        missing = known - set(keys(shown["ranks"][0]))
        # What hangs below a null, and lists and maps that are empty.
        nulls = (
            "plan.dimensions[]",
            "prompts_over_plan.requests.",
            "verdict.notes[]",
            "max_sequences.",
        )
        assert {key for key in missing if not key.startswith(nulls)} == set()


def test_every_key_is_documented():
    text = DOC.read_text(encoding="utf-8")
    words = set(re.findall(r"`([a-z0-9_]+)`", text))
    maps = re.compile(r"\.(max_sequences|errors|state_seconds|capacities)\.")
    found = {path for path in keys(made(calm())) if not maps.search(path)}
    undocumented = {path for path in found if path.rpartition(".")[2] not in words}
    assert undocumented == set()
