"""
Known vulnerabilities, through pip-audit, and whether the question was answered at all.

pip-audit ends with 0 and "no known vulnerabilities" where its service knows none of the packages, as behind a
mirror that serves files and no advisories. That is no answer, and is told apart here.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supply_chain_parts import pins

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an audit found."""

    vulnerable: tuple[str, ...]
    """A line for each advisory: package, version, its name, versions that mend it."""
    unanswered: tuple[str, ...]
    """Packages nothing is known of, with the reason; or why there is no audit at all."""

    @property
    def complete(self) -> bool:
        """Whether every package was answered for."""
        return not self.unanswered

    @property
    def text(self) -> str:
        """For a person."""
        lines = [f"VULNERABLE: {line}" for line in self.vulnerable]
        lines += [f"NOT AUDITED: {line}" for line in self.unanswered]
        return "\n".join(lines) or "every pin was audited; no known vulnerability"


def audit(files: Sequence[Path], program: Path) -> Verdict:
    """
    Ask for every pin.

    Args:
        files: Pin files with hashes; nothing is installed for it.
        program: pip-audit.
    """
    try:
        done = subprocess.run(
            [
                *(str(program), "--require-hashes", "--disable-pip", "--format=json"),
                *("--progress-spinner=off", *(f"--requirement={path}" for path in files)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        report = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(vulnerable=(), unanswered=(f"pip-audit: {error}",))
    except ValueError:
        said = done.stderr.strip().splitlines()
        return Verdict(
            vulnerable=(), unanswered=(f"pip-audit: {said[-1] if said else 'it said nothing'}",)
        )
    return judge(report, pins("node"))


def judge(report: dict[str, Any], pinned: dict[str, str]) -> Verdict:
    """
    Read pip-audit's report.

    Args:
        report: Its JSON: ``dependencies``, each with ``vulns`` or with a ``skip_reason``.
        pinned: Package to version; one that the report does not answer for is not audited.
    """
    vulnerable: list[str] = []
    unanswered = dict.fromkeys(pinned, "not in the report")
    for found in report["dependencies"]:
        name = found["name"]
        if "skip_reason" in found:
            unanswered[name] = found["skip_reason"]
            continue
        if pinned.get(name) == found["version"]:
            unanswered.pop(name, None)
        vulnerable += [
            f"{name} {found['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or '-'}"
            for one in found["vulns"]
        ]
    return Verdict(
        vulnerable=tuple(vulnerable),
        unanswered=tuple(f"{name}: {why}" for name, why in sorted(unanswered.items())),
    )
