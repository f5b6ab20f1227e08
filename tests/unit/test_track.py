"""What is remembered of one engine between pages."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from golden.replay import Replay, pages
from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.engines.vllm import ARGUMENT_SLOTS
from headroom_exporter.errors import Malformed, Unreachable
from headroom_exporter.samples import HeadroomState, RankState
from headroom_exporter.track import FORGET_SECONDS, MAX_REMEMBERED, EngineTrack

POLL = PollConfig(interval=1.0, fallback_interval=2.0)


def page(*, models: tuple[str, ...] = ("m",), started: float = 100.0, **values: float) -> bytes:
    """A small page; ``num_requests_running=3`` gives ``vllm:num_requests_running`` of every model."""
    given = {
        "num_requests_running": 1.0,
        "num_requests_waiting": 0.0,
        "kv_cache_usage_perc": 0.1,
        "prompt_tokens_total": 10.0,
        "generation_tokens_total": 10.0,
        "prefix_cache_queries_total": 7.0,
        **values,
    }
    lines = [
        f'vllm:{name}{{engine="0",model_name="{model}"}} {value}'
        for name, value in given.items()
        for model in models
    ]
    config = 'vllm:cache_config_info{engine="0",num_gpu_blocks="101",block_size="16"} 1'
    return "\n".join([*lines, config, f"process_start_time_seconds {started}", ""]).encode()


class Fed:
    """A track and the time of its last page."""

    def __init__(self, *, kind: str = "auto", plan: PlanConfig | None = None) -> None:
        config = EngineConfig(name="e", kind=kind)
        self.track = EngineTrack(config, POLL, lambda _e, _m: plan)
        self.at = 1_000.0

    def take(
        self, body: bytes, *, after: float = 1.0, full: bool = True, beside: Any = None
    ) -> bool:
        self.at += after
        return self.track.take(body, full=full, at=self.at, wall=5.0, duration=0.01, beside=beside)

    @property
    def ranks(self) -> tuple[RankState, ...]:
        return self.track.state().ranks

    @property
    def sample(self) -> Any:
        return self.ranks[0].sample

    @property
    def observed(self) -> int:
        """Milliseconds integrated."""
        return self.ranks[0].memory.demand.milliseconds[-1]


@pytest.fixture
def fed() -> Fed:
    return Fed()


# --- fast and full pages -------------------------------------------------------------------------


def test_a_fast_page_moves_what_moves_and_keeps_the_rest(fed: Fed) -> None:
    fed.take(page())
    fed.take(page(num_requests_running=5.0, prefix_cache_queries_total=99.0), full=False)
    assert (fed.sample.running, fed.sample.prefix_queries) == (5, 7)
    assert fed.sample.kv_capacity_tokens == 1600
    fed.take(page(prefix_cache_queries_total=99.0))
    assert fed.sample.prefix_queries == 99


def test_what_a_full_page_does_not_tell_any_more_is_unknown_again(fed: Fed) -> None:
    fed.take(page())
    without = b"".join(line + b"\n" for line in page().splitlines() if b"cache_config" not in line)
    fed.take(without)
    assert fed.sample.kv_capacity_tokens is None


def test_a_gauge_that_a_fast_page_does_not_tell_is_unknown_not_kept(fed: Fed) -> None:
    fed.take(page())
    without = b"".join(line + b"\n" for line in page().splitlines() if b"running" not in line)
    fed.take(without, full=False)
    assert fed.sample.running is None
    assert fed.ranks[0].derived is not None
    assert fed.ranks[0].derived.reason == "no_gauges"


def test_a_fast_page_without_a_rank_is_not_taken(fed: Fed) -> None:
    fed.take(page())
    before = fed.track.state()
    assert fed.take(b"", full=False) is False
    assert fed.track.state() == before


def test_the_fast_series_of_the_last_full_page_are_known(fed: Fed) -> None:
    fed.take(page())
    assert "vllm:num_requests_running" in fed.track.fast_names_seen
    assert "vllm:num_preemptions_total" not in fed.track.fast_names_seen
    fed.take(page(num_preemptions_total=0.0))
    assert "vllm:num_preemptions_total" in fed.track.fast_names_seen


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, -1.0, -1e9])
def test_a_page_that_is_not_later_changes_nothing(fed: Fed, after: float) -> None:
    fed.take(page())
    fed.take(page(num_requests_running=2.0))
    before = fed.track.state()
    assert fed.take(page(num_requests_running=9.0), after=after) is True
    assert fed.track.state() == before


def test_time_between_pages_is_integrated_unless_it_is_too_long(fed: Fed) -> None:
    idle = page(num_requests_running=0.0)
    for after in (1.0, 1.0, 2.0):
        fed.take(idle, after=after)
    assert (fed.observed, fed.track.state().unobserved_seconds) == (3_000, 0)
    fed.take(idle, after=60.0)
    assert (fed.observed, fed.track.state().unobserved_seconds) == (3_000, 60)
    fed.take(idle, after=1.0)
    assert fed.observed == 4_000


def test_every_second_is_spent_in_a_state_or_counted_as_unobserved(fed: Fed) -> None:
    pauses = (1.0, 0.25, 5.9, 6.1, 1.0, 3600.0, 2.0)
    fed.take(page())
    for pause in pauses:
        fed.take(page(), after=pause)
    in_states = sum(fed.ranks[0].memory.state_seconds.values())
    total = in_states + fed.track.state().unobserved_seconds
    assert total == pytest.approx(sum(pauses), abs=0.01)


# --- ranks that come and go ----------------------------------------------------------------------


def test_a_model_that_is_gone_shows_no_sample_but_its_past(fed: Fed) -> None:
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a",)))
    (kept, gone) = fed.ranks
    assert (kept.model_name, gone.model_name) == ("a", "b")
    assert kept.sample is not None
    assert (gone.sample, gone.derived) == (None, None)
    assert gone.memory.demand.milliseconds[-1] == 1_000


def test_a_model_that_comes_back_goes_on_where_it_was(fed: Fed) -> None:
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a",)))
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a", "b")))
    assert fed.ranks[1].memory.demand.milliseconds[-1] > 1_000


def test_a_model_that_stays_away_is_forgotten(fed: Fed) -> None:
    fed.take(page(models=("a", "b")))
    fed.take(page(models=("a",)), after=FORGET_SECONDS - 10)
    assert len(fed.ranks) == 2
    fed.take(page(models=("a",)), after=20.0)
    assert [rank.model_name for rank in fed.ranks] == ["a"]


def test_names_that_change_with_every_page_do_not_pile_up(fed: Fed) -> None:
    """Those longest away go first; those present stay, whatever their number."""
    for i in range(20):
        fed.take(page(models=("stays", *(f"m{i}-{j}" for j in range(60)))))
        assert len(fed.ranks) <= MAX_REMEMBERED
    names = {rank.model_name for rank in fed.ranks}
    assert {"stays", "m19-0", "m18-0"} <= names
    assert "m0-0" not in names


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_is_counted_by_kind_and_the_sample_stays(fed: Fed) -> None:
    """A slow answer does not make the last one wrong; staleness takes it off the page in time."""
    fed.take(page())
    fed.track.fail(Unreachable("no answer", kind="timeout"))
    fed.track.fail(Unreachable("no answer", kind="timeout"))
    fed.track.fail(Malformed("status 500", kind="status"))
    state = fed.track.state()
    assert (state.up, state.errors) == (False, {"timeout": 2, "status": 1})
    assert state.last_error == "status 500"
    assert fed.sample is not None
    fed.take(page())
    assert (fed.track.up, fed.track.state().last_error) == (True, None)


def test_where_nothing_listens_any_more_the_sample_goes_at_once(fed: Fed) -> None:
    fed.take(page())
    fed.track.poll_mode = "filtered"
    fed.track.fail(Unreachable("refused", kind="refused"))
    assert fed.sample is None
    # The info series does not churn; the next good poll asks and probes anew.
    assert fed.track.poll_mode == "filtered"
    fed.take(page())
    assert fed.track.facts_wanted
    assert fed.track.state().last_success == 5.0


def test_a_page_that_is_refused_leaves_everything_as_it_was(fed: Fed) -> None:
    fed.take(page())
    before = fed.track.state()
    for body in (b"\xff\n", page() + page(), page()[:-3]):
        with pytest.raises(Malformed):
            fed.take(body)
    assert fed.track.state() == before


def test_a_snapshot_does_not_change_afterwards(fed: Fed) -> None:
    fed.track.fail(Malformed("x"))
    fed.take(page())
    state = fed.track.state()
    fed.track.fail(Malformed("y"))
    fed.take(page(num_requests_running=9.0))
    assert state.errors == {"malformed": 1}
    assert state.ranks[0].sample is not None
    assert state.ranks[0].sample.running == 1
    with pytest.raises(TypeError):
        state.errors["malformed"] = 0.0  # type: ignore[index]


# --- which engine --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "vllm"])
def test_a_page_of_nobody_known_is_named_in_the_message(kind: str) -> None:
    fed = Fed(kind=kind)
    with pytest.raises(Malformed, match=r"nobody:requests, up") as caught:
        fed.take(b'nobody:requests{model_name="m"} 1\nup 1\n')
    assert caught.value.kind == "no_samples"


def test_an_empty_page_has_no_samples(fed: Fed) -> None:
    with pytest.raises(Malformed, match="no samples at all") as caught:
        fed.take(b"")
    assert caught.value.kind == "no_samples"


def test_a_page_of_long_names_makes_no_long_message(fed: Fed) -> None:
    with pytest.raises(Malformed) as caught:
        fed.take(b"".join(b"x" * 5000 + b"%d 1\n" % i for i in range(50)))
    assert len(str(caught.value)) < 600


def test_a_forced_kind_that_is_not_the_pages_is_an_error() -> None:
    with pytest.raises(Malformed, match="kind is sglang but the page is of vllm") as caught:
        Fed(kind="sglang").take(page())
    assert caught.value.kind == "wrong_kind"


def test_an_engine_that_loses_its_series_is_asked_who_it_is_again(fed: Fed) -> None:
    fed.take(page())
    with pytest.raises(Malformed):
        fed.take(b"up 1\n")
    assert fed.track.engine is None
    fed.take(page())
    assert fed.track.state().kind == "vllm"


# --- restarts ------------------------------------------------------------------------------------


def test_facts_are_wanted_at_first_after_a_failure_and_after_a_new_start(fed: Fed) -> None:
    def wanted() -> bool:
        before, fed.track.facts_wanted = fed.track.facts_wanted, False
        return before

    assert wanted()
    fed.take(page())
    assert wanted()
    fed.take(page())
    assert not wanted()
    fed.take(page(started=200.0))
    assert wanted()
    fed.track.fail(Unreachable("x"))
    fed.take(page(started=200.0))
    assert wanted()
    # A fast page does not carry the start: it says nothing against it.
    fed.take(page(started=300.0), full=False)
    assert not wanted()


def test_counters_that_go_back_forget_the_old_process_but_not_the_integrals() -> None:
    fed = Fed(plan=PlanConfig(max_num_seqs=64))
    for i in range(30):
        fed.take(page(num_requests_running=4.0, generation_tokens_total=100.0 * i))
    assert fed.ranks[0].memory.footprint is not None
    observed = fed.observed
    fed.take(page(generation_tokens_total=3.0))
    assert fed.ranks[0].memory.footprint is None
    assert fed.observed >= observed
    assert fed.sample.generation_tokens == 3


# --- what is derived on the way ------------------------------------------------------------------


def test_frozen_gauges_make_the_state_unknown_and_say_why(fed: Fed) -> None:
    """Running above 0 with nothing moving for longer than a step could take is not evidence."""
    reasons = []
    for _ in range(14):
        fed.take(page(num_requests_running=40.0, kv_cache_usage_perc=0.99), full=False)
        derived = fed.ranks[0].derived
        assert derived is not None
        reasons.append(derived.reason)
    assert "stale_gauges" not in reasons[:11]
    assert reasons[11:] == ["stale_gauges"] * 3
    assert derived is not None
    assert derived.state == HeadroomState.UNKNOWN
    assert (derived.demand, derived.headroom) == (None, None)


def test_the_plan_and_the_command_line_give_slots() -> None:
    fed = Fed(plan=PlanConfig(max_num_seqs=64))
    fed.take(page(), beside={ARGUMENT_SLOTS: [({}, 48.0)]})
    derived = fed.ranks[0].derived
    assert derived is not None
    assert derived.max_sequences == {"plan": 64, "args": 48}


def test_too_many_series_are_logged_once_and_counted_always(
    fed: Fed, caplog: pytest.LogCaptureFixture
) -> None:
    crowd = page(models=tuple(f"m{i}" for i in range(70)))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fed.take(crowd)
    assert fed.track.state().errors == {"dropped_ranks": 3 * 6}
    assert len(caplog.records) == 1
    assert fed.track.up


def test_step_times_can_be_forgotten() -> None:
    """The clocks of the GPU changed."""
    replay = Replay()
    recorded = [page for page in pages("ramp") if page.t < 60]
    for page_then in recorded[:-1]:
        replay.take(page_then)

    def windows() -> float:
        fit = replay.track.state().ranks[0].memory.fit
        return 0.0 if fit is None else fit.windows

    assert windows() > 10
    replay.track.forget_step_time()
    replay.take(recorded[-1])
    assert windows() <= 1


def test_a_process_that_started_anew_is_learnt_anew_even_where_no_counter_fell(fed: Fed) -> None:
    fed.take(page())
    rank = next(iter(fed.track._ranks.values()))
    learnt = rank.memory._footprint
    fed.take(page(started=200.0))
    assert rank.memory._footprint is not learnt
