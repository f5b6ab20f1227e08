"""The pod's own service-account token goes to no engine, whoever writes the configuration."""

from __future__ import annotations

import os

import pytest

from headroom_exporter.config import file
from headroom_exporter.config.file import load, parse
from headroom_exporter.errors import ConfigError

HERE = "/var/run/secrets/kubernetes.io/serviceaccount"


def config(path: object) -> str:
    return (
        "engines:\n"
        "  - {name: fine, url: 'http://127.0.0.1:1', bearer_token_file: token}\n"
        f"  - {{name: bad, url: 'http://evil.example', bearer_token_file: '{path}'}}\n"
    )


@pytest.mark.parametrize(
    "path",
    [
        f"{HERE}/token",
        f"{HERE}/..data/token",
        f"{HERE}/namespace",
        "/var/run/../run/secrets//kubernetes.io/./serviceaccount/token",
        f"/proc/self/root{HERE}/token",
        # A thread that is not there yet.
        f"/proc/1/task/4000000/root{HERE}/token",
        "/proc/self/environ",
        "/dev/fd/77",
    ],
)
def test_it_is_refused_by_whatever_way_the_path_leads_there(path):
    said = r"c\.yaml: engines\[1\]\.bearer_token_file: .* must not be this pod's own token"
    with pytest.raises(ConfigError, match=said):
        parse(config(path), "c.yaml")


def test_a_path_that_begins_beside_the_file_is_followed(tmp_path):
    up = os.path.relpath(f"{HERE}/token", tmp_path)
    (tmp_path / "c.yaml").write_text(config(up))
    with pytest.raises(ConfigError, match="own token"):
        load(tmp_path / "c.yaml")


def test_links_are_followed(tmp_path, monkeypatch):
    mounted = tmp_path / "mounted" / "..2026"
    mounted.mkdir(parents=True)
    (mounted / "token").write_text("t")
    (tmp_path / "mounted" / "token").symlink_to("..2026/token")
    (tmp_path / "elsewhere").symlink_to("mounted/token")
    (tmp_path / "link").symlink_to("mounted")
    monkeypatch.setattr(file, "_OWN_TOKEN", str(tmp_path / "link"))
    for way in ("elsewhere", "mounted/token", "link/token"):
        with pytest.raises(ConfigError, match="own token"):
            parse(config(way), "c.yaml", directory=tmp_path)


@pytest.mark.parametrize(
    "path",
    ["/run/secrets/vllm", "/etc/headroom/token", f"{HERE}-engine/token", "/var/run/secrets/token"],
)
def test_a_token_made_for_the_engine_may_lie_anywhere_else(path):
    assert parse(config(path), "c.yaml").engines[1].bearer_token_file == path


def test_in_node_mode_it_is_refused_as_well():
    text = "discovery: {kubernetes: {}}\n" + config(f"{HERE}/token")
    with pytest.raises(ConfigError, match="own token"):
        parse(text, "c.yaml")
