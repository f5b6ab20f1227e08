"""
Make the base image ready to run the tree: ``finish.py PREFIX``, as root, in the final stage.

1. Compile the part of the standard library that the exporter imports. The official Python images carry no
   .pyc files; with a read-only root each start would compile it all anew, and hold what that took.
2. Take out what installs packages: pip, setuptools, wheel, ensurepip and the wheels it bundles.
   At run time nothing installs anything, and scanners report findings in pip nobody can reach.
"""

# ruff: noqa: INP001, T201

from __future__ import annotations

import compileall
import importlib
import pkgutil
import shutil
import sys
import sysconfig
from pathlib import Path
from py_compile import PycInvalidationMode

_INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip")
# Where bases keep packages: the official images, Debian's python3 (and its ensurepip's wheels).
_PLACES = ("site-packages", "dist-packages")


def main(prefix: Path) -> None:
    """Compile first: what has just been imported must still be there."""
    compile_what_runs(prefix)
    for path in installers():
        print(f"finish.py: removing {path}")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def compile_what_runs(prefix: Path) -> None:
    """Import all that is installed at ``prefix``, then compile what that took from the base."""
    (packages,) = prefix.glob("lib/python3.*/site-packages")
    sys.path.insert(0, str(packages))
    for name in _modules(packages):
        try:
            importlib.import_module(name)
        except ImportError as error:
            # Such as the Twisted bridge of prometheus_client: optional, and its dependency is not here.
            print(f"finish.py: not compiled for: {name}: {error}")
    library = Path(sysconfig.get_path("stdlib"))
    for module in list(sys.modules.values()):
        source = Path(getattr(module, "__file__", None) or "/nowhere")
        if source.suffix == ".py" and source.is_relative_to(library):
            compileall.compile_file(
                source, force=True, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
            )


def _modules(packages: Path) -> list[str]:
    own = pkgutil.walk_packages([str(packages / "headroom_exporter")], "headroom_exporter.")
    # The entry point runs what it stands for as soon as it is imported.
    return [module.name for module in own if not module.name.endswith("__main__")]


def installers() -> list[Path]:
    """What installs packages, wherever this base keeps it."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [library / "ensurepip", Path("/usr/share/python-wheels")]
    roots = {Path(path) for path in sys.path if Path(path).name in _PLACES}
    for root in roots | {Path("/usr/lib/python3/dist-packages"), library / "site-packages"}:
        found += [path for path in root.glob("*") if path.name.split("-")[0] in _INSTALLERS]
    for scripts in {Path(sysconfig.get_path("scripts")), Path(sys.base_prefix) / "bin"}:
        found += [*scripts.glob("pip*"), *scripts.glob("wheel*"), *scripts.glob("easy_install*")]
    return sorted({path for path in found if path.exists() or path.is_symlink()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
