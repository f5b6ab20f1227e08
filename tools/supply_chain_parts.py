"""The parts of an image: pinned packages and vendored files, with their licences as SPDX expressions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

# Licence to what is special about it. All permissive, but for one that binds single files.
ALLOWED = {
    "Apache-2.0": "",
    "BSD-2-Clause": "",
    "BSD-3-Clause": "",
    "MIT": "",
    "PSF-2.0": "",
    "MPL-2.0": "grpcio's unchanged `roots.pem` alone",
    "CC-BY-4.0": "data alone",
}

# Field "License" of older metadata, which is free text.
_FREE_TEXT = {
    "Apache 2.0": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "MIT": "MIT",
    "PSF-2.0": "PSF-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
}
# What metadata leave open or leave out, from the texts themselves. Look again when the version changes.
_STATED = {
    "nvidia-ml-py": ("BSD-3-Clause", "head of pynvml.py; the metadata say BSD"),
    "grpcio": (
        "Apache-2.0 AND BSD-3-Clause AND MPL-2.0",
        "its LICENSE; the metadata say Apache-2.0",
    ),
}

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


class SupplyError(Exception):
    """What is installed is not what is pinned, or says too little of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing in the image that somebody else wrote."""

    name: str
    version: str
    licence: str
    """SPDX expression."""
    known_from: str
    """Where the licence is taken from, for a reader."""
    purl: str
    where: str
    """both, node (only there), or where in the package vendored files lie."""
    kind: str = "library"
    """As CycloneDX says it: library or data."""
    needs: tuple[str, ...] = ()
    """Names of other parts."""


# Not packages: files in our own wheel. Each one's README beside it says the same, with hashes.
VENDORED = (
    Part(
        name="uplot",
        version="1.6.32",
        licence="MIT",
        known_from="LICENSE beside it",
        purl="pkg:npm/uplot@1.6.32",
        where="web/static/uplot",
    ),
    Part(
        name="AzureLLMInferenceTrace_conv",
        version="b469a113",
        licence="CC-BY-4.0",
        known_from="README beside it",
        purl="pkg:github/azure/azurepublicdataset@b469a113cedca53ddc3bdea71a143dc4b7d8700c",
        where="simulate/data",
        kind="data",
    ),
)


def requirements(mode: str) -> list[Path]:
    """The pin files of a tree: ``sidecar`` or ``node``."""
    names = ["runtime.txt", *(["kubelet.txt"] if mode == "node" else [])]
    return [ROOT / "requirements" / name for name in names]


def pins(mode: str) -> dict[str, str]:
    """Package to version. Raises SupplyError where two files pin one package differently."""
    found: dict[str, str] = {}
    for path in requirements(mode):
        for name, version in _PIN.findall(path.read_text(encoding="utf-8")):
            if found.setdefault(_canonical(name), version) != version:
                raise SupplyError(
                    f"{path.name}: {name}=={version}: pinned as {found[name]} elsewhere"
                )
    return found


def parts(mode: str, tree: Path | None = None) -> list[Part]:
    """
    Everything in a tree that is not ours, by name.

    Args:
        mode: ``sidecar`` or ``node``.
        tree: An installed tree to ask; None asks the environment that runs this.

    Raises:
        SupplyError: a pin is not installed or in another version, or a licence cannot be told.
    """
    installed = _installed(tree)
    lean = pins("sidecar")
    found: list[Part] = []
    for name, version in pins(mode).items():
        distribution = installed.get(name)
        if distribution is None or distribution.version != version:
            there = distribution.version if distribution else "not installed"
            raise SupplyError(f"{name}: pinned {version}, here {there}; make .venv/.dev")
        found.append(_part(name, distribution, set(pins(mode)), "both" if name in lean else "node"))
    return sorted([*found, *VENDORED], key=lambda part: part.name.lower())


def refused(found: list[Part]) -> list[Part]:
    """Parts with a licence that ALLOWED does not list."""
    return [
        part
        for part in found
        if not set(re.findall(r"[A-Za-z0-9.-]+", part.licence)) - {"AND", "OR", "WITH"}
        <= set(ALLOWED)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(tree: Path | None) -> dict[str, Distribution]:
    if tree is None:
        found = distributions()
    else:
        found = distributions(path=[str(path) for path in tree.glob("lib/python3.*/site-packages")])
    return {_canonical(one.metadata["Name"]): one for one in found}


def _part(name: str, distribution: Distribution, pinned: set[str], where: str) -> Part:
    licence, known_from = _licence(name, distribution)
    return Part(
        name=name,
        version=distribution.version,
        licence=licence,
        known_from=known_from,
        purl=f"pkg:pypi/{name}@{distribution.version}",
        where=where,
        needs=tuple(sorted(_needs(distribution) & pinned)),
    )


def _licence(name: str, distribution: Distribution) -> tuple[str, str]:
    if name in _STATED:
        return _STATED[name]
    metadata = distribution.metadata
    expression = metadata.get_all("License-Expression", [""])[0]
    if expression:
        return expression, "metadata, License-Expression"
    text = metadata.get_all("License", [""])[0].strip()
    if text not in _FREE_TEXT:
        raise SupplyError(
            f"{name}: no License-Expression, and License is {text[:60]!r}; read its text and state it in "
            "tools/supply_chain_parts.py"
        )
    return _FREE_TEXT[text], "metadata, License"


def _needs(distribution: Distribution) -> set[str]:
    wanted = (Requirement(line) for line in distribution.requires or ())
    return {
        _canonical(one.name)
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }
