"""
What the image is made of: SBOM, licences, wheels for both architectures, known vulnerabilities.

    supply_chain.py licences [--check]      docs/licences.md from the pins
    supply_chain.py sbom sidecar|node       CycloneDX 1.6 on standard output, the same at every run
    supply_chain.py wheels                  every pin, with its hash, as a wheel for amd64 and arm64
    supply_chain.py audit                   pip-audit over the pins

Which packages and versions is read from requirements/*.txt alone; what each says of itself (licence,
dependencies) from the environment that runs this, or from --tree, an installed tree; there every version
must be the pinned one. Exit codes: 0 good, 1 bad, 3 not known: the audit could not be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from supply_chain_audit import audit
from supply_chain_parts import ALLOWED, ROOT, SupplyError, parts, refused, requirements
from supply_chain_sbom import bom

if TYPE_CHECKING:
    from supply_chain_parts import Part

LICENCES = ROOT / "docs" / "licences.md"

GOOD, BAD, UNKNOWN = 0, 1, 3

# The base is Debian 12, glibc 2.36: pip takes the wheels of all of these.
_GLIBC = ("manylinux2014", "manylinux_2_26", "manylinux_2_27", "manylinux_2_28", "manylinux_2_31")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

_HEAD = """\
# Licences of what the image holds

Made by `tools/supply_chain.py licences` from `requirements/runtime.txt` and `requirements/kubelet.txt`; a
test holds it against them. headroom-exporter itself is Apache-2.0. The texts travel with the code: each
package's in its `*.dist-info` in the tree, uPlot's beside it. The base image (CPython, PSF-2.0, and Debian's
packages, `/usr/share/doc/*/copyright` there) is not listed here.

Allowed: {allowed}.
Anything else fails `tests/deploy/test_supply_chain.py` until someone decides.

| part | version | licence | in | how known |
|---|---|---|---|---|
"""


def licences_page(found: list[Part]) -> str:
    """docs/licences.md."""
    allowed = ", ".join(f"{name} ({why})" if why else name for name, why in ALLOWED.items())
    rows = [
        f"| {part.name} | {part.version} | {part.licence} | {part.where} | {part.known_from} |"
        for part in found
    ]
    return _HEAD.format(allowed=allowed) + "\n".join(rows) + "\n"


def _licences(arguments: argparse.Namespace) -> int:
    found = parts("node", arguments.tree)
    for part in refused(found):
        print(f"{part.name} {part.version}: {part.licence} is not allowed", file=sys.stderr)
    page = licences_page(found)
    if not arguments.check:
        LICENCES.write_text(page, encoding="utf-8")
    elif not LICENCES.exists() or LICENCES.read_text(encoding="utf-8") != page:
        print(f"{LICENCES.name} is not what the pins say: make licences", file=sys.stderr)
        return BAD
    return BAD if refused(found) else GOOD


def _sbom(arguments: argparse.Namespace) -> int:
    document = bom(arguments.mode, parts(arguments.mode, arguments.tree))
    print(json.dumps(document, indent=2, sort_keys=True))
    return GOOD


def _wheels(_arguments: argparse.Namespace) -> int:
    code = GOOD
    for name, machine in _ARCHITECTURES.items():
        wrong = missing_wheels(machine)
        print(f"{name}: {wrong or 'every pin has a wheel with a pinned hash'}")
        code = BAD if wrong else code
    return code


def missing_wheels(machine: str) -> str:
    """
    Download every pin's wheel for a machine, with its hash checked.

    Args:
        machine: As wheels say it: x86_64 or aarch64.

    Returns:
        pip's complaint; empty where all are there.
    """
    platforms = [f"--platform={glibc}_{machine}" for glibc in _GLIBC]
    files = [f"--requirement={path}" for path in requirements("node")]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                ),
                *("--require-hashes", "--only-binary=:all:", f"--dest={folder}"),
                *("--python-version=3.11", "--implementation=cp", *platforms, *files),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    return "" if done.returncode == 0 else done.stderr.strip()


def _audit(arguments: argparse.Namespace) -> int:
    verdict = audit(requirements("node"), arguments.pip_audit)
    print(verdict.text)
    if verdict.vulnerable:
        return BAD
    return GOOD if verdict.complete else UNKNOWN


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    licences = verbs.add_parser("licences", help="write or check docs/licences.md")
    licences.add_argument("--check", action="store_true", help="only compare")
    licences.set_defaults(verb=_licences)
    sbom = verbs.add_parser("sbom", help="print the SBOM of one of the two trees")
    sbom.add_argument("mode", choices=["sidecar", "node"])
    sbom.set_defaults(verb=_sbom)
    for verb in (licences, sbom):
        verb.add_argument("--tree", type=Path, metavar="PREFIX", help="an installed tree")
    verbs.add_parser("wheels", help="are there wheels for both?").set_defaults(verb=_wheels)
    check = verbs.add_parser("audit", help="ask for known vulnerabilities")
    check.add_argument(
        "--pip-audit",
        type=Path,
        default=Path(sys.executable).with_name("pip-audit"),
        metavar="FILE",
        help="the program to ask with (default: the one beside this interpreter)",
    )
    check.set_defaults(verb=_audit)
    return parser.parse_args()


def main() -> int:
    """Run one verb; its exit code."""
    arguments = _arguments()
    try:
        code: int = arguments.verb(arguments)
    except SupplyError as error:
        print(error, file=sys.stderr)
        return BAD
    return code


if __name__ == "__main__":
    sys.exit(main())
