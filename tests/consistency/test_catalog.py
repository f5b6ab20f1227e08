"""The catalog, the page, the goldens and docs/metrics.md say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families as read_text

from golden import lint
from headroom_exporter.catalog import BY_NAME, CATALOG, PROCESS_NAMESPACE, Kind
from headroom_exporter.expose import StateCollector, make_registry
from headroom_exporter.samples import GpuState, ReloadState, State

REPOSITORY = Path(__file__).parents[2]
GOLDENS = REPOSITORY / "tests" / "golden" / "data" / "exposition"
TOOL = REPOSITORY / "tools" / "metrics_doc.py"
PAGE = REPOSITORY / "docs" / "metrics.md"
# Differs from scrape to scrape, so it is left out of goldens.
NOT_IN_GOLDENS = {"headroom_scrape_duration_seconds"}
OF_A_HISTOGRAM = ("_bucket", "_count", "_sum")


def families(text: str) -> set[str]:
    """Catalog names of the samples on a page; a histogram's samples count as the histogram."""
    found = set()
    for family in read_text(text):
        for sample in family.samples:
            name = sample.name
            if family.type == "histogram":
                for suffix in OF_A_HISTOGRAM:
                    name = name.removesuffix(suffix)
            found.add(name)
    return found


def golden_families() -> dict[str, set[str]]:
    pages = {path.stem: families(path.read_text()) for path in GOLDENS.glob("*.prom")}
    assert len(pages) > 10
    return pages


def live_page() -> str:
    """A page as served, with the process's own figures, of an exporter that has polled nothing."""
    state = State(
        engines=(), gpu=GpuState(up=None), reload=ReloadState(successful=True, at=1_790_000_000.0)
    )
    return generate_latest(
        make_registry(StateCollector(lambda: state, lambda _e, _m: None))
    ).decode()


def process_families() -> set[str]:
    registry = CollectorRegistry()
    ProcessCollector(namespace=PROCESS_NAMESPACE, registry=registry)
    return families(generate_latest(registry).decode())


# --- names ---------------------------------------------------------------------------------------


def test_every_exposed_name_is_in_the_catalog() -> None:
    exposed = set().union(*golden_families().values(), families(live_page()))
    assert exposed - set(BY_NAME) - process_families() == set()


def test_every_catalog_row_appears_in_some_golden() -> None:
    seen = set().union(*golden_families().values())
    assert set(BY_NAME) - seen == NOT_IN_GOLDENS
    assert families(live_page()) >= NOT_IN_GOLDENS


def test_a_name_is_in_the_catalog_once_and_collides_with_no_other() -> None:
    """Also not with a histogram's samples or with another kind's family name."""
    assert len(BY_NAME) == len(CATALOG)
    claimed = [
        name
        for spec in CATALOG
        for name in (
            [spec.name, *(spec.name + suffix for suffix in OF_A_HISTOGRAM)]
            if spec.kind == Kind.HISTOGRAM
            else [spec.name]
        )
    ]
    stems = [spec.name.removesuffix("_total").removesuffix("_info") for spec in CATALOG]
    assert len(set(claimed)) == len(claimed)
    assert len(set(stems)) == len(stems)


def test_the_registry_accepts_all_names_at_once() -> None:
    """prometheus_client refuses a collector whose families clash."""
    assert "headroom_build_info" in live_page()


def test_the_page_as_served_pleases_promtool() -> None:
    assert lint.promtool(live_page()) == ""


# --- what a row says -----------------------------------------------------------------------------


def test_labels_come_from_the_fixed_set_and_begin_with_their_target() -> None:
    assert {label for spec in CATALOG for label in spec.labels} <= lint.LABELS
    for spec in CATALOG:
        assert len(set(spec.labels)) == len(spec.labels), spec.name
        if "rank" in spec.labels:
            assert spec.labels[:3] == ("engine", "rank", "model_name"), spec.name
        elif "gpu" in spec.labels:
            assert spec.labels[0] == "gpu", spec.name
        elif "engine" in spec.labels:
            assert spec.labels[0] == "engine", spec.name


def test_no_label_of_the_fixed_set_is_unused() -> None:
    assert lint.LABELS - {"le"} == {label for spec in CATALOG for label in spec.labels}


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_help_is_a_sentence_on_one_line(spec: object) -> None:
    text: str = spec.help  # type: ignore[attr-defined]
    assert text == text.strip()
    assert text[0].isupper() or text[0].isdigit()
    assert text.endswith(".")
    assert "\n" not in text
    assert "  " not in text


def test_a_deprecated_row_names_its_heir() -> None:
    for spec in CATALOG:
        if spec.deprecated is not None:
            assert any(name in spec.deprecated for name in set(BY_NAME) - {spec.name}), spec.name
            assert "DEPRECATED" in spec.help, spec.name


# --- docs/metrics.md -----------------------------------------------------------------------------


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=60
    )


def test_the_documentation_is_up_to_date() -> None:
    done = check("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_check_shows_what_is_out_of_date_and_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    text = PAGE.read_text(encoding="utf-8").replace("headroom_running_sequences", "headroom_old")
    page.write_text(text, encoding="utf-8")
    done = check("--check", "--page", str(page))
    assert done.returncode == 1
    assert "-| `headroom_old`" in done.stdout
    assert "+| `headroom_running_sequences`" in done.stdout
    assert "out of date" in done.stderr
    assert page.read_text(encoding="utf-8") == text


def test_a_missing_page_is_out_of_date_and_can_be_written(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "metrics.md"
    assert check("--check", "--page", str(page)).returncode == 1
    assert check("--page", str(page)).returncode == 0
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_documentation_has_a_row_for_every_metric_and_none_besides() -> None:
    """The process's own figures too: they are on the page though not in the catalog."""
    rows = [
        line.split("`")[1]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `headroom_")
    ]
    assert sorted(rows) == sorted({*BY_NAME, *process_families()})
