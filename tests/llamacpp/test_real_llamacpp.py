"""
What the exporter says of a real llama.cpp server, held against a client that knows the truth.

A minute or two: ``make test-llamacpp``, or ``pytest -m llamacpp tests/llamacpp``. Each figure that is checked
is printed in a line that begins with FIGURE, and written to the file that HEADROOM_FIGURES names.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from llamacpp.server import MODEL_NAME, LlamaServer
from vllm.client import Phase, mean_in_flight, run_load
from vllm.exporter import Exporter
from vllm.scrape import Page, Watch, get, grown, scrape, time_mean

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.client import Request
    from vllm.conftest import Record

pytestmark = pytest.mark.llamacpp

# The page is small and there is no filtered one: four polls a second, all of them of the whole page.
FAST_POLLS = {
    "interval": "250ms",
    "fallback_interval": "250ms",
    "full_interval": "5s",
    "max_backoff": "3s",
}
SLOTS, CONTEXT = 4, 2048
FOUR_SLOTS = ("--metrics", "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT))
PROMPT_TOKENS = (100, 250)
OUTPUT_TOKENS = (300, 500)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def mean_tokens(log: list[Request], t0: float, t1: float) -> float:
    """
    Mean resident tokens over [t0, t1] by the client's log, where nothing waits.

    A request holds its prompt from the start, and one token more with each one it yields, evenly.
    """
    total = 0.0
    for request in log:
        begin, end = max(request.start, t0), min(request.end, t1)
        if end > begin:
            pace = request.output_tokens / (request.end - request.start)
            middle = (begin + end) / 2 - request.start
            total += (end - begin) * (request.prompt_tokens + pace * middle)
    return total / (t1 - t0)


@pytest.mark.timeout(240)
def test_demand_slots_and_tokens_are_those_of_the_clients(
    build: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        LlamaServer(build, model, tmp_path, *FOUR_SLOTS) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
    ):
        before, began = exporter.scrape(), time.monotonic()
        with run_load(
            server.url,
            [Phase(seconds=20, clients=3), Phase(seconds=16, clients=7)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
            model=MODEL_NAME,
        ) as load:
            sleep_until(began + 3)
            calm = exporter.scrape()
            sleep_until(began + 18)
            end_of_calm = exporter.scrape()
            sleep_until(began + 24)
            full = exporter.scrape()
            sleep_until(began + 34)
            end_of_full = exporter.scrape()
            log = load.wait()
        generated = sum(request.output_tokens for request in log)
        after = exporter.wait_for_counters(generated)
        time.sleep(1)
        idle = exporter.scrape()

    assert {request.status for request in log} == {200}
    figure("requests", len(log))
    assert idle.need("headroom_engine_info", engine_kind="llamacpp", poll_mode="full") == 1
    check_counters(log, before, after, figure)
    check_calm(log, calm, end_of_calm, figure)
    check_full_house(log, full, end_of_full, figure)
    assert idle.need("headroom_running_sequences") == 0
    # What the slots keep of the last prompts gives way at once.
    assert idle.need("headroom_kv_cache_usage_ratio") == 0
    assert idle.ones("headroom_state", "state") == {"ok"}


def check_counters(log: list[Request], before: Page, after: Page, figure: Record) -> None:
    """Tokens to the last one: all counters are below a million, so no digit is lost."""
    prompts = sum(request.prompt_tokens for request in log)
    counted = grown(before, after, "headroom_prompt_tokens_total")
    figure("prompt tokens, client", prompts, "tokens")
    figure("prompt tokens, exporter", counted, "tokens", expected="equal")
    assert counted == prompts
    generated = grown(before, after, "headroom_generation_tokens_total")
    assert generated == sum(request.output_tokens for request in log)


def check_calm(log: list[Request], early: Page, late: Page, figure: Record) -> None:
    """3 clients on 4 slots: nothing waits, so the client knows what the slots hold."""
    client = mean_in_flight(log, early.at, late.at)
    demand = time_mean(early, late, "headroom_demand_sequences")
    figure("mean in flight with 3 clients, client", client, "sequences")
    figure("mean demand with 3 clients, exporter", demand, "sequences", expected="within 5 %")
    assert demand == pytest.approx(client, rel=0.05)

    capacity = late.need("headroom_kv_cache_capacity_tokens")
    figure("KV capacity", capacity, "tokens", expected=f"{SLOTS} x {CONTEXT}")
    assert capacity == SLOTS * CONTEXT
    tokens = mean_tokens(log, early.at, late.at)
    occupied = time_mean(early, late, "headroom_kv_cache_occupancy_ratio") * capacity
    figure("mean resident tokens, client", tokens, "tokens")
    figure("mean resident tokens, exporter", occupied, "tokens", expected="within 5 %")
    assert occupied == pytest.approx(tokens, rel=0.05)
    each = late.need("headroom_tokens_per_sequence")
    figure("tokens per sequence, client", tokens / client, "tokens")
    figure("tokens per sequence, exporter", each, "tokens", expected="within 10 %")
    assert each == pytest.approx(tokens / client, rel=0.1)
    assert late.need("headroom_max_sequences", basis="server") == SLOTS
    assert late.ones("headroom_binding_constraint", "constraint") == {"slots"}
    assert late.need("headroom_sustainable_sequences") == SLOTS
    free = SLOTS - late.need("headroom_running_sequences")
    assert late.need("headroom_sequences") == free - late.need("headroom_waiting_sequences")


def check_full_house(log: list[Request], early: Page, late: Page, figure: Record) -> None:
    """7 clients on 4 slots."""
    client = mean_in_flight(log, early.at, late.at)
    demand = time_mean(early, late, "headroom_demand_sequences")
    running = time_mean(early, late, "headroom_effective_batch_sequences")
    figure("mean in flight with 7 clients, client", client, "sequences")
    figure("mean demand with 7 clients, exporter", demand, "sequences", expected="within 5 %")
    figure("mean running with 7 clients", running, "sequences", expected="4 slots, within 5 %")
    assert demand == pytest.approx(client, rel=0.05)
    assert running == pytest.approx(SLOTS, rel=0.05)
    by_step = grown(early, late, "headroom_generation_tokens_total") / grown(
        early, late, "headroom_steps_total"
    )
    figure("tokens per step, 10 s", by_step, "tokens", expected="within 15 %: they jump at finish")
    assert by_step == pytest.approx(running, rel=0.15)
    assert late.need("headroom_waiting_sequences") >= 1
    assert late.need("headroom_capacity_sequences", constraint="slots") == SLOTS
    assert late.ones("headroom_binding_constraint", "constraint") == {"slots"}
    assert late.ones("headroom_state", "state") == {"exhausted"}
    assert late.need("headroom_sequences") < 0
    figure("headroom with 7 clients", late.need("headroom_sequences"), "sequences", expected="-3")


@pytest.mark.timeout(180)
def test_a_shared_pool_is_one_context_and_may_bind_before_the_slots(
    build: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    """Without --parallel the server has four slots that share what one of them may hold."""
    with (
        LlamaServer(build, model, tmp_path, "--metrics", "--ctx-size", "2048") as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
        run_load(
            server.url,
            [Phase(seconds=20, clients=2)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=(500, 600),
            output_tokens=(200, 250),
            model=MODEL_NAME,
        ) as load,
    ):
        time.sleep(18)
        page = exporter.scrape()
        load.stop()
    assert page.need("headroom_kv_cache_capacity_tokens") == 2048
    assert page.need("headroom_max_sequences", basis="server") == SLOTS
    fits = page.need("headroom_capacity_sequences", constraint="kv_cache")
    figure("sequences of 650 tokens that fit 2,048", fits, "sequences", expected="2 or 3")
    assert fits in (2, 3)
    assert page.ones("headroom_binding_constraint", "constraint") == {"kv_cache"}


@pytest.mark.timeout(180)
def test_a_server_killed_under_load_comes_back(
    build: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        LlamaServer(build, model, tmp_path, *FOUR_SLOTS) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
        Watch(exporter.url, interval=0.25) as watch,
        run_load(
            server.url,
            [Phase(seconds=600, clients=5)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
            model=MODEL_NAME,
        ) as load,
    ):
        time.sleep(8)
        killed_at = time.monotonic()
        server.kill()
        time.sleep(2)
        server.start()
        ready_at = time.monotonic()
        time.sleep(10)
        watch.check()
        pages = list(watch.pages)
        load.stop()

    statuses = Counter(request.error or str(request.status) for request in load.requests())
    figure("requests answered", statuses["200"])
    figure("requests that failed", statuses.total() - statuses["200"], expected="above 0")
    ups = [(page.at, page.need("headroom_engine_up")) for page in pages]
    changes = [ups[0], *(b for a, b in pairwise(ups) if a[1] != b[1])]
    assert [up for _, up in changes] == [1, 0, 1]
    down_at, up_at = changes[1][0], changes[2][0]
    figure("from kill to headroom_engine_up 0", down_at - killed_at, "s", expected="below 2")
    figure("from ready to headroom_engine_up 1", up_at - ready_at, "s", expected="below 5")
    assert down_at - killed_at < 2
    assert up_at - ready_at < 5
    down = [page for page in pages if down_at <= page.at < up_at]
    for page in down:
        assert page.find("headroom_running_sequences") == []
        assert page.find("headroom_kv_cache_usage_ratio") == []
        assert page.ones("headroom_state", "state") <= {"unknown"}
    assert grown(down[0], down[-1], "headroom_demand_sequences_count") == 0
    last = pages[-1]
    assert last.need("headroom_running_sequences") == SLOTS
    assert last.need("headroom_max_sequences", basis="server") == SLOTS
    # Its counters began anew, and so did ours.
    answered = [r for r in load.requests() if r.status == 200 and r.end > down_at + 1]
    assert last.need("headroom_generation_tokens_total") <= sum(r.output_tokens for r in answered)


@pytest.mark.timeout(120)
def test_what_polling_costs_the_server(
    build: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    """The pages take no time to speak of; and reading /metrics does start two averages anew."""
    with LlamaServer(build, model, tmp_path, *FOUR_SLOTS) as server:
        # Below four requests there is always room, so a burst ends soon.
        with run_load(
            server.url,
            [Phase(seconds=8, clients=4)],
            log_path=tmp_path / "load.jsonl",
            prompt_tokens=(1000, 1200),
            output_tokens=(500, 800),
            model=MODEL_NAME,
        ) as load:
            time.sleep(3)
            seconds: dict[str, list[float]] = {"/metrics": [], "/slots": []}
            sizes = {}
            for _ in range(20):
                for path, taken in seconds.items():
                    asked = time.monotonic()
                    sizes[path] = len(get(server.url + path))
                    taken.append(time.monotonic() - asked)
                time.sleep(0.1)
            load.wait()
        for path, taken in seconds.items():
            figure(
                f"median time of {path} under load", sorted(taken)[10], "s", expected="below 0.1"
            )
            figure(f"size of {path}", sizes[path], "bytes")
            assert sorted(taken)[10] < 0.1
        first, second = scrape(server.url), scrape(server.url)
    assert first.need("llamacpp:predicted_tokens_seconds") > 0
    assert second.need("llamacpp:predicted_tokens_seconds") == 0
    assert second.need("llamacpp:tokens_predicted_total") > 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "started with --metrics"), (("--metrics", "--api-key", "k"), "bearer_token_file")],
    ids=["without --metrics", "with an API key"],
)
def test_a_server_that_does_not_tell_is_down_and_the_log_says_what_helps(
    build: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    with (
        LlamaServer(build, model, tmp_path, *arguments) as server,
        Exporter(server.url, tmp_path, poll=FAST_POLLS) as exporter,
    ):
        time.sleep(2)
        page = exporter.scrape()
        assert page.need("headroom_engine_up") == 0
        assert said in exporter.log_text
