"""A scenario on its stage: servers, traffic and cards made from its description, played, kept."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.backtest.play import Played, Run, Server, play
from headroom_exporter.gpus.simulated import SimulatedGpus
from headroom_exporter.samples import GpuState
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.dialects import DIALECTS
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.trace import read
from headroom_exporter.simulate.traffic import scale, select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headroom_exporter.simulate.requests import Request
    from scoreboard import scenarios
    from scoreboard.scenarios import Scenario, Traffic

ROOT = Path(__file__).parents[2]
TRAFFIC = ROOT / "tests" / "fixtures" / "traffic"
CACHE = ROOT / ".cache" / "backtest"
PACKAGE = ROOT / "exporter" / "headroom_exporter"
# Of the package: everything between traffic and samples, and what users felt.
DEPENDS_ON = (
    "backtest/play.py",
    "backtest/record.py",
    "backtest/truth.py",
    "config/__init__.py",
    "derive",
    "engines",
    "expose.py",
    "gpus",
    "poll.py",
    "samples.py",
    "simulate",
    "track.py",
)

# What the rules of others read off the engine's own page.
ENGINE_NAMES = frozenset(
    {
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_preemptions_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:time_to_first_token_seconds_count",
        "vllm:time_to_first_token_seconds_sum",
        "vllm:request_prompt_tokens_sum",
        "vllm:request_prompt_tokens_count",
        "vllm:cache_config_info",
    }
)


def stage(scenario: Scenario) -> Played:
    """Play a scenario, or take what an earlier run of the same code left."""
    folder = CACHE / f"{scenario.name}-{_fingerprint(scenario)}"
    kept = folder / "played.pickle"
    if kept.exists():
        return pickle.loads(kept.read_bytes())  # noqa: S301 - our own file
    folder.mkdir(parents=True, exist_ok=True)
    played = play(_run(scenario), folder)
    kept.write_bytes(pickle.dumps(played))
    return played


def _run(scenario: Scenario) -> Run:
    servers = [_server(scenario, server) for server in scenario.servers]
    return Run(
        servers=servers,
        plan=scenario.plan,
        seconds=scenario.seconds,
        exporter_down=scenario.exporter_down,
        gpus=_cards(scenario, servers[-1].frontend),
        engine_names=ENGINE_NAMES,
    )


def _server(scenario: Scenario, server: scenarios.Server) -> Server:
    profile = find(scenario.profile)
    if server.max_num_seqs is not None:
        profile = replace(profile, max_num_seqs=server.max_num_seqs)
    slow = [Event(at=at, action="slow", factor=factor) for at, factor in scenario.gpu_slow]
    frontend = Frontend(
        profile,
        ranks=server.ranks,
        limits=server.limits,
        events=(*server.events, *slow),
        start_seconds=server.start_seconds,
        dialect=DIALECTS[server.dialect],
    )
    return Server(
        name=server.name,
        frontend=frontend,
        arrivals=arrivals(server.traffic, scenario.seconds),
        hidden=frozenset(server.hidden),
    )


def arrivals(traffic: Traffic, seconds: float) -> Iterator[Request]:
    """The requests of a server, from 0 on, as long as the scenario lasts."""
    if traffic.source.startswith(generators.PREFIX):
        found = generators.parse(traffic.source).requests()
    else:
        found = read(TRAFFIC / f"{traffic.source}.csv.gz")
        if not traffic.use_cached:
            found = (replace(request, cached_tokens=0) for request in found)
    chosen = select(found, start=traffic.start, end=traffic.end, keep_every=traffic.keep_every)
    scaled = scale(chosen, traffic.scale)
    shifted = (replace(each, arrival=each.arrival + traffic.after) for each in scaled)
    return takewhile(lambda request: request.arrival < seconds, shifted)


def _cards(scenario: Scenario, frontend: Frontend) -> Callable[[float], GpuState]:
    """
    A card that is busy while the last server computes, as NVML counts it; slow when the scenario says so.

    Its memory is what vLLM takes at its start, whatever the load.
    """
    last, busy = 0.0, 0.0
    gpus = SimulatedGpus(lambda: 1.0, monotonic=lambda: last)

    def at(moment: float) -> GpuState:
        nonlocal last, busy
        before, last, was_busy, busy = last, moment, busy, frontend.integrals.busy
        seconds = moment - before
        utilization = min(1.0, (busy - was_busy) / seconds) if seconds > 0 else 0.0
        slow = [factor for begin, factor in scenario.gpu_slow if begin <= moment]
        events = {"sw_power_cap": False, "hw_thermal_slowdown": bool(slow) and slow[-1] > 1}
        cards = tuple(
            replace(card, clock_events=MappingProxyType(events), utilization=utilization)
            for card in gpus.read().gpus
        )
        return GpuState(up=True, driver_version="simulated", gpus=cards, read_at=moment)

    return at


def _fingerprint(scenario: Scenario) -> str:
    """Changes with the scenario, its traffic, and all code and profiles that a recording depends on."""
    digest = hashlib.sha256(repr(scenario).encode())
    sources = {server.traffic.source for server in scenario.servers}
    traffic = [TRAFFIC / f"{source}.csv.gz" for source in sources]
    ours = [*PACKAGE.rglob("*.py"), *PACKAGE.glob("simulate/data/*.json"), Path(__file__)]
    for path in sorted((*filter(Path.exists, traffic), *ours)):
        if not path.is_relative_to(PACKAGE) or _recorded_with(path.relative_to(PACKAGE)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _recorded_with(path: Path) -> bool:
    """Whether a recording depends on a file of the package."""
    top = path.parts[0]
    if top == "backtest":
        return path.name in {"play.py", "record.py", "truth.py"}
    return top not in {"web", "status", "report", "demo.py", "cli.py", "app.py"}
