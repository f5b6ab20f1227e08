"""SBOM, licences, wheels and audit: what tools/supply_chain.py says of the pins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import supply_chain  # noqa: E402
from supply_chain_audit import audit, judge  # noqa: E402
from supply_chain_parts import (  # noqa: E402
    VENDORED,
    Part,
    SupplyError,
    parts,
    pins,
    refused,
    requirements,
)
from supply_chain_sbom import bom  # noqa: E402

TOOL = ROOT / "tools" / "supply_chain.py"
STATIC = ROOT / "exporter" / "headroom_exporter" / "web" / "static"


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


# --- licences ------------------------------------------------------------------------------------


def test_every_licence_is_one_that_was_agreed_to():
    assert refused(parts("node")) == []


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "MIT AND LGPL-2.1-or-later", "", "Proprietary"]
)
def test_any_other_licence_is_refused(licence: str):
    part = Part(name="x", version="1", licence=licence, known_from="", purl="pkg:x", where="both")
    assert refused([part]) == ([part] if licence else [])


def test_the_licence_list_is_what_the_pins_say():
    assert supply_chain.LICENCES.read_text() == supply_chain.licences_page(parts("node")), (
        "docs/licences.md: make licences"
    )
    rows = supply_chain.LICENCES.read_text()
    for name, version in pins("node").items():
        assert f"| {name} | {version} |" in rows


def test_a_package_in_another_version_than_pinned_is_refused(tmp_path: Path):
    with pytest.raises(SupplyError, match=r"aiohappyeyeballs: pinned .*, here not installed"):
        parts("sidecar", tmp_path)


def test_vendored_files_are_listed_in_the_version_that_lies_there():
    by_name = {part.name: part for part in VENDORED}
    assert f"uPlot {by_name['uplot'].version}" in (STATIC / "uplot" / "README.md").read_text()
    data = (ROOT / "exporter/headroom_exporter/simulate/data/README.md").read_text()
    assert by_name["AzureLLMInferenceTrace_conv"].purl.partition("@")[2] in data
    # A new vendored folder brings its LICENSE, and has to be listed too.
    texts = [path.parent.name for path in (ROOT / "exporter").rglob("LICENSE*")]
    assert texts == ["uplot"]


# --- SBOM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sidecar", "node"])
def test_the_sbom_is_strictly_valid_cyclonedx(mode: str):
    document = json.dumps(bom(mode, parts(mode)))
    # The whole schema is in the error's text: its message is enough.
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    assert error is None, getattr(error.data, "message", "not valid")


@pytest.mark.parametrize("mode", ["sidecar", "node"])
def test_the_sbom_lists_what_is_pinned_and_vendored_and_nothing_else(mode: str):
    document = bom(mode, parts(mode))
    listed = {(part["name"], part["version"]) for part in document["components"]}
    assert listed == set(pins(mode).items()) | {(part.name, part.version) for part in VENDORED}


def test_every_part_of_the_sbom_is_reached_from_the_exporter():
    document = bom("node", parts("node"))
    edges = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    reached: set[str] = set()
    ahead = [document["metadata"]["component"]["bom-ref"]]
    while ahead:
        ref = ahead.pop()
        reached.add(ref)
        ahead += [needed for needed in edges[ref] if needed not in reached]
    assert reached == set(edges)


def test_the_sbom_is_the_same_at_every_run():
    first, second = tool("sbom", "sidecar"), tool("sbom", "sidecar")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert "timestamp" not in first.stdout
    assert "serialNumber" not in first.stdout


# --- wheels --------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pin_is_a_wheel_with_a_pinned_hash_for_both_architectures(machine: str):
    """Asks the package index; the download is what proves the hashes."""
    assert supply_chain.missing_wheels(machine) == ""


def test_every_pin_carries_hashes():
    for path in requirements("node"):
        for block in path.read_text().replace("\\\n", " ").splitlines():
            if "==" in block and not block.lstrip().startswith("#"):
                assert "--hash=sha256:" in block, block


# --- audit ---------------------------------------------------------------------------------------

PINNED = {"one": "1.0", "two": "2.0"}
CLEAN = {"name": "one", "version": "1.0", "vulns": []}
SICK = {
    "name": "two",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}],
}


def test_an_audit_is_clean_where_every_pin_was_answered_for():
    verdict = judge({"dependencies": [CLEAN, {**SICK, "vulns": []}]}, PINNED)
    assert (verdict.vulnerable, verdict.complete) == ((), True)


def test_an_advisory_is_named_with_the_version_that_mends_it():
    verdict = judge({"dependencies": [CLEAN, SICK]}, PINNED)
    assert verdict.vulnerable == ("two 2.0: PYSEC-2026-1, mended in 2.1",)
    assert verdict.complete


@pytest.mark.parametrize(
    "rest",
    [
        [],
        [{"name": "two", "skip_reason": "Dependency not found on PyPI"}],
        [{"name": "two", "version": "1.9", "vulns": []}],
    ],
    ids=["absent", "skipped", "another version"],
)
def test_a_package_nothing_is_known_of_is_not_called_clean(rest: list[dict[str, object]]):
    verdict = judge({"dependencies": [CLEAN, *rest]}, PINNED)
    assert not verdict.complete
    assert verdict.unanswered[0].startswith("two: ")
    assert verdict.vulnerable == ()


def stand_in(folder: Path, says: str, code: int) -> Path:
    """A pip-audit that says that."""
    program = folder / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint({says!r})\nsys.exit({code})\n")
    program.chmod(0o755)
    return program


def answers(**changed: list[dict[str, object]]) -> str:
    everyone = [
        {"name": name, "version": version, "vulns": changed.get(name, [])}
        for name, version in pins("node").items()
    ]
    return json.dumps({"dependencies": everyone, "fixes": []})


def test_the_audits_exit_code_tells_clean_from_vulnerable_from_not_audited(tmp_path: Path):
    clean = stand_in(tmp_path, answers(), 0)
    assert tool("audit", "--pip-audit", str(clean)).returncode == supply_chain.GOOD
    sick = stand_in(tmp_path, answers(aiohttp=SICK["vulns"]), 1)
    found = tool("audit", "--pip-audit", str(sick))
    assert found.returncode == supply_chain.BAD
    assert "VULNERABLE: aiohttp " in found.stdout
    broken = stand_in(tmp_path, "no route to the service", 1)
    found = tool("audit", "--pip-audit", str(broken))
    assert found.returncode == supply_chain.UNKNOWN
    assert found.stdout.startswith("NOT AUDITED: pip-audit: ")


def test_a_missing_pip_audit_is_no_clean_audit(tmp_path: Path):
    verdict = audit(requirements("node"), tmp_path / "pip-audit")
    assert not verdict.complete
