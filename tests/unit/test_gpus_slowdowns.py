"""Slowdowns: which reasons count, when they changed, and what the exporter does then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headroom_exporter.app import Exporter
from headroom_exporter.config import Config
from headroom_exporter.gpus.slowdowns import SlowdownWatch
from headroom_exporter.samples import GpuSample, GpuState


def gpu(index: int = 0, **reasons: bool) -> GpuSample:
    return GpuSample(index=str(index), uuid=f"GPU-{index}", clock_events=reasons)


@pytest.mark.parametrize(
    "reason", ["hw_slowdown", "hw_thermal_slowdown", "hw_power_brake", "sw_thermal_slowdown"]
)
def test_a_slowdown_counts_when_it_begins_and_when_it_ends(reason):
    watch = SlowdownWatch()
    readings = [{reason: False}, {reason: True}, {reason: True}, {}, {}]
    assert [watch.changed([gpu(**each)]) for each in readings] == [False, True, False, True, False]


def test_what_comes_and_goes_with_every_burst_does_not_count():
    watch = SlowdownWatch()
    assert not watch.changed([gpu(sw_power_cap=True, applications_clocks=True, sync_boost=True)])
    assert watch.active == frozenset()


def test_gpus_that_cannot_be_read_change_nothing():
    watch = SlowdownWatch()
    assert watch.changed([gpu(hw_slowdown=True)])
    assert not watch.changed([])
    assert not watch.changed([gpu(hw_slowdown=True)])
    assert watch.active == {"0 hw_slowdown"}


def test_a_card_that_tells_no_reasons_is_not_slow():
    watch = SlowdownWatch()
    assert not watch.changed([GpuSample(index="0", uuid="GPU-0")])


def test_another_gpu_or_another_reason_is_a_change():
    watch = SlowdownWatch()
    assert watch.changed([gpu(0, hw_slowdown=True), gpu(1)])
    assert watch.changed([gpu(0), gpu(1, hw_slowdown=True)])
    assert watch.changed([gpu(0), gpu(1, hw_power_brake=True)])
    assert watch.active == {"1 hw_power_brake"}


class Cards:
    def __init__(self) -> None:
        self.gpus = (gpu(),)

    def state(self) -> GpuState:
        return GpuState(up=True, gpus=self.gpus)


def test_the_exporter_forgets_step_times_of_every_engine_at_each_change():
    exporter = Exporter(Config())
    forgotten: list[str] = []
    exporter._tracks = {
        name: SimpleNamespace(forget_step_time=lambda name=name: forgotten.append(name))
        for name in ("a", "b")
    }
    exporter._note_slowdowns()  # no GPU reader yet
    cards = exporter._gpus = Cards()
    exporter._note_slowdowns()
    assert forgotten == []
    cards.gpus = (gpu(hw_thermal_slowdown=True),)
    exporter._note_slowdowns()
    exporter._note_slowdowns()
    assert forgotten == ["a", "b"]
    cards.gpus = (gpu(),)
    exporter._note_slowdowns()
    assert forgotten == ["a", "b"] * 2
