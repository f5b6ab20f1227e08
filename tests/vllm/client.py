"""
A load client that knows the truth: it logs the start and the end of every request it makes.

It runs in a process of its own, so that measuring disturbs neither the tests nor the exporter:

    python client.py SPECIFICATION.json

``run_load`` starts it; ``read_log`` and ``mean_in_flight`` read what it saw. Prompts are random
token ids, so prefix caching finds nothing; ``ignore_eos`` makes output lengths exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Ids below this are the special tokens of model.py; ids from VOCABULARY on do not exist.
FIRST_ORDINARY_ID = 3
VOCABULARY = 4096
# Pause of a closed-loop client after a request that failed: the server may be restarting.
RETRY_SECONDS = 0.2
REQUEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """
    A stretch of load.

    Attributes:
        seconds: How long new requests are started.
        clients: Closed loop: each client sends its next request when its last one has ended. Where
            the phase before had fewer, the missing ones join; where it had more, the surplus ones
            leave when their request ends.
        rate: Open loop, beside the clients: requests per second, Poisson.
    """

    seconds: float
    clients: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One request as the client saw it.

    Attributes:
        start: Monotonic seconds just before it was sent; the clock is the machine's own, so other
            processes may compare. ``start_unix`` is the same moment for people.
        end: Monotonic seconds when its whole answer had been read, or it failed.
        status: HTTP status; 0 where there was no answer.
        error: Name of the exception where there was no answer.
    """

    start: float
    end: float
    start_unix: float
    end_unix: float
    prompt_tokens: int
    output_tokens: int
    status: int
    error: str = ""


class Load:
    """The client's process. ``wait`` for its end or ``stop`` it: running requests are cut short."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, seconds: float) -> None:
        self.log_path = log_path
        self._process = process
        self._seconds = seconds

    def wait(self, drain_seconds: float = 60.0) -> list[Request]:
        """
        Wait until the last request of the last phase has ended; return all of them.

        Raises:
            subprocess.TimeoutExpired: it takes ``drain_seconds`` longer than the phases.
            subprocess.CalledProcessError: the client failed.
        """
        status = self._process.wait(self._seconds + drain_seconds)
        if status:
            raise subprocess.CalledProcessError(status, self._process.args)
        return self.requests()

    def requests(self) -> list[Request]:
        """Those that have ended so far."""
        return read_log(self.log_path)

    def stop(self) -> None:
        """End it now, if it still runs; requests in flight are logged as cut short."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_load(
    url: str,
    phases: Sequence[Phase],
    *,
    log_path: Path,
    prompt_tokens: tuple[int, int] = (100, 250),
    output_tokens: tuple[int, int] = (150, 300),
    seed: int = 1,
    model: str = "tiny",
) -> Load:
    """
    Start the load in a process of its own.

    Args:
        prompt_tokens: Least and most, uniform; ``output_tokens`` likewise.
        log_path: JSON lines, one for each request, written when it ends; begun anew.
    """
    specification = {
        "url": url,
        "model": model,
        "phases": [asdict(phase) for phase in phases],
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "seed": seed,
        "log_path": str(log_path),
    }
    specification_path = log_path.with_suffix(".spec.json")
    specification_path.write_text(json.dumps(specification), encoding="utf-8")
    log_path.write_bytes(b"")
    # setpriv is of Debian's util-linux. Should the tests be killed, the load ends as well.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", sys.executable, __file__, str(specification_path)]
    )
    return Load(process, log_path, sum(phase.seconds for phase in phases))


def read_log(path: Path) -> list[Request]:
    """Every request that has ended so far, in the order of their ends."""
    text = path.read_text(encoding="utf-8")
    # A line without its end is still being written.
    complete = text[: text.rfind("\n") + 1]
    return [Request(**json.loads(line)) for line in complete.splitlines()]


def mean_in_flight(log: Iterable[Request], t0: float, t1: float) -> float:
    """
    Time-weighted mean number of requests between their start and their end, over [t0, t1].

    Args:
        log: Every request that was in flight at any time in it.
        t0: Monotonic seconds; t1 likewise, later.
    Raises:
        ValueError: t1 is not after t0.
    """
    if t1 <= t0:
        raise ValueError(f"no time between {t0} and {t1}")
    overlaps = (min(request.end, t1) - max(request.start, t0) for request in log)
    return sum(overlap for overlap in overlaps if overlap > 0) / (t1 - t0)


# --- the process itself --------------------------------------------------------------------------


class _Client:
    """Sends requests and writes the log."""

    def __init__(
        self, specification: dict[str, Any], session: aiohttp.ClientSession, log: IO[str]
    ) -> None:
        self._address = specification["url"] + "/v1/completions"
        self._model = specification["model"]
        self._prompt_range = specification["prompt_tokens"]
        self._output_range = specification["output_tokens"]
        self._random = random.Random(specification["seed"])
        self._session = session
        self._log = log

    async def closed_loop(self, turns: Sequence[tuple[float, float]]) -> None:
        """One client: in each of its turns (start, end), request after request."""
        for start, end in turns:
            await asyncio.sleep(start - time.monotonic())
            while time.monotonic() < end:
                if await self.request() != 200:
                    await asyncio.sleep(RETRY_SECONDS)

    async def open_loop(self, rate: float, start: float, end: float) -> None:
        """Poisson arrivals from start to end; returns when the last has been answered."""
        async with asyncio.TaskGroup() as group:
            due = start + self._random.expovariate(rate)
            while due < end:
                await asyncio.sleep(due - time.monotonic())
                group.create_task(self.request())
                due += self._random.expovariate(rate)

    async def request(self) -> int:
        """Send one request, log it, return its status (0 without an answer)."""
        prompt = self._random.randint(*self._prompt_range)
        output = self._random.randint(*self._output_range)
        body = {
            "model": self._model,
            "prompt": self._random.choices(range(FIRST_ORDINARY_ID, VOCABULARY), k=prompt),
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
        }
        status, error = 0, "CutShort"
        start, start_unix = time.monotonic(), time.time()
        try:
            async with self._session.post(self._address, json=body) as answer:
                await answer.read()
                status, error = answer.status, ""
        except (OSError, TimeoutError, aiohttp.ClientError) as failure:
            error = type(failure).__name__
        finally:
            record = Request(
                start=start,
                end=time.monotonic(),
                start_unix=start_unix,
                end_unix=time.time(),
                prompt_tokens=prompt,
                output_tokens=output if status == 200 else 0,
                status=status,
                error=error,
            )
            self._log.write(json.dumps(asdict(record)) + "\n")
        return status


def _spans(phases: Sequence[Phase], start: float) -> list[tuple[float, float]]:
    """Start and end of each phase."""
    spans = []
    for phase in phases:
        spans.append((start, start + phase.seconds))
        start += phase.seconds
    return spans


async def _run(specification: dict[str, Any], log: IO[str]) -> None:
    """All phases on time; returns when the last request has been answered. SIGTERM cancels."""
    running = asyncio.current_task()
    if running is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    phases = [Phase(**entry) for entry in specification["phases"]]
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = _Client(specification, session, log)
        timed = list(zip(phases, _spans(phases, time.monotonic()), strict=True))
        async with asyncio.TaskGroup() as group:
            for number in range(max(phase.clients for phase in phases)):
                turns = [span for phase, span in timed if number < phase.clients]
                group.create_task(client.closed_loop(turns))
            for phase, (start, end) in timed:
                if phase.rate:
                    group.create_task(client.open_loop(phase.rate, start, end))


def main() -> int:
    """Run the specification named by the only argument; SIGTERM ends it early. Return 0."""
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(specification["log_path"])
    # One line at a time, so that a reader sees what has ended while the load goes on.
    with (
        path.open("a", encoding="utf-8", buffering=1) as log,
        contextlib.suppress(asyncio.CancelledError),
    ):
        asyncio.run(_run(specification, log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
