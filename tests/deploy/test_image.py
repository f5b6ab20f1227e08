"""
The image without an engine: the steps of deploy/Dockerfile run outside of it, and the tree that they
install runs under a container's restrictions (tools/build_image_jail.py).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headroom_exporter import __version__

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from build_image_jail import SIMULATE, USER, Jail  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCKERFILE = ROOT / "deploy" / "Dockerfile"

# docs/container.md says these figures. Files alone, as an image layer counts them.
MOST_MEGABYTES = {"sidecar": 24.0, "node": 48.0}

# Installing may take a minute where the packages are not cached.
pytestmark = pytest.mark.timeout(300)

# The base image's part: the interpreter that the tests run on, without the commands beside it.
PYTHON = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
BASE = (
    PYTHON,
    Path(sys.base_prefix) / "lib",
    *(Path(path) for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """An installed tree."""

    path: Path
    source: Path
    """The build context it was made of."""
    mode: str

    @property
    def packages(self) -> Path:
        (found,) = self.path.glob("lib/python3.*/site-packages")
        return found

    def files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink()]

    def megabytes(self) -> float:
        return sum(path.stat().st_size for path in self.files()) / 1e6


# --- making them ---------------------------------------------------------------------------------


def context(into: Path) -> Path:
    """The build context: what .dockerignore lets through, and nothing else."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert "*" in lines
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in allowed:
        if name == "deploy":  # opened for deploy/image, the rest of it shut again
            assert "deploy/*" in lines
        elif (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, into / name)
    return into


def build(source: Path, prefix: Path, mode: str) -> None:
    """What the Dockerfile's RUN does."""
    extra = ["node"] if mode == "node" else []
    done = subprocess.run(
        [source / "deploy" / "image" / "build.sh", source, prefix, *extra],
        env={**os.environ, "PYTHON": str(PYTHON)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def sidecar(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    path = tmp_path_factory.mktemp("sidecar") / "opt" / "headroom-exporter"
    build(source, path, "sidecar")
    return Tree(path=path, source=source, mode="sidecar")


@pytest.fixture(scope="module")
def node(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    path = tmp_path_factory.mktemp("node") / "opt" / "headroom-exporter"
    build(source, path, "node")
    return Tree(path=path, source=source, mode="node")


@pytest.fixture(params=["sidecar", "node"])
def tree(request: pytest.FixtureRequest) -> Tree:
    found: Tree = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def jail(sidecar: Tree) -> Iterator[Jail]:
    with jail_of(sidecar) as made:
        yield made


def jail_of(tree: Tree) -> Jail:
    # As the image does it, at another place: only the tree's own commands are on the PATH.
    return Jail(shown=[*BASE, tree.path], environment={"PATH": str(tree.path / "bin")})


# --- the Dockerfile ------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    assert hadolint.exists(), "hadolint is missing; it is in requirements/dev.txt: make .venv/.dev"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and text, continuation lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name, " ".join(text.split())) for name, text in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """What each stage does, in order; the last one is the default."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, text in instructions():
        if name == "FROM":
            found[text.rpartition(" AS ")[2]] = []
        elif found:
            list(found.values())[-1].append((name, text))
    return found


def test_the_base_is_one_argument_pinned_by_a_placeholder_that_no_image_has():
    bases = [text.partition(" AS ")[0] for name, text in instructions() if name == "FROM"]
    assert {base for base in bases if base not in stages()} == {"${BASE_IMAGE}"}
    ((_, default),) = [pair for pair in instructions() if pair[1].startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"BASE_IMAGE=python:3\.11-slim-bookworm@sha256:0{64}", default)


def test_the_default_target_is_the_lean_sidecar_and_both_targets_drop_root_last():
    names = list(stages())
    assert names[-1] == "sidecar"
    for name in ("sidecar", "node"):
        assert stages()[name][-1] == ("USER", "65532:65532")
        assert ("COPY", f"--from={name}-tree /opt/headroom-exporter /opt/headroom-exporter") in (
            stages()[name]
        )


def test_the_trees_are_built_by_the_script_that_is_tested_here():
    for mode, extra in (("sidecar", ""), ("node", " node")):
        ((_, run),) = stages()[f"{mode}-tree"]
        assert run.endswith(f"/src/deploy/image/build.sh /src /opt/headroom-exporter{extra}")


def test_nothing_at_run_time_goes_through_a_shell():
    runtime = dict(stages()["runtime"])
    assert json.loads(runtime["ENTRYPOINT"]) == ["headroom-exporter"]
    assert json.loads(runtime["CMD"]) == ["run", "--log.format", "json"]
    assert json.loads(runtime["HEALTHCHECK"].partition(" CMD ")[2])
    assert runtime["EXPOSE"] == "9890"
    assert runtime["STOPSIGNAL"] == "SIGTERM"


def test_the_labels_version_is_the_packages():
    assert ("ARG", f"VERSION={__version__}") in stages()["runtime"]


# --- the tree ------------------------------------------------------------------------------------


def test_the_tree_is_as_small_as_the_documentation_says(tree: Tree, record_property):
    megabytes = tree.megabytes()
    record_property(f"{tree.mode}_megabytes", round(megabytes, 1))
    print(f"{tree.mode}: {megabytes:.1f} MB in {len(tree.files())} files")
    assert megabytes < MOST_MEGABYTES[tree.mode]
    said = (ROOT / "docs" / "container.md").read_text()
    assert f"at most {MOST_MEGABYTES[tree.mode]:.0f} MB" in said


def pins(mode: str) -> set[str]:
    files = ["runtime.txt", *(["kubelet.txt"] if mode == "node" else [])]
    text = "".join((ROOT / "requirements" / name).read_text() for name in files)
    return set(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


def test_it_holds_the_pinned_packages_and_nothing_else(tree: Tree):
    names = (path.name.removesuffix(".dist-info") for path in tree.packages.glob("*.dist-info"))
    installed = {tuple(name.replace("_", "-").rsplit("-", 1)) for name in names}
    assert installed == pins(tree.mode) | {("headroom-exporter", __version__)}


def test_it_has_no_installer_no_tests_and_no_sources_of_compiled_modules(tree: Tree):
    own = tree.packages / "headroom_exporter"
    assert sorted(path.name for path in (tree.path / "bin").iterdir()) == sorted(
        ["headroom-exporter", "healthcheck", "python", "python3", PYTHON.name]
    )
    for path in tree.path.rglob("*"):
        assert path.name not in {"pip", "setuptools", "wheel", "pkg_resources", "tests", "test"}
    theirs = [
        path
        for path in tree.packages.rglob("*")
        if path.is_file() and not path.is_relative_to(own) and ".dist-info" not in str(path)
    ]
    # .pem: grpcio's list of authorities.
    assert {path.suffix for path in theirs} <= {".py", ".pyc", ".so", ".pem"}


def test_what_is_left_is_what_the_packages_published(tree: Tree):
    """Nothing was changed but by leaving out: every file has the hash of its wheel's RECORD."""
    recorded: set[Path] = set()
    for record in tree.packages.glob("*.dist-info/RECORD"):
        for name, digest, _ in csv.reader(record.read_text().splitlines()):
            path = (tree.packages / name).resolve()
            recorded.add(path)
            if digest:
                found = hashlib.sha256(path.read_bytes()).digest()
                assert digest == "sha256=" + base64.urlsafe_b64encode(found).decode().rstrip("=")
    unknown = {path for path in tree.packages.rglob("*") if path.is_file()} - recorded
    assert {path.suffix for path in unknown} == {".pyc"}


def test_every_licence_text_travels_along(tree: Tree):
    for info in tree.packages.glob("*.dist-info"):
        metadata = (info / "METADATA").read_text()
        for name in re.findall(r"^License-File: (.+)$", metadata, re.MULTILINE):
            assert (info / "licenses" / name).exists() or (info / name).exists(), (info, name)
    assert (tree.packages / "headroom_exporter/web/static/uplot/LICENSE").exists()


def test_every_module_is_compiled_and_never_compared_with_its_source(tree: Tree):
    sources = list(tree.packages.rglob("*.py"))
    assert len(sources) > 200
    for path in sources:
        compiled = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
        # PEP 552: bit 0 hash-based, bit 1 checked.
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1, path


IMPORT_ALL = """
import importlib, pkgutil, sys
packages = sys.argv[1]
for module in pkgutil.walk_packages([packages], onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, error.name, sep="\\t")
"""
# What modules for other frameworks lack, and those of node mode in the sidecar's tree.
OPTIONAL = {"gunicorn", "twisted", "django", "grpc", "google"}


def test_every_module_in_it_can_be_imported_but_those_for_other_frameworks(sidecar: Tree):
    done = subprocess.run(
        [sidecar.path / "bin" / "python", "-IWignore", "-c", IMPORT_ALL, sidecar.packages],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lacks = dict(line.split("\t") for line in done.stdout.splitlines())
    assert set(lacks.values()) <= OPTIONAL, lacks


def test_the_node_tree_has_what_the_kubelets_socket_needs(node: Tree):
    done = subprocess.run(
        [node.path / "bin" / "python", "-I", "-c", "import grpc.aio"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def digests(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file() and not file.is_symlink()
    }


def test_two_builds_of_one_source_are_the_same_to_the_byte(sidecar: Tree):
    first = sidecar.path.with_name("first")
    sidecar.path.rename(first)
    try:
        build(sidecar.source, sidecar.path, "sidecar")
        assert digests(sidecar.path) == digests(first)
    finally:
        shutil.rmtree(sidecar.path)
        first.rename(sidecar.path)


def test_the_script_refuses_a_place_that_is_taken(tmp_path: Path):
    done = subprocess.run(
        [ROOT / "deploy" / "image" / "build.sh", ROOT, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{tmp_path} is there already" in done.stderr


# --- under the image's restrictions --------------------------------------------------------------

METRICS = "http://127.0.0.1:9890/metrics"
HEALTH = "http://127.0.0.1:9890/healthz"


def command() -> list[str]:
    """What the image starts: ENTRYPOINT and CMD."""
    runtime = dict(stages()["runtime"])
    return [*json.loads(runtime["ENTRYPOINT"]), *json.loads(runtime["CMD"])]


def healthcheck(tree: Tree) -> list[str]:
    """The image's HEALTHCHECK, at the place of this tree."""
    text = dict(stages()["runtime"])["HEALTHCHECK"].partition(" CMD ")[2]
    return [word.replace("/opt/headroom-exporter", str(tree.path)) for word in json.loads(text)]


def test_it_serves_an_engine_as_nobody_on_a_read_only_root_and_ends_on_sigterm(
    jail: Jail, tmp_path: Path
):
    log = tmp_path / "log"
    engine = jail.start(["headroom-exporter", *SIMULATE])
    jail.wait_for("http://127.0.0.1:8000/metrics")
    exporter = jail.start(command(), output=log)
    jail.wait_for(HEALTH)
    page = jail.wait_for(METRICS, text="headroom_engine_up{")
    assert re.search(r"^headroom_engine_up\{.*\} 1(\.0)?$", page.body, re.MULTILINE), page.body

    for inmate in (engine, exporter):
        facts = inmate.facts()
        assert facts["Uid"].split() == [str(USER)] * 4
        assert facts["Gid"].split() == [str(USER)] * 4
        assert facts["Groups"] == ""
        assert {int(facts[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert facts["NoNewPrivs"] == "1"
        assert facts["NSpid"].split()[-1] == "1"
        assert inmate.interfaces() == ["lo"]
        writable = [at for at, (_, how) in inmate.mounts().items() if "ro" not in how]
        assert all(at.endswith("/proc") for at in writable)

    code, seconds = exporter.stop()
    assert code == 0, log.read_text()
    assert seconds < 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines
    assert not [line for line in lines if line["level"] == "error"]


def test_the_healthcheck_follows_the_exporter(jail: Jail, sidecar: Tree):
    check = healthcheck(sidecar)
    code, said = jail.run(check)
    assert code == 1
    assert "127.0.0.1:9890: " in said
    exporter = jail.start(command())
    jail.wait_for(HEALTH)
    assert jail.run(check) == (0, "")
    exporter.stop()
    assert jail.run(check)[0] == 1


def test_there_is_neither_a_shell_nor_a_place_to_write(jail: Jail, sidecar: Tree):
    look = (
        "import os, shutil, sys\n"
        "assert shutil.which('sh', path='/bin:/usr/bin:/usr/local/bin') is None\n"
        "for place in ('/', '/tmp', '/dev/shm', os.path.dirname(os.__file__), sys.argv[1]):\n"
        "    assert not os.access(place, os.W_OK), place\n"
    )
    assert jail.run(["python", "-I", "-c", look, str(sidecar.path)]) == (0, "")


def test_every_verb_answers(jail: Jail):
    for verb in ("run", "status", "check", "demo", "simulate", "backtest"):
        code, said = jail.run(["headroom-exporter", verb, "--help"])
        assert code == 0, said
        assert verb in said
