"""What an exporter takes where nothing goes wrong, and beside an engine that tells too much."""

from __future__ import annotations

import contextlib
import time
import urllib.error
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvml import build as nvml
from soak.processes import PATIENCE, compile_all, environment, exporter, look, page, started, world
from soak.soaking import UP, free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from soak.processes import World

# As the chart's PodMonitor asks.
SCRAPE_SECONDS = 15.0
WARM_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One thing to measure.

    Attributes:
        title: For the table.
        pods: In node mode; None: a sidecar of one engine.
        gpus: Whether the fake NVML library is there.
        mapped: Whether the kubelet is asked (gRPC).
        fault: What every engine does from the start on; None: nothing is wrong.
        beyond: It is more than a limit is for.
    """

    title: str
    pods: int | None = None
    gpus: bool = True
    mapped: bool = False
    fault: str | None = None
    beyond: bool = False


CASES = (
    Case(title="sidecar, 1 engine, no GPU library", gpus=False),
    Case(title="sidecar, 1 engine"),
    Case(title="node mode, 8 pods", pods=8),
    Case(title="node mode, 8 pods, GPUs mapped (gRPC)", pods=8, mapped=True),
    Case(title="node mode, 32 pods", pods=32),
    Case(title="node mode, 32 pods, GPUs mapped (gRPC)", pods=32, mapped=True),
    Case(title="sidecar, pages of 7 MiB that nobody wants", fault="big"),
    Case(title="sidecar, pages of 7 MiB in lines of 2 bytes", fault="short_lines"),
    Case(title="sidecar, 2,000 ranks with new names on each page", fault="many_labels"),
    Case(title="node mode, 8 pods, all with pages of 7 MiB", pods=8, fault="big"),
    Case(title="node mode, 8 pods, all with 2,000 new ranks", pods=8, fault="many_labels"),
    Case(title="node mode, 32 pods, all with pages of 7 MiB", pods=32, fault="big", beyond=True),
)


@dataclass(kw_only=True)
class Cost:
    """
    What was measured. Bytes, CPU seconds, seconds.

    Attributes:
        warm: Resident, WARM_SECONDS after every engine was up.
        late: Resident at the end.
        peak: The most ever.
        private: Of ``late`` what nobody shares.
        cpu: From warm to the end.
        seconds: The same in wall time.
    """

    title: str
    hostile: bool
    beyond: bool
    engines: int
    series: int
    warm: float
    late: float
    peak: float
    private: float
    cpu: float
    seconds: float


class _Run:
    """One exporter that is being measured."""

    def __init__(
        self, case: Case, process: subprocess.Popen[str], port: int, log: Path, around: World
    ) -> None:
        self.case, self.process, self.port, self.log = case, process, port, log
        self.world = around
        self.text = ""

    def scrape(self) -> None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            self.text = page(self.port)

    def all_up(self) -> bool:
        self.scrape()
        states = UP.findall(self.text)
        return len(states) == (self.case.pods or 1) and all(float(up) for _, up in states)


@contextlib.contextmanager
def _running(case: Case, folder: Path) -> Iterator[_Run]:
    """An exporter with what it watches."""
    folder.mkdir()
    # Byte code that is ready: compiling leaves 15 MiB behind.
    (folder / "code").symlink_to(folder.parent / "code")
    port, log = free_port(), folder / "exporter.log"
    kind = "alone_mapped" if case.mapped else "alone"
    with world(folder, 1, case.pods or 1, kind=kind) as around:
        if case.pods is not None:
            with exporter(folder, around.api, port, gpus=case.gpus) as process:
                yield _Run(case, process, port, log, around)
            return
        config = folder / "sidecar.yaml"
        config.write_text(f"engines: [{{url: '{around.engine}'}}]\n", encoding="utf-8")
        more = {}
        if case.gpus:
            library = nvml.build(folder / "nvml")
            script = folder / "one.script"
            script.write_text("gpus - - 1\n")
            more = {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_SCRIPT": str(script)}
        arguments = ["-m", "headroom_exporter", "run", "--config", str(config)]
        arguments += ["--log.format", "json", "--web.listen-address", f"127.0.0.1:{port}"]
        with started(arguments, environment(folder / "code", **more), log) as process:
            yield _Run(case, process, port, log, around)


def measure(folder: Path, minutes: float) -> list[Cost]:
    """
    Measure every case, all at once: memory and CPU seconds take no notice of each other.

    Args:
        folder: For all files; made here.
        minutes: From all engines being up to the last look.
    """
    folder.mkdir(parents=True)
    compile_all(folder / "code")
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(_running(case, folder / str(number)))
            for number, case in enumerate(CASES)
        ]
        ended = time.monotonic() + PATIENCE
        while not all(each.all_up() for each in runs):
            if time.monotonic() > ended:
                raise RuntimeError("not every engine came up")
            time.sleep(1.0)
        for each in runs:
            if each.case.fault is not None:
                each.world.tell(f"all {each.case.fault}")
        _scrape(runs, WARM_SECONDS)
        warm = [look(each.process.pid, each.log) for each in runs]
        _scrape(runs, 60 * minutes - WARM_SECONDS)
        late = [look(each.process.pid, each.log) for each in runs]
        return [
            Cost(
                title=run.case.title,
                hostile=run.case.fault is not None,
                beyond=run.case.beyond,
                engines=run.case.pods or 1,
                series=sum(not line.startswith("#") for line in run.text.splitlines()),
                warm=first.rss,
                late=last.rss,
                peak=last.peak,
                private=last.uss,
                cpu=last.cpu - first.cpu,
                seconds=last.at - first.at,
            )
            for run, first, last in zip(runs, warm, late, strict=True)
        ]


def _scrape(runs: list[_Run], seconds: float) -> None:
    """Scrape all of them for so long."""
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        for each in runs:
            each.scrape()
        time.sleep(max(0.0, min(SCRAPE_SECONDS, ended - time.monotonic())))
