"""Fixtures of the tests on a real llama.cpp server; without ``-m llamacpp`` they are left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm import figures

if TYPE_CHECKING:
    from vllm.conftest import Record

REPOSITORY = Path(__file__).resolve().parents[2]
VARIABLE = "HEADROOM_LLAMACPP"

ALL_FIGURES = pytest.StashKey[list[figures.Figure]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ALL_FIGURES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A server that takes minutes to build is asked for by name: ``-m llamacpp``."""
    if "llamacpp" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("llamacpp")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("llamacpp")]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for figure in config.stash[ALL_FIGURES]:
        terminalreporter.write_line(figure.line())


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Record:
    """``figure(name, value, unit, expected=...)``: print it, keep it for the summary and the file."""
    kept = request.config.stash[ALL_FIGURES]

    def record(name: str, value: float | str, unit: str = "", *, expected: str = "") -> None:
        made = figures.Figure(
            test=request.node.name, name=name, value=value, unit=unit, expected=expected
        )
        kept.append(made)
        print(made.line())
        figures.write(kept)

    return record


@pytest.fixture(scope="session")
def build() -> Path:
    """The directory that holds llama-server and the package gguf."""
    directory = Path(os.environ.get(VARIABLE) or REPOSITORY / ".cache" / "llamacpp")
    if not (directory / "llama-server").is_file():
        raise pytest.UsageError(
            f"{directory} holds no llama-server: run tools/install_llamacpp.py, or set {VARIABLE}"
        )
    return directory


@pytest.fixture(scope="session")
def model(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model's file."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    environment = {**os.environ, "PYTHONPATH": str(build)}
    script = Path(__file__).with_name("model.py")
    subprocess.run([sys.executable, script, path], check=True, timeout=120, env=environment)
    return path
