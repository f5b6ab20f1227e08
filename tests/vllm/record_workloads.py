"""
Send lists of requests to a real vLLM and keep what it did, for ``make validate-simulator``.

    PYTHONPATH=tests python -m vllm.record_workloads DIRECTORY [WORKLOAD ...] [--repeat N] ...

HEADROOM_VLLM_VENV names the environment that holds vLLM. One server for each run. ``DIRECTORY`` gets,
of each run, every request (due, sent, first token, last token), ten polls a second of the gauges and
counters that the exporter reads, and a summary. The scheduler logs its steps (step_log.py): the summary
has their sums, ``--keep-steps`` keeps every one, ``--stock`` does without.

A run must not depend on who else uses the machine. Ours go first (a fixed priority, where that is
allowed), and what is left of every core is kept busy: virtual cores may share a real one, and then a
step takes up to 1.6 times as long while the other core works, on whatever.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.run_files import Recorded, write
from vllm.scrape import Page, grown, scrape
from vllm.server import MODEL_NAME, VllmServer
from vllm.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.1
# From the start of the client to the list's time 0: it makes its prompts in between.
LEAD_SECONDS = 4.0
MODEL_SECONDS = 120
DRAIN_SECONDS = 300
REAL_TIME_PRIORITY = 1
BURNER = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    sum(n * n for n in range(1000))
"""
POLLED = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "steps": "vllm:iteration_tokens_total_count",
}
SUMS = (
    "vllm:time_to_first_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:iteration_tokens_total",
)


# --- the machine ---------------------------------------------------------------------------------


@contextlib.contextmanager
def no_idle_cores() -> Iterator[list[int]]:
    """Keep every core busy with something that yields to everybody; yields its process ids."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", BURNER]
    burners = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield [burner.pid for burner in burners]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def busy_seconds() -> float:
    """Processor seconds of the whole machine that were not idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(pids: Sequence[int]) -> float:
    """Processor seconds of these processes, of those that are left."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


class Usage:
    """Processor seconds since it was made: of named groups of processes, and of everybody else."""

    def __init__(self, groups: dict[str, list[int]]) -> None:
        self._groups = groups
        self._all = busy_seconds()
        self._before = {name: process_seconds(pids) for name, pids in groups.items()}
        self.seconds: dict[str, float] = {}

    def update(self) -> None:
        """Call it while the processes live."""
        now = {name: process_seconds(pids) for name, pids in self._groups.items()}
        self.seconds = {name: round(now[name] - self._before[name], 2) for name in now}
        self.seconds["others"] = round(busy_seconds() - self._all - sum(self.seconds.values()), 2)


# --- one run -------------------------------------------------------------------------------------


class Poller:
    """Reads the polled samples over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._path = "/metrics/?" + "&".join(f"name[]={name}" for name in POLLED.values())

    def poll(self) -> tuple[float, ...]:
        """Monotonic seconds at which the page was there, and the values in the order of POLLED."""
        self._connection.request("GET", self._path)
        page = Page(self._connection.getresponse().read().decode(), time.monotonic())
        return (page.at, *(page.need(name) for name in POLLED.values()))


def make_model(interpreter: Path, directory: Path) -> Path:
    """Make the tiny model."""
    model = directory / "model"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["TMPDIR"] = str(directory)
    subprocess.run(
        [interpreter, HERE / "model.py", model], check=True, timeout=MODEL_SECONDS, env=environment
    )
    return model


def start_client(
    server: VllmServer, rows: Sequence[tuple[float, int, int]], seed: int, start: float, log: Path
) -> subprocess.Popen[bytes]:
    """Start the client; it writes ``log`` when the last answer is there."""
    specification = {
        "url": server.url,
        "model": MODEL_NAME,
        "requests": rows,
        "seed": seed,
        "start": start,
        "log_path": str(log),
    }
    path = log.with_suffix(".spec.json")
    path.write_text(json.dumps(specification), encoding="utf-8")
    command = [
        "setpriv",
        "--pdeathsig",
        "TERM",
        sys.executable,
        str(HERE / "open_loop.py"),
        str(path),
    ]
    return subprocess.Popen(command)


def warm_up(server: VllmServer, scratch: Path) -> None:
    """Let the engine do its first steps: they are slow, and gauges do not exist before them."""
    rows = [(0.02 * n, 50 + 37 * n, 100) for n in range(24)]
    client = start_client(server, rows, 0, time.monotonic() + 1.0, scratch / "warm-up.json")
    if client.wait(60):
        raise RuntimeError("the warm-up failed")
    time.sleep(1.0)


def record(
    workload: Workload, interpreter: Path, model: Path, scratch: Path, *, logged: bool
) -> Recorded:
    """
    Run a workload on a server of its own.

    Raises:
        RuntimeError: a request failed, or they do not end.
    """
    arguments = ["--max-num-batched-tokens", str(workload.max_num_batched_tokens)]
    if logged:
        os.environ["HEADROOM_STEP_LOG"] = str(scratch)
        arguments += ["--scheduler-cls", "step_log.StepLog"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            VllmServer(
                interpreter,
                model,
                scratch,
                max_num_seqs=workload.max_num_seqs,
                num_gpu_blocks=workload.num_gpu_blocks,
                max_model_len=workload.max_model_len,
                extra_arguments=tuple(arguments),
            )
        )
        burners = stack.enter_context(no_idle_cores())
        warm_up(server, scratch)
        return drive(workload, server, burners, scratch)


def drive(workload: Workload, server: VllmServer, burners: list[int], scratch: Path) -> Recorded:
    """Send the list, poll until the last answer is there."""
    rows = workload.requests()
    log = scratch / "requests.json"
    before = scrape(server.url)
    start = time.monotonic() + LEAD_SECONDS
    client = start_client(server, rows, workload.seed, start, log)
    poller = Poller(server.port)
    time.sleep(max(0.0, start - time.monotonic()))
    usage = Usage(
        {
            "server": [server.pid],
            "engine": [pid for pid in server.processes if pid != server.pid],
            "client": [client.pid],
            "poller": [os.getpid()],
            "burners": burners,
        }
    )
    polls: list[tuple[float, ...]] = []
    due = start
    while client.poll() is None:
        if due > start + rows[-1][0] + DRAIN_SECONDS:
            client.kill()
            raise RuntimeError(f"{workload.name}: the requests do not end")
        usage.update()
        polls.append(poller.poll())
        due += POLL_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
    seconds = time.monotonic() - start
    after = scrape(server.url)
    if client.returncode:
        raise RuntimeError(f"{workload.name}: the client ended with {client.returncode}")
    results = json.loads(log.read_text(encoding="utf-8"))
    if failed := [status for *_, status in results if status != 200]:
        raise RuntimeError(f"{workload.name}: {len(failed)} requests failed, status {failed[0]}")
    summary = summarise(workload, before, after)
    summary["seconds"] = round(seconds, 3)
    summary["cpu_seconds"] = usage.seconds
    return Recorded(
        polled=tuple(POLLED),
        start=start,
        rows=rows,
        results=results,
        polls=polls,
        summary=summary,
    )


def summarise(workload: Workload, before: Page, after: Page) -> dict[str, Any]:
    """Settings of the server, and how much its counters and histograms grew."""
    return {
        "workload": workload.name,
        "vllm": "0.32.0",
        "max_num_seqs": workload.max_num_seqs,
        "num_gpu_blocks": workload.num_gpu_blocks,
        "max_num_batched_tokens": workload.max_num_batched_tokens,
        "max_model_len": workload.max_model_len,
        "traffic": [list(each) for each in workload.traffic],
        "preemptions": grown(before, after, POLLED["preemptions"]),
        "generation_tokens": grown(before, after, POLLED["generation_tokens"]),
        "histograms": {
            name: {
                part: round(grown(before, after, f"{name}_{part}"), 6) for part in ("sum", "count")
            }
            for name in SUMS
        },
    }


def free_stem(directory: Path, workload: str) -> Path:
    """Path of the next repetition, without an ending."""
    number = 1
    while (directory / f"{workload}-{number}.json").exists():
        number += 1
    return directory / f"{workload}-{number}"


def main() -> int:
    """Record what the command line asks for; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("directory", type=Path)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--stock", action="store_true", help="vLLM's own scheduler, without a log")
    parser.add_argument("--keep-steps", action="store_true", help="keep the log of every step")
    options = parser.parse_args()
    interpreter = Path(os.environ.get("HEADROOM_VLLM_VENV") or ".venv-vllm") / "bin" / "python"
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
    options.directory.mkdir(parents=True, exist_ok=True)
    chosen = [each for each in WORKLOADS if not options.workloads or each.name in options.workloads]
    logged = not options.stock
    with tempfile.TemporaryDirectory(prefix="headroom-record-") as name:
        model = make_model(interpreter, Path(name))
        for workload in chosen * options.repeat:
            scratch = Path(tempfile.mkdtemp(dir=name))
            made = record(workload, interpreter, model, scratch, logged=logged)
            stem = free_stem(options.directory, workload.name)
            write(made, scratch, stem, logged=logged, keep_steps=options.keep_steps)
            print(stem, made.summary["seconds"], made.summary["cpu_seconds"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
