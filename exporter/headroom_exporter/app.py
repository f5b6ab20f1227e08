"""
Wires everything once: configuration, engines, GPUs, registry, web server, signals.

``Exporter`` is the running product without its web server; ``run`` is the sidecar.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from headroom_exporter import __version__, web
from headroom_exporter.config import Config, EngineConfig, PlanConfig, plan_for
from headroom_exporter.config.file import load
from headroom_exporter.config.watch import follow
from headroom_exporter.errors import ConfigError
from headroom_exporter.expose import StateCollector, make_registry
from headroom_exporter.fetch import make_session
from headroom_exporter.gpus.nvml import NvmlGpus
from headroom_exporter.gpus.reader import GpuReader
from headroom_exporter.gpus.slowdowns import SlowdownWatch
from headroom_exporter.poll import EnginePoller
from headroom_exporter.samples import DiscoveryState, EngineState, GpuState, ReloadState, State
from headroom_exporter.status.history import History
from headroom_exporter.status.landing import landing
from headroom_exporter.track import EngineTrack
from headroom_exporter.web import StatusApi, WebSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import aiohttp
    from prometheus_client import CollectorRegistry

    from headroom_exporter.config import KubernetesConfig
    from headroom_exporter.discovery.api import Place
    from headroom_exporter.discovery.node import Discovery
    from headroom_exporter.discovery.pods import Target
    from headroom_exporter.gpus import GpuSource

log = logging.getLogger(__name__)

# The loop counts as alive while its heart beats at least this often.
HEARTBEAT_SECONDS = 1.0
DEAD_SECONDS = 30.0


class Exporter:
    """
    Polls engines and GPUs and holds the latest State.

    Args:
        config: What to poll, how, and the plans.
        path: File it came from, read again by ``reload``; None when there is none.
        gpu_source: Where GPU readings come from; NVML unless a simulation stands in.
        simulated: What is watched is a simulation, and the status page must say so.
        unread: Why the file at ``path`` could not be used, so that ``config`` is only what is left: shown
            as a failed reload until the file is right.
        place_of: Finds node and API server in node mode; the pod's surroundings tell, when not given.

    Raises:
        ConfigError: Node mode is asked for where there is no node.
    """

    def __init__(
        self,
        config: Config,
        *,
        path: Path | None = None,
        gpu_source: GpuSource | None = None,
        simulated: bool = False,
        unread: ConfigError | None = None,
        place_of: Callable[[KubernetesConfig], Place] | None = None,
    ) -> None:
        self._place_of = place_of
        self._place = self._find_place(config)
        self._config = config
        self._path = path
        self._gpu_source = gpu_source
        self._simulated = simulated
        self._history = History()
        # One offset for good: a clock that is set must not fold the history over.
        self._wall_offset = time.time() - time.monotonic()
        self._instance = os.urandom(8).hex()
        self._plans: dict[tuple[str, str], PlanConfig | None] = {}
        self._tracks: dict[str, EngineTrack] = {}
        self._engine_states: dict[str, EngineState] = {}
        self._pollers: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._session: aiohttp.ClientSession | None = None
        self._gpus: GpuReader | None = None
        self._gpu_task: asyncio.Task[None] | None = None
        self._slowdowns = SlowdownWatch()
        # Node mode: engines of pods by name.
        self._targets: dict[str, Target] = {}
        self._discovery: Discovery | None = None
        self._discovery_task: asyncio.Task[None] | None = None
        self._discovered: DiscoveryState | None = None
        self._reload_lock = asyncio.Lock()
        self._reload = ReloadState(
            successful=unread is None, at=time.time() if unread is None else None
        )
        self._beat = time.monotonic()
        self._polled = asyncio.Event()
        self._state = self._assemble()

    # --- what others see ---

    @property
    def state(self) -> State:
        """The latest State, whole."""
        return self._state

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    @property
    def node(self) -> str | None:
        """The node whose pods are watched; None outside node mode."""
        return None if self._place is None else self._place.node

    def plan_of(self, engine: str, model_name: str) -> PlanConfig | None:
        """The plan that holds for a model on an engine: its pod's own, else the file's."""
        target = self._targets.get(engine)
        if target is not None and target.plan is not None:
            return target.plan
        key = (engine, model_name)
        if key not in self._plans:
            if len(self._plans) > 1000:
                self._plans.clear()
            self._plans[key] = plan_for(self._config.plans, engine, model_name)
        return self._plans[key]

    def registry(self) -> CollectorRegistry:
        """A registry that renders the latest State."""
        return make_registry(StateCollector(lambda: self.state, self.plan_of))

    def status_api(self) -> StatusApi:
        """What the status page and its readers ask."""
        return StatusApi(state=self._document, history=self._past)

    def _document(self) -> dict[str, Any]:
        # Imported with the first visitor: most sidecars are only ever scraped.
        from headroom_exporter.status.document import Source, document  # noqa: PLC0415

        source = Source(
            plan_of=self.plan_of,
            history=self._history,
            instance=self._instance,
            simulated=self._simulated,
        )
        now = time.monotonic()
        return document(self._state, source, now=now, wall=now + self._wall_offset)

    def _past(self, engine: str, rank: str, model_name: str, since: float) -> dict[str, Any] | None:
        ring = self._history.ring((engine, rank, model_name))
        if ring is None:
            return None
        return {
            "version": 1,
            "instance": self._instance,
            "engine": engine,
            "rank": rank,
            "model_name": model_name,
            "columns": ring.columns(self._wall_offset, since),
        }

    def healthy(self) -> bool:
        """Whether the event loop lives."""
        return time.monotonic() - self._beat < DEAD_SECONDS

    def ready(self) -> bool:
        """Whether the node's pods were listed and every engine asked, whatever they answered."""
        return self._polled.is_set()

    # --- life ---

    async def run(self) -> None:
        """Poll until cancelled."""
        async with make_session() as session, asyncio.TaskGroup() as tasks:
            self._session, self._tasks = session, tasks
            self._start_engines()
            self._start_gpus()
            self._start_discovery()
            tasks.create_task(self._heartbeat(), name="heartbeat")
            if self._path is not None:
                tasks.create_task(follow(self._path, self.reload), name="watch")

    def _start_engines(self) -> None:
        """Start pollers that are new, stop those that are gone; the others keep their memory."""
        engines = [*self._config.engines, *(each.config for each in self._targets.values())]
        for name in set(self._pollers) - {engine.name for engine in engines}:
            self._stop_engine(name)
        for engine in engines:
            if engine.name not in self._pollers:
                self._start_engine(engine)

    def _start_engine(self, engine: EngineConfig) -> None:
        assert self._tasks is not None  # noqa: S101
        assert self._session is not None  # noqa: S101
        track = EngineTrack(engine, self._config.poll, self.plan_of)
        poller = EnginePoller(
            engine, self._config.poll, track, lambda: self._publish_engine(track), self._session
        )
        self._tracks[engine.name] = track
        self._engine_states[engine.name] = track.state()
        self._pollers[engine.name] = self._tasks.create_task(
            poller.run(), name=f"poll {engine.name}"
        )

    def _stop_engine(self, name: str) -> None:
        task = self._pollers.pop(name, None)
        if task is not None:
            task.cancel()
            del self._tracks[name], self._engine_states[name]
            self._history.forget(name)

    def _start_gpus(self) -> None:
        assert self._tasks is not None  # noqa: S101
        settings = self._config.gpus
        source = self._gpu_source or NvmlGpus(settings.devices)
        self._gpus = GpuReader(settings, source)
        self._gpu_task = self._tasks.create_task(self._gpus.run(), name="gpus")

    async def _heartbeat(self) -> None:
        while True:
            self._beat = time.monotonic()
            self._note_slowdowns()
            self._note_discovery()
            self._note_ready()
            self._publish()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _note_slowdowns(self) -> None:
        """Forget step times when a GPU begins or ends to slow itself down."""
        gpus = self._gpus.state().gpus if self._gpus is not None else ()
        if self._slowdowns.changed(gpus):
            active = sorted(self._slowdowns.active)
            log.info("GPU clock slowdown changed", extra={"active": active})
            for track in self._tracks.values():
                track.forget_step_time()

    # --- node mode ---

    def _find_place(self, config: Config) -> Place | None:
        if config.discovery is None:
            return None
        # Imported where it is asked for: a sidecar has no use for it.
        from headroom_exporter.discovery.api import find_place  # noqa: PLC0415

        return (self._place_of or find_place)(config.discovery.kubernetes)

    def _start_discovery(self) -> None:
        """Look for pods, or no more; the engines known so far stay until all is listed anew."""
        assert self._tasks is not None  # noqa: S101
        assert self._session is not None  # noqa: S101
        if self._discovery_task is not None:
            self._discovery_task.cancel()
        self._discovery = self._discovery_task = None
        if self._config.discovery is not None and self._place is not None:
            from headroom_exporter.discovery.node import Discovery  # noqa: PLC0415

            self._discovery = Discovery(
                self._config.discovery, self._place, self._session, self._retarget
            )
            self._discovery_task = self._tasks.create_task(self._discovery.run(), name="discovery")

    def _retarget(self) -> None:
        """Poll what runs on the node now; a pod that is gone is forgotten at once, with all of it."""
        named = {engine.name for engine in self._config.engines}
        targets = {name: each for name, each in self._targets.items() if name not in named}
        if self._discovery is None:
            targets = {}
        elif self._discovery.knows():
            targets = self._discovery.targets(self._targets, named)
        for name, before in self._targets.items():
            after = targets.get(name)
            # Another pod of the same name (a StatefulSet's) is another engine.
            if after is None or (after.config, after.pod) != (before.config, before.pod):
                self._stop_engine(name)
        self._targets = targets
        self._start_engines()
        self._note_discovery()
        self._publish()

    def _note_discovery(self) -> None:
        gpus = self._gpus.state().gpus if self._gpus is not None else ()
        discovery = self._discovery
        self._discovered = None if discovery is None else discovery.state(self._targets, gpus)

    # --- state ---

    def _publish_engine(self, track: EngineTrack) -> None:
        if self._tracks.get(track.name) is track:
            state = self._engine_states[track.name] = track.state()
            self._history.note(state, time.monotonic())
            self._publish()
            self._note_ready()

    def _note_ready(self) -> None:
        if (
            not self._polled.is_set()
            and (self._discovery is None or self._discovery.settled())
            and all(state.up or state.errors for state in self._engine_states.values())
        ):
            self._polled.set()

    def _publish(self) -> None:
        self._state = self._assemble()

    def _assemble(self) -> State:
        order = [*(engine.name for engine in self._config.engines), *self._targets]
        states = self._engine_states
        gpu = self._gpus.state() if self._gpus is not None else GpuState(up=None)
        return State(
            engines=tuple(states[name] for name in order if name in states),
            gpu=gpu,
            reload=self._reload,
            discovery=self._discovered,
        )

    # --- reload ---

    async def reload(self) -> str | None:
        """
        Read the configuration file again and apply it.

        An invalid file changes nothing but ``headroom_config_last_reload_successful``.

        Returns:
            What is wrong with the file; None when it was applied.
        """
        async with self._reload_lock:
            try:
                config = Config() if self._path is None else load(self._path)
                place = self._find_place(config)
            except ConfigError as error:
                self._reload = ReloadState(successful=False, at=self._reload.at)
                self._publish()
                log.error(  # noqa: TRY400 - the text says it all
                    "configuration not reloaded, the running one stays",
                    extra={"reason": str(error)},
                )
                return str(error)
            self._apply(config, place)
            self._reload = ReloadState(successful=True, at=time.time())
            self._publish()
            log.info("configuration reloaded", extra={"engines": len(config.engines)})
            return None

    def _apply(self, config: Config, place: Place | None) -> None:
        before, self._config = self._config, config
        before_place, self._place = self._place, place
        self._plans.clear()
        if self._tasks is None:
            return
        changed = before.poll != config.poll
        for engine in before.engines:
            if changed or engine not in config.engines:
                self._stop_engine(engine.name)
        for name in self._targets if changed else ():
            self._stop_engine(name)
        if (before.discovery, before_place) != (config.discovery, place):
            self._start_discovery()
        self._retarget()
        if before.gpus != config.gpus and self._gpu_task is not None:
            self._gpu_task.cancel()
            self._start_gpus()


def run(
    config_path: Path | None,
    listen: list[str],
    web_config: Path | None,
    tolerant: bool = False,
) -> int:
    """
    Run the sidecar until SIGINT or SIGTERM.

    Args:
        config_path: Configuration file; None for the defaults.
        listen: Addresses such as ``:9890``; all are listened on.
        web_config: Web configuration file (TLS, users) of the Prometheus exporter-toolkit's format.
        tolerant: Run on the defaults when the configuration file cannot be used, and wait for it to become
            right: beside an engine, a container that ends takes the pod out of its service.

    Returns:
        Exit status: 0 when stopped by a signal.

    Raises:
        ConfigError: A configuration cannot be used, or an address is none.
        ListenError: An address cannot be listened on: in use, not allowed, not of this machine.
            Both before anything is polled.
    """
    settings = None if web_config is None else WebSettings(web_config)
    exporter = _first(config_path, tolerant=tolerant)
    asyncio.run(serve(exporter, listen, settings))
    return 0


def _first(path: Path | None, *, tolerant: bool) -> Exporter:
    """The exporter of a configuration file, or of what is left when it cannot be used."""
    try:
        config = Config() if path is None else load(path)
        return Exporter(config, path=path)
    except ConfigError as error:
        if not tolerant:
            raise
        log.error(  # noqa: TRY400 - the text says it all
            "configuration not used, running on the defaults until it is right",
            extra={"reason": str(error)},
        )
        return Exporter(Config(), path=path, unread=error)


async def serve(
    exporter: Exporter, listen: Sequence[str], settings: WebSettings | None = None
) -> None:
    """Run an exporter and its web server until SIGINT or SIGTERM; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads: set[asyncio.Task[str | None]] = set()

    def reload_soon() -> None:
        task = loop.create_task(exporter.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload_soon)
    app = web.build_app(
        registry=exporter.registry(),
        health=exporter.healthy,
        ready=exporter.ready,
        reload=exporter.reload if exporter.config.web.reload else None,
        landing=lambda: landing(exporter),
        api=exporter.status_api(),
        settings=settings,
    )
    server = await web.serve(app, [web.parse_listen(text) for text in listen], settings)
    try:
        log.info(
            "headroom-exporter is up",
            extra={
                "version": __version__,
                "engines": ", ".join(engine.url for engine in exporter.config.engines),
                "plans": len(exporter.config.plans),
                "node": exporter.node,
            },
        )
        await _until(stop, exporter)
    finally:
        await server.close()
    log.info("stopped")


async def _until(stop: asyncio.Event, exporter: Exporter) -> None:
    """Poll until told to stop; when the loop itself breaks, raise what broke it."""
    polling = asyncio.create_task(exporter.run(), name="exporter")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if polling.done():
            polling.result()
    finally:
        stopping.cancel()
        polling.cancel()
        await asyncio.gather(polling, stopping, return_exceptions=True)
