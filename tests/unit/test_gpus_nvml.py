"""The real pynvml over a small C library that plays cards, old drivers and errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nvml.build import LIBRARY, Machine, build

GIB = 2**30

# NVML's return codes.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED = 3, 4, 9
GPU_IS_LOST, RESET_REQUIRED, LIBRARY_MISMATCH, UNKNOWN = 15, 16, 18, 999

PER_BOARD = {
    "power",
    "power_limit",
    "energy",
    "temperature",
    "clock_events",
    "ecc_uncorrectable",
    "row_remap_pending",
    "row_remap_failed",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def old_library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("old_nvml"), "OLD_DRIVER")


@pytest.fixture
def start(tmp_path):
    """Starts machines; the test's end ends them."""
    machines = []

    def start(library, *devices, script=()):
        machine = Machine(library, tmp_path, *devices)
        machine.script(*script)
        machines.append(machine)
        return machine

    yield start
    for machine in machines:
        machine.close()


def unknown(gpu):
    """Names of the figures that are not known."""
    return {name for name, value in gpu.items() if value is None}


# --- figures -------------------------------------------------------------------------------------


def test_a_healthy_gpu_has_every_figure_in_base_units(library, start):
    reading = start(library).read()
    assert reading["driver_version"] == "580.65.06"
    assert reading["lost"] == []
    gpu = reading["gpus"]["0"]
    clock_events = gpu.pop("clock_events")
    assert gpu == {
        "index": "0",
        "uuid": "GPU-00000000",
        "name": "Fake H100",
        "mig": False,
        "memory_total": 80 * GIB,
        "memory_used": 40 * GIB,
        "memory_free": 80 * GIB - 40 * GIB - GIB // 2,
        "memory_reserved": GIB // 2,
        "utilization": 0.97,
        "memory_utilization": 0.45,
        "power": 512.345,
        "power_limit": 700.0,
        "energy": 123456.789,
        "temperature": 64.0,
        "ecc_uncorrectable": 3,
        "row_remap_pending": True,
        "row_remap_failed": False,
        "processes": [],
        # 40 GiB in use by nobody that is listed.
        "memory_by_owner": None,
    }
    assert clock_events.pop("sw_power_cap") is True
    assert set(clock_events.values()) == {False}


@pytest.mark.parametrize(
    ("bit", "reason"),
    [
        (0x2, "applications_clocks"),
        (0x4, "sw_power_cap"),
        (0x8, "hw_slowdown"),
        (0x10, "sync_boost"),
        (0x20, "sw_thermal_slowdown"),
        (0x40, "hw_thermal_slowdown"),
        (0x80, "hw_power_brake"),
        (0x1, None),  # idle
        (0x100000, None),  # of a driver to come
    ],
)
def test_a_clock_event_is_told_by_its_word(library, start, bit, reason):
    machine = start(library, script=[f"value clock_events 0 {bit}"])
    events = machine.read()["gpus"]["0"]["clock_events"]
    assert [word for word, holds in events.items() if holds] == ([reason] if reason else [])


def test_an_old_driver_answers_by_its_old_symbols_and_lacks_only_what_it_never_had(
    old_library, start
):
    reading = start(old_library, script=["process 4242 0 1000"]).read()
    gpu = reading["gpus"]["0"]
    assert reading["driver_version"] == "470.57.02"
    assert unknown(gpu) == {
        "memory_reserved",
        "row_remap_pending",
        "row_remap_failed",
        "memory_by_owner",
    }
    # Version 1 counts the driver's reserve as used.
    assert gpu["memory_used"] == 40 * GIB + GIB // 2
    assert gpu["temperature"] == 63.0
    assert gpu["clock_events"]["sw_power_cap"] is True
    assert gpu["processes"] == [{"pid": 4242, "memory": 1000}]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_a_sensor_without_an_answer_costs_its_own_figure_and_is_not_asked_again(
    library, start, code
):
    machine = start(
        library,
        script=[
            f"fail nvmlDeviceGetPowerUsage * {code}",
            f"fail nvmlDeviceGetTotalEccErrors * {code}",
        ],
    )
    gpu = machine.read()["gpus"]["0"]
    assert unknown(gpu) == {"power", "ecc_uncorrectable", "memory_by_owner"}
    assert "nvmlDeviceGetPowerUsage 0" in machine.calls()
    assert unknown(machine.read()["gpus"]["0"]) == unknown(gpu)
    calls = machine.calls()
    assert "nvmlDeviceGetPowerUsage 0" not in calls
    assert "nvmlDeviceGetEnforcedPowerLimit 0" in calls


def test_a_permission_granted_later_is_found_within_the_minute(library, start):
    machine = start(library, script=[f"fail nvmlDeviceGetPowerUsage * {NO_PERMISSION}"])
    assert machine.read()["gpus"]["0"]["power"] is None
    machine.script()
    machine.do("advance 59")
    assert machine.read()["gpus"]["0"]["power"] is None
    machine.do("advance 1")
    assert machine.read()["gpus"]["0"]["power"] == 512.345


def test_a_passing_error_costs_its_figure_once(library, start):
    machine = start(library, script=[f"fail nvmlDeviceGetTemperatureV * {UNKNOWN}"])
    # Not a reason to fall back: the symbol is there.
    assert machine.read()["gpus"]["0"]["temperature"] is None
    machine.script()
    assert machine.read()["gpus"]["0"]["temperature"] == 64.0


@pytest.mark.parametrize(
    ("reading", "number", "figure"),
    [
        ("total", 2**64 - 1, "memory_total"),
        ("total", 0, "memory_total"),
        ("used", 2**64 - 1, "memory_used"),
        ("used", 81 * GIB, "memory_used"),  # more than there is
        ("reserved", 2**64 - 1, "memory_reserved"),
        ("gpu_percent", 101, "utilization"),
        ("memory_percent", 2**32 - 1, "memory_utilization"),
        ("power", 2**32 - 1, "power"),
        ("power_limit", 2**32 - 1, "power_limit"),
        ("power_limit", 0, "power_limit"),
        ("energy", 2**64 - 1, "energy"),
        ("celsius", 2**31 - 1, "temperature"),
        ("celsius", 201, "temperature"),
        ("clock_events", 2**64 - 1, "clock_events"),
        ("ecc", 2**64 - 1, "ecc_uncorrectable"),
        ("remap_pending", 2, "row_remap_pending"),
        ("remap_failed", 2**32 - 1, "row_remap_failed"),
        ("name_byte", 0xFF, "name"),  # not UTF-8
    ],
)
def test_a_number_that_cannot_be_is_unknown(library, start, reading, number, figure):
    machine = start(library, script=[f"value {reading} 0 {number}"])
    assert unknown(machine.read()["gpus"]["0"]) == {figure, "memory_by_owner"}


@pytest.mark.parametrize(
    ("reading", "figure", "value"),
    [
        ("gpu_percent 0 100", "utilization", 1.0),
        ("gpu_percent 0 0", "utilization", 0.0),
        (f"celsius 0 {2**32 - 5}", "temperature", -5.0),  # a signed figure
        ("power 0 0", "power", 0.0),
        ("ecc 0 0", "ecc_uncorrectable", 0),
    ],
)
def test_a_number_at_its_bound_is_believed(library, start, reading, figure, value):
    machine = start(library, script=[f"value {reading}"])
    assert machine.read()["gpus"]["0"][figure] == value


@pytest.mark.parametrize("memory", [0, 2**64 - 1, 81 * GIB])
def test_a_process_whose_memory_the_driver_does_not_tell_is_listed_without(library, start, memory):
    machine = start(library, script=["process 4242 0 1000", f"process 4343 0 {memory}"])
    assert machine.read()["gpus"]["0"]["processes"] == [
        {"pid": 4242, "memory": 1000},
        {"pid": 4343, "memory": None},
    ]


def test_memory_is_split_by_the_command_lines_in_proc(library, start):
    sleeper = [sys.executable, "-c", "input()"]
    engine = subprocess.Popen(
        ["VLLM::EngineCore", *sleeper[1:]], executable=sys.executable, stdin=subprocess.PIPE
    )
    other = subprocess.Popen(sleeper, stdin=subprocess.PIPE)
    try:
        processes = [f"process {engine.pid} 0 {30 * GIB}", f"process {other.pid} 0 {9 * GIB}"]
        machine = start(library, script=[*processes, f"value used 0 {39 * GIB + 1000}"])
        owners = machine.read()["gpus"]["0"]["memory_by_owner"]
        assert owners == {"engine": 30 * GIB, "other": 9 * GIB + 1000}
    finally:
        engine.communicate(b"\n", timeout=30)
        other.communicate(b"\n", timeout=30)


# --- which devices -------------------------------------------------------------------------------


def test_eight_gpus_are_eight_devices(library, start):
    gpus = start(library, script=["gpus - - 8", "value celsius 5 77"]).read()["gpus"]
    assert list(gpus) == [str(index) for index in range(8)]
    assert [gpu["temperature"] for gpu in gpus.values()] == [64.0] * 5 + [77.0] + [64.0] * 2


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (("3",), ["3"]),
        (("GPU-00000002", "7"), ["2", "7"]),
        (("1",), ["1", "1:0", "1:1"]),
        (("GPU-00000001",), ["1", "1:0", "1:1"]),
        (("1:1",), ["1:1"]),
        (("MIG-00000001-0000", "0"), ["0", "1:0"]),
    ],
)
def test_devices_are_chosen_by_index_or_uuid(library, start, devices, indices):
    reading = start(library, *devices, script=["gpus - - 8", "mig - 1 2"]).read()
    assert list(reading["gpus"]) == indices
    assert reading["lost"] == []


def test_a_configured_device_that_is_not_there_counts_as_lost(library, start):
    reading = start(library, "0", "9", "GPU-absent").read()
    assert list(reading["gpus"]) == ["0"]
    assert reading["lost"] == ["9", "GPU-absent"]


def test_mig_instances_have_the_memory_and_their_board_the_rest(library, start):
    machine = start(
        library,
        script=[
            "mig - 0 2",
            *(f"value total 0:{n} {40 * GIB}" for n in range(2)),
            f"value used 0:0 {30 * GIB}",
            f"value used 0:1 {1 * GIB}",
            "process 4242 0:0 1000",
        ],
    )
    gpus = machine.read()["gpus"]
    assert list(gpus) == ["0", "0:0", "0:1"]
    board = gpus.pop("0")
    assert not board["mig"]
    assert not unknown(board) & PER_BOARD
    assert {"memory_total", "memory_used", "processes", "utilization"} <= unknown(board)
    for number, instance in enumerate(gpus.values()):
        assert instance["mig"]
        assert instance["uuid"] == f"MIG-00000000-{number:04}"
        assert instance["name"] == "Fake H100 MIG 3g.40gb"
        assert unknown(instance) >= PER_BOARD | {"utilization", "memory_utilization"}
    assert [gpu["memory_used"] for gpu in gpus.values()] == [30 * GIB, 1 * GIB]
    assert [gpu["processes"] for gpu in gpus.values()] == [[{"pid": 4242, "memory": 1000}], []]


def test_a_container_with_one_mig_instance_sees_just_that(library, start):
    board = [
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetRemappedRows",
    ]
    hidden = [f"fail {function} 0 {NO_PERMISSION}" for function in board]
    machine = start(library, script=["mig - 0 2", f"fail * 0:0 {NO_PERMISSION}", *hidden])
    reading = machine.read()
    assert list(reading["gpus"]) == ["0:1"]
    assert reading["lost"] == []


def test_mig_instances_made_and_removed_are_noticed_within_the_minute(library, start):
    machine = start(library)
    assert list(machine.read()["gpus"]) == ["0"]
    machine.script("mig - 0 1")
    machine.do("advance 60")
    assert list(machine.read()["gpus"]) == ["0", "0:0"]
    machine.script()
    machine.do("advance 60")
    assert list(machine.read()["gpus"]) == ["0"]


def test_a_gpu_of_another_container_is_left_out(library, start):
    script = ["gpus - - 2", f"fail nvmlDeviceGetHandleByIndex_v2 1 {NO_PERMISSION}"]
    reading = start(library, script=script).read()
    assert list(reading["gpus"]) == ["0"]
    assert reading["lost"] == []


def test_no_gpu_at_all_is_no_data(library, start):
    answer = start(library, script=["gpus - - 0"]).read()
    assert (answer["error"], answer["kind"]) == ("NoData", "no_device")


# --- failures ------------------------------------------------------------------------------------


def test_a_gpu_lost_midway_leaves_the_others_and_comes_back_when_nvml_starts_anew(library, start):
    machine = start(library, script=["gpus - - 3"])
    assert list(machine.read()["gpus"]) == ["0", "1", "2"]
    machine.script("gpus - - 3", "lose - 1 0")
    for _ in range(2):
        reading = machine.read()
        assert list(reading["gpus"]) == ["0", "2"]
        assert reading["lost"] == ["1"]
    machine.do("close")
    assert machine.read()["lost"] == ["1"]
    machine.script("gpus - - 3")
    assert machine.read()["lost"] == ["1"]
    machine.do("close")
    reading = machine.read()
    assert list(reading["gpus"]) == ["0", "1", "2"]
    assert reading["lost"] == []


@pytest.mark.parametrize("code", [GPU_IS_LOST, RESET_REQUIRED])
@pytest.mark.parametrize("function", ["nvmlDeviceGetUUID", "nvmlDeviceGetPowerUsage"])
def test_one_call_that_says_lost_is_enough(library, start, function, code):
    reading = start(library, script=["gpus - - 2", f"fail {function} 1 {code}"]).read()
    assert list(reading["gpus"]) == ["0"]
    assert reading["lost"] == ["1"]


def test_a_board_in_mig_mode_that_answers_only_errors_counts_as_lost(library, start):
    machine = start(library, script=["mig - 0 1"])
    machine.read()
    machine.script("mig - 0 1", f"fail * 0 {UNKNOWN}")
    reading = machine.read()
    assert list(reading["gpus"]) == ["0:0"]
    assert reading["lost"] == ["0"]


def test_a_lost_gpu_that_is_configured_by_uuid_is_lost_under_that_name(library, start):
    machine = start(library, "GPU-00000001", script=["gpus - - 2", "lose - 1 0"])
    assert machine.read() == {"gpus": {}, "lost": ["GPU-00000001"], "driver_version": "580.65.06"}


@pytest.mark.parametrize("code", [2, NO_PERMISSION, UNKNOWN])
def test_a_gpu_that_answers_nothing_counts_as_lost(library, start, code):
    machine = start(library, script=["gpus - - 2"])
    machine.read()
    machine.script("gpus - - 2", f"fail * 1 {code}")
    for _ in range(2):
        reading = machine.read()
        assert list(reading["gpus"]) == ["0"]
        assert reading["lost"] == ["1"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (DRIVER_NOT_LOADED, "driver_not_loaded"),
        (LIBRARY_MISMATCH, "version_mismatch"),
        (NO_PERMISSION, "no_permission"),
        (UNKNOWN, "nvml_init"),
    ],
)
def test_an_nvml_that_cannot_start_is_unreachable_until_it_can(library, start, code, kind):
    machine = start(library, script=[f"fail nvmlInitWithFlags - {code}"])
    answer = machine.read()
    assert (answer["error"], answer["kind"]) == ("Unreachable", kind)
    machine.script()
    assert list(machine.read()["gpus"]) == ["0"]


def test_a_driver_unloaded_midway_is_unreachable_until_nvml_starts_anew(library, start):
    machine = start(library)
    machine.read()
    machine.script(f"fail * * {DRIVER_NOT_LOADED}")
    answer = machine.read()
    assert (answer["error"], answer["kind"]) == ("Unreachable", "driver_not_loaded")
    machine.do("close")  # NVML refuses that as well
    machine.script()
    assert list(machine.read()["gpus"]) == ["0"]


def test_a_failure_while_listing_leaves_nvml_shut_down(library, start):
    machine = start(library, script=[f"fail nvmlDeviceGetCount_v2 - {UNKNOWN}"])
    answer = machine.read()
    assert (answer["error"], answer["kind"]) == ("Unreachable", "nvml_list")
    assert machine.calls()[-1] == "nvmlShutdown -"


def test_without_an_nvml_library_there_is_no_data_and_pynvml_is_not_even_imported(tmp_path, start):
    # A file that is no library, so that a real one on this machine is not found instead.
    (tmp_path / LIBRARY).write_text("not a library")
    answer = start(tmp_path).read()
    assert (answer["error"], answer["kind"]) == ("NoData", "no_library")
    assert answer["pynvml"] is False
