"""vLLM's names and oddities, version by version; the pages as a whole are in tests/golden."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import ENGINES, detect, parse_page
from headroom_exporter.engines.base import MAX_LABEL_LENGTH, MAX_RANKS, MAX_REASONS
from headroom_exporter.engines.vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm"
RUNNING = 'vllm:num_requests_running{engine="0",model_name="m"} 3\n'


def read(text: str) -> EngineSample:
    return VLLM.read(parse_page(text.encode(), VLLM.full_names))


def only(text: str) -> RankSample:
    (rank,) = read(text).ranks
    return rank


def fixture(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def config(**labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"vllm:cache_config_info{{{inner}}} 1\n"


def line(name: str, value: str, **labels: str) -> str:
    labels = {"engine": "0", "model_name": "m", **labels}
    inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"vllm:{name}{{{inner}}} {value}\n"


# --- which engine --------------------------------------------------------------------------------


def test_a_page_is_recognised_by_a_marker_and_nothing_else() -> None:
    def found(text: str) -> str | None:
        engine = detect(parse_page(text.encode(), VLLM.full_names).series)
        return None if engine is None else engine.name

    assert found(RUNNING) == "vllm"
    assert found("vllm:prompt_tokens_total 0\n") == "vllm"
    assert found("process_start_time_seconds 1\n") is None
    assert found("ray_vllm:num_requests_running 1\n") is None
    assert found('sglang:num_running_reqs{model_name="m"} 1\n') is None


def test_the_tables_hold_together() -> None:
    for engine in ENGINES:
        assert engine.full_names >= set(engine.fast_names) | engine.markers
        assert len(set(engine.fast_names)) == len(engine.fast_names)


def test_only_series_with_help_are_read_from_a_page_without_samples() -> None:
    """What vLLM serves with its statistics off."""
    assert (
        read("# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n").ranks
        == ()
    )


# --- gauges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kv_cache_usage_perc", "gpu_cache_usage_perc"])
def test_both_names_of_the_usage_are_read(name: str) -> None:
    assert only(line(name, "0.25")).kv_usage == 0.25


def test_where_both_names_stand_the_new_one_counts() -> None:
    both = line("gpu_cache_usage_perc", "0.1") + line("kv_cache_usage_perc", "0.2")
    assert only(both).kv_usage == 0.2


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1.2"])
def test_a_usage_that_cannot_be_is_unknown_and_the_rest_stays(value: str) -> None:
    rank = only(RUNNING + line("kv_cache_usage_perc", value))
    assert (rank.kv_usage, rank.running) == (None, 3)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_a_gauge_that_cannot_be_is_unknown_not_zero(value: str) -> None:
    text = line("num_requests_running", value) + line("num_requests_waiting", value)
    rank = only(text + line("prompt_tokens_total", "5"))
    assert (rank.running, rank.waiting, rank.prompt_tokens) == (None, None, 5)


def test_waiting_is_all_that_wait_where_reasons_are_not_told() -> None:
    assert only(line("num_requests_waiting", "4")).waiting == 4


def test_deferred_requests_do_not_wait_for_capacity() -> None:
    text = (
        line("num_requests_waiting", "7")
        + line("num_requests_waiting_by_reason", "4", reason="capacity")
        + line("num_requests_waiting_by_reason", "3", reason="deferred")
        + line("num_requests_waiting_by_reason", "9", reason="a new one")
    )
    assert (only(text).waiting, only(text).deferred) == (4, 3)


def test_requests_that_v0_swapped_out_wait_for_memory() -> None:
    text = line("num_requests_waiting", "2") + line("num_requests_swapped", "5")
    assert only(text).waiting == 7
    assert only(text.replace(" 5", " NaN")).waiting == 2


def test_before_the_first_step_there_are_counters_and_no_gauges() -> None:
    rank = only(line("prompt_tokens_total", "0") + line("num_preemptions_total", "0"))
    assert (rank.running, rank.waiting, rank.kv_usage) == (None, None, None)
    assert (rank.prompt_tokens, rank.preemptions) == (0, 0)


# --- counters ------------------------------------------------------------------------------------


def test_names_that_begin_alike_are_kept_apart() -> None:
    text = (
        line("prefix_cache_queries_total", "1")
        + line("external_prefix_cache_queries_total", "99")
        + line("generation_tokens_total", "2")
        + line("request_max_num_generation_tokens_sum", "99")
        + line("prompt_tokens_total", "3")
        + line("prompt_tokens_cached_total", "99")
        + line("prompt_tokens_total_created", "99")
    )
    rank = only(text)
    assert (rank.prefix_queries, rank.generation_tokens, rank.prompt_tokens) == (1, 2, 3)


def test_prefix_counters_in_blocks_are_left_out() -> None:
    """Up to 0.8.5, under another name."""
    rank = only(RUNNING + line("gpu_prefix_cache_queries_total", "10"))
    assert rank.prefix_queries is None


def test_computed_prompt_tokens_are_those_no_cache_held() -> None:
    text = "".join(
        line("prompt_tokens_by_source_total", value, source=source)
        for source, value in (
            ("local_compute", "70"),
            ("local_cache_hit", "20"),
            ("external_kv_transfer", "10"),
        )
    )
    assert only(text).computed_prompt_tokens == 70


def test_finished_requests_are_told_apart_by_reason() -> None:
    text = line("request_success_total", "4", finished_reason="stop") + line(
        "request_success_total", "NaN", finished_reason="abort"
    )
    assert only(text).finished == {"stop": 4}


def test_reasons_are_few() -> None:
    text = "".join(
        line("request_success_total", "1", finished_reason=f"r{i}") for i in range(10_000)
    )
    assert len(only(text).finished) == MAX_REASONS


def test_rejections_without_a_rank_are_counted_once() -> None:
    text = (
        line("num_requests_running", "1", engine="1")
        + RUNNING
        + 'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 6\n'
        + 'vllm:admission_rejections_total{model_name="another",reason="max_num_queued_reqs"} 9\n'
    )
    first, second = read(text).ranks
    assert (first.rank, dict(first.rejected)) == ("0", {"max_num_queued_reqs": 6})
    assert (second.rank, dict(second.rejected)) == ("1", {})


# --- ranks and models ----------------------------------------------------------------------------


def test_each_rank_has_its_own_figures() -> None:
    text = line("num_requests_running", "1", engine="1") + line(
        "num_requests_running", "2", engine="0"
    )
    assert [(rank.rank, rank.running) for rank in read(text).ranks] == [("0", 2), ("1", 1)]


def test_an_engine_without_ranks_is_rank_0() -> None:
    assert only('vllm:num_requests_running{model_name="m"} 3\n').rank == "0"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"a\"quote", 'a"quote'),
        (r"line\nbreak", "line\nbreak"),
        (r"back\\slash", "back\\slash"),
        ("/models/Größe/模型", "/models/Größe/模型"),
        ("{,}=# ", "{,}=# "),
        ("x" * 5000, "x" * (MAX_LABEL_LENGTH - 1) + "…"),
        ("", ""),
    ],
)
def test_model_names_with_anything_in_them(written: str, name: str) -> None:
    rank = only(line("num_requests_running", "1", model_name=written))
    assert (rank.model_name, rank.running) == (name, 1)


def test_ten_thousand_models_are_cut_to_what_is_read_and_the_rest_counted() -> None:
    text = "".join(line("num_requests_running", "1", model_name=f"m{i}") for i in range(10_000))
    sample = read(text)
    assert (len(sample.ranks), sample.dropped) == (MAX_RANKS, 10_000 - MAX_RANKS)


# --- histograms ----------------------------------------------------------------------------------


def histogram(name: str, *, until: str = "+Inf", total: str = "7.5") -> str:
    buckets = [("1.0", "1"), ("2.0", "2"), ("+Inf", "3")]
    kept = [bucket for bucket in buckets if bucket[0] != "+Inf" or until == "+Inf"]
    return "".join(line(f"{name}_bucket", count, le=le) for le, count in kept) + line(
        f"{name}_sum", total
    )


@pytest.mark.parametrize("name", ["inter_token_latency_seconds", "time_per_output_token_seconds"])
def test_both_names_of_the_inter_token_latency_are_read(name: str) -> None:
    made = only(histogram(name)).histograms["inter_token_latency_seconds"]
    assert (made.bounds, made.counts, made.sum) == ((1, 2), (1, 2, 3), 7.5)


def test_where_both_names_stand_the_new_histogram_counts() -> None:
    both = histogram("time_per_output_token_seconds", total="1") + histogram(
        "inter_token_latency_seconds", total="2"
    )
    assert only(both).histograms["inter_token_latency_seconds"].sum == 2


def test_half_a_histogram_is_left_out_and_the_rest_stays() -> None:
    text = RUNNING + histogram("e2e_request_latency_seconds", until="2.0")
    assert only(text).histograms == {}
    assert only(RUNNING + histogram("e2e_request_latency_seconds", total="NaN")).histograms == {}
    assert only(text).running == 3


def test_steps_come_from_a_histogram_named_like_a_counter() -> None:
    text = line("iteration_tokens_total_count", "12") + line("iteration_tokens_total_sum", "300")
    assert (only(text).steps, only(text).step_tokens) == (12, 300)


# --- the pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "tokens", "block"),
    [
        # 0.24 and later: as told, less the reserved block; the usage gauge divides by the same.
        (
            {"num_gpu_blocks": "72", "block_size": "128", "kv_cache_size_tokens": "9216"},
            9088,
            128,
        ),
        # Before: blocks x block size.
        ({"num_gpu_blocks": "101", "block_size": "16"}, 1600, 16),
        ({"num_gpu_blocks": "101", "block_size": "16", "kv_cache_size_tokens": "None"}, 1600, 16),
        # The block size of a hybrid model is not the size of a block.
        ({"num_gpu_blocks": "101", "block_size": "16", "mamba_block_size": "64"}, None, None),
        ({"num_gpu_blocks": "101", "block_size": "16", "mamba_block_size": "None"}, 1600, 16),
        # Texts for numbers.
        ({"num_gpu_blocks": "None", "block_size": "16"}, None, None),
        ({"num_gpu_blocks": "101", "block_size": "None"}, None, None),
        ({"num_gpu_blocks": "auto", "block_size": "16"}, None, None),
        ({"num_gpu_blocks": "0", "block_size": "16"}, None, None),
        ({"num_gpu_blocks": "-5", "block_size": "16"}, None, None),
        ({"num_gpu_blocks": "inf", "block_size": "16"}, None, None),
        # Nothing but the reserved block.
        ({"num_gpu_blocks": "1", "block_size": "16"}, None, None),
        # Names that end alike.
        (
            {"num_gpu_blocks": "101", "hash_block_size": "99", "block_size": "16"},
            1600,
            16,
        ),
        (
            {"num_gpu_blocks_override": "101", "num_gpu_blocks": "None", "block_size": "16"},
            None,
            None,
        ),
        ({}, None, None),
    ],
)
def test_the_pool_in_tokens(
    labels: Mapping[str, str], tokens: float | None, block: float | None
) -> None:
    rank = only(RUNNING + config(engine="0", **labels))
    assert (rank.kv_capacity_tokens, rank.block_tokens) == (tokens, block)


def test_v0_reserves_no_block() -> None:
    text = RUNNING + line("num_requests_swapped", "0")
    assert only(text + config(num_gpu_blocks="100", block_size="16")).kv_capacity_tokens == 1600


def test_blocks_are_the_sum_over_ranks_but_tokens_are_per_rank() -> None:
    """144 blocks for two ranks of 72, on each of them."""
    ranks = RUNNING + line("num_requests_running", "1", engine="1")
    for told in ({}, {"kv_cache_size_tokens": "9216"}):
        text = ranks + "".join(
            config(engine=engine, num_gpu_blocks="144", block_size="128", **told)
            for engine in ("0", "1")
        )
        assert [rank.kv_capacity_tokens for rank in read(text).ranks] == [9088, 9088]


def test_a_config_without_a_rank_holds_for_all() -> None:
    text = RUNNING + config(num_gpu_blocks="101", block_size="16")
    assert only(text).kv_capacity_tokens == 1600


def test_the_pool_of_a_real_hybrid_model_is_not_blocks_times_block_size() -> None:
    """100 million tokens by multiplication; vLLM's own log says 6,471,460."""
    text = fixture("0.24plus/captured-v1-hybrid-15x-cache_config-extract.prom")
    tokens = only(RUNNING + text).kv_capacity_tokens
    assert tokens == pytest.approx(6_471_460, rel=1e-4)


def test_a_pool_without_a_rank_makes_no_rank() -> None:
    assert read(config(num_gpu_blocks="101", block_size="16")).ranks == ()


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "started"), [("1.7e9", 1.7e9), ("NaN", None), ("-1", None)])
def test_the_start_of_the_process(value: str, started: float | None) -> None:
    assert read(f"process_start_time_seconds {value}\n").started == started
