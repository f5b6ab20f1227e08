"""docs/security.md: every test that it calls as a witness exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(
    set(
        re.findall(
            r"`(tests/[\w/]+\.py)::(test_\w+)`",
            (ROOT / "docs" / "security.md").read_text(encoding="utf-8"),
        )
    )
)


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[name for _, name in NAMED])
def test_the_proof_is_there(file, test):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {test}\(", text, re.MULTILINE)


def test_no_row_of_a_table_goes_without_proof():
    rows = [
        line
        for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (?!it tries|-|user|service|rights|shell)\S", line)
    ]
    assert len(rows) > 12
    assert all("::test_" in row for row in rows if not row.startswith("| | sidecar"))
