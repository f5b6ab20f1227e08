"""
A container's restrictions without a container engine, to start the image's tree under them.

Processes in a jail see a read-only root with the interpreter, its libraries and the tree, a network that
is nothing but loopback, and no process but themselves; they run as 65532 without groups, capabilities or a
way to get any (no_new_privs). The first one is PID 1, as in a container.

It takes root and the namespaces of Linux, and nothing but the standard library. This file is both sides:
the classes are for the one who starts, ``__main__`` runs inside.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

USER = 65532

# <sys/mount.h>, <linux/prctl.h>, <linux/if.h>, <linux/sockios.h>
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_CAPBSET_DROP, _NO_NEW_PRIVS = 24, 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
# <sched.h>: mount, uts, ipc, pid; network
_CLONE_ALL, _CLONE_NEWNET = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000, 0x40000000
_PDEATHSIG = 1
_DEVICES = ("null", "zero", "urandom")
_ENVIRONMENT = {
    "PATH": "/opt/headroom-exporter/bin:/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
}


SIMULATE = ("simulate", "--trace", "synthetic:poisson?rate=2", "--listen", "127.0.0.1:8000")
"""Arguments of an engine to look at, on the address that the exporter looks at by itself."""


class JailError(Exception):
    """The restrictions cannot be had here; the text says what is missing."""


# --- the outside ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an HTTP request inside the jail got."""

    status: int
    body: str


@dataclass(slots=True)
class Inmate:
    """A process in a jail."""

    process: subprocess.Popen[bytes]
    """Its keeper, which ends as it ends: with its exit code, or 128 and the signal's number."""
    pid: int
    """The process itself, as this side numbers it."""

    def facts(self) -> dict[str, str]:
        """/proc/PID/status: ``Uid``, ``CapEff``, ``NoNewPrivs``, ``VmHWM`` ..."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def mounts(self) -> dict[str, tuple[str, set[str]]]:
        """Mount point to file system type and options, as the process sees them."""
        lines = Path(f"/proc/{self.pid}/mounts").read_text(encoding="utf-8").splitlines()
        parts = (line.split() for line in lines)
        return {part[1]: (part[2], set(part[3].split(","))) for part in parts}

    def interfaces(self) -> list[str]:
        """Names of its network interfaces."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text(encoding="utf-8").splitlines()[2:]
        return [line.partition(":")[0].strip() for line in lines]

    def stop(self, seconds: float = 5.0) -> tuple[int, float]:
        """SIGTERM; exit code and how long it took. Raises subprocess.TimeoutExpired."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        code = self.process.wait(seconds)
        return code, time.monotonic() - began


@dataclass(slots=True)
class Jail:
    """
    One network and one root for some processes; a context manager that leaves none behind.

    Args:
        root: Root file system of an image. None: one is made of ``shown``.
        shown: Paths of this machine that are there, read-only and at their own place.
        environment: Beside PATH and LANG.
    """

    root: Path | None = None
    shown: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    _place: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    _network: subprocess.Popen[bytes] | None = None
    _inmates: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise JailError("namespaces without user mapping need root: run this as root")
        self._network = subprocess.Popen(
            [sys.executable, "-IS", __file__, "network"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._network.stdout is not None  # noqa: S101
        if self._network.stdout.readline() != b"up\n":
            _, said = self._network.communicate()
            raise JailError(f"no network namespace: {said.decode(errors='replace').strip()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in [*self._inmates, *([self._network] if self._network else [])]:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._place.cleanup()

    def start(
        self,
        command: Sequence[str],
        *,
        output: Path | int = subprocess.DEVNULL,
    ) -> Inmate:
        """
        Start a command inside; its first word is looked up on the image's PATH.

        Raises:
            JailError: it could not be started under the restrictions; the text says why.
        """
        assert self._network is not None  # noqa: S101
        told, tells = os.pipe()
        order = {
            "root": str(self.root) if self.root else None,
            "place": self._place.name,
            "shown": [str(path) for path in self.shown],
            "command": list(command),
            "environment": {**_ENVIRONMENT, **self.environment},
            "tells": tells,
            "network": self._network.pid,
        }
        sink = output if isinstance(output, int) else output.open("ab")
        process = subprocess.Popen(
            [sys.executable, "-IS", __file__, "enter", json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            pass_fds=(tells,),
        )
        self._inmates.append(process)
        os.close(tells)
        if not isinstance(sink, int):
            sink.close()
        with os.fdopen(told, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        # The pipe closes on exec: a number and nothing after it means that the command runs.
        pid, _, wrong = said.partition("\n")
        if wrong or not pid.isdecimal():
            raise JailError(wrong or said or "the jail's keeper died")
        return Inmate(process, int(pid))

    def run(self, command: Sequence[str], *, seconds: float = 20.0) -> tuple[int, str]:
        """Run a command inside to its end; exit code and output."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "output"
            inmate = self.start(command, output=log)
            code = inmate.process.wait(seconds)
            return code, log.read_text(encoding="utf-8")

    def get(self, url: str) -> Answer | None:
        """GET inside the jail's network; None where nothing answers."""
        assert self._network is not None  # noqa: S101
        done = subprocess.run(
            [sys.executable, "-IS", __file__, "get", str(self._network.pid), url],
            stdout=subprocess.PIPE,
            check=True,
        )
        found = json.loads(done.stdout)
        return None if found is None else Answer(**found)

    def wait_for(self, url: str, *, text: str = "", seconds: float = 20.0) -> Answer:
        """The first answer with status 200 and ``text`` in it. Raises JailError after ``seconds``."""
        until = time.monotonic() + seconds
        while True:
            answer = self.get(url)
            if answer is not None and answer.status == 200 and text in answer.body:
                return answer
            if time.monotonic() > until:
                raise JailError(
                    f"{url}: no answer with {text!r} in {seconds:g} s; the last: {answer}"
                )


# --- the inside ----------------------------------------------------------------------------------


def _mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    of_kind = kind.encode() if kind else None
    data = b"mode=0755" if kind == "tmpfs" else None
    if libc.mount(source.encode(), os.fsencode(target), of_kind, flags, data) != 0:
        number = ctypes.get_errno()
        raise JailError(f"mount {source} at {target}: {os.strerror(number)}; not allowed here?")


def _build_root(order: dict[str, Any]) -> Path:
    """The read-only root, /proc and /dev in it; returns where."""
    _mount("none", Path("/"), None, _REC | _PRIVATE)
    if order["root"]:
        root = Path(order["root"])
        _mount(str(root), root, None, _BIND)
    else:
        root = Path(order["place"])
        _mount("tmpfs", root, "tmpfs", _NOSUID)
        for path in order["shown"]:
            _show(Path(path), root)
        for name in ("proc", "dev"):
            (root / name).mkdir()
    _mount("proc", root / "proc", "proc", _NOSUID | _NODEV)
    _mount("tmpfs", root / "dev", "tmpfs", _NOSUID)
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", root / "dev" / name, None, _BIND)
        _mount("none", root / "dev" / name, None, _BIND | _REMOUNT | _RDONLY)
    _mount("none", root / "dev", None, _BIND | _REMOUNT | _RDONLY | _NOSUID)
    _mount("none", root, None, _BIND | _REMOUNT | _RDONLY)
    return root


def _show(path: Path, root: Path) -> None:
    """A path of this machine, at the same place below ``root``, read-only."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(str(path), target, None, _BIND)
    _mount("none", target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def _call(name: str, *arguments: int) -> None:
    """A function of the C library that answers 0 where it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        why = os.strerror(ctypes.get_errno())
        raise JailError(
            f"{name}{arguments}: {why}: this machine forbids what a container runtime needs; inside a "
            "container it takes --privileged"
        )


def _drop_everything() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        # The first number that this kernel does not know ends the list.
        if libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)


def _enter(order: dict[str, Any]) -> int:
    """Start the process in its namespaces and wait for it; the keeper's exit code."""
    tells: int = order["tells"]
    os.set_inheritable(tells, False)
    try:
        _join_network(order["network"])
        _call("unshare", _CLONE_ALL)
    except (JailError, OSError) as error:
        os.write(tells, str(error).encode())
        return 126
    waits, goes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes)
        # Its number is told first; the pipe closes then.
        os.read(waits, 1)
        _become(order)
    os.write(tells, f"{child}\n".encode())
    os.close(tells)
    os.close(goes)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _join_network(of: int) -> None:
    namespace = os.open(f"/proc/{of}/ns/net", os.O_RDONLY)
    try:
        _call("setns", namespace, _CLONE_NEWNET)
    finally:
        os.close(namespace)


def _become(order: dict[str, Any]) -> NoReturn:
    """PID 1 of the jail: lock the door from inside, then be the command."""
    try:
        os.umask(0o022)
        os.chroot(_build_root(order))
        os.chdir("/")
        _drop_everything()
        # After the change of user, which clears it: no jail outlives its keeper.
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        command: list[str] = order["command"]
        os.execvpe(command[0], command, order["environment"])  # noqa: S606
    except (JailError, OSError) as error:
        os.write(order["tells"], str(error).encode())
    os._exit(126)


def _network() -> None:
    _call("unshare", _CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    print("up", flush=True)
    # Until the other side is gone.
    sys.stdin.read()


def _get(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found: dict[str, Any] | None = None
    try:
        with opener.open(url, timeout=5) as answer:
            found = {"status": answer.status, "body": answer.read().decode()}
    except urllib.error.HTTPError as error:
        found = {"status": error.code, "body": error.read().decode()}
    except OSError:
        time.sleep(0.1)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "network":
        _network()
    elif sys.argv[1] == "get":
        _join_network(int(sys.argv[2]))
        _get(sys.argv[3])
    else:
        sys.exit(_enter(json.loads(sys.argv[2])))
