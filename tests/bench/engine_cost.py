"""What a poll costs a real vLLM: the exporter's filtered page against the full one."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.latency import series
from bench.process import cpu_seconds
from bench.report import Part, Row
from headroom_exporter.config import EngineConfig, PollConfig
from headroom_exporter.fetch import make_session
from headroom_exporter.poll import EnginePoller
from headroom_exporter.track import EngineTrack
from vllm import model
from vllm.client import Phase, run_load
from vllm.server import VllmServer

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

COST = Part("A real vLLM 0.32 that serves nobody: CPU of its API server for one poll")
FILTERED, FULL = "filtered page", "full page"
# What any request costs, whatever it answers.
LEAST = "20 bytes (/version)"
KINDS = (FULL, FILTERED, LEAST)
ROUNDS = 3
IDLE_SECONDS = 3.0


@dataclass(slots=True)
class Cost:
    """Sums over the rounds: CPU seconds, seconds and polls of one kind, and the last body."""

    cpu: float = 0.0
    seconds: float = 0.0
    polls: int = 0
    body: bytes = b""

    def per_poll(self, idle: float) -> float:
        """CPU seconds of one poll beyond what the idle server takes anyway (share of a core)."""
        return (self.cpu - idle * self.seconds) / self.polls


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How polls follow each other.

    What wakes a process on an idle machine finds its caches cold, and costs more than the same work
    again at once. A server under load is awake; one that waits for its next user is not.
    """

    what: str
    pause: float
    polls: int


def rows(interpreter: Path, directory: Path, *, quick: bool) -> list[Row]:
    """
    Start vLLM, let it do its first steps, and poll it both ways in turn.

    Args:
        interpreter: Python of the environment that holds vLLM.
        directory: For the model and the logs.
        quick: Fewer polls.
    """
    weights = directory / "model"
    script = str(Path(model.__file__))
    subprocess.run(
        [interpreter, script, weights], check=True, timeout=120, stderr=subprocess.DEVNULL
    )
    paces = (
        Pace("at once after each other", 0.0, 30 if quick else 100),
        Pace("four a second", 0.25, 6 if quick else 16),
    )
    with VllmServer(interpreter, weights, directory, max_num_seqs=16, num_gpu_blocks=400) as server:
        log = directory / "warm-up.jsonl"
        with run_load(server.url, [Phase(seconds=2.0, clients=4)], log_path=log) as load:
            load.wait()
        time.sleep(1.0)
        return asyncio.run(_measure(server, paces))


async def _measure(server: VllmServer, paces: tuple[Pace, ...]) -> list[Row]:
    idle = Cost()
    costs = {pace: {kind: Cost() for kind in KINDS} for pace in paces}
    async with make_session() as session:
        addresses = await _addresses(server.url, session)
        for _ in range(ROUNDS):
            await _rest(idle, server.pid)
            for pace, kinds in costs.items():
                for kind, cost in kinds.items():
                    await _poll(cost, server.pid, session, addresses[kind], pace)
    resting = idle.cpu / idle.seconds
    found = [row for pace, kinds in costs.items() for row in _rows(pace, kinds, resting)]
    last = COST.row("nobody asks: CPU of a core, taken off the above", 100 * resting, "%")
    return [*_sizes(costs[paces[0]]), *found, last]


async def _addresses(base: str, session: aiohttp.ClientSession) -> dict[str, URL]:
    """By kind: the filtered page's is the one that the exporter itself finds."""
    track = EngineTrack(EngineConfig(name="real", url=base), PollConfig(), lambda *_: None)
    poller = EnginePoller(
        EngineConfig(name="real", url=base), PollConfig(), track, lambda: None, session
    )
    await poller.tick()
    if poller._fast_url is None:
        raise RuntimeError(f"the exporter does not poll this vLLM filtered: {track.state()}")
    return {
        FILTERED: poller._fast_url,
        FULL: poller._url("/metrics"),
        LEAST: poller._url("/version"),
    }


async def _rest(cost: Cost, pid: int) -> None:
    cpu, began = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    cost.cpu += cpu_seconds(pid) - cpu
    cost.seconds += time.monotonic() - began


async def _poll(cost: Cost, pid: int, session: aiohttp.ClientSession, url: URL, pace: Pace) -> None:
    cpu, began = cpu_seconds(pid), time.monotonic()
    for _ in range(pace.polls):
        async with session.get(url, allow_redirects=False) as answer:
            answer.raise_for_status()
            cost.body = await answer.read()
        await asyncio.sleep(pace.pause)
    cost.cpu += cpu_seconds(pid) - cpu
    cost.seconds += time.monotonic() - began
    cost.polls += pace.polls


def _sizes(kinds: dict[str, Cost]) -> list[Row]:
    return [
        COST.row(f"{kind} ({series(cost.body.decode())} series)", len(cost.body), "bytes")
        for kind, cost in kinds.items()
        if kind != LEAST
    ]


def _rows(pace: Pace, kinds: dict[str, Cost], resting: float) -> list[Row]:
    each = {kind: cost.per_poll(resting) for kind, cost in kinds.items()}
    ratio = each[FILTERED] / each[FULL]
    return [
        *(COST.row(f"{pace.what}: {kind}", 1000 * cost, "ms") for kind, cost in each.items()),
        COST.row(f"{pace.what}: filtered over full", ratio, "x", most=0.2),
    ]
