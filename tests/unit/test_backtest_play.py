"""A run end to end on a tiny engine: files, what users felt, outages, what is hidden, the end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count

import pytest

from headroom_exporter.backtest.play import Felt, Played, Run, Server, play
from headroom_exporter.backtest.prometheus import make_blocks
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.config import PlanConfig
from headroom_exporter.samples import Constraint, GpuSample, GpuState
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.requests import Request
from simulation import TINY_CPU

PLAN = PlanConfig(name="tiny", concurrency=8, ttft_p95_seconds=2.0, tpot_p95_seconds=0.25)
FIVE = 300.0
ENGINE_NAMES = frozenset({"vllm:num_requests_running", "vllm:kv_cache_usage_perc"})


def requests(gap: float, *, end: float = float("inf"), start: float = 0.0, output: int = 20):
    """One request every so many seconds."""
    for number in count():
        arrival = start + number * gap
        if arrival >= end:
            return
        yield Request(arrival=arrival, prompt_tokens=100, output_tokens=output)


def server(name: str = "llm-0", arrivals=None, hidden=frozenset(), profile=TINY_CPU, **options):
    return Server(
        name=name,
        frontend=Frontend(profile, **options),
        arrivals=requests(0.5) if arrivals is None else arrivals,
        hidden=frozenset(hidden),
    )


def run(*servers: Server, seconds: float = FIVE, plan: PlanConfig = PLAN, **options) -> Run:
    return Run(servers=servers or (server(),), plan=plan, seconds=seconds, **options)


def only(played: Played) -> Felt:
    (felt,) = played.felt.values()
    return felt


def times(path, name: str) -> list[float]:
    """When a metric was seen."""
    lines = path.read_text().split("\n")
    found = {float(line.rpartition(" ")[2]) - EPOCH for line in lines if line.startswith(name)}
    return sorted(found)


def up(path) -> dict[float, str]:
    split = [line.split(" ") for line in path.read_text().split("\n") if line.startswith("up{")]
    return {float(stamp) - EPOCH: value for _, value, stamp in split}


GRID = [15.0 * index for index in range(20)]


# --- calm ------------------------------------------------------------------------------------------


def test_a_calm_run_leaves_samples_and_nobody_felt_anything(tmp_path):
    moments = []
    played = play(run(engine_names=ENGINE_NAMES), tmp_path, moments.append)
    assert sorted(tmp_path.iterdir()) == sorted(
        path for path in (played.samples, played.engine_samples) if path
    )
    assert [moment.at for moment in moments] == [float(second) for second in range(300)]
    for path in (played.samples, played.engine_samples):
        make_blocks(path, tmp_path / "data")
    assert times(played.samples, "headroom_running_sequences") == GRID
    assert times(played.engine_samples, "vllm:num_requests_running") == GRID
    felt = only(played)
    assert (felt.requests, felt.lost, felt.breaches) == (600, 0, ())
    assert [minute.requests for minute in felt.minutes] == [120, 240, 360, 480, 600]
    assert {(minute.late, minute.slow, minute.rejected) for minute in felt.minutes} == {(0, 0, 0)}


def test_without_names_of_an_engines_page_none_is_written(tmp_path):
    played = play(run(seconds=60.0), tmp_path)
    assert played.engine_samples is None
    assert list(tmp_path.iterdir()) == [played.samples]


def test_only_the_names_asked_for_are_written(tmp_path):
    played = play(run(seconds=60.0, names={"headroom_plan_limit"}), tmp_path)
    lines = played.samples.read_text().split("\n")
    assert {line.partition("{")[0] for line in lines} == {"up", "headroom_plan_limit", "# EOF", ""}


def test_the_same_run_is_the_same_to_the_last_sample(tmp_path):
    texts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        played = play(run(engine_names=ENGINE_NAMES), folder)
        kept = [
            line
            for path in (played.samples, played.engine_samples)
            for line in path.read_text().split("\n")
            if not line.startswith("headroom_scrape_duration_seconds")
        ]
        texts.append((kept, played.felt))
    assert texts[0] == texts[1]


def test_timestamps_are_of_the_recordings_own_time(tmp_path):
    name = "headroom_engine_last_success_timestamp_seconds"
    played = play(run(seconds=31.0, names={name}), tmp_path)
    lines = [line for line in played.samples.read_text().split("\n") if line.startswith(name)]
    assert [float(line.split(" ")[-2]) - EPOCH for line in lines] == [0.0, 15.0, 30.0]


# --- overload --------------------------------------------------------------------------------------


def overloaded(seconds: float = 600.0, **options) -> Server:
    """One slot that carries a request in some 0.13 s, asked for one every 0.1 s from 120 s on."""
    profile = replace(TINY_CPU, max_num_seqs=1)
    calm = requests(0.5, end=120.0)
    crowd = requests(0.1, start=120.0, output=100)

    def both():
        yield from calm
        yield from crowd

    return server(arrivals=both(), profile=profile, **options)


def test_overload_is_a_sustained_breach_until_the_end_whose_cause_is_known(tmp_path):
    felt = only(play(run(overloaded(), seconds=600.0), tmp_path))
    (breach,) = felt.breaches
    assert (breach.begin, breach.end, breach.sustained) == (120.0, 600.0, True)
    assert breach.constraint == Constraint.SLOTS
    assert felt.minutes[-1].late == 1.0


def test_every_request_has_a_fate_however_long_the_backlog_takes(tmp_path):
    felt = only(play(run(overloaded(), seconds=600.0), tmp_path))
    assert felt.requests == 240 + 4800
    assert felt.minutes[-1].requests == 5 * 600


def test_the_cause_is_seen_though_there_is_no_exporter(tmp_path):
    played = play(run(overloaded(), seconds=600.0, exporter_down=[(0.0, 1000.0)]), tmp_path)
    assert only(played).breaches[0].constraint == Constraint.SLOTS
    assert set(up(played.samples).values()) == {"0.0"}


def test_rejections_are_a_breach_without_waiting(tmp_path):
    felt = only(
        play(run(overloaded(limits=Limits(max_num_queued_reqs=2)), seconds=600.0), tmp_path)
    )
    (breach,) = felt.breaches
    assert breach.sustained
    assert felt.minutes[-1].rejected > 0.2
    assert felt.minutes[-1].late == 0


def test_the_plan_says_what_is_late(tmp_path):
    patient = replace(PLAN, ttft_p95_seconds=1e6)
    felt = only(play(run(overloaded(), seconds=600.0, plan=patient), tmp_path))
    assert felt.breaches == ()
    assert felt.requests == 5040


def test_what_arrives_after_the_end_is_not_served(tmp_path):
    frontend = Frontend(TINY_CPU)
    endless = Server(name="llm-0", frontend=frontend, arrivals=requests(0.5))
    felt = only(play(run(endless, seconds=60.0), tmp_path))
    assert felt.requests == frontend.finished == 120
    assert frontend.unfinished == 0


def test_a_request_under_way_at_the_end_shows_how_it_fared(tmp_path):
    # They arrive within the last second, and their tokens take until long after it.
    late = requests(0.04, start=59.0, output=1500)
    slow = replace(TINY_CPU, step_fixed=0.3)
    felt = only(play(run(server(arrivals=late, profile=slow), seconds=60.0), tmp_path))
    (minute,) = felt.minutes
    assert minute.requests == 25
    assert minute.slow + minute.late == 1.0
    assert minute.breach


def test_who_is_never_served_was_served_late(tmp_path):
    asleep = server(
        arrivals=requests(1.0, start=10.0), events=[Event(at=5.0, action="sleep", level=1)]
    )
    felt = only(play(run(asleep, seconds=60.0), tmp_path))
    (minute,) = felt.minutes
    assert (minute.requests, minute.late, felt.lost) == (50, 1.0, 0)


# --- outages ---------------------------------------------------------------------------------------


def test_an_outage_of_the_exporter_is_none_of_the_engine(tmp_path):
    spell, moments = [(100.5, 60.0)], []
    played = play(
        run(exporter_down=spell, engine_names=ENGINE_NAMES),
        tmp_path,
        lambda moment: moments.append(moment.at),
    )
    assert [at for at in moments if 100.5 <= at < 161] == [160.5]
    away = [at for at in GRID if 100.5 <= at < 160.5]
    assert [at for at, value in up(played.samples).items() if value == "0.0"] == away
    assert times(played.samples, "headroom_running_sequences") == [
        at for at in GRID if at not in away
    ]
    # The engine's own page is scraped all the while, and after.
    assert times(played.engine_samples, "vllm:num_requests_running") == GRID
    assert set(up(played.engine_samples).values()) == {"1"}
    without = tmp_path / "without"
    without.mkdir()
    whole = play(run(engine_names=ENGINE_NAMES), without)
    assert whole.engine_samples.read_text() == played.engine_samples.read_text()
    assert whole.felt == played.felt


def test_an_outage_of_the_engine_is_seen_by_both_and_its_requests_are_lost(tmp_path):
    gone = server(events=[Event(at=100.0, action="restart")], start_seconds=60.0)
    played = play(run(gone, engine_names=ENGINE_NAMES), tmp_path)
    away = [at for at in GRID if 100 <= at < 160]
    seen = up(played.engine_samples)
    assert list(seen) == GRID
    assert [at for at, value in seen.items() if value == "0"] == away
    assert set(up(played.samples).values()) == {"1.0"}
    felt = only(played)
    assert felt.lost == pytest.approx(120, abs=2)
    assert felt.requests == 600 - felt.lost
    assert felt.breaches == ()


# --- what is not shown, several servers, cards -----------------------------------------------------


def test_what_a_server_hides_is_in_neither_recording(tmp_path):
    blind = server(hidden={"vllm:kv_cache_usage_perc"})
    played = play(run(blind, seconds=60.0, engine_names=ENGINE_NAMES), tmp_path)
    assert times(played.samples, "headroom_kv_cache_usage_ratio") == []
    assert times(played.engine_samples, "vllm:kv_cache_usage_perc") == []
    assert times(played.engine_samples, "vllm:num_requests_running") == GRID[:4]
    assert times(played.samples, "headroom_running_sequences") == GRID[:4]


def test_two_servers_are_told_apart(tmp_path):
    calm, hot = server("calm"), replace(overloaded(), name="hot")
    played = play(run(calm, hot, seconds=600.0, engine_names=ENGINE_NAMES), tmp_path)
    assert list(played.felt) == ["calm", "hot"]
    assert played.felt["calm"].breaches == ()
    assert [each.sustained for each in played.felt["hot"].breaches] == [True]
    assert (played.felt["calm"].requests, played.felt["hot"].requests) == (1200, 5040)
    for path, port in ((played.samples, 9890), (played.engine_samples, 8000)):
        text = path.read_text()
        assert text.count(f'instance="calm:{port}"') > 40
        assert text.count(f'instance="hot:{port}"') > 40
        make_blocks(path, tmp_path / "data")


def test_each_server_fares_as_it_would_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone = play(run(overloaded(), seconds=600.0), tmp_path / "a")
    both = play(run(server("calm"), overloaded(), seconds=600.0), tmp_path / "b")
    assert both.felt["llm-0"] == alone.felt["llm-0"]


def test_cards_are_shown_as_they_are_at_each_time(tmp_path):
    def cards(at: float) -> GpuState:
        card = GpuSample(index="0", uuid="GPU-0", power=at)
        return GpuState(up=True, gpus=(card,), read_at=at)

    played = play(run(seconds=60.0, gpus=cards, names={"headroom_gpu_power_watts"}), tmp_path)
    lines = played.samples.read_text().split("\n")
    powers = [line.split(" ")[-2] for line in lines if line.startswith("headroom_gpu_power")]
    assert powers == ["0.0", "15.0", "30.0", "45.0"]


def test_arrivals_are_taken_as_they_come_and_not_all_at_once(tmp_path):
    taken = []

    def arrivals():
        for request in requests(0.5):
            taken.append(request.arrival)
            yield request

    def follow(moment):
        # Submitted at most a minute ahead.
        assert taken[-1] <= moment.at + 61

    play(run(server(arrivals=arrivals())), tmp_path, partial(follow))
    assert taken[-1] == FIVE
