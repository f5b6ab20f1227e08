"""
What the exporter says of a real vLLM, held against a client that knows the truth.

Minutes of two cores: ``make test-vllm``, or ``pytest -m vllm tests/vllm``. Each figure that is checked
is printed in a line that begins with FIGURE, and written to the file that HEADROOM_FIGURES names.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from vllm.client import Phase, mean_in_flight, run_load
from vllm.exporter import Exporter
from vllm.scrape import Page, Watch, grown, scrape, time_mean
from vllm.server import BLOCK_TOKENS, VllmServer

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.client import Request
    from vllm.conftest import Record

pytestmark = pytest.mark.vllm

# Four polls a second, as in the recordings that the formulas were checked on.
FAST_POLLS = {"interval": "250ms", "full_interval": "5s", "max_backoff": "3s"}
# Prompts and outputs of about 200 tokens: a resident sequence holds some 360 tokens in blocks of 128.
PROMPT_TOKENS = (100, 250)
OUTPUT_TOKENS = (150, 300)


REJECTED = "headroom_rejected_requests_total"


def warm_up(server: VllmServer, exporter: Exporter, directory: Path, requests: int = 2) -> int:
    """
    Let the engine do its first steps: its gauges do not exist before them.

    Returns:
        Tokens it has generated.
    """
    with run_load(
        server.url, [Phase(seconds=0.2, clients=requests)], log_path=directory / "warm-up.jsonl"
    ) as load:
        generated = sum(request.output_tokens for request in load.wait())
    exporter.wait_for_counters(generated)
    return generated


def sleep_until(moment: float) -> None:
    """``moment`` is monotonic seconds; in the past it returns at once."""
    time.sleep(max(0.0, moment - time.monotonic()))


def sequence_seconds(log: list[Request]) -> float:
    """Integral of the requests in flight over the whole log."""
    return sum(request.end - request.start for request in log)


def batch_per_step(before: Page, after: Page, generated: str, steps: str) -> float:
    """Mean decode batch per engine step between two pages, from counters."""
    return grown(before, after, generated) / grown(before, after, steps)


def exporter_batch_per_step(before: Page, after: Page) -> float:
    """The same from the counters that the exporter passes through."""
    return batch_per_step(before, after, "headroom_generation_tokens_total", "headroom_steps_total")


def engine_batch_per_step(before: Page, after: Page) -> float:
    """The same from vLLM's own page."""
    return batch_per_step(
        before, after, "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"
    )


@pytest.mark.timeout(300)
def test_demand_is_true_and_slots_are_inferred(
    interpreter: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        # The slots are in no metric, and here not on the command line either.
        VllmServer(
            interpreter, model, tmp_path, max_num_seqs=16, num_gpu_blocks=400, hide_slots=True
        ) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
    ):
        figure("start of vLLM", server.started_in, "s")
        warm_up(server, exporter, tmp_path)
        before, engine_before = exporter.scrape(), scrape(server.url)
        began = time.monotonic()
        phases = [
            Phase(seconds=8, clients=6),
            Phase(seconds=20, clients=24),
            Phase(seconds=8, clients=10),
        ]
        with run_load(
            server.url,
            phases,
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
        ) as load:
            sleep_until(began + 12)
            early = exporter.scrape()
            sleep_until(began + 26)
            late = exporter.scrape()
            log = load.wait()
        time.sleep(1.5)
        after, engine_after = exporter.scrape(), scrape(server.url)

    check_requests(log, figure)
    check_request_times(log, engine_before, engine_after, figure)
    check_whole_run(log, before, after, figure)
    check_full_house(log, early, late, figure)
    check_pool(late, server, figure)
    assert late.need("headroom_engine_info", poll_mode="filtered") == 1
    assert late.find("headroom_max_sequences", basis="args") == []
    assert late.need("headroom_max_sequences", basis="inferred") == 16
    assert late.need("headroom_capacity_sequences", constraint="slots") == 16
    assert late.ones("headroom_binding_constraint", "constraint") == {"slots"}
    assert late.ones("headroom_state", "state") == {"exhausted"}
    figure("max_num_seqs inferred", 16.0, "sequences", expected="16, told to nobody")
    figure("binding constraint with 24 clients", "slots", expected="slots")


def check_requests(log: list[Request], figure: Record) -> None:
    assert {request.status for request in log} == {200}
    figure("requests", len(log))
    figure("mean duration of a request", sequence_seconds(log) / len(log), "s")


def check_request_times(
    log: list[Request], before: Page, after: Page, figure: Record
) -> tuple[float, float]:
    """
    Where the time of the client's requests went, by vLLM's own histograms.

    Returns:
        Seconds of all requests together: in the engine (queue and inference), and in the API server
        from arrival to end.
    """
    engine = sum(
        grown(before, after, f"vllm:{name}_sum")
        for name in ("request_queue_time_seconds", "request_inference_time_seconds")
    )
    server = grown(before, after, "vllm:e2e_request_latency_seconds_sum")
    client = sequence_seconds(log)
    assert grown(before, after, "vllm:e2e_request_latency_seconds_count") == len(log)
    figure("requests in flight, client", client, "sequence-seconds")
    figure("in the engine: queue and inference, by vLLM", engine, "sequence-seconds")
    figure("in the API server and the engine, by vLLM", server, "sequence-seconds")
    return engine, server


def check_whole_run(log: list[Request], before: Page, after: Page, figure: Record) -> None:
    """The run begins and ends idle, so both integrals are over the whole of it."""
    observed = grown(before, after, "headroom_demand_sequences_count") / 1000
    assert observed == pytest.approx(after.at - before.at, abs=1.5)
    client = sequence_seconds(log) / observed
    exporter = time_mean(before, after, "headroom_demand_sequences")
    figure("mean in flight over the run, client", client, "sequences")
    figure("mean demand over the run, exporter", exporter, "sequences", expected="within 5 %")
    unseen = (client - exporter) * observed / len(log)
    figure("part of a request that is in no demand", unseen, "s", expected="HTTP, tokenizer")
    assert exporter == pytest.approx(client, rel=0.05)


def check_full_house(log: list[Request], early: Page, late: Page, figure: Record) -> None:
    """24 clients on 16 slots, between two scrapes well inside the phase."""
    client = mean_in_flight(log, early.at, late.at)
    demand = time_mean(early, late, "headroom_demand_sequences")
    figure("mean in flight with 24 clients, client", client, "sequences")
    figure("mean demand with 24 clients, exporter", demand, "sequences", expected="within 5 %")
    assert demand == pytest.approx(client, rel=0.05)
    by_time = time_mean(early, late, "headroom_effective_batch_sequences")
    by_step = exporter_batch_per_step(early, late)
    figure("mean batch by time", by_time, "sequences")
    figure("mean batch per step", by_step, "sequences", expected="within 5 %")
    assert by_step == pytest.approx(by_time, rel=0.05)


def check_pool(page: Page, server: VllmServer, figure: Record) -> None:
    """The pool that requests can fill is the one of the start-up log less one reserved block."""
    for rank, logged in enumerate(server.kv_cache_tokens):
        capacity = page.need("headroom_kv_cache_capacity_tokens", rank=str(rank))
        figure(
            f"KV capacity of rank {rank}",
            capacity,
            "tokens",
            expected=f"start-up log {logged} less the reserved block of {BLOCK_TOKENS}",
        )
        assert capacity == pytest.approx(logged - BLOCK_TOKENS)


@pytest.mark.timeout(300)
def test_calm_traffic_foretells_the_full_cache(
    interpreter: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        VllmServer(interpreter, model, tmp_path, max_num_seqs=48, num_gpu_blocks=72) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
        Watch(exporter.url) as watch,
    ):
        warm_up(server, exporter, tmp_path)
        began = time.monotonic()
        phases = [
            Phase(seconds=12, clients=6),
            Phase(seconds=14, clients=16),
            Phase(seconds=24, clients=40),
        ]
        with run_load(
            server.url,
            phases,
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
        ) as load:
            sleep_until(began + 12)
            few = exporter.scrape()
            sleep_until(began + 25.5)
            calm = exporter.scrape()
            sleep_until(began + 32)
            early, engine_early = exporter.scrape(), scrape(server.url)
            sleep_until(began + 49)
            late, engine_late = exporter.scrape(), scrape(server.url)
            log = load.wait()
        time.sleep(1.5)
        watch.check()

    check_requests(log, figure)
    check_pool(late, server, figure)
    assert late.need("headroom_max_sequences", basis="args") == 48
    plateau = engine_batch_per_step(engine_early, engine_late)
    figure("plateau with 40 clients, engine's counters", plateau, "sequences")
    check_prediction(few, "6 clients", plateau, figure)
    check_prediction(calm, "16 clients", plateau, figure)
    check_saturation(early, late, watch.between(early.at, late.at), figure)


def check_prediction(calm: Page, traffic: str, plateau: float, figure: Record) -> None:
    """What calm traffic told of the full house that it had not seen yet."""
    assert calm.need("headroom_preemptions_total") == 0
    footprint = calm.need("headroom_tokens_per_sequence", basis="live")
    ceiling = calm.need("headroom_kv_cache_capacity_tokens") / footprint
    capacity = calm.need("headroom_capacity_sequences", constraint="kv_cache")
    figure(f"resident tokens of a sequence, from {traffic}", footprint, "tokens")
    figure(
        f"pool / footprint, from {traffic}", ceiling, "sequences", expected="plateau within 15 %"
    )
    figure(
        f"1 % capacity, from {traffic}",
        capacity,
        "sequences",
        expected="from 16, which ran without a preemption, to the plateau",
    )
    assert ceiling == pytest.approx(plateau, rel=0.15)
    assert 16 <= capacity <= plateau


def check_saturation(early: Page, late: Page, pages: list[Page], figure: Record) -> None:
    """40 clients on a pool for some 24: exhausted, and the cache is why."""
    seconds = late.at - early.at
    preempted = grown(early, late, "headroom_preemptions_total")
    exhausted = grown(early, late, "headroom_state_seconds_total", state="exhausted")
    bound = grown(early, late, "headroom_constraint_seconds_total", constraint="kv_cache")
    figure("preemptions", preempted / seconds, "per second", expected="above 0")
    figure("share of time exhausted", exhausted / seconds, "ratio", expected="1, from 0.95")
    figure("share of time bound by the cache", bound / seconds, "ratio", expected="1, from 0.95")
    assert preempted > 0
    assert exhausted / seconds > 0.95
    assert bound / seconds > 0.95
    assert {state for page in pages for state in page.ones("headroom_state", "state")} == {
        "exhausted"
    }
    binding = {c for page in pages for c in page.ones("headroom_binding_constraint", "constraint")}
    assert binding == {"kv_cache"}
    by_time = time_mean(early, late, "headroom_effective_batch_sequences")
    by_step = exporter_batch_per_step(early, late)
    figure("mean batch by time, while preempting", by_time, "sequences")
    figure("mean batch per step, while preempting", by_step, "sequences", expected="within 5 %")
    assert by_step == pytest.approx(by_time, rel=0.05)


@pytest.mark.timeout(300)
def test_two_ranks_are_told_apart_and_counted_once(
    interpreter: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        VllmServer(
            interpreter,
            model,
            tmp_path,
            max_num_seqs=16,
            num_gpu_blocks=72,
            data_parallel_size=2,
            api_server_count=2,
        ) as server,
        Exporter(server.url, tmp_path, poll={"interval": "250ms"}) as exporter,
    ):
        figure("start of vLLM with two ranks", server.started_in, "s")
        # Enough that both ranks have done a step.
        generated = warm_up(server, exporter, tmp_path, requests=6)
        before, engine_before = exporter.scrape(), scrape(server.url)
        with run_load(
            server.url,
            [Phase(seconds=24, clients=10)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
        ) as load:
            log = load.wait()
        generated += sum(request.output_tokens for request in log)
        after = exporter.wait_for_counters(generated)
        time.sleep(5)
        after, engine_after = exporter.scrape(), scrape(server.url)

    check_requests(log, figure)
    check_pool(after, server, figure)
    assert len(server.kv_cache_tokens) == 2
    # One bare answer of 200 must not be taken for an idle engine.
    assert after.need("headroom_engine_info", poll_mode="full") == 1
    # vLLM counts rejections for the server, and they are shown once.
    assert names_of_rank(after, "0") - {REJECTED} == names_of_rank(after, "1")
    counted = after.total("headroom_generation_tokens_total")
    figure("tokens generated, client", float(generated), "tokens")
    figure("tokens generated, sum of both ranks", counted, "tokens", expected="the same")
    assert counted == generated
    in_engine, _ = check_request_times(log, engine_before, engine_after, figure)
    check_two_ranks(in_engine, before, after, figure)


def names_of_rank(page: Page, rank: str) -> set[str]:
    """Sample names that one rank has."""
    return {name for name, labels in page.samples if ("rank", rank) in labels}


def check_two_ranks(in_engine: float, before: Page, after: Page, figure: Record) -> None:
    """No gap, and the ranks add up to the sequence-seconds that vLLM itself counted."""
    assert after.total("headroom_engine_poll_errors_total") == 0
    assert after.total("headroom_engine_unobserved_seconds_total") == 0
    for rank in ("0", "1"):
        observed = grown(before, after, "headroom_demand_sequences_count", rank=rank) / 1000
        figure(
            f"observed time of rank {rank}", observed, "s", expected=f"{after.at - before.at:.1f}"
        )
        assert observed == pytest.approx(after.at - before.at, abs=5)
        assert grown(before, after, "headroom_generation_tokens_total", rank=rank) > 0
    demand = grown(before, after, "headroom_demand_sequences_sum") / 1000
    # Twelve pages in the run, one every 2 s: the error is sampling.
    figure("demand of both ranks", demand, "sequence-seconds", expected="within 15 %")
    assert demand == pytest.approx(in_engine, rel=0.15)
    by_time = time_mean(before, after, "headroom_effective_batch_sequences")
    figure("mean batch of a rank by time", by_time, "sequences")
    # Each API server counts a step that yielded something for it: two counts for one step.
    figure("tokens per counted step", exporter_batch_per_step(before, after), "tokens")


@pytest.mark.timeout(300)
def test_an_engine_killed_under_load_comes_back(
    interpreter: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        VllmServer(interpreter, model, tmp_path, max_num_seqs=16, num_gpu_blocks=200) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
        Watch(exporter.url, interval=0.25) as watch,
        run_load(
            server.url,
            [Phase(seconds=600, clients=8)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            # Eight sequences run fast: longer ones keep the time of HTTP small.
            output_tokens=(300, 450),
        ) as load,
    ):
        time.sleep(10)
        killed_at = time.monotonic()
        server.kill()
        assert server.processes == []
        time.sleep(2)
        server.start()
        ready_at = time.monotonic()
        time.sleep(14)
        load.stop()
        watch.check()
        pages = watch.pages

    statuses = Counter(request.error or str(request.status) for request in load.requests())
    figure("requests answered", statuses["200"])
    figure("requests that failed", statuses.total() - statuses["200"], expected="above 0")
    assert statuses.total() > statuses["200"] > 0
    down_at, up_at = check_up(pages, killed_at, ready_at, figure)
    check_nothing_stale([page for page in pages if down_at <= page.at < up_at])
    check_no_way_back(pages)
    check_after_restart(pages, up_at, load.requests(), figure)


def check_up(
    pages: list[Page], killed_at: float, ready_at: float, figure: Record
) -> tuple[float, float]:
    """When headroom_engine_up became 0, and 1 again: once each, soon."""
    changes = [(pages[0].at, pages[0].need("headroom_engine_up"))]
    for page in pages:
        up = page.need("headroom_engine_up")
        if up != changes[-1][1]:
            changes.append((page.at, up))
    assert [up for _, up in changes] == [1, 0, 1]
    down_at, up_at = changes[1][0], changes[2][0]
    figure("from kill to headroom_engine_up 0", down_at - killed_at, "s", expected="below 2")
    figure("restart of vLLM", ready_at - killed_at - 2, "s")
    figure("from ready to headroom_engine_up 1", up_at - ready_at, "s", expected="below 5")
    assert down_at - killed_at < 2
    assert up_at - ready_at < 5
    return down_at, up_at


GONE_WHILE_DOWN = (
    "headroom_running_sequences",
    "headroom_waiting_sequences",
    "headroom_kv_cache_usage_ratio",
    "headroom_sustainable_sequences",
    "headroom_sequences",
    "headroom_ratio",
)


def check_nothing_stale(pages: list[Page]) -> None:
    """While it is down: no sample of it, no verdict but unknown, no time counted."""
    assert pages
    for page in pages:
        assert [name for name in GONE_WHILE_DOWN if page.find(name)] == []
        assert page.ones("headroom_state", "state") <= {"unknown"}
    assert grown(pages[0], pages[-1], "headroom_demand_sequences_count") == 0


# Of the exporter's own memory: they never go back, whatever the engine does.
OWN_COUNTERS = (
    "headroom_effective_batch_sequences_count",
    "headroom_effective_batch_sequences_bucket",
    "headroom_demand_sequences_count",
    "headroom_demand_sequences_sum",
    "headroom_kv_cache_occupancy_ratio_count",
    "headroom_state_seconds_total",
    "headroom_constraint_seconds_total",
    "headroom_engine_poll_errors_total",
    "headroom_engine_unobserved_seconds_total",
)
MAY_BE_NEGATIVE = frozenset({"headroom_sequences", "headroom_ratio"})
# The engine's own counters start again with it.
PASSED_THROUGH = ("headroom_generation_tokens_total", "headroom_steps_total")


def check_no_way_back(pages: list[Page]) -> None:
    """No counter of ours falls, the engine's fall once at most, nothing is negative."""
    for before, after in pairwise(pages):
        for (name, labels), value in after.samples.items():
            if name in OWN_COUNTERS:
                assert value >= before.samples.get((name, labels), 0.0), f"{name}{dict(labels)}"
            if name.startswith("headroom_") and name not in MAY_BE_NEGATIVE:
                assert value >= 0, f"{name}{dict(labels)}"
    for name in PASSED_THROUGH:
        levels = [page.need(name) for page in pages if page.find(name)]
        falls = sum(b < a for a, b in pairwise(levels))
        assert falls == 1, name


def check_after_restart(
    pages: list[Page], up_at: float, log: list[Request], figure: Record
) -> None:
    """It measures on: the gap is counted, and the new process is integrated like the old one."""
    later = [page for page in pages if page.at > up_at + 3]
    gap = later[-1].total("headroom_engine_unobserved_seconds_total")
    figure("headroom_engine_unobserved_seconds_total", gap, "s", expected="above 10")
    assert gap > 10
    client = mean_in_flight(log, later[0].at, later[-1].at)
    demand = time_mean(later[0], later[-1], "headroom_demand_sequences")
    figure("mean in flight after the restart, client", client, "sequences")
    figure("mean demand after the restart, exporter", demand, "sequences", expected="within 5 %")
    assert demand == pytest.approx(client, rel=0.05)
