"""
Build deploy/Dockerfile for real without a container engine or an image registry, and try what came out.

buildah builds it by chroot, on a base made here: a Debian 12 from debootstrap with its own Python 3.11. The
image is then unpacked and its entry point, its default arguments and its HEALTHCHECK run under a container's
restrictions (build_image_jail.py). What this does not show: the official Python base, arm64, a push.

    build_image.py [--target sidecar|node]

Takes root, buildah and debootstrap (Debian packages, installed if they are missing) and 2 GB in .cache/image.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_image_jail import SIMULATE, USER, Jail, JailError

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / "image"
BASE = "localhost/headroom-base:bookworm"
ADDRESS = "http://127.0.0.1:9890"

# A name server and a proxy's certificates are the machine's; both are gone from the image.
_PIP_CONF = Path("/etc/pip.conf")
_CERTIFICATES = "/etc/ssl/certs:/etc/ssl/certs:ro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What buildah says of the image, and where it is unpacked."""

    root: Path
    entrypoint: list[str]
    arguments: list[str]
    healthcheck: list[str]
    user: str
    environment: dict[str, str]


def buildah(*arguments: str | Path) -> str:
    """Run buildah on a storage of its own; its output."""
    storage = (f"--root={WORK / 'storage'}", f"--runroot={WORK / 'run'}", "--storage-driver=vfs")
    done = subprocess.run(
        ["buildah", *storage, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def make_base() -> None:
    """A Debian 12 with Python, venv and certificates, once."""
    if BASE in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    root = WORK / "base"
    subprocess.run(["rm", "-rf", root], check=True)
    packages = "python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    subprocess.run(["rm", "-rf", root], check=True)


def build(target: str) -> str:
    """Build one target; the image's name."""
    name = f"localhost/headroom-exporter:{target}"
    settings = _PIP_CONF if _PIP_CONF.exists() else Path("/dev/null")
    buildah(
        *("build", "--format=docker", "--isolation=chroot", "--layers=false", "--network=host"),
        *(f"--build-arg=BASE_IMAGE={BASE}", f"--target={target}", f"--tag={name}"),
        *(f"--secret=id=pip,src={settings}", f"--volume={_CERTIFICATES}"),
        *("--file", ROOT / "deploy" / "Dockerfile", ROOT),
    )
    return name


def unpack(name: str) -> tuple[str, Image]:
    """A container of the image, to be removed again, and what is in it."""
    container = buildah("from", name)
    config: dict[str, Any] = json.loads(buildah("inspect", container))["Docker"]["config"]
    return container, Image(
        root=Path(buildah("mount", container)),
        entrypoint=config["Entrypoint"],
        arguments=config["Cmd"],
        healthcheck=config["Healthcheck"]["Test"][1:],
        user=config["User"],
        environment=dict(entry.split("=", 1) for entry in config["Env"]),
    )


def try_out(image: Image) -> None:
    """Start the image as a cluster would. Raises JailError where it does not behave."""
    _expect(image.user == f"{USER}:{USER}", f"USER is {image.user}")
    with Jail(root=image.root, environment=image.environment) as jail:
        for module in ("pip", "setuptools", "ensurepip"):
            code, _ = jail.run(["python3", "-c", f"import {module}"])
            _expect(code == 1, f"{module} can be imported")
        _expect(jail.run(image.healthcheck)[0] == 1, "the health check passes before the start")
        engine = jail.start([*image.entrypoint, *SIMULATE])
        jail.wait_for("http://127.0.0.1:8000/metrics")
        exporter = jail.start([*image.entrypoint, *image.arguments])
        jail.wait_for(f"{ADDRESS}/healthz")
        page = jail.wait_for(f"{ADDRESS}/metrics", text="headroom_engine_up{").body
        _expect(_engine_is_up(page), "the engine is down")
        code, said = jail.run(image.healthcheck)
        _expect(code == 0, f"the health check fails: {said}")
        # The first polls are over, so that what they imported counts.
        time.sleep(3)
        print(f"resident: {exporter.facts()['VmRSS']}, peak {exporter.facts()['VmHWM']}")
        code, seconds = exporter.stop()
        _expect(code == 0, f"exit code {code} on SIGTERM")
        print(f"SIGTERM: exit code 0 after {seconds:.2f} s")
        engine.stop()


def _engine_is_up(page: str) -> bool:
    return re.search(r"^headroom_engine_up\{.*\} 1\.0$", page, re.MULTILINE) is not None


def _expect(right: bool, wrong: str) -> None:
    if not right:
        raise JailError(wrong)


def _size(root: Path) -> float:
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def main() -> int:
    """Build and try; 0 where all of it went well."""
    parser = argparse.ArgumentParser(description="Build the image with buildah and try it.")
    parser.add_argument("--target", choices=["sidecar", "node"], default="sidecar")
    target: str = parser.parse_args().target
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            [ROOT / "tools/packages.sh", "buildah:buildah", "debootstrap:debootstrap"], check=True
        )
        make_base()
        name = build(target)
        container, image = unpack(name)
        try:
            tree = _size(image.root / "opt" / "headroom-exporter")
            print(
                f"{name}: {_size(image.root):.0f} MB with its Debian base, the tree {tree:.1f} MB"
            )
            try_out(image)
        finally:
            buildah("rm", container)
    except (JailError, subprocess.SubprocessError) as error:
        print(f"build_image.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
