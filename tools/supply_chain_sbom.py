"""The SBOM: CycloneDX 1.6. No time and no random number is in it: one set of pins, one document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter import __version__

if TYPE_CHECKING:
    from supply_chain_parts import Part

# What the package itself imports; node mode's extra is optional there. pyproject.toml says the same.
_DIRECT = ("aiohttp", "bcrypt", "nvidia-ml-py", "prometheus-client", "pyyaml")
_DIRECT_NODE = ("grpcio",)


def bom(mode: str, found: list[Part]) -> dict[str, Any]:
    """
    The document, for json.dumps.

    Args:
        mode: ``sidecar`` or ``node``, a property of the document.
        found: The tree's parts. The base image's are not among them.
    """
    own = f"pkg:pypi/headroom-exporter@{__version__}"
    purls = {part.name: part.purl for part in found}
    direct = [*_DIRECT, *(_DIRECT_NODE if mode == "node" else ())]
    vendored = [part.purl for part in found if not part.purl.startswith("pkg:pypi/")]
    edges = {own: sorted([*(purls[name] for name in direct), *vendored])}
    edges |= {part.purl: sorted(purls[name] for name in part.needs) for part in found}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "headroom-exporter",
                "version": __version__,
                "purl": own,
                "licenses": [{"expression": "Apache-2.0"}],
            },
            "properties": [{"name": "headroom-exporter:image-target", "value": mode}],
        },
        "components": [_component(part) for part in found],
        "dependencies": [
            {"ref": ref, **({"dependsOn": needs} if needs else {})}
            for ref, needs in sorted(edges.items())
        ],
    }


def _component(part: Part) -> dict[str, Any]:
    return {
        "type": part.kind,
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "licenses": [{"expression": part.licence}],
    }
