"""Every engine's pages made worse: whatever is done to them, what is read is believable or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.test_engines import CAPTURES, Capture, recognised
from headroom_exporter.engines import BY_NAME, ENGINES, Engine, Page
from headroom_exporter.engines.base import MAX_RANKS, Beside
from headroom_exporter.errors import Malformed
from headroom_exporter.samples import EngineSample, Histogram, RankSample

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = [capture for capture in CAPTURES if capture.file.suffix == ".prom" and recognised(capture)]
every_text = pytest.mark.parametrize("capture", TEXTS, ids=[c.name for c in TEXTS])
PAGES = [(engine, page) for engine in ENGINES for page in engine.beside]
every_page_beside = pytest.mark.parametrize(
    ("engine", "page"), PAGES, ids=[f"{engine.name}{page.path}" for engine, page in PAGES]
)

# A page may hold an infinite gauge; Python prints what overflows as a long number.
NO_NUMBERS = ("NaN", "+Inf", "-Inf", "-1", "1" + 400 * "0")
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=12)
    | st.sampled_from(["0.5.23", "generate", 10**400, -1, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def engine_of(capture: Capture) -> Engine:
    engine = recognised(capture)
    assert engine is not None
    return engine


@lru_cache
def metrics_of(engine_name: str) -> Page:
    """A page of an engine's metrics; empty where there is none in tests/fixtures/engines (vLLM)."""
    engine = BY_NAME[engine_name]
    mine = (capture for capture in CAPTURES if recognised(capture) is engine)
    capture = next(mine, None)
    if capture is None:
        return Page({})
    return engine.page(capture.file.read_bytes(), engine.full_names)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Histogram):
        yield from (*value.bounds, *value.counts, value.sum)
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from numbers(held)
    elif isinstance(value, int | float):
        yield float(value)


def believable(sample: EngineSample) -> None:
    """No field of any record holds what is no number of anything."""
    assert len(sample.ranks) <= MAX_RANKS
    keys = [(rank.rank, rank.model_name) for rank in sample.ranks]
    assert keys == sorted(set(keys))
    assert sample.max_model_length is None or sample.max_model_length > 0
    for rank in sample.ranks:
        for field in fields(RankSample):
            for value in numbers(getattr(rank, field.name)):
                assert math.isfinite(value), field.name
                assert value >= 0, field.name
        for ratio in (rank.kv_usage, rank.kv_reserved):
            assert ratio is None or ratio <= 1


def read(engine: Engine, body: str, capture: Capture) -> EngineSample | None:
    """What is read of a page, with what lies beside it; None where it is refused."""
    try:
        page = engine.page(body.encode(), engine.full_names)
    except Malformed:
        return None
    return engine.read(page.beside(capture.beside(engine)))


def lines_of(capture: Capture) -> list[str]:
    return capture.file.read_text(encoding="utf-8").splitlines()


@every_text
def test_the_pages_as_they_are_are_believable(capture: Capture) -> None:
    sample = read(engine_of(capture), capture.file.read_text(encoding="utf-8"), capture)
    assert sample is not None
    believable(sample)


@every_text
@pytest.mark.parametrize("number", NO_NUMBERS, ids=[number[:5] for number in NO_NUMBERS])
def test_a_page_of_no_numbers_says_nothing(capture: Capture, number: str) -> None:
    worse = [
        line if line.startswith("#") or " " not in line else f"{line.rpartition(' ')[0]} {number}"
        for line in lines_of(capture)
    ]
    sample = read(engine_of(capture), "\n".join(worse) + "\n", capture)
    assert sample is not None
    believable(sample)


@every_text
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_part_of_a_page_is_read_or_refused(capture: Capture, data: st.DataObject) -> None:
    """Series come and go with versions, features and first use; a page may be cut off at a line's end."""
    lines = [line for line in lines_of(capture) if not line.startswith("#")]
    left_out = data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=len(lines)))
    kept = [line for i, line in enumerate(lines) if i not in left_out]
    sample = read(engine_of(capture), "\n".join([*kept, ""]), capture)
    assert sample is not None
    believable(sample)


@every_text
def test_a_page_cut_off_inside_a_line_is_refused(capture: Capture) -> None:
    body = capture.file.read_text(encoding="utf-8").rstrip("\n")
    assert read(engine_of(capture), body[: len(body) * 2 // 3].rstrip("\n"), capture) is None


@every_text
def test_a_page_without_any_label_is_read_or_refused(capture: Capture) -> None:
    bare = dict.fromkeys(
        f"{line.partition('{')[0]} {line.rpartition(' ')[2]}"
        for line in lines_of(capture)
        if not line.startswith("#") and "{" in line
    )
    sample = read(engine_of(capture), "\n".join([*bare, ""]), capture)
    if sample is not None:
        believable(sample)


@every_text
def test_the_order_of_lines_makes_no_difference(capture: Capture) -> None:
    engine = engine_of(capture)
    lines = [line for line in lines_of(capture) if not line.startswith("#") and line != "..."]
    assert read(engine, "\n".join([*lines, ""]), capture) == read(
        engine, "\n".join([*reversed(lines), ""]), capture
    )


@every_page_beside
@settings(max_examples=100, deadline=None)
@given(answer=JSON)
def test_any_json_beside_a_page_is_survived(engine: Engine, page: Beside, answer: Any) -> None:
    series = page.series(answer)
    assert all(name.startswith(page.path) for name in series)
    believable(engine.read(metrics_of(engine.name).beside(series)))


@every_page_beside
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_honest_answer_with_wrong_parts_is_survived(
    engine: Engine, page: Beside, data: st.DataObject
) -> None:
    """The answers that we have, with one value replaced at any depth."""
    for answer in _answers(page):
        series = page.series(_spoilt(answer, data))
        believable(engine.read(metrics_of(engine.name).beside(series)))


def _answers(page: Beside) -> list[Any]:
    ending = page.path.strip("/").replace("/", "_")
    folder = CAPTURES[0].file.parents[1]
    return [json.loads(file.read_bytes()) for file in sorted(folder.rglob(f"*.{ending}.json"))]


def _spoilt(answer: Any, data: st.DataObject) -> Any:
    if isinstance(answer, dict) and answer:
        key = data.draw(st.sampled_from(sorted(answer)))
        return {**answer, key: _spoilt(answer[key], data)}
    if isinstance(answer, list) and answer:
        i = data.draw(st.integers(0, len(answer) - 1))
        return [*answer[:i], _spoilt(answer[i], data), *answer[i + 1 :]]
    return data.draw(JSON)
