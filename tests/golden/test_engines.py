"""
What is read from every page of every engine but vLLM: one narrow golden each, and what the engines declare.

Pages are found by themselves (tests/fixtures/engines/README.md); a new engine needs no line here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from golden.test_fixtures import FIXTURES as VLLM_PAGES
from golden.test_fixtures import SLOW, known_fields
from headroom_exporter.engines import ENGINES, Engine, recognise
from headroom_exporter.engines.base import Certainty, Page, Quantity
from headroom_exporter.errors import Malformed
from headroom_exporter.samples import EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from golden.files import Golden
    from headroom_exporter.engines.base import Series

PAGES = Path(__file__).parents[1] / "fixtures" / "engines"
DATA = Path(__file__).parent / "data" / "engines"


@dataclass(frozen=True, slots=True)
class Capture:
    """
    A page and what its server said beside it.

    Attributes:
        file: The page.
        path: Where it was found, for ``kind: auto``.
        stem: Of its name; answers beside it begin with it.
    """

    file: Path
    path: str
    stem: str

    @property
    def name(self) -> str:
        return f"{self.file.parent.name}/{self.stem}"

    def golden(self) -> Path:
        return DATA / f"{self.name}.json"

    def beside(self, engine: Engine) -> Mapping[str, Series]:
        """Series of the answers that lie beside the page."""
        found: dict[str, Series] = {}
        for page in engine.beside:
            answer = self.file.with_name(f"{self.stem}.{slug(page.path)}.json")
            if answer.is_file() and answer != self.file:
                found |= page.series(json.loads(answer.read_bytes()))
        return found

    def read(self, engine: Engine, *, fast: bool = False) -> EngineSample:
        wanted = frozenset(engine.fast_names) if fast else engine.full_names
        page: Page = engine.page(self.file.read_bytes(), wanted)
        return engine.read(page.beside(self.beside(engine)))


def slug(path: str) -> str:
    return path.strip("/").replace("/", "_")


def _captures() -> list[Capture]:
    found = [Capture(file, "/metrics", file.stem) for file in PAGES.rglob("*.prom")]
    for path in {path for engine in ENGINES if engine.parse for path in engine.paths}:
        ending = f".{slug(path)}.json"
        found += [
            Capture(file, path, file.name.removesuffix(ending))
            for file in PAGES.rglob(f"*{ending}")
        ]
    return sorted(found, key=lambda capture: capture.name)


CAPTURES = _captures()
every_capture = pytest.mark.parametrize("capture", CAPTURES, ids=[c.name for c in CAPTURES])
every_engine = pytest.mark.parametrize("engine", ENGINES, ids=[e.name for e in ENGINES])


def recognised(capture: Capture) -> Engine | None:
    try:
        return recognise(capture.path, capture.file.read_bytes())
    except Malformed:
        return None


# --- pages ---------------------------------------------------------------------------------------


def test_there_are_pages_of_every_engine_and_each_says_where_it_comes_from() -> None:
    read = {engine.name for capture in CAPTURES if (engine := recognised(capture))} | {"vllm"}
    assert len(CAPTURES) > 20
    assert {engine.name for engine in ENGINES} - read == set()
    missing = [
        capture.name
        for capture in CAPTURES
        if not (capture.file.parent / f"{capture.stem}.source").is_file()
    ]
    assert missing == []


def test_every_answer_beside_a_page_is_read_with_it() -> None:
    pages = {f"{capture.file.parent}/{capture.stem}" for capture in CAPTURES}
    slugs = {slug(page.path) for engine in ENGINES for page in engine.beside}
    slugs |= {slug(path) for engine in ENGINES for path in engine.paths}
    beside = [
        file for file in PAGES.rglob("*.json") if str(file).rpartition(".json")[0] not in pages
    ]
    for file in beside:
        stem, _, answer = file.name.removesuffix(".json").rpartition(".")
        # Without a page it is for the unit tests of its engine.
        assert answer in slugs or f"{file.parent}/{stem}" not in pages, file


@every_capture
def test_what_is_read(capture: Capture, golden: Golden) -> None:
    golden.check(capture.golden(), json.dumps(seen(capture), indent=1, ensure_ascii=False) + "\n")


def seen(capture: Capture) -> dict[str, Any]:
    try:
        engine = recognise(capture.path, capture.file.read_bytes())
    except Malformed as error:
        return {"detected": None, "error": error.kind, "because": str(error)}
    if engine is None:
        return {"detected": None}
    sample = capture.read(engine)
    return {
        "detected": engine.name,
        "version": sample.version,
        "max_model_length": sample.max_model_length,
        "process_start_known": sample.started is not None,
        "dropped": sample.dropped,
        "ranks": [known_fields(rank) for rank in sample.ranks],
    }


@every_capture
def test_a_fast_poll_reads_the_same_of_what_moves(capture: Capture) -> None:
    engine = recognised(capture)
    if engine is None:
        assert "ranks" not in json.loads(capture.golden().read_bytes())
        return
    full = {(rank.rank, rank.model_name): rank for rank in capture.read(engine).ranks}
    for rank in capture.read(engine, fast=True).ranks:
        whole = full[rank.rank, rank.model_name]
        for field in fields(RankSample):
            if field.name not in SLOW:
                assert getattr(rank, field.name) == getattr(whole, field.name), field.name


def test_no_golden_is_left_of_a_page_that_is_gone() -> None:
    assert set(DATA.rglob("*.json")) == {capture.golden() for capture in CAPTURES}


# --- what the engines declare --------------------------------------------------------------------


def told(rank: RankSample) -> set[Quantity]:
    """The quantities that a record holds something of."""
    usage = rank.kv_usage is not None or rank.kv_reserved is not None
    holds = {
        Quantity.RUNNING: rank.running is not None,
        Quantity.WAITING: rank.waiting is not None,
        Quantity.SLOTS: rank.slots is not None,
        Quantity.KV_USED: usage,
        Quantity.KV_CAPACITY: rank.kv_capacity_tokens is not None,
        Quantity.TOKENS_PER_SEQUENCE: usage and rank.running is not None,
        Quantity.PROMPTS: "request_prompt_tokens" in rank.histograms,
        Quantity.OUTPUTS: "request_output_tokens" in rank.histograms,
        Quantity.TTFT: "time_to_first_token_seconds" in rank.histograms,
        Quantity.TPOT: "inter_token_latency_seconds" in rank.histograms,
        Quantity.PREEMPTIONS: rank.preemptions is not None,
        Quantity.PREFILL: rank.prompt_tokens is not None or rank.computed_prompt_tokens is not None,
    }
    return {quantity for quantity, held in holds.items() if held}


def read_of(engine: Engine) -> set[Quantity]:
    """What is read of an engine in any of its pages."""
    mine = [capture for capture in CAPTURES if recognised(capture) is engine]
    samples = [capture.read(engine) for capture in mine]
    if engine.name == "vllm":
        bodies = (page.read_bytes() for page in VLLM_PAGES)
        pages = (body for body in bodies if recognise("/metrics", body) is engine)
        samples += [engine.read(engine.page(body, engine.full_names)) for body in pages]
    return {quantity for sample in samples for rank in sample.ranks for quantity in told(rank)}


@every_engine
def test_an_engine_says_of_each_quantity_how_well_it_tells_it(engine: Engine) -> None:
    assert set(engine.tells) == set(Quantity)
    for quantity, how in engine.tells.items():
        assert how.note or how.certainty is Certainty.EXACT, f"{quantity}: say why, or what to do"
        assert not how.note.endswith("."), quantity


@every_engine
def test_what_is_declared_unknown_is_never_read(engine: Engine) -> None:
    unknown = {q for q, how in engine.tells.items() if how.certainty is Certainty.UNKNOWN}
    # The plan's own words stand where a quantity is unknown in general and a rare version tells it.
    assert read_of(engine) & unknown == set()


@every_engine
def test_what_is_declared_told_is_read_in_one_page_at_least(engine: Engine) -> None:
    expected = {q for q, how in engine.tells.items() if how.certainty is not Certainty.UNKNOWN}
    if engine.tells[Quantity.SLOTS].certainty is Certainty.APPROXIMATE:
        # From a command line, or inferred.
        expected.discard(Quantity.SLOTS)
    assert expected - read_of(engine) == set()
