"""
Whose memory is it: the inference server's, or somebody else's on the same GPU.

NVML names processes by number only, so the command line decides, as far as /proc shows it: beside
the engine in one pod that takes a shared PID namespace. Older drivers tell the host's process
numbers to a container, newer ones translate or leave out what the container cannot see
(https://github.com/NVIDIA/nvidia-docker/issues/1483). Hence: one process that cannot be told makes
the whole answer unknown, and so does memory that no listed process accounts for. What remains is a
host's number that happens to exist in the container as well; with the handful of processes of a
sidecar that does not happen by accident.

In node mode without hostPID nothing is in sight, so nothing is told. The kubelet's allocations do not help:
they say to whom a GPU was lent, not who uses it (docs/node-mode.md).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headroom_exporter.samples import GpuProcess

PROC = Path("/proc")

# Programs, by the last part of their path.
ENGINE_PROGRAMS = frozenset(
    {
        "aphrodite",
        "llama-server",
        "lmdeploy",
        "mistralrs-server",
        "mlc_llm",
        "ollama",
        "ollama_llama_server",
        "sglang",
        "text-embeddings-router",
        "text-generation-launcher",
        "text-generation-server",
        "triton_python_backend_stub",
        "tritonserver",
        "trtllm-serve",
        "vllm",
    }
)
# Python packages, as in ``python -m vllm.entrypoints.openai.api_server``.
ENGINE_PACKAGES = frozenset(
    {
        "aphrodite",
        "dynamo",
        "llama_cpp",
        "lmdeploy",
        "mlc_llm",
        "sglang",
        "tensorrt_llm",
        "text_generation_server",
        "vllm",
        "vllm_omni",
    }
)
# Titles that workers give themselves: VLLM::Worker_TP0, sglang::scheduler_TP0. vLLM's first half
# can be configured (VLLM_PROCESS_NAME_PREFIX); on Ray it is the actor's.
ENGINE_TITLES = re.compile(
    r"(vllm|vllm-omni|sglang)::|ray::rayworkerwrapper|[\w-]+::(enginecore|worker_)", re.IGNORECASE
)
# Launchers that say nothing about what they run; their parent does.
LAUNCHERS = frozenset({"hydra_pmi_proxy", "orted", "prted"})
# What the driver keeps beyond the listed processes is tens of MiB; with the version 1 memory
# figures also its reserve. A process that is hidden from us holds more: a bare CUDA context takes
# some hundred MiB and weights come on top. A judgement, not a documented bound.
UNLISTED_BYTES = 512 * 2**20
# A worker's parent's parent ... : enough for shell, launcher, server, worker.
GENERATIONS = 8


def memory_by_owner(
    processes: Sequence[GpuProcess] | None,
    used: int | None,
    is_engine: Callable[[int], bool | None],
) -> Mapping[str, int] | None:
    """
    Split a GPU's used memory between the inference server and the rest.

    Args:
        processes: Compute processes on the GPU.
        used: Bytes in use on the GPU.
        is_engine: Whether a process belongs to an inference server; None when it cannot be told.

    Returns:
        Bytes of ``engine`` and ``other`` (together ``used``, unless the two figures were read at
        different moments); None when any process or its memory is unknown, or when the listed
        processes leave more than ``UNLISTED_BYTES`` of the used memory unexplained.
    """
    if processes is None or used is None:
        return None
    owned = {"engine": 0, "other": 0}
    for process in processes:
        engine = is_engine(process.pid)
        if engine is None or process.memory is None:
            return None
        owned["engine" if engine else "other"] += process.memory
    unlisted = used - sum(owned.values())
    if unlisted > UNLISTED_BYTES:
        return None
    owned["other"] += max(unlisted, 0)
    return MappingProxyType(owned)


def is_engine(pid: int, proc: Path = PROC) -> bool | None:
    """
    Tell whether a process belongs to an inference server, by its command line.

    Workers without a name of their own (multiprocessing, MPI) are what their parent is: seen with
    vLLM as ``python3 -c "from multiprocessing.spawn ..."`` below ``VLLM::EngineCore``
    (https://github.com/vllm-project/vllm/pull/22205).

    Returns:
        None when /proc does not show the process: another PID namespace, hidepid, already gone.
    """
    for _ in range(GENERATIONS):
        # The exporter has no CUDA context: its own number means another namespace's process.
        if pid == os.getpid():
            return None
        arguments = _command_line(pid, proc)
        if not arguments:
            return None
        if not _is_anonymous(arguments):
            return names_engine(arguments)
        parent = _parent(pid, proc)
        if not parent:
            return None
        pid = parent
    return None


def names_engine(arguments: Sequence[str]) -> bool:
    """Tell whether a command line is an inference server's; what it mentions as data is ignored."""
    program = _program(arguments[0])
    if program in ENGINE_PROGRAMS or ENGINE_TITLES.match(arguments[0]):
        return True
    if not program.startswith("python"):
        return False
    module, script = _python_target(arguments[1:])
    if module is not None:
        return module.partition(".")[0] in ENGINE_PACKAGES
    if script is None:
        return False
    return _program(script).removesuffix(".py") in ENGINE_PROGRAMS or _installed_in(script)


def _program(path: str) -> str:
    return path.rpartition("/")[2].lower()


def _installed_in(script: str) -> bool:
    """Tell whether a script lies in an engine's installed package."""
    _, found, rest = script.rpartition("-packages/")
    return bool(found) and rest.partition("/")[0] in ENGINE_PACKAGES


def _python_target(arguments: Sequence[str]) -> tuple[str | None, str | None]:
    """What a Python interpreter runs: (module, None), (None, script) or, with -c, (None, None)."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-m":
            return next(rest, None), None
        if argument == "-c":
            return None, None
        if argument in ("-X", "-W"):
            next(rest, None)
        elif not argument.startswith("-"):
            return None, argument
    return None, None


def _is_anonymous(arguments: Sequence[str]) -> bool:
    if _program(arguments[0]) in LAUNCHERS:
        return True
    return any("from multiprocessing." in word or word.startswith("mpi4py") for word in arguments)


def _command_line(pid: int, proc: Path) -> list[str]:
    """Words of a command line; empty when it cannot be read or the process has none."""
    try:
        raw = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    # A title written over the arguments leaves zeros behind it.
    return [word.decode(errors="replace") for word in raw.split(b"\0") if word]


def _parent(pid: int, proc: Path) -> int | None:
    try:
        status = (proc / str(pid) / "status").read_text(errors="replace")
        return int(status.partition("\nPPid:")[2].split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return None
