"""
deploy/compose: what can be seen without Docker.

Its structure is checked, and the same set-up runs as processes: the very commands and configurations, with
service names and ports replaced by loopback addresses. Images are neither built nor pulled here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import yaml

from deploy.hasty_rules import hasten
from pager.processes import Process, program

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
# Of the Compose Specification, those that a set-up like this may use: a misspelt key is not among them.
SERVICE_KEYS = {
    *("image", "build", "command", "entrypoint", "environment", "volumes", "ports", "expose"),
    *("depends_on", "healthcheck", "read_only", "cap_drop", "security_opt", "restart", "user"),
    *("tmpfs", "networks", "profiles"),
}
LISTENS = {
    "engine": 8000,
    "exporter": 9890,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
}
WAIT_SECONDS = 60.0


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = document()["services"]
    return found


def config(name: str) -> Any:
    return yaml.safe_load((COMPOSE / name).read_text(encoding="utf-8"))


def mounts(service: str) -> list[tuple[str, str, str]]:
    """(source, target, mode) of each volume."""
    found = []
    for text in services()[service].get("volumes", ()):
        source, target, *mode = text.split(":")
        found.append((source, target, mode[0] if mode else "rw"))
    return found


# --- structure -----------------------------------------------------------------------------------


def test_it_has_no_key_that_compose_does_not_know():
    assert document().keys() <= {"name", "services", "volumes", "networks"}
    for name, service in services().items():
        assert service.keys() <= SERVICE_KEYS, name


def test_every_port_is_its_own_and_only_this_machine_reaches_it():
    published = []
    for name, service in services().items():
        (text,) = service["ports"]
        address, outside, inside = text.split(":")
        assert address == "127.0.0.1", name
        assert int(inside) == LISTENS[name], name
        published.append(outside)
    assert len(set(published)) == len(published)


def test_every_image_has_a_tag_that_is_no_moving_target():
    for name, service in services().items():
        _, _, tag = service["image"].rpartition(":")
        assert re.fullmatch(r"v?\d+(\.\d+){1,2}|demo", tag), name


def test_own_images_are_built_from_the_shipped_dockerfile_with_a_base_that_exists():
    for name in ("engine", "exporter"):
        build = services()[name]["build"]
        dockerfile = (COMPOSE / build["context"]).resolve() / build["dockerfile"]
        assert dockerfile == ROOT / "deploy" / "Dockerfile"
        assert build["args"].keys() == {"BASE_IMAGE"}
        assert "ARG BASE_IMAGE" in dockerfile.read_text(encoding="utf-8")
        assert build["args"]["BASE_IMAGE"] == "python:3.11-slim-bookworm"


def test_every_mounted_file_is_there_and_cannot_be_written():
    for name in services():
        for source, _, mode in mounts(name):
            if source.startswith("."):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
                assert mode == "ro", f"{name}: {source}"
            else:
                assert source in document()["volumes"], f"{name}: {source}"


def test_no_service_has_more_rights_than_it_needs():
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # Grafana writes beside its volume.
        assert service.get("read_only", False) is (name != "grafana"), name


def test_every_address_in_a_configuration_is_a_service_and_its_port():
    (engine,) = config("exporter.yaml")["engines"]
    prometheus = config("prometheus.yml")
    (datasource,) = yaml.safe_load(
        (ROOT / "grafana/provisioning/datasources.yaml").read_text(encoding="utf-8")
    )["datasources"]
    named = [
        urlsplit(engine["url"]).netloc,
        *prometheus["scrape_configs"][0]["static_configs"][0]["targets"],
        *prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"],
        urlsplit(datasource["url"]).netloc,
    ]
    assert named == [
        f"{name}:{LISTENS[name]}" for name in ("engine", "exporter", "alertmanager", "prometheus")
    ]
    assert f"--listen=0.0.0.0:{LISTENS['engine']}" in services()["engine"]["command"]


def test_grafana_finds_boards_where_its_provisioning_looks_for_them():
    (provider,) = yaml.safe_load(
        (ROOT / "grafana/provisioning/dashboards.yaml").read_text(encoding="utf-8")
    )["providers"]
    targets = {target: source for source, target, _ in mounts("grafana")}
    boards = COMPOSE / targets[provider["options"]["path"]]
    home = Path(services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert (boards / home.name).is_file()


# --- the configurations, by the programs that read them ------------------------------------------


def mounted(service: str, root: Path) -> Path:
    """A directory that holds a service's mounted files as its container would see them."""
    for source, target, _ in mounts(service):
        if source.startswith("."):
            place = root / target.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((COMPOSE / source).resolve())
    return root


def option(service: str, name: str) -> str:
    (found,) = (
        text.removeprefix(f"{name}=")
        for text in services()[service]["command"]
        if text.startswith(f"{name}=")
    )
    return str(found)


def test_prometheus_accepts_its_configuration_with_all_shipped_rules_in_it(tmp_path):
    root = mounted("prometheus", tmp_path)
    file = root / option("prometheus", "--config.file").removeprefix("/")
    done = subprocess.run(
        [program("promtool"), "check", "config", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 rule files found" in done.stdout


def test_alertmanager_accepts_its_configuration(tmp_path):
    root = mounted("alertmanager", tmp_path)
    file = root / option("alertmanager", "--config.file").removeprefix("/")
    subprocess.run([program("amtool"), "check-config", str(file)], check=True, capture_output=True)


def test_the_exporter_accepts_its_configuration(tmp_path):
    root = mounted("exporter", tmp_path)
    file = root / option("exporter", "--config").removeprefix("/")
    done = subprocess.run(
        [sys.executable, "-m", "headroom_exporter", "check", str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- the same as processes -----------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_set_up_runs_and_all_of_it_sees_each_other(tmp_path):
    with ExitStack() as stack:
        engine = stack.enter_context(engine_process(tmp_path))
        exporter = stack.enter_context(exporter_process(tmp_path, engine.url))
        alertmanager = stack.enter_context(alertmanager_process(tmp_path))
        prometheus = stack.enter_context(
            prometheus_process(tmp_path, exporter.address, alertmanager.address)
        )
        known = 'headroom_sustainable_sequences{engine="llama-8b",namespace="demo"} > 0'
        waited(lambda: query(prometheus, known))
        assert [value for _, value in query(prometheus, "up")] == ["1"]
        assert api(prometheus, "alertmanagers")["activeAlertmanagers"] == [
            {"url": f"{alertmanager.url}/api/v2/alerts"}
        ]
        # Whatever a rule records of the first scrapes: each was evaluated, and none failed.
        waited(lambda: all(rule["health"] != "unknown" for rule in quick_rules(prometheus)))
        assert {rule["health"] for rule in quick_rules(prometheus)} == {"ok"}
        waited(lambda: query(prometheus, "model:headroom_sustainable_sequences:sum5m"))


def engine_process(folder: Path) -> Process:
    command = [
        "--listen=127.0.0.1:0" if text.startswith("--listen=") else text
        for text in services()["engine"]["command"]
    ]
    return Process(
        [sys.executable, "-u", "-m", "headroom_exporter", *command],
        folder / "engine.log",
        listening=r"serving on http://([^/\s]+)/metrics",
        ready="/health",
    )


def exporter_process(folder: Path, engine_url: str) -> Process:
    settings = config("exporter.yaml")
    settings["engines"][0]["url"] = engine_url
    file = folder / "exporter.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")
    command = [
        f"--config={file}" if text.startswith("--config=") else text
        for text in services()["exporter"]["command"]
    ]
    return Process(
        [
            *(sys.executable, "-m", "headroom_exporter", *command),
            *("--web.listen-address", "127.0.0.1:0"),
        ],
        folder / "exporter.log",
        listening=r"msg=listening address=(\S+)",
        ready="/readyz",
    )


def alertmanager_process(folder: Path) -> Process:
    command = [
        *(program("prometheus-alertmanager"), f"--config.file={COMPOSE / 'alertmanager.yml'}"),
        *(f"--storage.path={folder / 'alertmanager'}", "--web.listen-address=127.0.0.1:0"),
        "--cluster.listen-address=",
    ]
    return Process(
        command,
        folder / "alertmanager.log",
        listening=r'msg="Listening on" address=(\S+)',
        ready="/-/ready",
    )


def prometheus_process(folder: Path, exporter: str, alertmanager: str) -> Process:
    settings = config("prometheus.yml")
    # Not as slowly as in life: nobody waits a minute for the first scrapes.
    settings["global"]["scrape_interval"] = "1s"
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = [exporter]
    settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    root = mounted("prometheus", folder / "root")
    place = root / "etc" / "prometheus"
    (place / "prometheus.yml").unlink()
    (place / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")
    for part in ("recording", "alerts"):
        (place / "rules" / part).unlink()
    hasten(place / "rules")
    command = [
        *(program("prometheus"), f"--config.file={place / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"),
    ]
    return Process(
        command,
        folder / "prometheus.log",
        listening=r'msg="Listening on" address=(\S+)',
        ready="/-/ready",
    )


def api(prometheus: Process, path: str) -> Any:
    return json.loads(prometheus.get(f"/api/v1/{path}"))["data"]


def query(prometheus: Process, promql: str) -> list[tuple[dict[str, str], str]]:
    found = api(prometheus, f"query?query={quote(promql)}")["result"]
    return [(one["metric"], one["value"][1]) for one in found]


def quick_rules(prometheus: Process) -> list[dict[str, Any]]:
    """Rules of the groups that are evaluated every two seconds here; the others take four minutes."""
    groups = api(prometheus, "rules")["groups"]
    assert len(groups) == 8
    return [rule for group in groups if group["interval"] <= 30 for rule in group["rules"]]


def waited(condition: Any) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "not within a minute"
        time.sleep(0.5)
