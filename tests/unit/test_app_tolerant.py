"""A configuration that cannot be used at the start: the end, or with the flag the defaults for a while."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest

from headroom_exporter import app
from headroom_exporter.config import Config, watch
from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

RIGHT = "engines:\n  - {name: mine, url: 'http://127.0.0.1:1'}\ngpus: {enabled: false}\n"
WRONG = {
    "not YAML": "engines: [",
    "an unknown key": "enginess: []\n",
    "no file at all": None,
}


def write(path: Path, text: str | None) -> Path:
    if text is not None:
        path.write_text(text)
    return path


def shown(exporter: app.Exporter, name: str) -> list[float]:
    page = generate_latest(exporter.registry()).decode()
    return [float(line.split(" ")[1]) for line in page.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_without_the_flag_it_is_the_end(text, tmp_path):
    path = write(tmp_path / "config.yaml", text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        app.run(path, ["127.0.0.1:0"], None)


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
async def test_with_it_the_defaults_hold_until_the_file_is_right(
    text, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(watch, "WATCH_SECONDS", 0.01)
    path = write(tmp_path / "config.yaml", text)
    exporter = app._first(path, tolerant=True)
    assert exporter.config == Config()
    assert "running on the defaults" in caplog.text
    assert shown(exporter, "headroom_config_last_reload_successful") == [0]
    assert shown(exporter, "headroom_config_last_reload_success_timestamp_seconds") == []
    running = asyncio.create_task(exporter.run())
    try:
        # Later than the first look at the file.
        await asyncio.sleep(0.05)
        path.write_text(RIGHT)
        async with asyncio.timeout(10):
            while not exporter.state.reload.successful:  # noqa: ASYNC110 - a state, no event
                await asyncio.sleep(0.01)
        assert [engine.name for engine in exporter.config.engines] == ["mine"]
        assert len(shown(exporter, "headroom_config_last_reload_success_timestamp_seconds")) == 1
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def test_a_wrong_web_configuration_is_the_end_in_any_case(tmp_path):
    path, web = write(tmp_path / "config.yaml", RIGHT), write(tmp_path / "web.yml", "tls: [")
    with pytest.raises(ConfigError, match=r"web\.yml"):
        app.run(path, ["127.0.0.1:0"], web, tolerant=True)
