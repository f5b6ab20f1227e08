"""
Take out of an installed tree what no running exporter opens: ``trim.py PREFIX``.

What goes: sources of compiled modules, type stubs, tests and test helpers, pip's notes about the
installation, the activation scripts. What stays: every module that can be imported, each package's
METADATA (scanners read it) and licence texts (they must travel with the code). RECORD is put right, so
that it lists what is there.

Standard library only: it runs before the tree is whole.
"""

# ruff: noqa: INP001

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

# Sources and stubs: Cython, C, type checkers.
_SUFFIXES = {".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h", ".cc", ".cpp", ".hash", ".md5"}
_DIRECTORIES = {"tests", "test", "testing", "__pycache__", ".hash", "include"}
# What pip notes about how it installed; direct_url.json holds a path of the build machine.
_NOTES = {"INSTALLER", "REQUESTED", "direct_url.json"}
# Helpers for other people's tests, an example: nobody imports them.
_MODULES = {"aiohttp/test_utils.py", "aiohttp/pytest_plugin.py", "example.py"}
_SCRIPTS = {"python", "python3", "headroom-exporter"}


def main(prefix: Path) -> None:
    """Trim the virtual environment at ``prefix`` in place."""
    (packages,) = prefix.glob("lib/python3.*/site-packages")
    for script in (prefix / "bin").iterdir():
        if script.name not in _SCRIPTS and not script.name.startswith("python3."):
            script.unlink()
    for name in ("include", "share", ".gitignore"):
        _remove(prefix / name)
    for path in sorted(packages.rglob("*")):
        if _goes(path, packages):
            _remove(path)
    for record in packages.glob("*.dist-info/RECORD"):
        _put_right(record, packages)


def _goes(path: Path, packages: Path) -> bool:
    inside = path.relative_to(packages)
    if path.is_dir():
        return path.name in _DIRECTORIES
    if inside.parts[0].endswith(".dist-info"):
        return path.name in _NOTES
    return (
        path.suffix in _SUFFIXES
        or inside.as_posix() in _MODULES
        or path.name == "py.typed"
        or path.name.startswith("_testcapi.")
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_right(record: Path, packages: Path) -> None:
    with record.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and (packages / row[0]).exists()]
    with record.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
