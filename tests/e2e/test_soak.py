"""
Half a minute of the soak (`make soak` is its hour): a real exporter process in node mode, while engines,
API server, kubelet, GPUs, scrapers and the configuration file misbehave by a seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from soak import page, verdict
from soak.processes import Sample
from soak.soaking import Soak, soak

MIB = 2**20

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    folder = tmp_path_factory.mktemp("soak") / "files"
    found = soak(folder, 25.0, pods=4, seed=7, every=2.5, haste=6.0)
    print("\n".join(verdict.lines(found)))
    return found


def test_nothing_crashes_hangs_or_leaks(soaked: Soak):
    # The soak itself asks: every healthy engine up at the end and no other, an invalid configuration
    # changes one metric and nothing else, the last page can be read, SIGTERM ends it with status 0.
    assert soaked.problems == []
    assert verdict.leaked(soaked) == []
    assert soaked.stop is not None
    assert soaked.stop < 10.0


def test_there_was_something_to_survive(soaked: Soak):
    faults = soaked.world["faults"]
    assert sum(count for what, count in faults.items() if what.startswith("engine ")) >= 3
    assert len(soaked.samples) >= 8
    assert soaked.world["scrapes"] >= 10
    assert soaked.world["failures"] == {}


def test_what_the_page_says_of_descriptors_is_what_the_kernel_says(soaked: Soak):
    assert soaked.empty is not None
    assert soaked.empty.own_fds is not None
    # The page counts while a scrape has a connection open; others come and go.
    assert abs(soaked.empty.own_fds - soaked.empty.fds) <= 8


def test_every_process_it_started_has_ended(soaked: Soak):
    mine = psutil.Process().children(recursive=True)
    assert [each.cmdline() for each in mine if "soak" in " ".join(each.cmdline())] == []


# --- the verdict ---------------------------------------------------------------------------------


def sample(second: float, **more: float) -> Sample:
    usual = {"rss": 50.0 * MIB, "pss": 0, "uss": 30.0 * MIB, "peak": 0, "fds": 20, "threads": 9}
    return Sample(at=second, **{**usual, "cpu": 0.0, "log_lines": 0, "tasks": 12, **more})


def hour(**growing: float) -> list[Sample]:
    """Samples of an hour with these growths an hour, and a wobble that has no trend."""
    found = []
    for n in range(720):
        wobble = (n * 7919 % 13) / 6 - 1
        values = {"rss": 50.0 * MIB + wobble * MIB, "uss": 30.0 * MIB, "fds": 20.0 + 3 * wobble}
        for what, hourly in growing.items():
            values[what] = values.get(what, 10.0) + hourly * n / 720
        found.append(sample(5.0 * n, **values))
    return found


def test_what_is_flat_is_not_called_growing():
    assert verdict.growing(hour()) == []
    assert verdict.growing(hour(rss=1.0 * MIB)) == [], "below what counts as flat"


@pytest.mark.parametrize(("what", "hourly"), [("rss", 5.0 * MIB), ("fds", 30.0), ("tasks", 20.0)])
def test_what_grows_is_found_whatever_its_wobble(what: str, hourly: float):
    (line,) = verdict.growing(hour(**{what: hourly}))
    assert line.startswith(f"{what} grows by")
    slope = verdict.growth(hour(**{what: hourly}), what)
    assert slope is not None
    assert slope.low <= hourly <= slope.high
    assert slope.hourly == pytest.approx(hourly, rel=0.2)


def test_a_single_step_is_not_growth_and_a_short_soak_tells_no_slope():
    step = [sample(5.0 * n, rss=(50.0 if n < 500 else 90.0) * MIB) for n in range(720)]
    slope = verdict.growth(step, "rss")
    assert slope is not None
    assert verdict.growth([sample(5.0 * n) for n in range(40)], "rss") is None


def test_what_is_left_after_the_misery_is_found():
    more = Soak(before=sample(0.0), after=sample(1.0, fds=60, threads=9, tasks=40))
    assert verdict.leaked(more) == ["fds: 20 before, 60 after", "tasks: 12 before, 40 after"]
    assert verdict.leaked(Soak()) != []


# --- docs/resources.md -----------------------------------------------------------------------------


def cost(title: str, peak: float, *, hostile: bool = False, cpu: float = 1.0) -> dict:
    figures = dict.fromkeys(("warm", "late", "private"), 40.0 * MIB)
    return {
        **figures,
        "title": title,
        "hostile": hostile,
        "beyond": False,
        "engines": 1,
        "series": 200,
        "peak": peak * MIB,
        "cpu": cpu,
        "seconds": 100.0,
    }


def test_requests_and_limits_follow_the_rule_that_the_page_states():
    costs = [
        cost("sidecar, 1 engine", 40.0),
        cost("sidecar, hostile", 90.0, hostile=True),
        cost("node mode, 8 pods", 60.0),
        cost("node mode, 32 pods, GPUs mapped (gRPC)", 100.0, cpu=5.0),
    ]
    samples = [sample(30.0 * n, peak=130.0 * MIB) for n in range(40)]
    world = {"faults": {"engine hang": 2}, "scrapes": 3, "failures": {}}
    ends = {name: sample(0.0) for name in ("before", "after", "empty")}
    text = page.render([Soak(**ends, samples=samples, world=world)], costs)
    # 40 x 1.25 = 50; 90 x 1.25 = 112.5. 60 x 1.25 = 75; 130 x 1.25 = 162.5. 100 x 1.25 = 125; 2 x 100.
    assert "| sidecar | 40.0 | 90.0 | **64Mi** | **128Mi** | **20m** |" in text
    assert "| node mode | 60.0 | 130.0 | **80Mi** | **176Mi** | **20m** |" in text
    assert (
        "| node mode with GPUs mapped | 100.0 | 130.0 | **128Mi** | **208Mi** | **100m** |" in text
    )
    assert "Verdict: nothing grows by that" in text
