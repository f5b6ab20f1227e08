"""vLLM where something else publishes its metrics: under Ray, and in Triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines import detect, parse_page, recognise
from headroom_exporter.engines.base import MAX_RANKS
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.engines.vllm_ray import VLLM_RAY
from headroom_exporter.engines.vllm_triton import VLLM_TRITON
from headroom_exporter.errors import Malformed

if TYPE_CHECKING:
    from headroom_exporter.samples import EngineSample, RankSample

PAGES = Path(__file__).parents[1] / "fixtures" / "engines"
TWO_REPLICAS = (PAGES / "vllm-ray" / "synthesised-0.33.0-ray-2.55-2replicas.prom").read_bytes()
NATIVE = PAGES.parent / "vllm" / "0.33.0" / "generated-1engine.prom"


def ray(text: str) -> EngineSample:
    return VLLM_RAY.read(parse_page(text.encode(), VLLM_RAY.full_names))


def only(text: str) -> RankSample:
    (rank,) = ray(text).ranks
    return rank


def line(name: str, value: str, **labels: str) -> str:
    inner = ",".join(f'{key}="{text}"' for key, text in {"model_name": "m", **labels}.items())
    return f"{name}{{{inner}}} {value}\n"


# --- Ray -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["ray_vllm:", "ray_vllm_"])
def test_both_ways_to_write_the_prefix_are_read(prefix: str) -> None:
    text = line(f"{prefix}num_requests_running", "3", WorkerId="w", engine="0")
    assert detect(parse_page(text.encode(), VLLM_RAY.full_names).series) is VLLM_RAY
    assert (only(text).rank, only(text).running) == ("w/0", 3)


def test_replicas_of_a_node_are_kept_apart_though_each_has_engine_0() -> None:
    ranks = VLLM_RAY.read(parse_page(TWO_REPLICAS, VLLM_RAY.full_names)).ranks
    assert [(rank.rank, rank.running, rank.kv_usage) for rank in ranks] == [
        ("k3v9x2ab/0", 17, 0.6123046875),
        ("p0q8m4zz/0", 7, 0.125),
    ]


def test_a_replica_is_read_as_vllm_would_be() -> None:
    """But for what counts steps; the pool of one is not shared out among the replicas of the node."""
    (native,) = VLLM.read(parse_page(NATIVE.read_bytes(), VLLM.full_names)).ranks
    first = VLLM_RAY.read(parse_page(TWO_REPLICAS, VLLM_RAY.full_names)).ranks[0]
    assert native.kv_capacity_tokens is not None
    for field in ("waiting", "deferred", "prompt_tokens", "kv_capacity_tokens", "preemptions"):
        assert getattr(first, field) == getattr(native, field), field
    assert first.histograms == native.histograms


def test_counters_that_come_all_ten_seconds_time_no_steps() -> None:
    first = VLLM_RAY.read(parse_page(TWO_REPLICAS, VLLM_RAY.full_names)).ranks[0]
    assert (first.steps, first.step_tokens, first.inter_token_seconds) == (None, None, None)
    assert VLLM_RAY.cadence.gauge_seconds == 10


def test_a_counter_that_stands_there_twice_counts_once() -> None:
    total = line("ray_vllm_generation_tokens_total", "5", WorkerId="w")
    alias = line("ray_vllm_generation_tokens", "4", WorkerId="w")
    assert only(total + alias).generation_tokens == 5
    assert only(alias + total).generation_tokens == 5
    # Ray before 2.10 has only the gauge.
    assert only(alias).generation_tokens == 4


def test_a_worker_is_told_by_its_replica_where_ray_serve_names_one() -> None:
    labels = {"WorkerId": "6ad5887a3c1c6cefcfa31b4f9a55", "engine": "1"}
    name = "ray_vllm_num_requests_running"
    assert only(line(name, "1", **labels)).rank == "6ad5887a3c1c/1"
    assert only(line(name, "1", ReplicaId="abc", **labels)).rank == "abc/1"
    assert only(line(name, "1")).rank == "0"


def test_more_workers_than_anybody_has_are_dropped_and_counted() -> None:
    name = "ray_vllm_num_requests_running"
    sample = ray("".join(line(name, "1", WorkerId=f"{i:04}") for i in range(MAX_RANKS + 5)))
    assert (len(sample.ranks), sample.dropped) == (MAX_RANKS, 5)


def test_hit_rates_of_minus_one_and_rays_own_metrics_are_left_alone() -> None:
    names = {"ray_vllm:gpu_prefix_cache_hit_rate", "ray_node_cpu_utilization"}
    assert not names & VLLM_RAY.full_names


# --- Triton --------------------------------------------------------------------------------------

TRITON = 'vllm:prompt_tokens_total{model="m",version="1"} 10\n'


def recognised(text: str) -> str | None:
    engine = recognise("/metrics", text.encode())
    return None if engine is None else engine.name


def test_triton_is_known_by_its_labels_and_vllm_by_its_own() -> None:
    assert recognised(TRITON) == "vllm-triton"
    assert recognised(line("vllm:prompt_tokens_total", "1", engine="0")) == "vllm"
    assert recognised("vllm:prompt_tokens_total 0\n") == "vllm"
    assert recognised(NATIVE.read_text(encoding="utf-8")) == "vllm"


def test_triton_has_no_gauges_and_none_is_made_up() -> None:
    (rank,) = VLLM_TRITON.read(parse_page(TRITON.encode(), VLLM_TRITON.full_names)).ranks
    assert (rank.model_name, rank.prompt_tokens) == ("m", 10)
    assert (rank.running, rank.waiting, rank.kv_usage, rank.slots) == (None,) * 4


def test_elided_lines_of_the_readme_are_no_samples() -> None:
    page = (PAGES / "vllm-triton" / "captured-readme-elided.prom").read_bytes()
    assert b"\n...\n" in page
    (rank,) = VLLM_TRITON.read(parse_page(page, VLLM_TRITON.full_names)).ranks
    assert rank.generation_tokens == 16


def test_vllm_and_vllm_under_ray_on_one_page_are_mixed() -> None:
    text = line("ray_vllm_num_requests_running", "1") + line("vllm:num_requests_running", "1")
    with pytest.raises(Malformed, match="Ray") as caught:
        recognised(text)
    assert caught.value.kind == "mixed"
