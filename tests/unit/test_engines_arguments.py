"""max_num_seqs from command lines, on a /proc made of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headroom_exporter.engines.arguments import is_vllm_server, max_num_seqs

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://127.0.0.1:8000"
MODULE = "vllm.entrypoints.openai.api_server"


class FakeProc:
    """A /proc: one directory for each process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pid = 100
        (root / "meminfo").write_text("MemTotal: 1 kB\n")
        (root / "self").mkdir()

    def run(self, line: str) -> Path:
        """Add a process with this command line."""
        return self.run_raw("\0".join(line.split()).encode() + b"\0")

    def run_raw(self, raw: bytes) -> Path:
        """Add a process with this content of ``cmdline``."""
        self._pid += 1
        entry = self.root / str(self._pid)
        entry.mkdir()
        (entry / "cmdline").write_bytes(raw)
        return entry

    def slots(self, url: str = URL) -> float | None:
        return max_num_seqs(url, self.root)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "/usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-8B --max-num-seqs 16 --port 8000",
        "vllm serve Qwen/Qwen3-8B --max-num-seqs 16",
        "vllm serve Qwen/Qwen3-8B --max-num-seqs=16",
        "vllm serve Qwen/Qwen3-8B --max_num_seqs 16",
        "vllm serve Qwen/Qwen3-8B --max-num_seqs=16 --port=8000",
        f"python -m {MODULE} --model m --max-num-seqs=16",
        f"python3.12 -u -m {MODULE} --model m --max_num_seqs=16 --port 8000",
        # argparse takes the last one.
        "vllm serve m --max-num-seqs 256 --max-num-seqs 16",
        # 0.31 and later: fewer may run than are admitted.
        "vllm serve m --max-num-seqs 64 --max-num-active-seqs 16",
        "vllm serve m --max-num-active-seqs=16",
    ],
)
def test_the_flag_is_read_however_it_is_written(proc: FakeProc, line: str) -> None:
    proc.run(line)
    assert proc.slots() == 16


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://localhost:8001", "vllm serve m --max-num-seqs 16 --port 8001"),
        ("http://[::1]:8001", "vllm serve m --max-num-seqs 16 --port=8001"),
        ("http://127.0.0.1", "vllm serve m --max-num-seqs 16 --port 80"),
        ("https://127.0.0.1", "vllm serve m --max-num-seqs 16 --port 443"),
        ("http://127.0.0.1:8000/prefix", "vllm serve m --max-num-seqs 16"),
    ],
)
def test_the_server_is_found_by_its_port(proc: FakeProc, url: str, line: str) -> None:
    proc.run("vllm serve other --max-num-seqs 99 --port 9999")
    proc.run(line)
    assert proc.slots(url) == 16


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve m",
        "vllm serve m --port 8000",
        "vllm serve m --max-num-seqs 16 --port 8001",
        "vllm serve m --max-num-seqs auto",
        "vllm serve m --max-num-seqs",
        "vllm serve m --max-num-seqs=",
        "vllm serve m --max-num-seqs -1",
        "vllm serve m --max-num-seqs 0",
        "vllm serve m --max-num-seqs " + "9" * 5000,
        "vllm serve m --max-num-seqs-per-rank 16",
        "vllm bench serve --max-num-seqs 16",
        "vllm chat --max-num-seqs 16",
        "python -m vllm.entrypoints.api_server_of_mine --max-num-seqs 16",
        "python -m sglang.launch_server --max-num-seqs 16",
    ],
)
def test_what_is_not_said_is_not_guessed(proc: FakeProc, line: str) -> None:
    proc.run(line)
    assert proc.slots() is None


def test_the_shell_that_started_a_server_is_not_the_server(proc: FakeProc) -> None:
    """It holds the whole command line as one argument."""
    proc.run_raw(b"sh\0-c\0vllm serve m --max-num-seqs 16\0")
    assert proc.slots() is None


def test_servers_that_contradict_each_other_say_nothing(proc: FakeProc) -> None:
    proc.run("vllm serve a --max-num-seqs 16")
    proc.run("vllm serve b --max-num-seqs 32")
    assert proc.slots() is None


def test_a_server_without_the_flag_contradicts_one_with_it(proc: FakeProc) -> None:
    """Seen with the node's processes visible: another pod's flag is not ours."""
    proc.run("vllm serve ours")
    proc.run("vllm serve theirs --max-num-seqs 32")
    assert proc.slots() is None


def test_processes_that_agree_are_one_server(proc: FakeProc) -> None:
    """API servers of one engine share its command line."""
    for _ in range(3):
        proc.run("vllm serve a --max-num-seqs 16 --api-server-count 3")
    assert proc.slots() == 16


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8000", "http://vllm.models.svc:8000", "http://0.0.0.0:8000"]
)
def test_the_processes_here_say_nothing_of_a_server_elsewhere(proc: FakeProc, url: str) -> None:
    proc.run("vllm serve m --max-num-seqs 16")
    assert proc.slots(url) is None


def test_entries_that_cannot_be_read_are_passed_over(proc: FakeProc) -> None:
    gone = proc.run("vllm serve m --max-num-seqs 32")
    (gone / "cmdline").unlink()
    turned_to_directory = proc.run("vllm serve m --max-num-seqs 64")
    (turned_to_directory / "cmdline").unlink()
    (turned_to_directory / "cmdline").mkdir()
    proc.run_raw(b"")
    proc.run_raw(b"vllm\0serve\0\xff\xfe\0--max-num-seqs\x0016\0")
    (proc.root / "77").write_text("a file where a process should be")
    assert proc.slots() == 16


def test_without_a_proc_nothing_is_known(tmp_path: Path) -> None:
    assert max_num_seqs(URL, tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/opt/bin/vllm", "serve", "m"], True),
        (["python", "-m", MODULE], True),
        (["vllm", "bench", "serve"], False),
        (["myvllm", "serve"], False),
        (["serve", "vllm"], False),
        ([], False),
        (["vllm"], False),
    ],
)
def test_what_counts_as_an_api_server(arguments: list[str], *, expected: bool) -> None:
    assert is_vllm_server(arguments) is expected
