"""Whatever an engine sends: a page is read or refused as Malformed, and what is read is believable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as read_text

from golden import lint
from headroom_exporter.config import EngineConfig, PollConfig
from headroom_exporter.engines import ENGINES, base, detect, parse_page
from headroom_exporter.engines.base import (
    MAX_LABEL_LENGTH,
    MAX_RANKS,
    gauge,
    histogram,
    number,
    usage,
)
from headroom_exporter.engines.vllm import COUNTERS, VLLM
from headroom_exporter.errors import Malformed
from headroom_exporter.expose import StateCollector
from headroom_exporter.samples import (
    EngineSample,
    GpuState,
    Histogram,
    RankSample,
    ReloadState,
    State,
)
from headroom_exporter.track import EngineTrack

ALL_FULL_NAMES = frozenset[str]().union(*(engine.full_names for engine in ENGINES))

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm"
REAL = (
    "0.32.0/metrics.txt",
    "0.33.0/generated-dp2-1apiserver.prom",
    "0.33.0/synthesised-rustfrontend-dp2.prom",
    "0.4.3_0.5.0/captured-cpu-datadog.prom",
    "0.28/captured-v1-hybrid-qwen3.8-extract.prom",
    "0.7.0/captured-v0-aibrix-docs.prom",
)

# Two shared cores: what is slow here is the machine.
patient = settings(deadline=None)


@cache
def wanted_lines(name: str) -> tuple[bytes, ...]:
    """The lines of a page that are read, so that a mutation hits something."""
    lines = (PAGES / name).read_bytes().splitlines(keepends=True)
    return tuple(
        line
        for line in lines
        if line.decode().partition("{")[0].partition(" ")[0] in VLLM.full_names
    )


def read(body: bytes) -> EngineSample | None:
    """What is read of a page; None where it is refused. Anything else that is raised is a defect."""
    try:
        page = parse_page(body, ALL_FULL_NAMES)
    except Malformed:
        return None
    detect(page.series)
    return VLLM.read(page)


def assert_believable(sample: EngineSample) -> None:
    assert len(sample.ranks) <= MAX_RANKS
    assert len({(rank.rank, rank.model_name) for rank in sample.ranks}) == len(sample.ranks)
    for rank in sample.ranks:
        for each in fields(RankSample):
            _assert_field(getattr(rank, each.name))
        assert rank.kv_usage is None or 0 <= rank.kv_usage <= 1


def _assert_field(value: object) -> None:
    if isinstance(value, str):
        assert len(value) <= MAX_LABEL_LENGTH
    elif isinstance(value, Histogram):
        assert value.counts == tuple(sorted(value.counts))
        assert value.bounds == tuple(sorted(set(value.bounds)))
        assert len(value.counts) == len(value.bounds) + 1
        assert all(map(math.isfinite, (*value.bounds, *value.counts, value.sum)))
        assert min(value.counts[0], value.sum) >= 0
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _assert_field(key)
            _assert_field(inner)
    elif value is not None:
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert value >= 0


# --- arbitrary bytes -----------------------------------------------------------------------------


@patient
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    sample = read(body)
    assert sample is None or sample.ranks == ()


numbers = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.integers(min_value=10**300, max_value=10**400).map(str),
    st.sampled_from(
        ["NaN", "+Inf", "-Inf", "1e+010", "1_000", "0x10", "", "1 2", "1 2 3", "٣", "None"]
    ),
    st.text(max_size=8),
)
label_values = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["0", "1", "tiny", "+Inf", "NaN", "1.0", "1", "capacity", "deferred", "None", "-1"]
    ),
)
label_names = st.one_of(
    st.sampled_from(
        [
            *("engine", "model_name", "model", "le", "reason", "finished_reason", "source"),
            *("num_gpu_blocks", "block_size", "kv_cache_size_tokens", "mamba_block_size"),
        ]
    ),
    st.text(max_size=5),
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(VLLM.full_names)))
    escape = draw(st.booleans())
    labels = draw(st.lists(st.tuples(label_names, label_values), max_size=4))
    shown = ",".join(f'{key}="{_escaped(value) if escape else value}"' for key, value in labels)
    tail = draw(st.sampled_from(["", " 1700000000000", ' # {a="b"} 1', "\r", "\t", " "]))
    return f"{name}{{{shown}}} {draw(numbers)}{tail}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@settings(deadline=None, max_examples=400)
@given(st.lists(lines(), max_size=6))
def test_lines_that_look_like_an_engines_are_read_or_refused(page: list[str]) -> None:
    sample = read("".join(page).encode("utf-8", "surrogatepass"))
    if sample is not None:
        assert_believable(sample)


# --- real pages, damaged -------------------------------------------------------------------------


@dataclass(frozen=True)
class Damaged:
    """A page and what was done to it; a failure shows only the latter."""

    name: str
    done: tuple[tuple[object, ...], ...]
    body: bytes = field(repr=False)


@st.composite
def damaged(draw: st.DrawFn, names: tuple[str, ...] = REAL) -> Damaged:
    """A real page with lines deleted, doubled, swapped, cut, and bytes and values overwritten."""
    name = draw(st.sampled_from(names))
    page = list(wanted_lines(name))
    done: list[tuple[object, ...]] = []
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(page) - 1))
        what = draw(st.sampled_from(["delete", "double", "swap", "cut", "garble", "value"]))
        match what:
            case "delete" if len(page) > 1:
                more: object = None
                del page[at]
            case "double":
                more = draw(st.integers(0, len(page)))
                page.insert(more, page[at])
            case "swap":
                more = draw(st.integers(0, len(page) - 1))
                page[at], page[more] = page[more], page[at]
            case "cut":
                more = draw(st.integers(0, len(page[at])))
                page[at] = page[at][:more]
            case "garble":
                spot = draw(st.integers(0, max(0, len(page[at]) - 1)))
                junk = draw(st.binary(min_size=1, max_size=3))
                more = spot, junk
                page[at] = page[at][:spot] + junk + page[at][spot + len(junk) :]
            case _:
                more = draw(numbers)
                head = page[at].rpartition(b" ")[0]
                page[at] = head + b" " + more.encode("utf-8", "surrogatepass") + b"\n"
        done.append((what, at, more))
    return Damaged(name, tuple(done), b"".join(page))


@settings(deadline=None, max_examples=300)
@given(damaged())
def test_a_damaged_page_is_read_or_refused(page: Damaged) -> None:
    sample = read(page.body)
    if sample is not None:
        assert_believable(sample)


@settings(deadline=None, max_examples=60)
@given(st.lists(damaged(REAL[:2]), min_size=1, max_size=3))
def test_whatever_comes_the_exporters_own_page_stays_valid(damage: list[Damaged]) -> None:
    """Damaged pages through memory, derivation and exposition: no series twice, no NaN, our rules kept."""
    track = EngineTrack(EngineConfig(name="e"), PollConfig(), lambda _e, _m: None)
    for second, page in enumerate(damage):
        try:
            track.take(page.body, full=second % 2 == 0, at=float(second), wall=1.0, duration=0.1)
        except Malformed as error:
            track.fail(error)
    state = State(
        engines=(track.state(),),
        gpu=GpuState(up=None),
        reload=ReloadState(successful=True, at=1.0),
    )
    registry = CollectorRegistry()
    now = float(len(damage))
    registry.register(StateCollector(lambda: state, lambda _e, _m: None, clock=lambda: now))
    families = list(read_text(generate_latest(registry).decode()))
    series = [(s.name, *sorted(s.labels.items())) for family in families for s in family.samples]
    assert len(set(series)) == len(series)
    assert lint.problems(families) == []


# --- what must not matter ------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(REAL), st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(name: str, random: object) -> None:
    page = list(wanted_lines(name))
    before = read(b"".join(page))
    random.shuffle(page)  # type: ignore[attr-defined]
    assert before is not None
    assert before.ranks
    assert read(b"".join(page)) == before


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(REAL), st.lists(st.text(max_size=30), max_size=5))
def test_comments_and_blank_lines_do_not_matter(name: str, comments: list[str]) -> None:
    page = b"".join(wanted_lines(name))
    noise = "".join(f"# {' '.join(text.split())}\n\n" for text in comments)
    assert read(noise.encode() + page + noise.encode()) == read(page)


COUNTER_NAMES = {field: names[0] for field, names in COUNTERS.items()}


@patient
@given(
    st.fixed_dictionaries(
        {
            field: st.one_of(
                st.integers(0, 2**53).map(float), st.floats(0, 1e300, allow_subnormal=False)
            )
            for field in COUNTER_NAMES
        }
    ),
    st.text(min_size=1, max_size=40),
)
def test_counters_and_labels_pass_through_unchanged(
    values: dict[str, float], model_name: str
) -> None:
    label = _escaped(model_name)
    body = "".join(
        f'{COUNTER_NAMES[field]}{{engine="0",model_name="{label}"}} {value!r}\n'
        for field, value in values.items()
    )
    sample = read(body.encode())
    assert sample is not None
    (rank,) = sample.ranks
    assert rank.model_name == model_name
    assert {field: getattr(rank, field) for field in values} == values


# --- single values -------------------------------------------------------------------------------


@patient
@given(st.floats())
def test_gauges_and_shares_are_believable_or_unknown(value: float) -> None:
    known, share = gauge(value), usage(value)
    assert known is None or (math.isfinite(known) and known >= 0)
    assert share is None or 0 <= share <= 1
    if 0 <= value <= 1:
        assert (known, share) == (value, value)


@patient
@given(st.one_of(st.none(), numbers, st.sampled_from(["None", "auto", "16"])))
def test_a_labels_number_is_positive_and_finite_or_unknown(text: str | None) -> None:
    found = number(text)
    assert found is None or (math.isfinite(found) and found > 0)


@patient
@given(
    st.lists(st.tuples(numbers, st.floats()), max_size=6),
    st.one_of(st.none(), st.floats()),
)
def test_a_histogram_is_whole_or_nothing(
    buckets: list[tuple[str, float]], total: float | None
) -> None:
    made = histogram([({"le": le}, count) for le, count in buckets], total)
    if made is not None:
        _assert_field(made)


def test_the_mutations_leave_something_to_read() -> None:
    """Else the properties above would hold for want of data."""
    for name in REAL:
        sample = read(b"".join(wanted_lines(name)))
        assert sample is not None
        assert sample.ranks, name


@pytest.mark.parametrize("name", REAL[:2])
def test_half_of_all_bytes_cut_is_noticed_unless_at_a_lines_end(name: str) -> None:
    whole = (PAGES / name).read_bytes()
    for cut in range(len(whole) - 300, len(whole)):
        if whole[cut - 1 : cut] == b"\n":
            continue
        with pytest.raises(Malformed, match="middle of a line"):
            parse_page(whole[:cut], ALL_FULL_NAMES)


@given(data=st.data())
def test_a_series_read_before_reads_the_same_again(data: st.DataObject) -> None:
    """Remembered labels change nothing: a page reads alike the first, second and a third, altered time."""
    text = (PAGES / REAL[0]).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.partition("{")[0] in VLLM.full_names]
    values = st.floats(allow_nan=False).map(repr) | st.sampled_from(["1 1700000000000", "+Inf"])
    value = data.draw(values)
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = lines[index].rpartition(" ")[0] + " " + value
    page = ("\n".join(lines) + "\n").encode()
    base._read_before.clear()
    fresh = parse_page(page, VLLM.full_names).series
    assert parse_page(page, VLLM.full_names).series == fresh
