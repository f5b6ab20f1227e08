"""The reader's thread and loop: with a scripted source, and with the real pynvml hanging."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from headroom_exporter.config import GpuConfig
from headroom_exporter.errors import NoData, Unreachable
from headroom_exporter.gpus import GpuReading
from headroom_exporter.gpus.reader import GpuReader
from headroom_exporter.samples import GpuSample, GpuState
from nvml.build import Machine, build

GPU = GpuSample(index="0", uuid="GPU-0")
GOOD = GpuReading(gpus=(GPU,), driver_version="580")
PARTLY = GpuReading(gpus=(GPU,), lost=("1",), driver_version="580")
ALL_LOST = GpuReading(gpus=(), lost=("0",), driver_version="580")
CONFIG = GpuConfig(interval=1.0, timeout=5.0)
IMPATIENT = GpuConfig(interval=1.0, timeout=0.3)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class ScriptedSource:
    """Answers ``answer``; hangs while ``go`` is cleared. Notes its calls and their thread."""

    def __init__(self, answer=GOOD):
        self.answer = answer
        self.calls = []
        self.threads = set()
        self.go = threading.Event()
        self.go.set()
        self.closed = threading.Event()

    def open(self):
        self.note("open")

    def read(self):
        self.note("read")
        self.go.wait(timeout=30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self):
        self.note("close")
        self.closed.set()

    def note(self, call):
        self.calls.append(call)
        self.threads.add(threading.current_thread())

    def take_calls(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source():
    return ScriptedSource()


@pytest.fixture
def read(clock, source):
    """Starts readers; the test's end lets a hanging call go and waits for their threads."""
    readers = []

    def start(config=CONFIG):
        reader = GpuReader(config, source, monotonic=clock)
        reader.start()
        readers.append(reader)
        return reader

    yield start
    source.go.set()
    for reader in readers:
        reader.stop()
        reader._thread.join(timeout=30)
        assert not reader._thread.is_alive()


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the state is set by no event a test could wait for
        await asyncio.sleep(0.001)


async def test_before_the_first_read_gpus_are_not_up(read):
    assert read().state() == GpuState(up=False)


async def test_a_good_read_is_the_state(read, clock):
    reader = read()
    assert await reader.poll() == CONFIG.interval
    assert reader.state() == GpuState(up=True, driver_version="580", gpus=(GPU,), read_at=clock.now)


async def test_the_source_is_opened_once_and_only_used_in_one_daemon_thread(read, source):
    reader = read()
    reader.start()
    for _ in range(3):
        await reader.poll()
    assert source.calls == ["open", "read", "read", "read"]
    (thread,) = source.threads
    assert thread.daemon
    assert thread is not threading.main_thread()


async def test_switched_off_gpus_have_no_thread_and_are_neither_up_nor_down(source):
    reader = GpuReader(GpuConfig(enabled=False), source)
    await reader.run()
    assert reader.state() == GpuState(up=None)
    assert reader._thread is None
    assert source.calls == []


async def test_a_failing_source_is_down_counted_and_opened_anew(read, source, clock):
    reader = read()
    await reader.poll()
    good_at = clock.now
    source.answer = Unreachable("driver gone", kind="driver_not_loaded")
    clock.now += 1
    await reader.poll()
    assert reader.state() == GpuState(up=False, read_at=good_at, errors={"driver_not_loaded": 1.0})
    source.answer = GOOD
    await reader.poll()
    assert reader.state().up is True
    assert reader.state().errors == {"driver_not_loaded": 1.0}
    assert source.calls == ["open", "read", "read", "close", "open", "read"]


async def test_a_failing_source_is_asked_ever_more_rarely_up_to_a_minute(read, source):
    reader = read()
    source.answer = Unreachable("no")
    pauses = [await reader.poll() for _ in range(40)]
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert set(pauses[7:]) == {60}
    source.answer = GOOD
    assert await reader.poll() == 1
    source.answer = Unreachable("again")
    assert await reader.poll() == 1


async def test_a_machine_without_gpus_is_asked_once_a_minute(read, source):
    reader = read()
    source.answer = NoData("none", kind="no_library")
    assert await reader.poll() == 60
    assert reader.state() == GpuState(up=False, errors={"no_library": 1.0})


async def test_an_unexpected_error_is_a_bug_with_its_traceback_and_not_the_end(
    read, source, caplog
):
    reader = read()
    source.answer = ZeroDivisionError("oops")
    await reader.poll()
    assert reader.state().errors == {"bug": 1.0}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError
    source.answer = GOOD
    await reader.poll()
    assert reader.state().up is True


# --- lost devices --------------------------------------------------------------------------------


async def test_a_lost_device_is_told_and_counted_while_the_others_stay_up(read, source):
    reader = read()
    source.answer = PARTLY
    assert await reader.poll() == CONFIG.interval
    state = reader.state()
    assert state.up is True
    assert state.gpus == (GPU,)
    assert state.lost == ("1",)
    assert state.errors == {"lost": 1.0}


async def test_when_every_device_is_lost_gpus_are_not_up(read, source, clock):
    reader = read()
    await reader.poll()
    good_at = clock.now
    source.answer = ALL_LOST
    clock.now += 1
    await reader.poll()
    state = reader.state()
    assert (state.up, state.lost, state.read_at) == (False, ("0",), good_at)


async def test_for_a_lost_device_the_source_is_opened_anew_ever_more_rarely(read, source, clock):
    reader = read()
    source.answer = PARTLY
    await reader.poll()
    start, reopened = clock.now, []
    source.take_calls()
    for _ in range(240):
        clock.now += 1
        await reader.poll()
        if "open" in source.take_calls():
            reopened.append(clock.now - start)
    assert reopened == [10, 30, 70, 130, 190]


async def test_after_all_are_back_the_next_loss_is_met_as_the_first(read, source, clock):
    reader = read()
    for _ in range(2):
        source.answer = PARTLY
        await reader.poll()
        source.take_calls()
        clock.now += 9
        await reader.poll()
        assert source.take_calls() == ["read"]
        clock.now += 1
        source.answer = GOOD
        await reader.poll()
        assert source.take_calls() == ["close", "open", "read"]
        assert reader.state().lost == ()
        clock.now += 100
        await reader.poll()
        assert source.take_calls() == ["read"]


# --- calls that hang -----------------------------------------------------------------------------


async def test_a_hanging_call_is_down_counted_once_and_nothing_is_queued_behind_it(read, source):
    reader = read(IMPATIENT)
    await reader.poll()
    source.go.clear()
    source.take_calls()
    poll = asyncio.create_task(reader.poll())
    await until(lambda: not reader.state().up)
    # Several timeouts long: the one call stays the only one.
    await asyncio.sleep(2 * IMPATIENT.timeout)
    assert not poll.done()
    assert source.take_calls() == ["read"]
    assert reader._requests.empty()
    state = reader.state()
    assert (state.gpus, state.errors) == ((), {"hung": 1.0})
    # What comes so late is too old to show; the next read is due at once.
    source.go.set()
    assert await poll == 0
    assert reader.state().up is False
    await reader.poll()
    assert reader.state().up is True
    assert reader.state().errors == {"hung": 1.0}


async def test_a_loop_cancelled_while_a_call_hangs_ends_at_once(read, source):
    reader = read(IMPATIENT)
    source.go.clear()
    task = asyncio.create_task(reader.run())
    await until(lambda: reader.state().errors)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=5)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


def test_a_call_hanging_in_the_library_is_outlived_and_recovered_from(library, tmp_path):
    machine = Machine(library, tmp_path)
    with machine.run("loop.py", "up", "hung", "up") as program:
        assert program.stdout.readline() == "up\n"
        machine.script("hang nvmlDeviceGetPowerUsage * 0")
        assert program.stdout.readline() == "hung\n"
        machine.script()
        assert program.stdout.readline() == "up\n"
        assert program.wait(timeout=30) == 0


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_program_can_end_while_a_call_hangs(library, tmp_path, function):
    machine = Machine(library, tmp_path)
    machine.script(f"hang {function} * 0")
    with machine.run("loop.py", "hung") as program:
        assert program.stdout.readline() == "hung\n"
        assert program.wait(timeout=30) == 0


# --- the loop and the log ------------------------------------------------------------------------


async def test_the_loop_reads_every_interval_and_closes_the_source_when_cancelled(source):
    reader = GpuReader(GpuConfig(interval=0.01), source)
    task = asyncio.create_task(reader.run())
    await until(lambda: source.calls.count("read") >= 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reader._thread.join(timeout=30)
    assert source.closed.is_set()
    assert source.calls[-1] == "close"


async def test_the_loop_rests_between_reads(source):
    reader = GpuReader(GpuConfig(interval=60), source)
    task = asyncio.create_task(reader.run())
    await until(lambda: reader.state().up)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    reader._thread.join(timeout=30)
    assert source.calls == ["open", "read", "close"]


async def test_one_line_is_logged_for_each_change_of_state(read, source, caplog):
    caplog.set_level(logging.INFO)
    reader = read()
    for answer in (
        GOOD,
        GOOD,
        Unreachable("driver gone", kind="driver_not_loaded"),
        Unreachable("driver gone", kind="driver_not_loaded"),
        PARTLY,
        PARTLY,
        GOOD,
        NoData("no NVML", kind="no_library"),
        NoData("no NVML", kind="no_library"),
    ):
        source.answer = answer
        await reader.poll()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "reading GPUs"),
        ("WARNING", "GPUs cannot be read"),
        ("WARNING", "GPU lost"),
        ("INFO", "reading GPUs"),
        ("INFO", "GPUs cannot be read"),
    ]
    assert caplog.records[1].kind == "driver_not_loaded"
    assert caplog.records[2].lost == ["1"]
