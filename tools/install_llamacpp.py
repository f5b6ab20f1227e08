#!/usr/bin/env python3
"""
Build a real llama.cpp server from PyPI's source package, for ``make test-llamacpp``.

    tools/install_llamacpp.py [DIR]        default: .cache/llamacpp beside this repository's Makefile

llama-cpp-python carries llama.cpp with its server and its GGUF writer; requirements/llamacpp.txt pins it
by hash. The directory gets ``llama-server``, the package ``gguf`` that writes models, and a stamp; four
minutes or more on two cores the first time, nothing when the stamp is right. With HEADROOM_LLAMACPP set,
that directory belongs to somebody else: it is checked, never changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements" / "llamacpp.txt"
DEFAULT = REPOSITORY / ".cache" / "llamacpp"
VARIABLE = "HEADROOM_LLAMACPP"
STAMP = "headroom-llamacpp.json"
SERVER = "llama-server"
# Raise when the recipe changes and what an old one built must be built anew.
RECIPE = 1
# Tool to the Debian package that holds it.
NEEDED = {"cmake": "cmake", "g++": "g++", "make": "make"}
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)


class InstallError(Exception):
    """The server cannot be built or is not what it should be; the text is for the user."""


def wanted_stamp() -> dict[str, object]:
    """What the stamp of a finished directory holds."""
    pinned = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return {"recipe": RECIPE, "options": list(OPTIONS), "requirements": pinned}


def is_ready(directory: Path) -> bool:
    """Whether the directory carries the stamp of this very recipe, and a server that starts."""
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
        check(directory)
    except (OSError, ValueError, InstallError):
        return False
    return bool(stamp == wanted_stamp())


def check(directory: Path) -> None:
    """
    Make sure that a directory holds a server that starts, and the GGUF writer.

    Raises:
        InstallError: it does not.
    """
    server = directory / SERVER
    try:
        subprocess.run([server, "--version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallError(f"{server}: does not start: {error}") from error
    if not (directory / "gguf" / "gguf_writer.py").is_file():
        raise InstallError(f"{directory}: no package gguf in it")


def install(directory: Path) -> None:
    """
    Download, unpack, build; the stamp is written last.

    Raises:
        InstallError: a tool is missing, a step failed, or the directory is not ours.
    """
    missing = sorted({package for tool, package in NEEDED.items() if not shutil.which(tool)})
    if missing:
        raise InstallError(f"missing Debian packages: apt-get install {' '.join(missing)}")
    if directory.exists() and any(directory.iterdir()) and not (directory / STAMP).is_file():
        raise InstallError(f"{directory}: exists and was not made by this tool; not touched")
    directory.mkdir(parents=True, exist_ok=True)
    # An interrupted build leaves this stamp, which is never the right one.
    (directory / STAMP).write_text("{}\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="headroom-llamacpp-") as name:
        scratch = Path(name)
        say("source package")
        source = unpack(download(scratch), scratch)
        say("configure")
        run("cmake", "-S", str(source), "-B", str(source / "build"), *OPTIONS)
        say("build (minutes)")
        jobs = str(len(os.sched_getaffinity(0)))
        run("cmake", "--build", str(source / "build"), "--target", SERVER, "-j", jobs)
        keep(source, directory)
    check(directory)
    (directory / STAMP).write_text(json.dumps(wanted_stamp()) + "\n", encoding="utf-8")


def download(scratch: Path) -> Path:
    """
    The source package, by pip with the machine's own pip configuration; pip checks the hash.

    Raises:
        InstallError: pip failed.
    """
    run(
        *(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download"),
        *("--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(scratch)),
        *("--requirement", str(REQUIREMENTS)),
    )
    return next(scratch.glob("llama_cpp_python-*.tar.gz"))


def unpack(archive: Path, scratch: Path) -> Path:
    """
    The directory of llama.cpp's own source.

    Raises:
        InstallError: the package does not hold it.
    """
    with tarfile.open(archive) as package:
        members = [member for member in package if "/vendor/llama.cpp/" in member.name]
        package.extractall(scratch, members=members, filter="data")
    source = next(scratch.glob("*/vendor/llama.cpp"), None)
    if source is None:
        raise InstallError(f"{archive.name}: no vendor/llama.cpp in it")
    return source


def keep(source: Path, directory: Path) -> None:
    """Move what is needed later out of the build."""
    for old in (directory / SERVER, directory / "gguf"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    shutil.copy2(source / "build" / "bin" / SERVER, directory / SERVER)
    shutil.copytree(source / "gguf-py" / "gguf", directory / "gguf")
    shutil.copy2(source / "LICENSE", directory / "LICENSE")


def run(*command: str) -> None:
    """
    Run a step, its output kept back unless it fails.

    Raises:
        InstallError: it failed; the text ends with its last words.
    """
    # Whoever shares the machine goes first.
    done = subprocess.run(
        ["nice", *command], check=False, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        tail = (done.stdout + done.stderr)[-2000:]
        raise InstallError(f"{' '.join(command[:4])} ended with status {done.returncode}\n{tail}")


_STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"install_llamacpp: {time.monotonic() - _STARTED:5.0f} s  {text}", flush=True)


def main() -> int:
    """Return the exit status: 0 ready, 1 not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT, metavar="DIR")
    directory: Path = parser.parse_args().directory.absolute()
    try:
        foreign = os.environ.get(VARIABLE)
        if foreign:
            check(Path(foreign))
            say(f"{VARIABLE}: ready")
        elif is_ready(directory):
            say(f"{directory}: ready")
        else:
            install(directory)
            say(f"{directory}: done")
    except InstallError as error:
        print(f"install_llamacpp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
