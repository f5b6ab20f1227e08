"""
One run in virtual time: servers under traffic, sidecars that poll them, scrapes written down, users asked.

What comes out is all that a judge needs: the samples that rules are evaluated on, and what users felt.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from headroom_exporter.backtest.record import (
    EPOCH,
    SCRAPE_SECONDS,
    EngineRecorder,
    Recorder,
    Watched,
)
from headroom_exporter.backtest.truth import Breach, Causes, Minute, Requests, breaches
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.replay import Replica, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

    from headroom_exporter.config import PlanConfig
    from headroom_exporter.samples import GpuState
    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.load import Load
    from headroom_exporter.simulate.replay import Moment
    from headroom_exporter.simulate.requests import Request

# Requests under way when the recording ends are given so long to show how they fared: a backlog of hours.
DRAIN_SECONDS = 86_400.0
_DRAIN_STEP = 60.0
# How often the queues are looked at for what they wait for.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """
    One server of a run.

    Attributes:
        name: The ``engine`` label.
        frontend: At the beginning of its time.
        arrivals: Its traffic, from 0 on; what arrives after the run is left out.
        hidden: Families that its pages do not have.
    """

    name: str
    frontend: Frontend
    arrivals: Iterator[Request]
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    What is played, and what is written down of it.

    Attributes:
        servers: At least one.
        plan: In force for all.
        seconds: How long.
        exporter_down: (at, seconds) without sidecars.
        gpus: What NVML says at a virtual time.
        names: Sample names of the exporter to keep; None for all.
        engine_names: Sample names of the engines' own pages to keep; none: they are not written.
    """

    servers: Sequence[Server]
    plan: PlanConfig
    seconds: float
    exporter_down: Sequence[tuple[float, float]] = ()
    gpus: Callable[[float], GpuState] | None = None
    names: Collection[str] | None = None
    engine_names: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Felt:
    """
    What the users of one server felt.

    Attributes:
        minutes: Every minute.
        breaches: Those in a row, in order of time.
        requests: How many count.
        lost: How many found no server.
    """

    minutes: tuple[Minute, ...]
    breaches: tuple[Breach, ...]
    requests: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """
    A finished run.

    Attributes:
        samples: OpenMetrics text of the sidecars.
        engine_samples: Of the engines' own pages; None where not asked for.
        felt: By server.
        seconds: Length.
    """

    samples: Path
    engine_samples: Path | None
    seconds: float
    felt: dict[str, Felt] = field(default_factory=dict)


def play(run: Run, folder: Path, follow: Callable[[Moment], None] = lambda _: None) -> Played:
    """
    Play a run.

    Args:
        run: Its servers are used up.
        folder: Gets the samples' files; must exist.
        follow: Told of every moment, for whoever shows progress.
    """
    requests = {server.name: Requests(run.plan) for server in run.servers}
    causes = {server.name: Causes() for server in run.servers}
    samples = folder / "samples.om"
    engine_samples = folder / "engine.om" if run.engine_names else None
    with ExitStack() as files:
        out = files.enter_context(samples.open("w", encoding="utf-8"))
        engine_out = None
        if engine_samples is not None:
            engine_out = files.enter_context(engine_samples.open("w", encoding="utf-8"))
        replicas = [
            _replica(run, server, requests[server.name], causes[server.name], engine_out)
            for server in run.servers
        ]
        recorder = Recorder(
            out=out,
            plan_of=lambda _engine, _model: run.plan,
            names=run.names,
            interval=SCRAPE_SECONDS,
            down=run.exporter_down,
        )
        moments = replay(
            replicas,
            run.seconds,
            plan_of=lambda _engine, _model: run.plan,
            epoch=EPOCH,
            restarts=run.exporter_down,
            gpus=run.gpus,
        )
        for moment in recorder.record(moments, [each.name for each in replicas], run.seconds):
            follow(moment)
        for replica in replicas:
            requests[replica.name].give_up(_drain(replica, run.seconds))
        if engine_out is not None:
            engine_out.write("# EOF\n")
    return Played(
        samples=samples,
        engine_samples=engine_samples,
        seconds=run.seconds,
        felt={name: _felt(requests[name], causes[name], run.seconds) for name in requests},
    )


def _replica(
    run: Run, server: Server, requests: Requests, causes: Causes, engine_out: TextIO | None
) -> Replica:
    """A server under its traffic, looked at while its time passes: also while no exporter does."""
    frontend = server.frontend
    load: Load = TraceLoad(requests.sent(server.arrivals, run.seconds), requests.note)
    load = Watched(load, _LOOK_SECONDS, lambda at: causes.look(at, frontend))
    if engine_out is not None:
        page = EngineRecorder(engine_out, server.name, frontend, run.engine_names, server.hidden)
        load = Watched(load, SCRAPE_SECONDS, partial(_scrape, page, run.seconds))
    return Replica(name=server.name, frontend=frontend, load=load, hidden=server.hidden)


def _scrape(page: EngineRecorder, seconds: float, at: float) -> None:
    if at < seconds:
        page.scrape(at)


def _drain(replica: Replica, seconds: float) -> float:
    """Let every request end, or DRAIN_SECONDS pass; when that is."""
    at = seconds
    replica.load.drive(replica.frontend, at)
    while replica.frontend.unfinished and at < seconds + DRAIN_SECONDS:
        at += _DRAIN_STEP
        replica.load.drive(replica.frontend, at)
    return at


def _felt(requests: Requests, causes: Causes, seconds: float) -> Felt:
    minutes = requests.minutes(seconds)
    return Felt(
        minutes=tuple(minutes),
        breaches=tuple(breaches(minutes, causes)),
        requests=len(requests),
        lost=requests.lost,
    )
