"""What is read from every vLLM page we have, 0.3 to 0.33: one small golden each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headroom_exporter.engines import detect, parse_page
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.samples import Histogram, RankSample

if TYPE_CHECKING:
    from golden.files import Golden
    from headroom_exporter.engines import Page

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm"
DATA = Path(__file__).parent / "data" / "fixtures"
FIXTURES = sorted([*PAGES.rglob("*.prom"), *PAGES.rglob("*.txt")])
NAMES = [str(path.relative_to(PAGES).with_suffix("")) for path in FIXTURES]
# Carried by the full page alone; everything else must come out of a fast poll just the same.
SLOW = (
    "finished",
    "rejected",
    "histograms",
    "prefix_queries",
    "prefix_hits",
    "kv_capacity_tokens",
    "block_tokens",
)

every_fixture = pytest.mark.parametrize("path", FIXTURES, ids=NAMES)


def brief(value: Any) -> Any:
    """A field as JSON; of a histogram the figures that a wrong reading would change."""
    if isinstance(value, Histogram):
        return {"bounds": len(value.bounds), "count": value.count, "sum": value.sum}
    if isinstance(value, Mapping):
        return {key: brief(value[key]) for key in sorted(value)}
    return value


def known_fields(rank: RankSample) -> dict[str, Any]:
    """What is known of a rank; None and empty mappings are left out."""
    values = {field.name: brief(getattr(rank, field.name)) for field in fields(RankSample)}
    return {name: value for name, value in values.items() if value not in (None, {})}


def full_page(path: Path) -> Page:
    return parse_page(path.read_bytes(), VLLM.full_names)


def test_there_are_pages_and_each_says_where_it_comes_from() -> None:
    assert len(FIXTURES) > 35
    assert [path for path in FIXTURES if not path.with_suffix(".source").is_file()] == []


@every_fixture
def test_what_is_read(path: Path, golden: Golden) -> None:
    page = full_page(path)
    found, sample = detect(page.series), VLLM.read(page)
    seen = {
        "detected": None if found is None else found.name,
        "process_start_known": sample.started is not None,
        "dropped": sample.dropped,
        "ranks": [known_fields(rank) for rank in sample.ranks],
    }
    text = json.dumps(seen, indent=1, ensure_ascii=False) + "\n"
    golden.check(DATA / path.relative_to(PAGES).with_suffix(".json"), text)


@every_fixture
def test_a_fast_poll_reads_the_same_of_what_moves(path: Path) -> None:
    fast = VLLM.read(parse_page(path.read_bytes(), frozenset(VLLM.fast_names)))
    full = {(rank.rank, rank.model_name): rank for rank in VLLM.read(full_page(path)).ranks}
    for rank in fast.ranks:
        whole = full[rank.rank, rank.model_name]
        for field in fields(RankSample):
            if field.name not in SLOW:
                assert getattr(rank, field.name) == getattr(whole, field.name), field.name


def test_no_golden_is_left_of_a_page_that_is_gone() -> None:
    wanted = {DATA / path.relative_to(PAGES).with_suffix(".json") for path in FIXTURES}
    assert set(DATA.rglob("*.json")) == wanted
