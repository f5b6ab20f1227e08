"""Truth, told in an engine's words, read back and derived: still the truth, as far as words carry it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headroom_exporter.config import PollConfig
from headroom_exporter.engines import BY_NAME
from headroom_exporter.engines.base import Certainty, Quantity
from headroom_exporter.errors import ConfigError
from headroom_exporter.samples import EngineState, HeadroomState
from headroom_exporter.simulate.dialects import DIALECTS, Dialect
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.replay import Replica, replay
from headroom_exporter.simulate.requests import Request

SECONDS = 150.0
PROFILE = find("rtx4090-llama-3.1-8b")
# All dialects but vLLM's answer the whole page only, at the fallback interval.
POLL = PollConfig(interval=1.0, fallback_interval=1.0)
EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@dataclass(frozen=True)
class Told:
    """What the exporter knew at the end, and the engine it was of."""

    engine: EngineState
    frontend: Frontend

    @property
    def rank(self):
        (rank,) = self.engine.ranks
        return rank


def tell(dialect: Dialect, requests: list[Request], **limits) -> Told:
    frontend = Frontend(replace(PROFILE, **limits), dialect=dialect)
    replica = Replica(name="e", frontend=frontend, load=TraceLoad(iter(requests)))
    last = None
    for moment in replay([replica], SECONDS, poll=POLL):
        last = moment
    assert last is not None
    (engine,) = last.state.engines
    return Told(engine, frontend)


def steady(every: float, prompt: int = 300, output: int = 150) -> list[Request]:
    """Requests at an even pace, each with its own lengths."""
    count = int(SECONDS / every)
    return [
        Request(
            id=str(i),
            arrival=i * every,
            prompt_tokens=prompt + 37 * (i % 7),
            output_tokens=output + 29 * (i % 5),
        )
        for i in range(count)
    ]


@st.composite
def traffic(draw) -> list[Request]:
    """From a trickle to somewhat more than the engine can take."""
    gaps = draw(st.lists(st.floats(0.15, 4.0), min_size=20, max_size=60))
    lengths = st.tuples(st.integers(20, 1500), st.integers(5, 400))
    sizes = draw(st.lists(lengths, min_size=len(gaps), max_size=len(gaps)))
    at, requests = 0.0, []
    for i, (gap, (prompt, output)) in enumerate(zip(gaps * 4, sizes * 4, strict=True)):
        at += gap
        if at < SECONDS:
            requests.append(
                Request(id=str(i), arrival=at, prompt_tokens=prompt, output_tokens=output)
            )
    return requests


@EACH
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=traffic())
def test_demand_over_time_is_the_truth_in_every_dialect(dialect, requests):
    told = tell(dialect, requests)
    truth = told.frontend.integrals
    seen = told.rank.memory.demand
    # SGLang's gauges are up to 40 steps old, and stand for half a minute when it goes idle.
    tolerance, floor = (0.12, 1.0) if dialect.gauge_steps > 1 else (0.05, 0.25)
    level = (truth.running + truth.waiting) / SECONDS
    assert seen.milliseconds[-1] >= 0.9 * 1000 * (SECONDS - 30)
    assert seen.sum / seen.milliseconds[-1] == pytest.approx(level, rel=tolerance, abs=floor)


@EACH
def test_what_an_engine_tells_exactly_is_the_truth(dialect):
    told = tell(dialect, steady(0.5), max_num_seqs=64)
    engine, declared = BY_NAME[dialect.name], BY_NAME[dialect.name].tells
    sample, counters = told.rank.sample, told.frontend.engines[0].counters
    assert (told.engine.kind, told.engine.up) == (dialect.name, True)
    assert told.rank.model_name == PROFILE.model_name
    assert sample.running == pytest.approx(told.frontend.engines[0].running, abs=2)
    if declared[Quantity.SLOTS].certainty is Certainty.EXACT:
        assert sample.slots == 64
    pool = PROFILE.usable_blocks * PROFILE.block_tokens
    if sample.kv_capacity_tokens is not None:
        assert sample.kv_capacity_tokens == pytest.approx(pool)
    if declared[Quantity.PROMPTS].certainty is Certainty.EXACT:
        # As of the last full page, up to ten seconds and twenty requests ago.
        prompts = sample.histograms["request_prompt_tokens"]
        assert counters.request_prompt.count - 25 <= prompts.count <= counters.request_prompt.count
        mean = counters.request_prompt.sum / counters.request_prompt.count
        assert prompts.sum / prompts.count == pytest.approx(mean, rel=0.01)
    finished = counters.request_output.sum
    assert finished * 0.99 <= sample.generation_tokens <= counters.generation_tokens * 1.000_01
    assert engine.kv_usage == told.engine.kv_usage_means


@EACH
def test_the_kv_cache_is_the_truth_or_what_is_reserved_or_nothing(dialect):
    told = tell(dialect, steady(0.4))
    sample, engine = told.rank.sample, told.frontend.engines[0]
    truth = engine.used_blocks / PROFILE.usable_blocks
    if sample.kv_usage is not None:
        assert sample.kv_usage == pytest.approx(truth, abs=0.06)
    if sample.kv_reserved is not None:
        assert sample.kv_reserved >= truth - 0.02
    certainty = BY_NAME[dialect.name].tells[Quantity.KV_USED].certainty
    known = sample.kv_usage is not None or sample.kv_reserved is not None
    # llama.cpp's pool is known to whoever sees its command line, which nobody does here.
    assert known == (certainty is not Certainty.UNKNOWN and dialect.name != "llamacpp")


@EACH
def test_a_queue_for_slots_is_exhausted_in_every_dialect(dialect):
    told = tell(dialect, steady(0.25, output=400), max_num_seqs=6)
    derived = told.rank.derived
    assert told.frontend.engines[0].waiting > 5
    assert derived.state is HeadroomState.EXHAUSTED
    assert derived.sustainable <= 6
    spent = told.rank.memory.state_seconds
    assert spent[HeadroomState.EXHAUSTED] > 0.8 * (SECONDS - 60)


@EACH
def test_an_engine_that_nobody_uses_is_idle_and_not_wrong(dialect):
    """TensorRT-LLM has no gauges before its first request: then nothing is said."""
    told = tell(dialect, [])
    assert told.engine.up
    for rank in told.engine.ranks:
        assert rank.sample.running in (0.0, None)
        assert rank.derived.state in (HeadroomState.OK, HeadroomState.UNKNOWN)


@pytest.mark.parametrize("name", ["tgi", "llamacpp", "trtllm"])
def test_ranks_are_refused_where_the_engine_knows_none(name):
    with pytest.raises(ConfigError, match=r"ranks 2: must be 1, since .* knows no ranks"):
        Frontend(PROFILE, ranks=2, dialect=DIALECTS[name])


def test_two_ranks_of_sglang_are_two():
    frontend = Frontend(PROFILE, ranks=2, dialect=DIALECTS["sglang"])
    replica = Replica(name="e", frontend=frontend, load=TraceLoad(iter(steady(0.5))))
    *_, last = replay([replica], 60.0, poll=POLL)
    ranks = last.state.engines[0].ranks
    assert [rank.rank for rank in ranks] == ["0", "1"]
    assert all(rank.sample.slots == PROFILE.max_num_seqs for rank in ranks)
