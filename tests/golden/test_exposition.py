"""The page of a scrape in every deployment shape: as committed, and as Prometheus and others read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from golden import lint
from golden.shapes import SHAPES, Shape, steady
from headroom_exporter.catalog import BY_NAME, Kind

if TYPE_CHECKING:
    from golden.files import Golden

DATA = Path(__file__).parent / "data" / "exposition"


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[str, Shape]:
    name: str = request.param
    return name, SHAPES[name]()


def value(text: str, series: str) -> float | None:
    """The value of one series, spelt as on the page."""
    for line in text.splitlines():
        if line.startswith(f"{series} "):
            return float(line.rpartition(" ")[2])
    return None


def names(text: str) -> set[str]:
    return {sample.name for family in read_text(text) for sample in family.samples}


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_the_committed_one(shape: tuple[str, Shape], golden: Golden) -> None:
    name, made = shape
    golden.check(DATA / f"{name}.prom", steady(made.text()))


def test_promtool_finds_nothing(shape: tuple[str, Shape]) -> None:
    assert lint.promtool(shape[1].text()) == ""


def test_names_units_and_labels_keep_our_rules(shape: tuple[str, Shape]) -> None:
    assert lint.problems(read_text(shape[1].text())) == []


def test_openmetrics_says_the_same_and_a_strict_parser_reads_it(shape: tuple[str, Shape]) -> None:
    text = shape[1].openmetrics()
    families = list(read_openmetrics(text))  # type: ignore[no-untyped-call]
    assert lint.problems(families) == []
    assert series(families) == series(read_text(shape[1].text()))


def test_a_second_scrape_says_the_same(shape: tuple[str, Shape]) -> None:
    """Nothing is reset on scrape, so any number of scrapers see the same."""
    assert steady(shape[1].text()) == steady(shape[1].text())


def series(families: object) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    assert not isinstance(families, str)
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families  # type: ignore[attr-defined]
        for sample in family.samples
        if sample.name != "headroom_scrape_duration_seconds"
    }
    assert found
    return found


def test_every_golden_belongs_to_a_shape() -> None:
    assert {path.stem for path in DATA.glob("*")} == set(SHAPES)


# --- what must be true of a shape, whatever else its page holds -----------------------------------


def test_an_overloaded_engine_is_exhausted_and_its_headroom_negative() -> None:
    text, rank = SHAPES["overloaded"]().text(), '{engine="llama-8b",model_name="tiny",rank="0"}'
    assert (value(text, f"headroom_sequences{rank}") or 0) < -10
    assert (value(text, f"headroom_ratio{rank}") or 0) < -0.5
    assert 'state="exhausted"} 1.0' in text
    assert 'headroom_binding_constraint{constraint="kv_cache",' in text


def test_a_plan_is_shown_with_all_its_dimensions() -> None:
    text = SHAPES["calm"]().text()
    limits = [line for line in text.splitlines() if line.startswith("headroom_plan_limit{")]
    assert len(limits) == 9
    assert "headroom_plan_limit" not in SHAPES["overloaded"]().text()


def test_of_a_refused_engine_only_what_grows_is_left() -> None:
    """Gauges and the engine's own counters go; the integrals of the past stay."""
    before, after = SHAPES["calm"]().text(), SHAPES["engine_down"]().text()
    assert value(after, 'headroom_engine_up{engine="llama-8b"}') == 0
    assert value(after, 'headroom_engine_poll_errors_total{engine="llama-8b",kind="refused"}') == 3
    gone, left = names(before) - names(after), names(after)
    assert {"headroom_running_sequences", "headroom_sequences", "headroom_state"} <= gone
    assert {"headroom_effective_batch_sequences_count", "headroom_state_seconds_total"} <= left


def test_an_engine_before_its_first_step_is_up_and_unknown_not_idle() -> None:
    text, rank = SHAPES["engine_starting"]().text(), '{engine="llama-8b",model_name="Qwen/Qwen3-8B"'
    assert value(text, 'headroom_engine_up{engine="llama-8b"}') == 1
    assert not {"headroom_running_sequences", "headroom_sequences"} & names(text)
    assert f'headroom_state_reason_info{rank},rank="0",reason="no_gauges"}} 1.0' in text


def test_a_hung_driver_looks_neither_like_a_steady_gpu_nor_like_none() -> None:
    text = SHAPES["hung_driver"]().text()
    assert value(text, "headroom_gpu_up") == 0
    assert "headroom_gpu_memory_used_bytes" not in names(text)


def test_gpus_switched_off_are_not_gpus_that_are_missing() -> None:
    assert value(SHAPES["no_gpu"]().text(), "headroom_gpu_up") == 0
    assert "headroom_gpu_up" not in names(SHAPES["gpu_off"]().text())


# --- the rules themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (
            "# HELP headroom_new x\n# TYPE headroom_new gauge\nheadroom_new 1\n",
            "not in the catalog",
        ),
        ("# TYPE headroom_gpu_up gauge\nheadroom_gpu_up 1\n", "no HELP"),
        (
            "# HELP headroom_gpu_up x\n# TYPE headroom_gpu_up gauge\nheadroom_gpu_up{pod='a'} 1\n".replace(
                "'", '"'
            ),
            "labels ['pod']",
        ),
        ("# HELP headroom_gpu_up x\n# TYPE headroom_gpu_up gauge\nheadroom_gpu_up 2\n", "0 or 1"),
        ("# HELP headroom_gpu_up x\n# TYPE headroom_gpu_up gauge\nheadroom_gpu_up NaN\n", "absent"),
    ],
)
def test_the_lint_sees(page: str, complaint: str) -> None:
    found = lint.problems(read_text(page))
    assert any(complaint in line for line in found), found


@pytest.mark.parametrize("name", ["headroom_x_percent", "headroom_x_perc", "headroom_mib_used"])
def test_the_lint_sees_units_that_promtool_does_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = f"# HELP {name} x\n# TYPE {name} gauge\n{name} 1\n"
    spec = BY_NAME["headroom_scrape_duration_seconds"]
    monkeypatch.setitem(
        BY_NAME,
        name,
        type(spec)(name=name, kind=Kind.GAUGE, unit="", labels=(), help="x", source="self"),
    )
    assert lint.promtool(page) == ""
    assert lint.problems(read_text(page)) == [f"{name}: not a base unit"]


def test_promtool_is_really_asked() -> None:
    assert "counter" in lint.promtool("# HELP a_total x\n# TYPE a_total gauge\na_total 1\n")


def test_metric_names_are_checked_even_without_samples() -> None:
    assert lint.problems([Metric("headroom_gpu_up", "", "gauge")]) == ["headroom_gpu_up: no HELP"]
