"""What every test directory shares: golden files."""

from __future__ import annotations

import pytest

from golden.files import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files instead of comparing"
    )


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Golden files; ``golden.check(path, text)``."""
    return Golden(update=request.config.getoption("--update-golden"))
