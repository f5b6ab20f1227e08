"""What the engines with a table of names share: limits, and no page that makes reading fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.engines.base import MAX_RANKS, MAX_REASONS, Labels, Page, parse_page
from headroom_exporter.engines.lmdeploy import LMDEPLOY
from headroom_exporter.engines.nim import NIM
from headroom_exporter.engines.tables import Key, Ranks, Table
from headroom_exporter.engines.tgi import TGI
from headroom_exporter.engines.triton_trtllm import TRITON_TRTLLM
from headroom_exporter.engines.trtllm import TRTLLM

if TYPE_CHECKING:
    from headroom_exporter.engines import Engine
    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample

TABLE = Table(
    moving={"running": ("new_running", "old_running")},
    shares={"kv_usage": ("usage",)},
    histograms={"queue_time_seconds": ("new_queue", "old_queue")},
    finished=(("ended_total",), "why"),
    full=("info",),
)
NAMES = TABLE.full_names(frozenset({"marker"}))
ENGINES = (TGI, TRTLLM, TRITON_TRTLLM, NIM, LMDEPLOY)

every_engine = pytest.mark.parametrize("engine", ENGINES, ids=[e.name for e in ENGINES])


def key(labels: Labels) -> Key:
    return labels.get("rank", "0"), labels.get("model", "")


def read(text: str) -> EngineSample:
    page = parse_page(text.encode(), NAMES)
    ranks = Ranks(key)
    ranks.put_all(page, TABLE)
    return ranks.sample(page)


def test_the_names_of_a_table_are_those_that_are_asked_for() -> None:
    assert TABLE.fast_names() == ("new_running", "old_running", "usage")
    assert {"new_queue_bucket", "old_queue_sum", "ended_total", "info", "marker"} <= NAMES
    assert "new_queue_count" not in NAMES


def test_the_newest_name_on_the_page_counts() -> None:
    (rank,) = read("old_running 1\nnew_running 2\n").ranks
    assert rank.running == 2
    (rank,) = read("old_running 1\n").ranks
    assert rank.running == 1


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_a_value_that_cannot_be_is_unknown_and_the_record_stays(value: str) -> None:
    (rank,) = read(f"new_running {value}\nusage {value}\nended_total {value}\n").ranks
    assert (rank.running, rank.kv_usage, rank.finished) == (None, None, {})


def test_a_share_above_one_is_rounding_or_nothing() -> None:
    assert [read(f"usage {share}\n").ranks[0].kv_usage for share in (0.5, 1.04, 1.06)] == [
        0.5,
        1.0,
        None,
    ]


def test_ranks_beyond_the_limit_are_counted_and_left_out() -> None:
    found = read("".join(f'new_running{{rank="{i}"}} 1\n' for i in range(MAX_RANKS + 3)))
    assert len(found.ranks) == MAX_RANKS
    assert found.dropped == 3


def test_reasons_beyond_the_limit_are_left_out() -> None:
    (rank,) = read("".join(f'ended_total{{why="{i}"}} 1\n' for i in range(99))).ranks
    assert len(rank.finished) == MAX_REASONS


def test_histograms_of_two_records_are_not_mixed() -> None:
    lines = "".join(
        f'new_queue_bucket{{model="{model}",le="1"}} {count}\n'
        f'new_queue_bucket{{model="{model}",le="+Inf"}} {count + 1}\n'
        f'new_queue_sum{{model="{model}"}} {count}\n'
        for model, count in (("a", 1), ("b", 5))
    )
    a, b = read(lines).ranks
    assert a.histograms["queue_time_seconds"].counts == (1, 2)
    assert b.histograms["queue_time_seconds"].counts == (5, 6)


@pytest.mark.parametrize(
    "lines",
    [
        'new_queue_bucket{le="1"} 1\nnew_queue_sum 1\n',
        'new_queue_bucket{le="+Inf"} 1\n',
        'new_queue_bucket{le="1"} 3\nnew_queue_bucket{le="+Inf"} 1\nnew_queue_sum 1\n',
        "new_queue_sum 1\n",
    ],
    ids=["no +Inf", "no sum", "falling", "no bucket"],
)
def test_half_a_histogram_is_none(lines: str) -> None:
    assert [rank.histograms for rank in read(lines).ranks] in ([{}], [])


# --- every engine that has one -------------------------------------------------------------------

VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-2, 10**6).map(float)
)
LABEL_NAMES = [
    "model_name",
    "model",
    "version",
    "engine",
    "le",
    "err",
    "method",
    "request_type",
    "kv_cache_block_type",
    "general_type",
    "finished_reason",
    "engine_type",
]
TEXTS = ["", "undefined", "max", "used", "active", "1", "+Inf", "x" * 300, "{'a': 'b'}"]
LABELS = st.dictionaries(st.sampled_from(LABEL_NAMES), st.sampled_from(TEXTS), max_size=4)


@every_engine
@settings(max_examples=40)
@given(data=st.data())
def test_no_page_of_its_names_makes_reading_fail(engine: Engine, data: st.DataObject) -> None:
    beside = ["/info", "/info.max_batch_total_tokens", "/info.max_batch_size", "/v1/models"]
    names = st.sampled_from([*sorted(engine.full_names), *beside])
    series: dict[str, Series] = data.draw(
        st.dictionaries(names, st.lists(st.tuples(LABELS, VALUES), max_size=5), max_size=12)
    )
    for rank in engine.read(Page(series)).ranks:
        assert rank.running is None or rank.running >= 0
        for share in (rank.kv_usage, rank.kv_reserved):
            assert share is None or 0 <= share <= 1
        assert rank.slots is None or rank.slots > 0
        assert rank.kv_capacity_tokens is None or rank.kv_capacity_tokens > 0
        assert len(rank.model_name) <= 256


@every_engine
def test_its_page_is_known_and_asked_for_by_exact_names(engine: Engine) -> None:
    assert engine.full_names >= engine.markers | set(engine.fast_names)
    longer = "".join(
        f'{name}_by_reason{{model_name="m",engine_type="e"}} 1\n' for name in engine.markers
    )
    assert not engine.fits(parse_page(longer.encode(), engine.full_names).series)
