"""docs/engines.md says what the engines declare, and nobody's declaration has a hole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headroom_exporter.engines import ENGINES, PATHS, Engine
from headroom_exporter.engines.base import Certainty, Quantity

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "engines_doc.py"
PAGE = ROOT / "docs" / "engines.md"

every_engine = pytest.mark.parametrize("engine", ENGINES, ids=[e.name for e in ENGINES])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
    )


def section(engine: Engine) -> str:
    return (
        PAGE.read_text(encoding="utf-8")
        .partition(f"\n## {engine.title}\n")[2]
        .partition("\n## ")[0]
    )


def test_the_page_is_current() -> None:
    checked = run("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_page_that_is_out_of_date_is_shown_and_not_written(tmp_path: Path) -> None:
    stale = tmp_path / "engines.md"
    stale.write_text(PAGE.read_text(encoding="utf-8").replace("| exact |", "| perfect |"))
    before = stale.read_bytes()
    checked = run("--check", "--page", str(stale))
    assert checked.returncode == 1
    assert "-| running | perfect |" in checked.stdout
    assert "is out of date" in checked.stderr
    assert stale.read_bytes() == before
    assert run("--page", str(stale)).returncode == 0
    assert stale.read_bytes() == PAGE.read_bytes()


@every_engine
def test_every_quantity_of_every_engine_is_declared(engine: Engine) -> None:
    assert len(Quantity) == 12
    assert set(engine.tells) == set(Quantity)
    assert engine.versions
    for quantity, told in engine.tells.items():
        if told.certainty is not Certainty.EXACT:
            assert told.note, f"{quantity}: say why, or what to configure"


@every_engine
def test_every_quantity_stands_in_the_engines_section(engine: Engine) -> None:
    text = section(engine)
    for quantity, told in engine.tells.items():
        note = told.note.replace("|", "\\|")
        assert f"| {quantity} | {told.certainty} | {note} |" in text


@every_engine
def test_auto_looks_where_the_engine_has_its_page(engine: Engine) -> None:
    assert not set(PATHS).isdisjoint(engine.paths)


def test_titles_and_names_tell_the_engines_apart() -> None:
    assert len({engine.title for engine in ENGINES}) == len(ENGINES)
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)


def test_an_engine_without_load_says_that_it_warns_of_nothing() -> None:
    for engine in ENGINES:
        dumb = engine.tells[Quantity.RUNNING].certainty is Certainty.UNKNOWN
        assert dumb == ("cannot warn before a queue and does not see one" in section(engine))
