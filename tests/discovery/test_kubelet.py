"""Asking a kubelet over a real socket: answers, outages, and what happens where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from discovery.fake_kubelet import FakeKubelet, answer, holding
from discovery.harness import until
from headroom_exporter.discovery import kubelet as module
from headroom_exporter.discovery.kubelet import KubeletReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

UUID = "GPU-aaaaaaaa-1111-2222-3333-444444444444"


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(tmp_path / "kubelet.sock") as made:
        yield made


@contextlib.asynccontextmanager
async def reading(socket: Path, **more) -> AsyncIterator[KubeletReader]:
    told = more.pop("told", [])
    reader = KubeletReader(
        str(socket), lambda: told.append(1), **{"interval": 0.02, "deadline": 2.0, **more}
    )
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def pods(reader: KubeletReader) -> list[str]:
    return [each.pod for each in reader.devices().lent]


def errors(reader: KubeletReader) -> dict[str, float]:
    return dict(reader.health.state().errors)


async def test_what_the_kubelet_says_is_known_and_changes_are_told(kubelet, tmp_path):
    told: list[int] = []
    kubelet.says = answer(holding("a", UUID))
    async with reading(kubelet.socket, told=told) as reader:
        await until(lambda: pods(reader) == ["a"])
        assert reader.health.up
        asked = kubelet.asked
        await until(lambda: kubelet.asked > asked + 2)
        assert told == [1], "the same answer again is no change"
        kubelet.says = answer()
        await until(lambda: told == [1, 1])
        assert pods(reader) == []
        assert errors(reader) == {}


async def test_the_drivers_minor_numbers_come_along(kubelet, tmp_path):
    folder = tmp_path / "gpus" / "0000:17:00.0"
    folder.mkdir(parents=True)
    text = f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 77\nGPU UUID: \t {UUID}\nDevice Minor: \t 3\n"
    (folder / "information").write_text(text)
    async with reading(kubelet.socket, driver_gpus=folder.parent) as reader:
        await until(lambda: reader.health.up)
        assert reader.devices().minors == ((3, UUID),)


async def test_a_pod_that_comes_is_asked_for_soon(kubelet, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.01)
    async with reading(kubelet.socket, interval=3600.0) as reader:
        await until(lambda: kubelet.asked == 1)
        reader.ask_soon()
        await until(lambda: kubelet.asked == 2)


async def test_a_kubelet_that_restarts_is_found_again(kubelet, caplog):
    caplog.set_level(logging.INFO)
    kubelet.says = answer(holding("a", UUID))
    async with reading(kubelet.socket) as reader:
        await until(lambda: pods(reader) == ["a"])
        kubelet.stop()
        await until(lambda: not reader.health.up)
        assert pods(reader) == ["a"], "what it said stands for a while"
        await until(lambda: sum(errors(reader).values()) > 5)
        kubelet.start()
        await until(lambda: reader.health.up)
    said = [record.getMessage() for record in caplog.records if "discovery" in record.getMessage()]
    assert 3 <= len(said) <= 5, "one line for each change, not for each failure"


async def test_what_was_said_long_ago_is_no_longer_shown(kubelet):
    now = [0.0]
    kubelet.says = answer(holding("a", UUID))
    async with reading(kubelet.socket, monotonic=lambda: now[0]) as reader:
        await until(lambda: pods(reader) == ["a"])
        kubelet.stop()
        await until(lambda: not reader.health.up)
        now[0] = module.FORGET_SECONDS
        assert pods(reader) == ["a"]
        now[0] += 1.0
        assert pods(reader) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, "refused"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too_large"),
        (grpc.StatusCode.UNAVAILABLE, "unreachable"),
    ],
)
async def test_a_refusal_is_counted_by_kind(kubelet, code, kind):
    kubelet.code = code
    async with reading(kubelet.socket) as reader:
        await until(lambda: errors(reader).get(kind, 0) >= 2)
        assert not reader.health.up


async def test_an_answer_that_is_none_is_malformed(kubelet):
    kubelet.says = b"\x0b"
    async with reading(kubelet.socket) as reader:
        await until(lambda: errors(reader).get("malformed"))


async def test_a_kubelet_that_hangs_costs_its_deadline_and_never_the_loop(kubelet):
    kubelet.delay = 0.5
    async with reading(kubelet.socket, deadline=0.1) as reader:
        beats = 0
        while not errors(reader).get("timeout"):
            await asyncio.sleep(0.01)
            beats += 1
        assert beats >= 5
        kubelet.delay = 0.0
        await until(lambda: reader.health.up)


async def test_without_a_socket_nothing_is_loaded_and_it_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none.sock", tmp_path / "file"):
        caplog.clear()
        async with reading(path) as reader:
            await until(lambda reader=reader: errors(reader).get("no_socket", 0) >= 3)
            assert not reader.health.up
        assert len([r for r in caplog.records if "discovery" in r.getMessage()]) == 1


ABSENT = """
import asyncio, sys
sys.modules["grpc"] = None
from headroom_exporter.discovery.kubelet import KubeletReader
async def main():
    reader = KubeletReader(sys.argv[1], lambda: None, interval=0.01)
    await reader.run()
    print(dict(reader.health.state().errors), reader.health.up)
asyncio.run(main())
"""


async def test_without_grpcio_it_is_said_and_nobody_asks_again(kubelet):
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", ABSENT, str(kubelet.socket)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "{'no_grpc': 1.0} False\n"
    assert kubelet.asked == 0


STRANGER = """
import asyncio, os, sys
from headroom_exporter.discovery.kubelet import KubeletReader
import headroom_exporter.discovery.pod_resources
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
async def main():
    reader = KubeletReader(sys.argv[1], lambda: None, interval=0.01)
    task = asyncio.create_task(reader.run())
    while not reader.health.settled:
        await asyncio.sleep(0.01)
    print(*reader.health.state().errors, "grpc" in sys.modules)
    task.cancel()
asyncio.run(main())
"""


@pytest.mark.parametrize("closed", ["socket", "folder"])
async def test_a_socket_that_is_roots_alone_is_told_from_one_that_is_not_there(closed):
    # Not tmp_path: the folders above it are closed to others.
    with TemporaryDirectory() as folder, FakeKubelet(Path(folder) / "kubelet.sock") as kubelet:
        mode = 0o700 if os.getuid() == 0 else 0
        os.chmod(folder, mode if closed == "folder" else 0o755)  # noqa: PTH101
        if closed == "socket":
            kubelet.socket.chmod(mode)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", STRANGER, str(kubelet.socket)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        os.chmod(folder, 0o700)  # noqa: PTH101
        assert done.stdout == "permission False\n", done.stderr
        assert kubelet.asked == 0


async def test_nothing_is_left_behind(kubelet):
    process = psutil.Process()
    async with reading(kubelet.socket) as reader:
        await until(lambda: reader.health.up)
    await until(lambda: "kubelet" not in {thread.name for thread in threading.enumerate()})
    before = process.num_fds()
    for _ in range(5):
        async with reading(kubelet.socket) as reader:
            await until(lambda reader=reader: reader.health.up)
    await until(lambda: "kubelet" not in {thread.name for thread in threading.enumerate()})
    await until(lambda: process.num_fds() <= before + 2)


@pytest.mark.parametrize("turns", range(4))
async def test_a_pod_event_just_before_the_end_does_not_keep_it_going(
    turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.01)
    reader = KubeletReader(str(tmp_path / "none"), lambda: None, interval=60.0)
    task = asyncio.create_task(reader.run())
    await asyncio.sleep(0.2)
    reader.ask_soon()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=1.0)
    task.cancel()
    assert done == {task}
