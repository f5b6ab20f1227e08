"""Fixtures of the tests on a real vLLM; without ``-m vllm`` they are left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from vllm import figures

REPOSITORY = Path(__file__).resolve().parents[2]
VENV_VARIABLE = "HEADROOM_VLLM_VENV"
MODEL_SECONDS = 120

ALL_FIGURES = pytest.StashKey[list[figures.Figure]]()


class Record(Protocol):
    """Keeps a figure of the running test."""

    def __call__(
        self, name: str, value: float | str, unit: str = "", *, expected: str = ""
    ) -> None: ...


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ALL_FIGURES] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Minutes of two cores are asked for by name: ``-m vllm``."""
    if "vllm" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("vllm")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("vllm")]


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
def interpreter() -> Path:
    """Python of the environment that holds vLLM."""
    directory = Path(os.environ.get(VENV_VARIABLE) or REPOSITORY / ".venv-vllm")
    python = directory / "bin" / "python"
    if not python.exists():
        raise pytest.UsageError(
            f"{directory} holds no vLLM: run tools/install_vllm.py, or set {VENV_VARIABLE}"
        )
    return python


@pytest.fixture(scope="session")
def model(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's directory."""
    directory = tmp_path_factory.mktemp("model")
    script = Path(__file__).with_name("model.py")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["TMPDIR"] = str(tmp_path_factory.mktemp("scratch"))
    subprocess.run(
        [interpreter, script, directory],
        check=True,
        timeout=MODEL_SECONDS,
        env=environment,
    )
    return directory
