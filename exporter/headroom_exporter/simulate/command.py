"""``headroom-exporter simulate``: a trace on a simulated server, served as vLLM serves it."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter.errors import ConfigError, ListenError
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.dialects import DIALECTS
from headroom_exporter.simulate.events import parse_event
from headroom_exporter.simulate.frontend import Frontend, Limits
from headroom_exporter.simulate.load import TraceLoad
from headroom_exporter.simulate.profiles import Profile, find, profiles
from headroom_exporter.simulate.progress import Progress, span
from headroom_exporter.simulate.server import RealTimeRunner, serve
from headroom_exporter.simulate.trace import Columns, read
from headroom_exporter.simulate.traffic import (
    Survey,
    repeat,
    scale,
    select,
    survey,
    with_prefix_hits,
)
from headroom_exporter.web import parse_listen

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from headroom_exporter.simulate.requests import Request
    from headroom_exporter.simulate.traffic import Arrivals

_REDRAW_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """
    What is played.

    Attributes:
        arrivals: Opens it from its beginning, which is 0.
        survey: What it amounts to.
        seconds: How long it lasts.
    """

    arrivals: Arrivals
    survey: Survey
    seconds: float


def run(arguments: argparse.Namespace) -> int:
    """
    Serve until the end, SIGINT or SIGTERM.

    Args:
        arguments: As flags.add_arguments defines them.

    Returns:
        Exit status: 0.

    Raises:
        ConfigError: profile, trace, event or address cannot be used; raised before any port opens.
        ListenError: the address is taken.
    """
    if arguments.profiles:
        sys.stdout.write(_listed(profiles()))
        return 0
    host, port = _address(arguments.listen)
    frontend = make_frontend(arguments)
    traffic = read_traffic(arguments)
    _say(_introduction(arguments, frontend.profile, traffic))
    try:
        asyncio.run(_serve(arguments, frontend, traffic, host, port))
    except OSError as error:
        raise ListenError(
            f"--listen: {arguments.listen}: cannot be used: {error.strerror or error}; allowed: an "
            "address of this machine and a free port"
        ) from error
    _say(_summary(frontend))
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


# --- what the flags mean -------------------------------------------------------------------------


def _address(text: str) -> tuple[str | None, int]:
    try:
        return parse_listen(text)
    except ConfigError:
        raise ConfigError(
            f"--listen: {text!r}: must be HOST:PORT, :PORT or [IPV6]:PORT with a port from 0 to 65535"
        ) from None


def make_frontend(arguments: argparse.Namespace) -> Frontend:
    """
    The server that the flags describe, at the beginning of its time.

    Raises:
        ConfigError: profile, limits or an event cannot be used.
    """
    return Frontend(
        _profile(arguments),
        ranks=arguments.ranks,
        limits=Limits(
            max_num_queued_reqs=arguments.max_num_queued_reqs,
            max_num_queued_tokens=arguments.max_num_queued_tokens,
        ),
        events=[parse_event(text) for text in arguments.event],
        start_seconds=arguments.start_seconds,
        api_servers=arguments.api_servers,
        dialect=DIALECTS[arguments.dialect],
    )


def _profile(arguments: argparse.Namespace) -> Profile:
    """The profile, with the limits that flags put in its place."""
    names = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_gpu_blocks")
    given = {name: getattr(arguments, name) for name in names}
    return replace(
        find(arguments.profile), **{name: value for name, value in given.items() if value}
    )


def read_traffic(arguments: argparse.Namespace) -> Traffic:
    """
    The traffic that the flags choose; read once to the end, so that errors show now.

    Raises:
        ConfigError: there is none, or a row of it cannot be used.
    """
    if arguments.trace is None:
        raise ConfigError("--trace: must be given: a CSV file, or synthetic:KIND")
    length = inf
    if arguments.trace.startswith(generators.PREFIX):
        synthetic = generators.parse(arguments.trace)
        length = synthetic.duration
        source: Arrivals = synthetic.requests
    else:
        columns = Columns(arrival=arguments.arrival_column, cached=arguments.cached_column)
        source = partial(read, Path(arguments.trace), columns)
    arrivals = partial(_chosen, arguments, source)
    seen = survey(arrivals())
    if not seen.requests:
        raise ConfigError(f"{arguments.trace}: no request between --from and --to")
    seconds = min(arguments.end, length) - arguments.start
    if seconds == inf:
        # The next request would have come about so much later.
        seconds = seen.last * (1 + 1 / seen.requests) or 1.0
    return Traffic(arrivals=arrivals, survey=seen, seconds=seconds)


def _chosen(arguments: argparse.Namespace, source: Arrivals) -> Iterator[Request]:
    requests = select(
        source(), start=arguments.start, end=arguments.end, keep_every=arguments.keep_every
    )
    requests = scale(requests, arguments.scale, arguments.seed)
    if arguments.prefix_hits is not None:
        requests = with_prefix_hits(requests, arguments.prefix_hits)
    return requests


# --- serving -------------------------------------------------------------------------------------


async def _serve(
    arguments: argparse.Namespace,
    frontend: Frontend,
    traffic: Traffic,
    host: str | None,
    port: int,
) -> None:
    """Serve until a signal, or the end where that is what was asked for."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    loops = arguments.at_end == "loop"
    load = TraceLoad(repeat(traffic.arrivals, traffic.seconds) if loops else traffic.arrivals())
    async with serve(frontend, load, host=host, port=port, speed=arguments.speed) as served:
        _say(f"serving on {served.url}{frontend.dialect.path}   Ctrl-C ends\n")
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(
            _watch(served.runner, load, traffic.seconds, arguments.at_end)
        )
        tasks = {stopping, watching, served.ticking}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, watching):
                task.cancel()
            await asyncio.gather(stopping, watching, return_exceptions=True)


async def _watch(runner: RealTimeRunner, load: TraceLoad, seconds: float, at_end: str) -> None:
    """Draw the progress; return at the end of everything where that is wanted."""
    frontend, progress, told = runner.frontend, Progress(sys.stderr, seconds), False
    try:
        while True:
            over = load.over and not frontend.unfinished
            if over and at_end == "stop":
                return
            if over and not told:
                progress.clear()
                _say(f"the traffic is over; {runner.frontend.clock:.0f} s were simulated\n")
                told = True
            if not told:
                rounds, done = divmod(frontend.clock, seconds)
                if at_end != "loop" and rounds:  # the last requests are still on their way
                    done = seconds
                left = None if at_end == "loop" else (seconds - done) / runner.speed
                progress.draw(done, left, _now(runner))
            await asyncio.sleep(_REDRAW_SECONDS)
    finally:
        progress.clear()


def _now(runner: RealTimeRunner) -> str:
    """The engines in a few words."""
    frontend = runner.frontend
    if not frontend.up:
        return "starting"
    running = sum(engine.running for engine in frontend.engines)
    waiting = sum(engine.waiting for engine in frontend.engines)
    usage = max(engine.used_blocks / engine.profile.usable_blocks for engine in frontend.engines)
    late = f"   {span(runner.dropped)} dropped: too fast" if runner.dropped > 1 else ""
    return f"running {running}   waiting {waiting}   KV {usage:.0%}{late}"


# --- words ---------------------------------------------------------------------------------------


def _introduction(arguments: argparse.Namespace, profile: Profile, traffic: Traffic) -> str:
    seen = traffic.survey
    mean_prompt, mean_output = (
        seen.prompt_tokens / seen.requests,
        seen.output_tokens / seen.requests,
    )
    speed = f", {arguments.speed:g} times as fast" if arguments.speed != 1 else ""
    dialect = DIALECTS[arguments.dialect]
    words = "" if dialect.name == "vllm" else f" in the words of {dialect.title}"
    return (
        f"SIMULATED vLLM{words}: {profile.name} ({profile.basis or 'own'}: {profile.source})\n"
        f"KV pool {profile.pool_tokens:,} tokens, {profile.max_num_seqs} slots"
        f"{f', {arguments.ranks} ranks' if arguments.ranks > 1 else ''}\n"
        f"{arguments.trace}: {seen.requests:,} requests in {span(traffic.seconds)} "
        f"({seen.requests / traffic.seconds:.2f} per second), {mean_prompt:,.0f} prompt and "
        f"{mean_output:,.0f} output tokens on average{speed}\n"
    )


def _summary(frontend: Frontend) -> str:
    """What became of the requests."""
    fates = frontend.fates
    parts = {
        "finished": frontend.finished,
        "left by their clients": frontend.hung_up,
        "rejected": fates.rejected,
        "too long": fates.refused,
        "lost": fates.lost,
        "unfinished": frontend.unfinished,
    }
    known = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
    return f"{span(frontend.clock)} simulated; requests: {known or 'none'}\n"


def _listed(known: tuple[Profile, ...]) -> str:
    """The profiles as a table."""
    lines = [f"{'NAME':<26}{'GPUS':<14}{'KV TOKENS':>10}{'SLOTS':>7}  BASIS   FIT"]
    for profile in known:
        gpus = f"{profile.gpus} x {profile.gpu}" if profile.gpus > 1 else profile.gpu
        lines.append(
            f"{profile.name:<26}{gpus:<14}{profile.pool_tokens:>10,}{profile.max_num_seqs:>7}"
            f"  {profile.basis:<8}{profile.quality}"
        )
    return "\n".join(lines) + "\n"
