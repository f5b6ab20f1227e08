"""Whose memory it is: command lines, ancestors, and when the answer is that nobody knows."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.gpus.owners import (
    UNLISTED_BYTES,
    is_engine,
    memory_by_owner,
    names_engine,
)
from headroom_exporter.samples import GpuProcess

GIB = 2**30
ENGINE, OTHER, STRANGER = 1, 2, 3
KNOWN = {ENGINE: True, OTHER: False}


def split(processes, used):
    listed = tuple(GpuProcess(pid=pid, memory=memory) for pid, memory in processes)
    return memory_by_owner(listed, used, KNOWN.get)


def test_memory_goes_to_the_engine_and_the_rest_to_others():
    owners = split([(ENGINE, 30), (OTHER, 9), (ENGINE, 5)], 44)
    assert owners == {"engine": 35, "other": 9}


def test_the_little_that_no_process_accounts_for_is_not_the_engines():
    assert split([(ENGINE, 30 * GIB)], 30 * GIB + UNLISTED_BYTES) == {
        "engine": 30 * GIB,
        "other": UNLISTED_BYTES,
    }


def test_an_idle_gpu_has_no_engine_memory():
    assert split([], 3_000_000) == {"engine": 0, "other": 3_000_000}


@pytest.mark.parametrize(
    ("processes", "used"),
    [
        ([(ENGINE, 30), (STRANGER, 9)], 39),
        ([(ENGINE, 30), (OTHER, None)], 39),
        ([(ENGINE, 30)], None),
        # A driver that hides the processes of other namespaces.
        ([], 70 * GIB),
        ([(ENGINE, 30 * GIB)], 30 * GIB + UNLISTED_BYTES + 1),
    ],
)
def test_what_cannot_be_told_is_unknown(processes, used):
    assert split(processes, used) is None


def test_no_list_of_processes_is_unknown():
    assert memory_by_owner(None, 1, KNOWN.get) is None


@given(
    st.lists(st.tuples(st.sampled_from([ENGINE, OTHER]), st.integers(1, 80 * GIB))),
    st.integers(0, 80 * GIB),
)
def test_owners_never_hold_less_than_is_used_nor_less_than_their_processes(processes, used):
    owners = split(processes, used)
    listed = sum(memory for _, memory in processes)
    if owners is None:
        assert used - listed > UNLISTED_BYTES
    else:
        assert sum(owners.values()) == max(used, listed)
        assert owners["engine"] == sum(memory for pid, memory in processes if pid == ENGINE)


@pytest.mark.parametrize(
    "command",
    [
        "VLLM::EngineCore",
        "VLLM::Worker_TP0",
        "acme::EngineCore_DP1",
        "sglang::scheduler_TP0",
        "ray::RayWorkerWrapper.execute_method",
        "/opt/venv/bin/vllm serve m",
        "/usr/bin/python3 /opt/venv/bin/vllm serve meta-llama/Llama-3.1-8B",
        "/usr/bin/python3.12 -u -m vllm.entrypoints.openai.api_server --model m",
        "python -X dev -m sglang.launch_server --model-path m",
        "python /usr/lib/python3/dist-packages/vllm/entrypoints/openai/api_server.py",
        "/opt/conda/bin/python3.11 /opt/conda/bin/text-generation-server serve m",
        "tritonserver --model-repository /models",
        "/app/llama-server -m m.gguf",
        "/usr/bin/ollama runner --ollama-engine",
        "python3 /usr/local/bin/trtllm-serve m",
    ],
)
def test_an_inference_server_is_known_by_what_it_runs(command):
    assert names_engine(command.split()) is True


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --output /data/vllm",
        "python -m torch.distributed.run vllm",
        "python -c pass",
        "python",
        "python -m",
        "/usr/bin/Xorg -background none",
        "/home/me/vllm/train --steps 10",
        "/opt/venv/bin/vllm-finetune",
        "jupyter-lab sglang.ipynb",
    ],
)
def test_a_program_that_only_mentions_one_is_not_one(command):
    assert names_engine(command.split()) is False


@pytest.fixture
def proc(tmp_path):
    """A /proc to be filled with processes."""

    def add(pid, parent, *arguments):
        folder = tmp_path / str(pid)
        folder.mkdir()
        folder.joinpath("cmdline").write_bytes(b"".join(a.encode() + b"\0" for a in arguments))
        folder.joinpath("status").write_text(f"Name:\tx\nTgid:\t{pid}\nPPid:\t{parent}\n")
        return tmp_path

    return add


SPAWNED = ("python3", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()")


def test_a_process_is_judged_by_its_command_line(proc):
    root = proc(100, 1, "VLLM::EngineCore", "", "")
    proc(200, 1, "python", "train.py")
    assert is_engine(100, root) is True
    assert is_engine(200, root) is False


def test_a_spawned_worker_is_what_its_parent_is(proc):
    root = proc(100, 1, "VLLM::EngineCore")
    proc(101, 100, *SPAWNED, "--multiprocessing-fork")
    proc(102, 101, *SPAWNED)
    proc(200, 1, "python", "train.py")
    proc(201, 200, *SPAWNED)
    assert is_engine(101, root) is True
    assert is_engine(102, root) is True
    assert is_engine(201, root) is False


def test_an_mpi_worker_is_what_started_the_launcher(proc):
    root = proc(100, 1, "python3", "/usr/local/bin/trtllm-serve", "m")
    proc(101, 100, "/usr/bin/orted", "--hnp")
    proc(102, 101, "python3", "-m", "mpi4py.futures.server")
    assert is_engine(102, root) is True


def test_a_process_of_another_namespace_is_unknown(proc):
    root = proc(100, 99, *SPAWNED)
    assert is_engine(4242, root) is None
    assert is_engine(100, root) is None, "its parent cannot be seen"


def test_a_process_without_a_command_line_is_unknown(proc):
    assert is_engine(100, proc(100, 2)) is None


def test_a_worker_that_is_its_own_ancestor_does_not_go_on_forever(proc):
    root = proc(100, 101, *SPAWNED)
    proc(101, 100, *SPAWNED)
    assert is_engine(100, root) is None


def test_the_exporter_itself_is_a_number_from_another_namespace(proc):
    assert is_engine(os.getpid(), proc(os.getpid(), 1, "vllm", "serve")) is None


@given(st.binary(max_size=200))
def test_any_bytes_in_a_command_line_give_an_answer(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("proc") / "7"
    folder.mkdir()
    folder.joinpath("cmdline").write_bytes(content)
    assert is_engine(7, folder.parent) in (True, False, None)
