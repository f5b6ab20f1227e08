"""SGLang's oddities: which series repeat each other, which counter counts when, and what it says beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.engines import detect, parse_page
from headroom_exporter.engines.base import MAX_RANKS, Page
from headroom_exporter.engines.sglang import SGLANG
from headroom_exporter.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines" / "sglang"
# Labels that the scheduler's series carry from 0.5.7.
RANK = {"tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}


def line(name: str, value: str, **labels: str) -> str:
    inner = ",".join(f'{key}="{text}"' for key, text in {"model_name": "m", **labels}.items())
    return f"sglang:{name}{{{inner}}} {value}\n"


def read(text: str, beside: Mapping[str, Series] | None = None) -> EngineSample:
    page = parse_page(text.encode(), SGLANG.full_names)
    return SGLANG.read(page.beside(beside or {}))


def only(text: str, beside: Mapping[str, Series] | None = None) -> RankSample:
    (rank,) = read(text, beside).ranks
    return rank


def answered(path: str, answer: Any) -> Mapping[str, Series]:
    """What is taken of an answer of the server."""
    (page,) = (page for page in SGLANG.beside if page.path == path)
    return page.series(answer)


def both_ranks(name: str, values: tuple[str, str], **labels: str) -> str:
    return "".join(line(name, value, dp_rank=str(i), **labels) for i, value in enumerate(values))


# --- which kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PAGES.glob("*.prom")), ids=lambda file: file.stem)
def test_every_page_is_recognised(file: Path) -> None:
    found = detect(parse_page(file.read_bytes(), SGLANG.full_names).series)
    assert found is SGLANG


def test_a_page_of_two_engines_is_nobodys() -> None:
    text = line("num_running_reqs", "1") + 'vllm:num_requests_running{model_name="m"} 1\n'
    wanted = SGLANG.full_names | {"vllm:num_requests_running"}
    with pytest.raises(Malformed, match="SGLang") as caught:
        detect(parse_page(text.encode(), wanted).series)
    assert caught.value.kind == "mixed"


# --- ranks ---------------------------------------------------------------------------------------


def test_ranks_that_repeat_each_other_count_once_with_the_largest() -> None:
    text = "".join(
        line("num_running_reqs", value, tp_rank=tp, pp_rank=pp, moe_ep_rank=tp)
        for value, tp, pp in (("7", "0", "0"), ("9", "1", "0"), ("8", "0", "1"))
    )
    assert only(text).running == 9


def test_data_parallel_ranks_are_ranks_of_their_own() -> None:
    """With attention in parallel dp_rank 1 has tp_rank 2 and 3."""
    text = "".join(
        line("num_running_reqs", value, tp_rank=tp, dp_rank=dp)
        for value, tp, dp in (("7", "0", "0"), ("7", "1", "0"), ("3", "2", "1"), ("3", "3", "1"))
    )
    assert [(rank.rank, rank.running) for rank in read(text).ranks] == [("0", 7), ("1", 3)]


def test_a_rank_of_a_kind_nobody_has_seen_yet_repeats_too() -> None:
    text = line("num_running_reqs", "5", dcp_rank="0") + line("num_running_reqs", "5", dcp_rank="1")
    assert only(text).running == 5


def test_the_total_of_all_priorities_is_taken_where_it_is_told() -> None:
    parts = line("num_queue_reqs", "2", priority="1") + line("num_queue_reqs", "3", priority="9")
    assert only(parts).waiting == 5
    assert only(parts + line("num_queue_reqs", "5", priority="")).waiting == 5


def test_a_part_that_is_no_number_makes_the_sum_unknown() -> None:
    text = line("num_running_reqs", "4", priority="1") + line(
        "num_running_reqs", "NaN", priority="2"
    )
    assert only(text + line("num_queue_reqs", "1")).running is None


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_a_rank_that_says_nothing_leaves_it_to_the_others(value: str) -> None:
    text = line("num_running_reqs", value, tp_rank="0") + line("num_running_reqs", "6", tp_rank="1")
    assert only(text).running == 6


def test_gauges_of_dead_processes_are_not_read() -> None:
    gauges = "".join(line("num_retracted_reqs", "9", pid=str(pid)) for pid in range(3))
    rank = only(line("num_running_reqs", "1") + gauges)
    assert rank.preemptions is None


def test_models_are_told_apart() -> None:
    text = "".join(line("num_running_reqs", str(n), model_name=f"m{n}") for n in (1, 2))
    assert [(rank.model_name, rank.running) for rank in read(text).ranks] == [("m1", 1), ("m2", 2)]


def test_more_ranks_than_anybody_has_are_dropped_and_counted() -> None:
    text = "".join(line("num_running_reqs", "1", dp_rank=str(i)) for i in range(MAX_RANKS + 3))
    sample = read(text)
    assert (len(sample.ranks), sample.dropped) == (MAX_RANKS, 3)


# --- who waits for what --------------------------------------------------------------------------


def test_only_those_that_wait_for_memory_or_a_slot_here_are_waiting() -> None:
    queues = {
        "num_queue_reqs": 1,
        "num_decode_prealloc_queue_reqs": 2,
        "num_grammar_queue_reqs": 10,
        "num_prefill_bootstrap_queue_reqs": 20,
        "num_decode_transfer_queue_reqs": 40,
        # Their prefill is done.
        "num_prefill_inflight_queue_reqs": 100,
    }
    rank = only("".join(line(name, str(value)) for name, value in queues.items()))
    assert (rank.waiting, rank.deferred) == (3, 70)


def test_without_any_queue_waiting_is_unknown() -> None:
    rank = only(line("num_running_reqs", "1"))
    assert (rank.waiting, rank.deferred) == (None, None)


# --- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "read_as"), [("0.66", 0.66), ("1.0", 1.0), ("1.04", 1.0), ("1.98", None)]
)
def test_a_usage_multiplied_by_ranks_is_unknown(value: str, read_as: float | None) -> None:
    rank = only(line("num_running_reqs", "1") + line("token_usage", value))
    assert rank.kv_usage == read_as


def test_one_broken_rank_makes_the_usage_unknown() -> None:
    text = line("token_usage", "0.5", tp_rank="0") + line("token_usage", "1.5", tp_rank="1")
    assert only(line("num_running_reqs", "1") + text).kv_usage is None


def test_the_pool_is_that_of_one_rank() -> None:
    """Summing what every tensor-parallel rank repeats would deflate the usage by their number."""
    text = "".join(line("max_total_num_tokens", "92962", tp_rank=str(i)) for i in range(4))
    assert only(text).kv_capacity_tokens == 92962


def test_the_page_size_is_a_gauge_or_for_two_versions_a_label() -> None:
    running = line("num_running_reqs", "1")
    assert only(running + line("page_size", "64")).block_tokens == 64
    label = 'sglang:cache_config_info{page_size="32",num_pages="100"} 1\n'
    assert only(running + label).block_tokens == 32
    assert only(running + 'sglang:cache_config_info{page_size="None"} 1\n').block_tokens is None


# --- counters ------------------------------------------------------------------------------------

FINISHED_ONLY = line("prompt_tokens_total", "900") + line("generation_tokens_total", "90")


def test_before_0_5_7_tokens_are_those_of_finished_requests() -> None:
    rank = only(line("num_running_reqs", "1") + FINISHED_ONLY)
    assert (rank.prompt_tokens, rank.generation_tokens) == (900, 90)
    assert rank.computed_prompt_tokens is None


def test_from_0_5_7_tokens_are_those_of_the_scheduler() -> None:
    text = FINISHED_ONLY + line("num_running_reqs", "1", **RANK)
    for mode, value in (("prefill_compute", 70), ("prefill_cache", 30), ("decode", 20)):
        text += line("realtime_tokens_total", str(value), mode=mode, **RANK)
    rank = only(text)
    assert (rank.prompt_tokens, rank.computed_prompt_tokens, rank.generation_tokens) == (
        100,
        70,
        20,
    )
    assert (rank.prefix_queries, rank.prefix_hits) == (100, 30)


def test_the_source_of_a_counter_does_not_change_while_the_process_lives() -> None:
    """
    A short request ends before the first report of the scheduler: its tokens are not shown for a moment.

    Shown, they would jump, or go back and look like a restart, when the scheduler's series appear.
    """
    running = line("num_running_reqs", "1", **RANK)
    at_first = only(running + FINISHED_ONLY)
    assert (at_first.prompt_tokens, at_first.generation_tokens) == (None, None)
    later = running + FINISHED_ONLY + line("realtime_tokens_total", "5", mode="decode", **RANK)
    assert (only(later).prompt_tokens, only(later).generation_tokens) == (None, 5)


def test_streamed_and_other_answers_are_summed() -> None:
    text = line("num_running_reqs", "1")
    for name in ("prompt_tokens_total", "generation_tokens_total", "num_requests_total"):
        text += line(name, "2", is_streaming="true") + line(name, "3", is_streaming="false")
    rank = only(text)
    assert (rank.prompt_tokens, rank.generation_tokens) == (5, 5)
    assert rank.finished == {"unspecified": 5}


def test_cache_hits_are_summed_over_where_they_came_from() -> None:
    hits = line("cached_tokens_total", "4", cache_source="device") + line(
        "cached_tokens_total", "5", cache_source="host"
    )
    rank = only(FINISHED_ONLY + hits)
    assert (rank.prefix_queries, rank.prefix_hits) == (900, 9)


def test_retractions_are_preemptions() -> None:
    new = line("num_running_reqs", "1", **RANK)
    assert only(new + line("num_retracted_requests_total", "3", **RANK)).preemptions == 3
    # It has no series before the first one; that there was none is known.
    assert only(new).preemptions == 0
    old = line("num_running_reqs", "1")
    assert only(old + line("total_retracted_reqs", "7")).preemptions == 7
    assert only(old).preemptions is None


def test_gaps_between_tokens_are_counted_and_means_of_answers_are_not() -> None:
    gaps = line("inter_token_latency_seconds_sum", "4.5") + line(
        "inter_token_latency_seconds_count", "90"
    )
    rank = only(line("num_running_reqs", "1") + gaps)
    assert (rank.inter_token_seconds, rank.inter_token_count) == (4.5, 90)
    means = gaps.replace("inter_token_latency", "time_per_output_token")
    rank = only(line("num_running_reqs", "1") + means)
    assert (rank.inter_token_seconds, rank.inter_token_count) == (None, None)


# --- what the server counts for all ranks --------------------------------------------------------

SERVER = (
    FINISHED_ONLY
    + line("num_requests_total", "3")
    + line("inter_token_latency_seconds_sum", "4.5")
    + line("inter_token_latency_seconds_count", "90")
    + line("e2e_request_latency_seconds_bucket", "3", le="+Inf")
    + line("e2e_request_latency_seconds_sum", "6")
)


def test_with_one_rank_it_is_that_rank() -> None:
    rank = only(line("num_running_reqs", "1", dp_rank="0") + SERVER)
    assert (rank.rank, rank.running, rank.prompt_tokens, rank.inter_token_count) == (
        "0",
        1,
        900,
        90,
    )


def test_with_several_the_first_shows_requests_and_nobody_what_would_be_taken_for_his() -> None:
    first, second = read(both_ranks("num_running_reqs", ("1", "2")) + SERVER).ranks
    assert first.finished == {"unspecified": 3}
    assert first.histograms["request_duration_seconds"].count == 3
    assert (first.prompt_tokens, first.inter_token_count, first.inter_token_seconds) == (None,) * 3
    assert (second.finished, second.histograms, second.prompt_tokens) == ({}, {}, None)


def test_a_rank_keeps_its_own_histograms_beside_those_of_the_server() -> None:
    own = "".join(
        both_ranks(f"queue_time_seconds_{part}", ("1", "2"), **labels)
        for part, labels in (("bucket", {"le": "+Inf"}), ("sum", {}))
    )
    first, second = read(both_ranks("num_running_reqs", ("1", "2")) + SERVER + own).ranks
    assert set(first.histograms) == {"queue_time_seconds", "request_duration_seconds"}
    assert second.histograms["queue_time_seconds"].count == 2


# --- histograms ----------------------------------------------------------------------------------


def test_histograms_are_summed_bound_by_bound_however_bounds_are_written() -> None:
    text = line("num_running_reqs", "1")
    for streaming in ("true", "false"):
        for le, count in (("1000.0", "1"), ("1e+06", "4"), ("1.1e+06", "4"), ("+Inf", "5")):
            text += line("prompt_tokens_histogram_bucket", count, le=le, is_streaming=streaming)
        text += line("prompt_tokens_histogram_sum", "5000", is_streaming=streaming)
    found = only(text).histograms["request_prompt_tokens"]
    assert found.bounds == (1000.0, 1e6, 1.1e6)
    assert (found.counts, found.sum) == ((2, 8, 8, 10), 10_000)


def test_half_a_histogram_is_none() -> None:
    text = line("num_running_reqs", "1") + line("e2e_request_latency_seconds_sum", "6")
    assert only(text + line("e2e_request_latency_seconds_bucket", "3", le="1")).histograms == {}


def test_what_was_not_a_number_when_it_was_written_is_not_read() -> None:
    names = ("fwd_occupancy", "utilization")
    assert not {f"sglang:{name}" for name in names} & SGLANG.full_names


# --- beside the page -----------------------------------------------------------------------------

RUNNING = line("num_running_reqs", "1", dp_rank="0") + line("num_running_reqs", "1", dp_rank="1")


def test_the_server_tells_the_slots_of_each_rank() -> None:
    loads = json.loads((PAGES / "generated-0.5.23-dp2.v1_loads.json").read_bytes())
    sample = read(RUNNING, answered("/v1/loads", loads))
    assert [rank.slots for rank in sample.ranks] == [24, 23]
    assert [rank.kv_capacity_tokens for rank in sample.ranks] == [92962, 92962]
    assert sample.version == "0.5.23"


def test_a_server_without_data_parallelism_says_null_or_zero_for_its_rank() -> None:
    for rank in (None, 0, "0"):
        loads = {"loads": [{"dp_rank": rank, "max_running_requests": 256}]}
        assert only(line("num_running_reqs", "1"), answered("/v1/loads", loads)).slots == 256


def test_what_became_of_the_argument_counts_before_what_was_asked_for() -> None:
    info: dict[str, Any] = {"max_running_requests": 96, "dp_size": 2, "max_total_num_tokens": 5000}
    asked = read(RUNNING, answered("/server_info", info))
    assert [rank.slots for rank in asked.ranks] == [48, 48]
    info["internal_states"] = [
        {"effective_max_running_requests_per_dp": 40},
        {"effective_max_running_requests_per_dp": 41},
    ]
    became = read(RUNNING, answered("/server_info", info))
    assert [rank.slots for rank in became.ranks] == [40, 40]
    assert [rank.kv_capacity_tokens for rank in became.ranks] == [5000, 5000]


def test_nothing_is_known_of_a_limit_that_nobody_set() -> None:
    info: dict[str, Any] = {
        "max_running_requests": None,
        "internal_states": [{}],
        "version": "0.4.9",
    }
    sample = read(RUNNING, answered("/get_server_info", info))
    assert [rank.slots for rank in sample.ranks] == [None, None]
    assert sample.version == "0.4.9"


def test_the_page_counts_before_what_was_said_at_the_start() -> None:
    info = answered("/server_info", {"max_total_num_tokens": 5000})
    assert only(line("max_total_num_tokens", "6000"), info).kv_capacity_tokens == 6000


def test_keys_and_passwords_of_the_server_are_not_kept() -> None:
    info: dict[str, Any] = {
        "api_key": "sk-secret",
        "admin_api_key": "sk-admin",
        "version": "0.5.23",
        "dp_size": 1,
    }
    assert "secret" not in repr(answered("/server_info", info))
    assert "admin" not in repr(answered("/server_info", info))


HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e300, "x", [], {}, [[]], [None], {"loads": None}, {"loads": [1, None]}),
    {"loads": [{"dp_rank": {}, "max_running_requests": "many"}]},
    {"loads": [{"dp_rank": 0, "max_running_requests": -4, "max_total_num_tokens": True}]},
    {"version": ["0.5"], "internal_states": {"0": 1}, "max_running_requests": "48", "dp_size": "2"},
    {"internal_states": [None, 3, {"memory_usage": 5}], "max_running_requests": 48, "dp_size": -2},
    {"loads": [{"dp_rank": "x" * 100_000, "max_running_requests": 5}] * 1000},
    {"data": [{"id": 3, "max_model_len": "long"}]},
)


@pytest.mark.parametrize("page", SGLANG.beside, ids=lambda page: page.path)
@pytest.mark.parametrize("answer", HOSTILE, ids=map(str, range(len(HOSTILE))))
def test_any_answer_is_survived(page: Any, answer: Any) -> None:
    series = page.series(answer)
    assert all(name.startswith(page.path) for name in series)
    assert sum(map(len, series.values())) <= 3 * MAX_RANKS
    assert all(
        len(text) < 300 for rows in series.values() for row, _ in rows for text in row.values()
    )
    rank = SGLANG.read(Page(parse_page(RUNNING.encode(), SGLANG.full_names).series | series)).ranks[
        0
    ]
    assert rank.slots is None or 0 < rank.slots < 1e15


def test_the_longest_sequence_is_told_by_the_page_or_by_the_list_of_models() -> None:
    models = answered("/v1/models", {"data": [{"id": "m", "max_model_len": 4096}]})
    assert read(line("num_running_reqs", "1"), models).max_model_length == 4096
    assert read(line("context_len", "40960"), models).max_model_length == 40960
    assert read(line("num_running_reqs", "1")).max_model_length is None
