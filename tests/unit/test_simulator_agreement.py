"""
The simulated engine against recorded runs of a real vLLM, and the tools that record and compare.

The recordings are in tests/fixtures/simulator; docs/simulator-validation.md says what they show.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from headroom_exporter.simulate import profiles, trace
from vllm import open_loop, run_files
from vllm.record_workloads import free_stem
from vllm.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> Any:
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


constants = load("agreement.constants")
decisions = load("agreement.decisions")
figures = load("agreement.figures")
recorded = load("agreement.recorded")
report = load("agreement.report")
simulated = load("agreement.simulated")
validate = load("validate_simulator")
throughput_blocks = load("throughput.blocks")

TINY = profiles.find(validate.PROFILE)
FOLDER = recorded.FOLDER

# Largest relative errors of the means that were reached, rounded up: levels, times, preemptions. They
# are those of issue 3 (5 %, 15 %, 25 %; 10 % for levels where it preempts) or less.
REACHED = {
    "bursty": (0.02, 0.02, 0.0),
    "calm": (0.02, 0.03, 0.0),
    "kv": (0.04, 0.05, 0.03),
    "slots": (0.02, 0.03, 0.0),
    # Not within the limits: the profile has no term for the attention of prompt tokens to each other.
    "prompts": (0.14, 0.14, 0.0),
}
# The same of any single run, once the machine's speed in that run is known from its log.
AT_OWN_SPEED = (0.035, 0.065, 0.05)


@pytest.fixture(scope="module")
def calibration() -> Any:
    return report.calibrate(FOLDER)


@pytest.fixture(scope="module")
def workloads(calibration: Any) -> dict[str, Any]:
    _, front_end = calibration
    return {each.name: each for each in report.workloads(FOLDER, TINY, front_end)}


def limit(figure: Any, limits: tuple[float, float, float]) -> float:
    levels, times, preemptions = limits
    if figure.kind == "preemptions":
        return preemptions
    return times if figure.unit == "s" else levels


def off(compared: list[Any], errors: str, limits: tuple[float, float, float]) -> list[str]:
    """Figures whose error is above what was reached, in words."""
    return [
        f"{figure.kind}: {report.percent(getattr(figure, errors))}"
        for figure in compared
        if abs(getattr(figure, errors)) > limit(figure, limits)
    ]


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REACHED))
def test_the_simulator_agrees_with_the_real_runs(workloads, name):
    assert len(workloads[name].runs) >= 3
    assert off(workloads[name].figures, "error", REACHED[name]) == []


@pytest.mark.parametrize("name", sorted(REACHED))
def test_at_a_runs_own_step_time_it_agrees_with_every_single_run(workloads, name):
    assert len(workloads[name].own_speed[0].measured) >= 2
    assert off(workloads[name].own_speed, "worst", AT_OWN_SPEED) == []


@pytest.mark.parametrize("name", ["bursty", "calm", "kv", "slots"])
def test_what_was_reached_is_within_the_limits_of_the_issue(workloads, name):
    assert [figure.kind for figure in workloads[name].figures if not figure.agrees] == []


def test_the_runs_are_what_their_names_say(workloads):
    """Else the agreement would be one of idle engines."""
    means = {
        name: {figure.kind: figure.measured[0] for figure in each.figures}
        for name, each in workloads.items()
    }
    assert means["calm"]["running"] < 3
    assert means["calm"]["waiting"] < 0.1
    assert means["slots"]["waiting"] > 20
    assert max(poll.running for poll in workloads["slots"].runs[0].polls) == 16
    assert means["kv"]["preemptions"] > 300
    assert max(poll.kv_usage for poll in workloads["kv"].runs[0].polls) == 1
    assert means["bursty"]["waiting"] > 20
    assert {run.summary["preemptions"] for run in workloads["bursty"].runs} == {0}


@pytest.mark.parametrize(
    "change",
    [
        {"step_fixed": TINY.step_fixed * 1.3},
        {"step_per_sequence": TINY.step_per_sequence * 3},
        {"step_per_kv_token": 0.0},
        {"step_per_prefill_token": TINY.step_per_prefill_token * 3},
    ],
)
def test_another_step_time_does_not_agree(workloads, calibration, change):
    run = workloads["slots"].runs[0]
    changed = simulated.simulate(run, replace(TINY, **change), calibration[1])
    compared = figures.compare([(simulated.measured(run), changed)])
    assert [figure.kind for figure in compared if not figure.agrees]


def test_without_the_front_end_a_first_token_comes_too_soon(workloads):
    run = workloads["calm"].runs[0]
    none = simulated.FrontEnd(before=0.0, after_first=0.0, after_last=0.0)
    compared = figures.compare([(simulated.measured(run), simulated.simulate(run, TINY, none))])
    assert "TTFT p50" in [figure.kind for figure in compared if not figure.agrees]


# --- decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recorded.names_with_steps(FOLDER))
def test_given_the_real_steps_the_scheduler_decides_every_one_as_vllm_did(name):
    run, steps = recorded.load(FOLDER, name), recorded.steps(FOLDER, name)
    decided, preemptions = decisions.simulated(run, steps, TINY)
    pairs = zip(decided, map(decisions.real, steps), strict=True)
    assert [number for number, (ours, theirs) in enumerate(pairs) if ours != theirs] == []
    assert preemptions == run.preemptions


def test_steps_of_a_preempting_run_are_among_them():
    runs = [recorded.load(FOLDER, name) for name in recorded.names_with_steps(FOLDER)]
    assert max(run.preemptions for run in runs) > 300


@pytest.mark.parametrize(
    ("setting", "more"),
    [("num_gpu_blocks", 1), ("max_num_seqs", -20), ("max_num_batched_tokens", -1500)],
)
def test_other_limits_lead_to_other_decisions(setting, more):
    name = next(name for name in recorded.names_with_steps(FOLDER) if name.startswith("kv"))
    run, steps = recorded.load(FOLDER, name), recorded.steps(FOLDER, name)
    run.summary[setting] += more
    decided, _ = decisions.simulated(run, steps, TINY)
    differing = sum(ours != decisions.real(step) for ours, step in zip(decided, steps, strict=True))
    assert differing > 100


# --- constants -----------------------------------------------------------------------------------


def test_the_profile_has_the_constants_that_the_calibration_gives(calibration):
    fitted = calibration[0].into(TINY)
    for name in (
        "step_fixed",
        "step_per_sequence",
        "step_per_kv_token",
        "step_per_prefill_token",
        "decode_beside_prefill",
    ):
        assert getattr(TINY, name) == pytest.approx(getattr(fitted, name), rel=0.006), name


def steps_of(fixed: float, per_sequence: float, per_kv: float, per_prompt: float) -> list[Any]:
    """Steps that last exactly what these constants say."""
    return [
        recorded.Step(
            start=0.0,
            seconds=fixed + per_sequence * batch + per_kv * resident * batch + per_prompt * prompt,
            sequences=batch,
            tokens=batch - (1 if prompt else 0) + prompt,
            prompt=prompt,
            resident=resident * batch,
            running=1,
            waiting=0,
            free=0,
        )
        for batch in (1, 4, 9, 30)
        for resident in (100, 300, 500)
        for prompt in (0, 0, 0, 0, 150)
    ]


def test_a_fit_finds_the_constants_that_made_the_steps():
    found = constants.fit(steps_of(3e-3, 5e-5, 1e-7, 2e-5))
    assert found.fixed == pytest.approx(3e-3)
    assert found.per_sequence == pytest.approx(5e-5)
    assert found.per_kv_token == pytest.approx(1e-7)
    assert found.per_prefill_token == pytest.approx(2e-5)
    assert found.by_prompt == (pytest.approx((150, 2e-5)),)


# --- the page ------------------------------------------------------------------------------------


def test_the_page_says_what_the_comparison_gives():
    made, _ = validate.blocks(FOLDER, fitted=False)
    page = validate.DOC.read_text(encoding="utf-8")
    assert throughput_blocks.insert(page, made) == page


# --- figures -------------------------------------------------------------------------------------


def figure(
    measured: tuple[float, ...], modelled: tuple[float, ...], negligible: float = 0.1
) -> Any:
    return figures.Figure(
        kind="waiting",
        unit="sequences",
        measured=measured,
        simulated=modelled,
        limit=0.05,
        negligible=negligible,
    )


def test_an_error_is_that_of_the_means_and_the_worst_that_of_a_single_run():
    found = figure((10.0, 12.0), (11.0, 11.0))
    assert found.error == 0
    assert found.worst == pytest.approx(0.1)
    assert found.spread == pytest.approx(2 / 11)
    assert found.agrees
    assert not figure((10.0, 10.0), (10.6, 10.6)).agrees


def test_a_level_that_is_next_to_nothing_in_both_agrees_and_in_one_does_not():
    assert figure((0.0,), (0.09,)).agrees
    assert not figure((0.01,), (0.5,)).agrees


def test_a_percentile_lies_between_its_neighbours():
    assert figures.percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert figures.percentile([4.0, 1.0, 2.0, 3.0], 1.0) == 4.0


# --- recordings ----------------------------------------------------------------------------------


def test_the_recorded_requests_are_those_of_the_workloads_and_a_trace_for_the_simulator():
    by_name = {each.name: each.requests() for each in WORKLOADS}
    assert {recorded.load(FOLDER, name).workload for name in recorded.names(FOLDER)} == set(by_name)
    for name in recorded.names(FOLDER):
        rows = trace.read(FOLDER / f"{name}.requests.csv.gz")
        found = [(row.arrival, row.prompt_tokens, row.output_tokens) for row in rows]
        assert found == by_name[recorded.load(FOLDER, name).workload]


def test_requests_were_sent_when_they_were_due():
    for name in recorded.names(FOLDER):
        rows = trace.read(FOLDER / f"{name}.requests.csv.gz")
        sent = [each.sent for each in recorded.load(FOLDER, name).requests]
        assert max(at - row.arrival for at, row in zip(sent, rows, strict=True)) < 0.02


def test_what_is_written_of_a_run_is_read_again(tmp_path):
    start = 1000.0
    pack = run_files.STEP.pack
    (tmp_path / "steps.bin").write_bytes(
        pack(999.0, 999.5, 0.0, 1, 1, 0, 5, 0, 1, 0, 3)  # of the warm-up
        + pack(1001.0, 1001.004, 0.001, 2, 41, 40, 100, 0, 2, 0, 7)
        + pack(1001.005, 1001.008, 0.001, 2, 2, 0, 141, 0, 0, 0, 9)
    )
    (tmp_path / "requests.csv").write_text(
        "cmpl-r0-0-warm,998.5,998.9,999.5\ncmpl-r0-0-abc,1000.503,1000.6,1001.9\n", encoding="utf-8"
    )
    made = run_files.Recorded(
        polled=("running", "waiting", "kv_usage"),
        start=start,
        rows=[(0.5, 40, 7)],
        results=[(1000.5001, 1000.601, 1001.901, 200)],
        polls=[(1000.1, 1.0, 0.0, 0.25)],
        summary={"workload": "calm", "preemptions": 3.0},
    )
    run_files.write(made, tmp_path, tmp_path / "calm-1", logged=True, keep_steps=True)
    run = recorded.load(tmp_path, "calm-1")
    assert (run.workload, run.preemptions) == ("calm", 3)
    (sent,) = run.requests
    assert (sent.prompt, sent.output, sent.queued) == (40, 7, 0.503)
    assert (sent.sent, sent.first_token, sent.finished) == (0.5001, 0.601, 1.901)
    assert run.polls == [recorded.Poll(at=0.1, running=1, waiting=0, kv_usage=0.25)]
    first, last = recorded.steps(tmp_path, "calm-1")
    assert (first.start, first.seconds) == (1.0, pytest.approx(0.004))
    assert (first.prompts, first.resident, first.free) == (1, 100, 7)
    assert last.seconds is None  # nothing was left to do
    assert run.busy_steps == {
        "steps": 1,
        "seconds": pytest.approx(0.004),
        "sequences": 2,
        "resident": 100,
        "prompt_tokens": 40,
    }


def test_a_runs_speed_is_its_steps_time_over_what_the_constants_say():
    run = recorded.Run(
        name="calm-1",
        workload="calm",
        summary={
            "busy_steps": {
                "steps": 100,
                "seconds": 110 * TINY.step_fixed,
                "sequences": 0,
                "resident": 0,
                "prompt_tokens": 0,
            }
        },
        requests=[],
        polls=[],
    )
    assert constants.speed(run, TINY) == pytest.approx(1.1)
    assert constants.speed(replace(run, summary={}), TINY) is None
    assert constants.scaled(TINY, 1.1).step_seconds(3, 500, 20) == pytest.approx(
        1.1 * TINY.step_seconds(3, 500, 20)
    )


def test_the_next_repetition_overwrites_none(tmp_path):
    (tmp_path / "kv-1.json").touch()
    assert free_stem(tmp_path, "kv") == tmp_path / "kv-2"
    assert free_stem(tmp_path, "calm") == tmp_path / "calm-1"


async def test_the_client_sends_on_time_and_sees_both_parts_of_an_answer():
    seen: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append({**await request.json(), "id": request.headers["X-Request-Id"]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await response.write(b"data: {}\n\ndata: [DONE]\n\n")
        return response

    application = web.Application()
    application.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        results = await open_loop.run(
            {
                "url": f"http://127.0.0.1:{port}",
                "model": "tiny",
                "requests": [(0.0, 5, 3), (0.05, 9, 4)],
                "seed": 1,
                "start": time.monotonic() + 0.05,
            }
        )
    finally:
        await runner.cleanup()
    assert [status for *_, status in results] == [200, 200]
    assert all(sent < first <= last for sent, first, last, _ in results)
    assert results[1][0] - results[0][0] == pytest.approx(0.05, abs=0.04)
    assert [len(each["prompt"]) for each in seen] == [5, 9]
    assert [(each["id"], each["max_tokens"], each["ignore_eos"]) for each in seen] == [
        ("r0", 3, True),
        ("r1", 4, True),
    ]
    assert json.dumps(seen[0]["prompt"]) != json.dumps(seen[1]["prompt"][:5])
