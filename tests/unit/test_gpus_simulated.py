"""Invented GPUs follow the load."""

from __future__ import annotations

import pytest

from headroom_exporter.gpus.simulated import RTX_4090, SimulatedGpus


class Stage:
    now = 0.0
    load = 0.0


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def gpus(stage):
    return SimulatedGpus(lambda: stage.load, count=2, monotonic=lambda: stage.now)


def test_power_and_utilisation_rise_with_the_load(stage, gpus):
    idle = gpus.read().gpus
    stage.load = 0.9
    busy = gpus.read().gpus
    assert [gpu.index for gpu in busy] == ["0", "1"]
    for before, after in zip(idle, busy, strict=True):
        assert before.utilization == 0.0
        assert after.power > before.power
        assert after.temperature > before.temperature


def test_energy_is_power_over_time(stage, gpus):
    stage.load = 1.0
    gpus.read()
    stage.now = 10.0
    gpu = gpus.read().gpus[0]
    assert gpu.energy == pytest.approx(10 * gpu.power)


def test_memory_adds_up(gpus):
    gpu = gpus.read().gpus[0]
    assert gpu.memory_used + gpu.memory_free + gpu.memory_reserved == gpu.memory_total
    assert sum(gpu.memory_by_owner.values()) == gpu.memory_used


@pytest.mark.parametrize("load", [-1.0, 5.0])
def test_a_load_out_of_range_keeps_ratios_in_range(stage, gpus, load):
    stage.load = load
    gpu = gpus.read().gpus[0]
    assert 0 <= gpu.utilization <= 1
    assert 0 <= gpu.memory_utilization <= 1
    assert gpu.power <= gpu.power_limit


def test_it_says_that_it_is_simulated(gpus):
    reading = gpus.read()
    assert reading.driver_version == "simulated"
    assert reading.gpus[0].name.startswith("Simulated")


def test_it_can_be_another_card(stage):
    (gpu,) = SimulatedGpus(lambda: 1.0, card=RTX_4090, monotonic=lambda: stage.now).read().gpus
    assert gpu.name == "Simulated RTX 4090"
    assert (gpu.memory_total, gpu.power, gpu.power_limit) == (24 * 2**30, 450.0, 450.0)
    assert gpu.memory_used + gpu.memory_free + gpu.memory_reserved == gpu.memory_total
