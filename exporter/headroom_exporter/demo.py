"""
``headroom-exporter demo``: the whole product in one terminal.

Watches a vLLM if there is one; else a simulated one that replays 150 seconds of real traffic, which
outgrows its plan and recovers, again and again. ``render`` and ``summary`` are pure: State in, lines out.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from headroom_exporter import app, logs, web
from headroom_exporter.config import Config, EngineConfig, Lengths, PlanConfig, PollConfig
from headroom_exporter.expose import GPU_STALE_SECONDS, is_fresh
from headroom_exporter.gpus.simulated import GIB, RTX_4090, SimulatedGpus
from headroom_exporter.samples import Constraint, Derived, HeadroomState
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.server import serve
from headroom_exporter.simulate.trace import read
from headroom_exporter.simulate.traffic import repeat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headroom_exporter.samples import (
        EngineState,
        GpuSample,
        GpuState,
        RankSample,
        RankState,
        State,
        StepFit,
    )

LOCAL_VLLM = "http://127.0.0.1:8000"
PROFILE = "rtx4090-llama-3.1-8b"
TRACE = Path(__file__).parent / "simulate" / "data" / "azure2023_conv_demo.csv"
TRACE_SECONDS = 150.0
# As somebody would have planned who knew the hour that the traffic is a piece of: lengths are the whole
# trace's, the rate is half of its mean, as the traffic is half of it.
PLAN = PlanConfig(
    name="demo",
    concurrency=24,
    max_num_seqs=256,
    prompt_tokens=Lengths(p50=1020, p95=4083),
    output_tokens=Lengths(p50=129, p95=451),
    request_rate=2.8,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.2,
)

_UNKNOWN = "–"
_PROBE_SECONDS = 0.5
_REDRAW_SECONDS = 0.5
_LINE_SECONDS = 1.0
_TRACE_SECONDS = 120.0
_TRACE_CELLS = 60
_MAX_RANKS = 4
_MAX_GPUS = 4
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {
    HeadroomState.OK: "32",
    HeadroomState.LOW: "33",
    HeadroomState.EXHAUSTED: "1;31",
    HeadroomState.UNKNOWN: "90",
}


# --- what is shown -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """
    What a picture of the State needs besides it.

    Attributes:
        url: The engine that is watched.
        metrics_url: Where the exporter answers.
        simulated: Whether the engine is.
        plan: The plan in force; None where none was declared.
    """

    url: str
    metrics_url: str
    simulated: bool
    plan: PlanConfig | None = None


def render(
    state: State,
    scene: Scene,
    *,
    now: float,
    trace: Sequence[float | None] = (),
    width: int = 100,
    colour: bool = False,
) -> list[str]:
    """
    Draw the State as a small table.

    Args:
        state: What the exporter knows.
        scene: What is watched.
        now: Monotonic seconds, against which samples are fresh or not.
        trace: Demand of the first rank over the last two minutes, oldest first.
        width: Columns; longer lines are cut.
        colour: Whether to colour the state with terminal escapes.

    Returns:
        Lines without their ends. What is not known is ``–`` or ``unknown``.
    """
    kind = "SIMULATED vLLM" if scene.simulated else "vLLM"
    page = scene.metrics_url.removesuffix("metrics")
    lines = [f"headroom-exporter demo   {kind}   {scene.url}   status page: {page}"]
    for engine in state.engines:
        lines += ["", *_engine_lines(engine, scene, now)]
    lines += _gpu_lines(state.gpu, now)
    if any(level is not None for level in trace):
        lines += ["", _field("demand, 2 min", _spark(trace))]
    cut = [_printable(line)[:width] for line in lines]
    return [_coloured(line) for line in cut] if colour else cut


def summary(state: State, scene: Scene, *, now: float) -> str:
    """
    Say the State in one line, for a log: ``key=value`` pairs of the first rank.

    Args:
        state: What the exporter knows.
        scene: What is watched.
        now: Monotonic seconds.
    """
    prefix = "SIMULATED " if scene.simulated else ""
    for engine, rank in _fresh_ranks(state, now):
        sample, derived = rank.sample, rank.derived
        if sample is None or derived is None:
            continue
        known = {
            "batch": _number(sample.running),
            "demand": _number(derived.demand),
            "kv": _percent(sample.kv_usage),
            "sustainable": _number(derived.sustainable),
            "headroom": _signed(derived.headroom),
            "ratio": _ratio(derived.ratio),
            "binding": derived.binding or _UNKNOWN,
            "spike": _multiple(derived.spike_multiple),
            "step": _step(rank.memory.fit).replace(" ", ""),
        }
        values = " ".join(f"{key}={value}" for key, value in known.items())
        return _printable(f"{prefix}{engine.name} state={derived.state} {values}")
    errors = [engine.last_error for engine in state.engines if engine.last_error]
    return _printable(f"{prefix}state=unknown {errors[0] if errors else 'not asked yet'}")


def demand_now(state: State, now: float) -> float | None:
    """Demand of the first rank; None where it is not known."""
    for _, rank in _fresh_ranks(state, now):
        return None if rank.derived is None else rank.derived.demand
    return None


def _fresh_ranks(state: State, now: float) -> list[tuple[EngineState, RankState]]:
    return [
        (engine, rank)
        for engine in state.engines
        if is_fresh(engine, now)
        for rank in engine.ranks
        if rank.sample is not None
    ]


def _engine_lines(engine: EngineState, scene: Scene, now: float) -> list[str]:
    """One engine: how it is polled, then its ranks."""
    if not is_fresh(engine, now):
        why = engine.last_error or "not asked yet"
        return [_field("engine", f"{engine.name}   no data: {why}"), _field("state", "unknown")]
    version = f"{engine.kind or 'unknown engine'} {engine.version or ''}".strip()
    how = f"{engine.name}   {version}   poll: {engine.poll_mode or 'starting'}"
    lines = [_field("engine", how if engine.up else f"{how}   {engine.last_error}")]
    for rank in engine.ranks[:_MAX_RANKS]:
        lines += _rank_lines(rank, scene)
    if not engine.ranks:
        lines.append(_field("state", "unknown"))
    if len(engine.ranks) > _MAX_RANKS:
        lines.append(_field("", f"and {len(engine.ranks) - _MAX_RANKS} ranks more"))
    return lines


def _rank_lines(rank: RankState, scene: Scene) -> list[str]:
    """One rank: its table."""
    sample, derived = rank.sample, rank.derived
    head = _field("model", f"{rank.model_name}   rank {rank.rank}")
    if sample is None or derived is None:
        return [head, _field("state", "unknown")]
    spike = _multiple(derived.spike_multiple)
    if scene.plan is not None:
        spike += f" of recent demand; the plan wants {scene.plan.spike_factor:g}x"
    return [
        head,
        _field("state", f"{derived.state}   {derived.reason}"),
        _field("effective batch", f"{_number(sample.running)} sequences"),
        _field("demand", _demand(sample, derived)),
        _field("KV occupancy", _occupancy(sample)),
        _field("capacity", _capacities(derived)),
        _field(
            "headroom",
            f"{_signed(derived.headroom)} sequences   ratio {_ratio(derived.ratio)}"
            f"   sustainable {_number(derived.sustainable)}"
            f"   binding {derived.binding or 'unknown'}",
        ),
        _field("spike multiple", spike),
        _field("step time", _step(rank.memory.fit)),
    ]


def _gpu_lines(gpu: GpuState, now: float) -> list[str]:
    """The GPUs: who holds their memory, what they draw, whether they are busy."""
    if gpu.read_at is None or now - gpu.read_at > GPU_STALE_SECONDS:
        return []
    lines = [_field(f"gpu {each.index}", _gpu(each)) for each in gpu.gpus[:_MAX_GPUS]]
    if len(gpu.gpus) > _MAX_GPUS:
        lines.append(_field("", f"and {len(gpu.gpus) - _MAX_GPUS} GPUs more"))
    return lines


def _gpu(gpu: GpuSample) -> str:
    owners = gpu.memory_by_owner
    used = (
        f"{_gib(gpu.memory_used)} used"
        if owners is None
        else f"{_gib(owners.get('engine'))} engine + {_gib(owners.get('other'))} other"
    )
    return (
        f"{gpu.name or 'GPU'}   {used} of {_gib(gpu.memory_total)} GiB"
        f"   {_number(gpu.power)} of {_number(gpu.power_limit)} W   busy {_percent(gpu.utilization)}"
    )


def _gib(size: int | None) -> str:
    return _UNKNOWN if size is None else f"{size / GIB:.3g}"


def _field(name: str, text: str) -> str:
    return f"  {name:<18}{text}"


def _demand(sample: RankSample, derived: Derived) -> str:
    parts = f"{_number(sample.running)} running + {_number(sample.waiting)} waiting"
    return f"{_number(derived.demand)} = {parts}"


def _occupancy(sample: RankSample) -> str:
    if sample.kv_usage is None:
        return _UNKNOWN
    filled = round(min(1.0, max(0.0, sample.kv_usage)) * 30)
    size = sample.kv_capacity_tokens
    tokens = "" if size is None else f" of {size:,.0f} tokens"
    return f"{_percent(sample.kv_usage):>4} {'█' * filled}{'░' * (30 - filled)}{tokens}"


def _capacities(derived: Derived) -> str:
    """Capacity by constraint, the binding one marked."""
    parts = []
    for constraint in Constraint:
        mark = "*" if constraint == derived.binding else ""
        parts.append(f"{constraint}{mark} {_number(derived.capacities.get(constraint))}")
    return "   ".join(parts)


def _step(fit: StepFit | None) -> str:
    if fit is None or fit.fixed is None or fit.per_sequence is None:
        return "unknown"
    return f"{fit.fixed * 1e3:.1f} ms + {fit.per_sequence * 1e3:.2f} ms x batch"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _signed(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:+,.0f}"


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


def _multiple(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1f}x"


def _spark(levels: Sequence[float | None]) -> str:
    """A line of bars, the highest level its full height; a gap is a blank."""
    known = [level for level in levels if level is not None]
    top = max(1.0, *known)
    bars = "".join(
        " " if level is None else _BARS[round(level / top * (len(_BARS) - 1))] for level in levels
    )
    return f"{bars}  up to {_number(max(known))}"


def _printable(line: str) -> str:
    """A line that cannot move the cursor, whatever an engine calls its model."""
    return "".join(char if char.isprintable() else "?" for char in line)


def _coloured(line: str) -> str:
    """The line with its state in colour, if it is the line of a state."""
    name, _, rest = line.strip().partition(" ")
    word = rest.strip().partition(" ")[0]
    if name != "state" or word not in _COLOURS:
        return line
    painted = f"\x1b[{_COLOURS[HeadroomState(word)]}m{word.upper()}\x1b[0m"
    return line.replace(word, painted, 1)


# --- drawing it ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _View:
    """Redraws a terminal, or writes a line a second where there is none."""

    exporter: app.Exporter
    scene: Scene
    trace: deque[float | None] = field(default_factory=lambda: deque(maxlen=_TRACE_CELLS))
    drawn: int = 0

    async def run(self) -> None:
        """Show until cancelled."""
        terminal = sys.stdout.isatty()
        traced_at = -_TRACE_SECONDS
        if terminal:
            _write("\x1b[?25l")
        try:
            while True:
                now = time.monotonic()
                if now - traced_at >= _TRACE_SECONDS / _TRACE_CELLS:
                    traced_at = now
                    self.trace.append(demand_now(self.exporter.state, now))
                if terminal:
                    self._redraw(now)
                else:
                    line = summary(self.exporter.state, self.scene, now=now)
                    _write(f"{time.strftime('%H:%M:%S')} {line}\n")
                await asyncio.sleep(_REDRAW_SECONDS if terminal else _LINE_SECONDS)
        finally:
            if terminal:
                _write("\x1b[?25h\n")

    def _redraw(self, now: float) -> None:
        """Write over the last picture; never more lines than the terminal has."""
        size = shutil.get_terminal_size()
        lines = render(
            self.exporter.state,
            self.scene,
            now=now,
            trace=self.trace,
            width=size.columns - 1,
            colour="NO_COLOR" not in os.environ,
        )[: size.lines - 1]
        back = f"\x1b[{self.drawn}F" if self.drawn else ""
        _write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self.drawn = len(lines)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# --- running it ----------------------------------------------------------------------------------


def main(url: str | None, listen: str, duration: float | None) -> int:
    """
    Run the demo until SIGINT or SIGTERM.

    Args:
        url: The vLLM to watch; None for one on localhost:8000, or else a simulated one.
        listen: Where the exporter listens, ``host:port``.
        duration: Seconds after which it ends by itself; None for never.

    Returns:
        Exit status: 0.

    Raises:
        ConfigError: an address cannot be used.
    """
    web.parse_listen(listen)
    # The table says what is wrong; log lines would only tear it.
    logs.setup("error" if sys.stdout.isatty() else "warn")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # bars, on a terminal that has none
    try:
        asyncio.run(_run(url, listen, duration))
    except BrokenPipeError:
        # Whoever read the lines has seen enough. Else Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


async def _run(url: str | None, listen: str, duration: float | None) -> None:
    """Find or start an engine, then watch it."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    watched = url or await find_local(LOCAL_VLLM)
    async with contextlib.AsyncExitStack() as stack:
        if watched is not None:
            exporter = app.Exporter(
                Config(engines=(EngineConfig(name=_name(watched), url=watched),))
            )
            scene = Scene(url=watched, metrics_url=_metrics_url(listen), simulated=False)
        else:
            frontend = Frontend(find(PROFILE))
            load = TraceLoad(repeat(partial(read, TRACE), TRACE_SECONDS))
            served = await stack.enter_async_context(serve(frontend, load))
            exporter = _simulated_exporter(served.url, frontend)
            metrics_url = _metrics_url(listen)
            scene = Scene(url=served.url, metrics_url=metrics_url, simulated=True, plan=PLAN)
        _write(_hello(scene))
        if not stop.is_set():
            await _watch(exporter, scene, listen, duration)


async def _watch(exporter: app.Exporter, scene: Scene, listen: str, duration: float | None) -> None:
    """Run the exporter and the view side by side until one ends, or time is up."""
    serving = asyncio.create_task(app.serve(exporter, [listen]), name="serve")
    viewing = asyncio.create_task(_View(exporter, scene).run(), name="view")
    tasks = (viewing, serving)
    try:
        done, _ = await asyncio.wait(tasks, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _simulated_exporter(url: str, frontend: Frontend) -> app.Exporter:
    """An exporter with the demo's plan, beside the simulated engine and GPUs that follow it."""

    def load() -> float:
        gauges = frontend.engines[0].gauges
        return 0.0 if gauges is None else gauges.kv_usage

    config = Config(
        engines=(EngineConfig(name="simulated", url=url),),
        plans=(PLAN,),
        poll=PollConfig(interval=0.5, full_interval=5.0),
    )
    return app.Exporter(config, gpu_source=SimulatedGpus(load, card=RTX_4090), simulated=True)


async def find_local(url: str) -> str | None:
    """The address if a vLLM answers there at once; else None."""
    limit = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.get(f"{url}/metrics", allow_redirects=False) as answer,
        ):
            if answer.status == 200 and b"\nvllm:" in await answer.content.read(1_000_000):
                return url
    return None


def _name(url: str) -> str:
    return urlsplit(url).netloc or url


def _metrics_url(listen: str) -> str:
    host, port = web.parse_listen(listen)
    shown = f"[{host}]" if host and ":" in host else host
    return f"http://{shown or '127.0.0.1'}:{port}/metrics"


def _hello(scene: Scene) -> str:
    what = (
        f"No vLLM on {LOCAL_VLLM}: watching a SIMULATED one ({PROFILE}).\n"
        "It replays real traffic (Azure 2023, CC-BY 4.0) that outgrows the plan and recovers, every "
        f"{TRACE_SECONDS:.0f} s.\n"
        if scene.simulated
        else f"Watching {scene.url}\n"
    )
    page = scene.metrics_url.removesuffix("metrics")
    return f"Status page: {page}\n{what}Metrics: {scene.metrics_url}   Ctrl-C ends.\n\n"
