"""What Prometheus would have scraped: the real exporter's page, outages, engines' pages, odd labels."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headroom_exporter.backtest.prometheus import make_blocks
from headroom_exporter.backtest.record import (
    EPOCH,
    EngineRecorder,
    Recorder,
    Watched,
    samples_of,
)
from headroom_exporter.config import PlanConfig
from headroom_exporter.expose import StateCollector, make_registry
from headroom_exporter.gpus.simulated import SimulatedGpus
from headroom_exporter.samples import GpuState
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.generators import parse
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.replay import Replica, replay
from simulation import TINY_CPU

if TYPE_CHECKING:
    from pathlib import Path

PLAN = PlanConfig(name="tiny", concurrency=8, ttft_p95_seconds=2.0)
TRAFFIC = "synthetic:poisson?rate=6&duration=1e6&prompt_p95=800&prompt_max=1500&output_max=500"
ODD = 'a "b"\\nc\nd} e {f} \u2028 1,g=h'
TARGET = ("job", "instance")

Rows = dict[tuple[str, frozenset[tuple[str, str]]], float]


def plan_of(_engine: str, _model: str) -> PlanConfig:
    return PLAN


def traffic() -> TraceLoad:
    return TraceLoad(parse(TRAFFIC).requests())


def busy(name: str = "sim", profile=TINY_CPU, **options) -> Replica:
    return Replica(name=name, frontend=Frontend(profile, **options), load=traffic())


def gpus(at: float) -> GpuState:
    cards = SimulatedGpus(lambda: 0.5, monotonic=lambda: at).read().gpus
    return GpuState(up=True, driver_version="simulated", gpus=cards, read_at=at)


def rows(text: str) -> Rows:
    """Samples without their target and timestamp."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k not in TARGET)
            found[sample.name, labels] = sample.value
    return found


def record(replicas: list[Replica], seconds: float, down=(), **options):
    """The text, and the States by time."""
    out = io.StringIO()
    moments = replay(
        replicas,
        seconds,
        plan_of=plan_of,
        epoch=EPOCH,
        restarts=down,
        gpus=options.pop("gpus", None),
    )
    recorder = Recorder(out=out, plan_of=plan_of, down=down, **options)
    names = [each.name for each in replicas]
    states = {each.at: each.state for each in recorder.record(moments, names, seconds)}
    return out.getvalue(), states


def scrapes(text: str) -> dict[float, list[str]]:
    """Lines by the time of their scrape, without it."""
    body, end = text[:-6], text[-6:]
    assert end == "# EOF\n"
    split = [line.rpartition(" ") for line in body.split("\n") if line]
    return {
        round(float(stamp) - EPOCH, 3): [line for line, _, _ in group]
        for stamp, group in groupby(split, key=lambda each: each[2])
    }


def ups(text: str) -> dict[float, tuple[int, ...]]:
    return {
        at: tuple(int(float(line[-3:])) for line in lines if line.startswith("up{"))
        for at, lines in scrapes(text).items()
    }


# --- the exporter's page ---------------------------------------------------------------------------


def test_a_scrape_is_the_page_of_the_real_exporter_at_that_moment():
    text, states = record([busy(ranks=2)], 91.0, gpus=gpus)
    for at in (0.0, 15.0, 90.0):
        collector = StateCollector(lambda at=at: states[at], plan_of, lambda at=at: at)
        page = rows(generate_latest(make_registry(collector)).decode())
        shown = rows("\n".join(scrapes(text)[at]) + "\n")
        # One is how long this very scrape took; the other the process, which a replay has none of.
        own = {key for key in page if key[0].startswith("headroom_process_")}
        own |= {("headroom_scrape_duration_seconds", frozenset())}
        assert {key: value for key, value in shown.items() if key not in own} == {
            ("up", frozenset()): 1.0,
            **{key: value for key, value in page.items() if key not in own},
        }
    assert len(shown) > 150


def test_scrapes_come_at_multiples_of_the_interval_before_the_end():
    text, _ = record([busy()], 60.0, names=())
    assert list(scrapes(text)) == [0.0, 15.0, 30.0, 45.0]
    text, _ = record([busy()], 60.5, names=(), interval=20.0)
    assert list(scrapes(text)) == [0.0, 20.0, 40.0, 60.0]


def test_a_scrape_between_two_polls_shows_the_one_before():
    text, states = record([busy(api_servers=2)], 16.0, names=("headroom_running_sequences",))
    assert 15.0 not in states
    (rank,) = states[14.0].engines[0].ranks
    assert scrapes(text)[15.0][1].endswith(f" {rank.sample.running}")


def test_what_is_too_old_is_gone_from_a_scrape_as_in_life():
    down = busy(events=[Event(at=20.0, action="restart")], start_seconds=1000.0)
    text, _ = record([down], 200.0, names=("headroom_engine_up", "headroom_running_sequences"))
    assert [len(scrapes(text)[at]) for at in (15.0, 30.0, 195.0)] == [3, 2, 2]
    assert scrapes(text)[195.0][1].endswith("} 0.0")
    assert set(ups(text).values()) == {(1,)}


def test_only_the_names_asked_for_are_kept_and_up_always():
    text, _ = record([busy()], 30.0, names={"headroom_generation_tokens_total"})
    assert {line.partition("{")[0] for lines in scrapes(text).values() for line in lines} == {
        "up",
        "headroom_generation_tokens_total",
    }


def test_every_server_has_a_sidecar_with_its_own_figures():
    text, _ = record([busy("a"), busy("b", ranks=2)], 31.0, names=("headroom_running_sequences",))
    target = 'job="headroom-exporter",instance="{}:9890"'
    running = 'headroom_running_sequences{{engine="{}",rank="{}",model_name="tiny",' + target + "}}"
    assert [line.rpartition(" ")[0] for line in scrapes(text)[30.0]] == [
        f"up{{{target.format('a')}}}",
        running.format("a", 0, "a"),
        f"up{{{target.format('b')}}}",
        running.format("b", 0, "b"),
        running.format("b", 1, "b"),
    ]


# --- outages of the exporter -----------------------------------------------------------------------


def test_while_the_exporter_is_down_up_is_zero_and_there_is_nothing_else():
    text, _ = record([busy("a"), busy("b")], 121.0, down=[(30.0, 45.5)])
    assert ups(text) == {
        **dict.fromkeys((0.0, 15.0), (1, 1)),
        **dict.fromkeys((30.0, 45.0, 60.0, 75.0), (0, 0)),
        **dict.fromkeys((90.0, 105.0, 120.0), (1, 1)),
    }
    by_time = scrapes(text)
    assert [len(by_time[at]) for at in (30.0, 45.0, 60.0, 75.0)] == [2, 2, 2, 2]
    assert all(len(by_time[at]) > 100 for at in (0.0, 15.0, 90.0))


def test_an_exporter_is_back_at_the_end_of_its_outage_and_counts_from_zero():
    name = "headroom_effective_batch_sequences_count"
    text, _ = record([busy()], 61.0, down=[(20.0, 10.0)], names=(name,))
    assert set(ups(text).values()) == {(1,)}
    counts = {at: float(lines[-1].rpartition(" ")[2]) for at, lines in scrapes(text).items()}
    assert counts == {0.0: 0, 15.0: 15_000, 30.0: 0, 45.0: 15_000, 60.0: 30_000}


def test_an_exporter_that_never_runs_is_down_all_the_time():
    text, states = record([busy()], 60.0, down=[(0.0, 100.0)])
    assert states == {}
    assert ups(text) == dict.fromkeys((0.0, 15.0, 30.0, 45.0), (0,))


# --- labels ----------------------------------------------------------------------------------------


def test_label_values_of_any_text_come_through(tmp_path):
    text, _ = record([busy(ODD, replace(TINY_CPU, model_name=ODD))], 31.0)
    seen = rows("\n".join(scrapes(text)[30.0]) + "\n")
    labels = frozenset({("engine", ODD), ("rank", "0"), ("model_name", ODD)})
    assert seen["headroom_running_sequences", labels] >= 0
    assert stored(tmp_path, text) == sum(len(lines) for lines in scrapes(text).values())


def stored(folder: Path, text: str) -> int:
    """How many samples promtool puts into blocks."""
    samples, data = folder / "samples.om", folder / "data"
    samples.write_text(text, encoding="utf-8")
    make_blocks(samples, data)
    metas = [json.loads(path.read_text()) for path in data.glob("*/meta.json")]
    return sum(meta["stats"]["numSamples"] for meta in metas)


def test_promtool_takes_what_is_recorded_sample_for_sample(tmp_path):
    text, _ = record([busy("a"), busy("b", ranks=2)], 301.0, down=[(100, 60)])
    assert stored(tmp_path, text) == sum(len(lines) for lines in scrapes(text).values())


# --- an engine's own page --------------------------------------------------------------------------

NAMES = frozenset(
    {
        "vllm:num_requests_running",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:time_to_first_token_seconds_count",
        "process_start_time_seconds",
    }
)


def engine_page(seconds: float = 31.0, names=NAMES, hidden=(), name="sim", **options) -> str:
    """What the scrapes of one engine's own page give."""
    out = io.StringIO()
    frontend = Frontend(options.pop("profile", TINY_CPU), **options)
    recorder = EngineRecorder(out, name, frontend, names, hidden)
    Watched(traffic(), 15.0, recorder.scrape).drive(frontend, seconds)
    return out.getvalue() + "# EOF\n"


def families(text: str, at: float) -> list[str]:
    return sorted({line.partition("{")[0] for line in scrapes(text)[at]})


def test_an_engines_page_is_recorded_as_it_stands_with_its_target():
    lines = scrapes(engine_page())[30.0]
    assert lines[0] == 'up{job="vllm",instance="sim:8000"} 1'
    running = [line for line in lines if line.startswith("vllm:num_requests_running")]
    assert [line.rpartition(" ")[0] for line in running] == [
        'vllm:num_requests_running{engine="0",model_name="tiny",job="vllm",instance="sim:8000"}'
    ]
    assert float(running[0].rpartition(" ")[2]) > 0


def test_only_the_names_asked_for_are_kept_of_an_engines_page():
    assert families(engine_page(), 30.0) == sorted({*NAMES, "up"})


def test_samples_without_labels_get_the_target_alone():
    line = next(line for line in scrapes(engine_page())[0.0] if line.startswith("process"))
    assert (
        line
        == f'process_start_time_seconds{{job="vllm",instance="sim:8000"}} {EPOCH!r}'.replace(
            repr(EPOCH), "1.7672256e+09"
        )
    )


def test_several_api_servers_give_no_filtered_page_and_are_recorded_all_the_same():
    assert families(engine_page(api_servers=2), 30.0) == sorted(
        {*NAMES, "up"} - {"process_start_time_seconds"}
    )


def test_what_an_engine_hides_is_hidden_from_all():
    hidden = {"vllm:num_requests_running"}
    assert families(engine_page(hidden=hidden), 30.0) == sorted({*NAMES, "up"} - hidden)
    text = engine_page(hidden={"vllm:time_to_first_token_seconds"})
    assert families(text, 30.0) == [
        "process_start_time_seconds",
        "up",
        "vllm:num_requests_running",
    ]


def test_an_engine_that_is_down_is_up_zero_and_nothing_else():
    text = engine_page(121.0, events=[Event(at=20.0, action="restart")], start_seconds=60.0)
    assert {at: len(lines) > 1 for at, lines in scrapes(text).items()} == {
        at: not 30 <= at < 80 for at in map(float, range(0, 121, 15))
    }
    assert scrapes(text)[45.0] == ['up{job="vllm",instance="sim:8000"} 0']


def test_an_engines_odd_names_come_through(tmp_path):
    text = engine_page(name=ODD, profile=replace(TINY_CPU, model_name=ODD))
    seen = rows("\n".join(scrapes(text)[30.0]) + "\n")
    labels = frozenset({("engine", "0"), ("model_name", ODD)})
    assert seen["vllm:num_requests_running", labels] > 0
    assert stored(tmp_path, text) == sum(len(lines) for lines in scrapes(text).values())


def test_promtool_takes_engines_one_after_the_other(tmp_path):
    text = engine_page(301.0, name="a")[:-6] + engine_page(301.0, name="b")
    assert stored(tmp_path, text) == len(text.split("\n")) - 2


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("a 1.0", ("a", "", "1.0")),
        ("a{} 1.0", ("a", "", "1.0")),
        ('a{b="c"} +Inf', ("a", 'b="c"', "+Inf")),
        ('a{b="} 2 {"} 1.0', ("a", 'b="} 2 {"', "1.0")),
        ('a:b_c{d="e f",g=""} 1e+06', ("a:b_c", 'd="e f",g=""', "1e+06")),
        ('a{b="c\u2028d\x0be\x85"} 1.0', ("a", 'b="c\u2028d\x0be\x85"', "1.0")),
    ],
)
def test_a_line_is_taken_apart_whatever_its_labels_hold(line, sample):
    assert list(samples_of(f"# HELP a {{b}} 1\n# TYPE a gauge\n{line}\n")) == [sample]


@given(st.dictionaries(st.sampled_from("abcd"), st.text()))
def test_labels_of_any_text_are_kept_as_they_are(labels):
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

    inside = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
    page = f"x{{{inside}}} 1.5\ny 2\n"
    assert list(samples_of(page)) == [("x", inside, "1.5"), ("y", "", "2")]


# --- a load that is watched ------------------------------------------------------------------------


def test_a_watched_load_is_looked_at_in_its_own_rhythm_however_it_is_driven():
    def looks(*stops: float) -> list[tuple[float, int]]:
        frontend, seen = Frontend(TINY_CPU), []
        load = Watched(traffic(), 15.0, lambda at: seen.append((at, frontend.steps)))
        for stop in stops:
            load.drive(frontend, stop)
        assert frontend.clock == stops[-1]
        return seen

    seconds = looks(*map(float, range(101)))
    assert [at for at, _ in seconds] == [0, 15, 30, 45, 60, 75, 90]
    assert looks(0.0, 7.5, 44.9, 100.0) == looks(100.0) == seconds
    # At the very time, not when it is driven next.
    assert looks(0.0) == seconds[:1]
    assert looks(30.0) == seconds[:3]


def test_a_watched_load_stops_after_so_many_steps_and_goes_on():
    frontend, seen = Frontend(TINY_CPU), []
    load = Watched(traffic(), 15.0, seen.append)
    while not load.drive(frontend, 40.0, 100):
        pass
    whole = Frontend(TINY_CPU)
    traffic().drive(whole, 40.0)
    assert seen == [0.0, 15.0, 30.0]
    assert (frontend.clock, frontend.steps) == (40.0, whole.steps)
