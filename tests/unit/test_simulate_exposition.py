"""The simulated page against pages of the real vLLM 0.32, and of 0.33 where several processes serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.exposition import Page
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.requests import Request
from simulation import TINY_CPU

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vllm"
REAL = FIXTURES / "0.32.0" / "metrics.txt"
# The metrics code of vLLM 0.33 run with two ranks; names and order of those 0.32 has are the same.
TWO_RANKS = FIXTURES / "0.33.0" / "generated-dp2-1apiserver.prom"
TWO_SERVERS = FIXTURES / "0.33.0" / "generated-dp2-2apiservers-multiproc.prom"
GAUGES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
}


def busy(**options) -> Frontend:
    frontend = Frontend(TINY_CPU, **options)
    for number in range(80):
        frontend.submit(
            Request(
                arrival=0.02 * number,
                prompt_tokens=50 + 5 * number,
                output_tokens=100 + 4 * number,
                finish_reason="length" if number % 2 else "stop",
                cached_tokens=130 if number % 3 else 0,
            )
        )
    frontend.advance(4.0)
    return frontend


def render(frontend: Frontend, names=None) -> str:
    return Page(frontend, epoch=1.7e9).render(names)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def shape(text: str) -> list[tuple[str, tuple[str, ...], str | None]]:
    """Sample name, label names and bucket bound, in the order of the page."""
    return [
        (sample.name, tuple(sample.labels), sample.labels.get("le"))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:")
    ]


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#") and " vllm:" in line]


def test_names_labels_bounds_and_order_are_those_of_the_real_page():
    page = render(busy())
    assert shape(page) == shape(REAL.read_text())


def test_help_and_type_lines_are_those_of_the_real_page():
    page = render(busy())
    assert comments(page) == comments(REAL.read_text())


def test_label_values_other_than_settings_are_those_of_the_real_page():
    def fixed(text: str) -> set[object]:
        return {key for key in samples(text) if key[0].startswith("vllm:") and "info" not in key[0]}

    assert fixed(render(busy())) == fixed(REAL.read_text())


def test_histograms_are_cumulative_and_agree_with_their_count():
    page = render(busy())
    histograms = [f for f in text_string_to_metric_families(page) if f.type == "histogram"]
    assert len(histograms) == 16
    for family in histograms:
        buckets = [s.value for s in family.samples if s.name == f"{family.name}_bucket"]
        (count,) = [s.value for s in family.samples if s.name == f"{family.name}_count"]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count


def test_values_are_the_engines():
    frontend = busy()
    (engine,) = frontend.engines
    assert engine.running
    assert engine.waiting
    values = samples(render(frontend))
    own = (("engine", "0"), ("model_name", "tiny"))
    counters, gauges = engine.counters, engine.gauges
    assert gauges is not None
    assert values["vllm:num_requests_running", own] == gauges.running
    assert values["vllm:num_requests_waiting", own] == gauges.waiting
    assert values["vllm:kv_cache_usage_perc", own] == gauges.kv_usage
    assert values["vllm:generation_tokens_total", own] == counters.generation_tokens
    assert values["vllm:prompt_tokens_total", own] == counters.prompt_tokens
    assert values["vllm:num_preemptions_total", own] == counters.preemptions > 0
    assert values["vllm:iteration_tokens_total_count", own] == counters.step_tokens.count
    assert values["vllm:prefix_cache_queries_total", own] == counters.prefix_queries
    assert values["vllm:prefix_cache_hits_total", own] == counters.prefix_hits > 0
    assert values["vllm:request_prompt_tokens_created", own] == 1.7e9
    for reason in ("stop", "length"):
        key = ("engine", "0"), ("finished_reason", reason), ("model_name", "tiny")
        assert values["vllm:request_success_total", key] == counters.finished[reason] > 0


def test_prompt_tokens_are_told_apart_by_where_they_came_from():
    values = samples(render(busy()))

    def of(name: str, **labels: str) -> float:
        key = {"engine": "0", "model_name": "tiny", **labels}
        return values[name, tuple(sorted(key.items()))]

    computed = of("vllm:prompt_tokens_by_source_total", source="local_compute")
    cached = of("vllm:prompt_tokens_by_source_total", source="local_cache_hit")
    assert cached == of("vllm:prompt_tokens_cached_total") > 0
    assert computed + cached == of("vllm:prompt_tokens_total")
    # The step counts what it computes; a prompt found in the cache is none of that.
    tokens = of("vllm:iteration_tokens_total_sum")
    assert tokens == computed + of("vllm:generation_tokens_total")


def test_the_cache_size_counts_the_reserved_block_as_vllm_does():
    ((_, labels),) = (key for key in samples(render(busy())) if key[0] == "vllm:cache_config_info")
    settings = dict(labels)
    assert settings["num_gpu_blocks"] == "72"
    assert settings["block_size"] == "128"
    assert settings["kv_cache_size_tokens"] == "9216"
    assert settings["kv_cache_max_concurrency"] == "4.5"


def test_gauges_are_zero_or_absent_before_the_first_step():
    assert {
        name for (name, _), value in samples(render(Frontend(TINY_CPU))).items() if not value
    } >= (GAUGES)
    frontend = Frontend(TINY_CPU, api_servers=2)
    several = samples(render(frontend))
    assert not {name for name, _ in several} & GAUGES
    assert ("vllm:generation_tokens_total", (("engine", "0"), ("model_name", "tiny"))) in several
    frontend.submit(Request(arrival=0.0, prompt_tokens=10, output_tokens=10))
    frontend.advance(0.005)
    assert {name for name, _ in samples(render(frontend))} >= GAUGES


@pytest.mark.parametrize(("servers", "fixture"), [(1, TWO_RANKS), (2, TWO_SERVERS)])
def test_ranks_and_several_servers_are_written_in_the_order_of_the_real_page(servers, fixture):
    ours = shape(render(busy(ranks=2, api_servers=servers)))
    theirs = shape(fixture.read_text())
    shared = {(name, labels) for name, labels, _ in ours} & {(n, ls) for n, ls, _ in theirs}
    # What 0.33 added is not here, and bounds differ with the model's length.
    names = {name for name, _ in shared}
    assert {"vllm:iteration_tokens_total_bucket", "vllm:num_requests_running"} < names
    assert ("vllm:request_success_created" in names) == (servers == 1)

    def in_order(page: list[tuple[str, tuple[str, ...], str | None]]) -> list[tuple[str, object]]:
        kept = [(name, labels) for name, labels, _ in page if (name, labels) in shared]
        return [each for each, before in zip(kept, [None, *kept], strict=False) if each != before]

    assert in_order(ours) == in_order(theirs)
    assert {key for key in ours if key[0] not in names} <= {
        key for key in ours if key[0] == "vllm:cache_config_info"
    }


def test_each_rank_has_its_own_series_and_size_and_all_blocks():
    frontend = busy(ranks=2)
    values = samples(render(frontend))
    for rank, engine in enumerate(frontend.engines):
        own = (("engine", str(rank)), ("model_name", "tiny"))
        assert values["vllm:generation_tokens_total", own] == engine.counters.generation_tokens > 0
    configs = [dict(labels) for name, labels in values if name == "vllm:cache_config_info"]
    assert [config["engine"] for config in configs] == ["0", "1"]
    # As seen on a real 0.32.0 with two ranks: the blocks of both, the size of one.
    assert {config["num_gpu_blocks"] for config in configs} == {"144"}
    assert {config["kv_cache_size_tokens"] for config in configs} == {"9216"}


def test_several_servers_have_no_process_start_and_no_filter():
    page = Page(busy(api_servers=2), epoch=1.7e9)
    text = page.render()
    assert "process_start_time_seconds" not in text
    assert "_created" not in text
    assert page.render({"vllm:num_requests_running"}) == ""


def test_rejections_and_sleep_are_shown():
    frontend = busy(limits=Limits(max_num_queued_reqs=20))
    frontend.sleep(1)
    values = samples(render(frontend))
    rejected = (("model_name", "tiny"), ("reason", "max_num_queued_reqs"))
    assert values["vllm:admission_rejections_total", rejected] == frontend.fates.rejected > 0
    state = {
        dict(labels)["sleep_state"]: value
        for (name, labels), value in values.items()
        if name == "vllm:engine_sleep_state"
    }
    assert state == {"awake": 0, "weights_offloaded": 1, "discard_all": 0}


def test_a_restart_starts_every_counter_and_the_process_anew():
    frontend = busy(events=[Event(at=5.0, action="restart")], start_seconds=10.0)
    page = Page(frontend, epoch=1.7e9)
    assert "process_start_time_seconds 1.7e+09" in page.render()
    frontend.advance(15.5)
    values = samples(page.render())
    assert values["process_start_time_seconds", ()] == 1.7e9 + 15
    assert values["vllm:request_params_n_created", (("engine", "0"), ("model_name", "tiny"))] == (
        1.7e9 + 15
    )
    totals = {key: v for key, v in values.items() if key[0].endswith(("_total", "_count", "_sum"))}
    assert totals
    assert set(totals.values()) == {0.0}


def test_filtering_keeps_the_named_samples_under_their_heads():
    frontend = busy()
    text = render(frontend, {"vllm:num_requests_running", "vllm:iteration_tokens_total_count"})
    lines = text.splitlines()
    assert [line.split("{")[0] for line in lines] == [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        "# TYPE vllm:num_requests_running gauge",
        "vllm:num_requests_running",
        "# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.",
        "# TYPE vllm:iteration_tokens_total histogram",
        "vllm:iteration_tokens_total_count",
    ]
    assert set(lines) <= set(render(frontend).splitlines())
    # The name of a family is not the name of a sample.
    assert render(frontend, {"vllm:iteration_tokens_total"}) == ""


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "meta-llama/Llama-3.1-8B"])
def test_any_model_name_comes_back_from_the_page(name):
    frontend = Frontend(replace(TINY_CPU, model_name=name))
    names = {dict(labels).get("model_name", name) for _, labels in samples(render(frontend))}
    assert names == {name}
