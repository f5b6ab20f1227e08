"""One soak: before the misery, in it, and after it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import time
import urllib.error
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from soak.processes import PATIENCE, Sample, World, compile_all, end, exporter, look, page, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

UP = re.compile(r'^headroom_engine_up\{engine="([^"]*)"\} (\S+)$', re.MULTILINE)
RELOADED = re.compile(r"^headroom_config_last_reload_successful (\S+)$", re.MULTILINE)
OWN_FDS = re.compile(r"^headroom_process_open_fds (\S+)$", re.MULTILINE)
# Seconds: for a world that was healed to show; an API server that failed is asked again within 45.
RECOVERY = 120.0


@dataclasses.dataclass(kw_only=True)
class Soak:
    """
    What a soak found.

    Attributes:
        before: Idle, all engines up, before anything went wrong.
        samples: In the misery.
        after: As ``before``, after it.
        empty: With every pod gone.
        problems: What must not be. Empty: none.
        world: What the world told at the end.
        recovery: Seconds until every engine was up after the world had healed.
        stop: Seconds from SIGTERM to the end.
        pods: As ``soak`` was told.
        haste: As ``soak`` was told.
    """

    before: Sample | None = None
    samples: list[Sample] = dataclasses.field(default_factory=list)
    after: Sample | None = None
    empty: Sample | None = None
    problems: list[str] = dataclasses.field(default_factory=list)
    world: dict[str, Any] = dataclasses.field(default_factory=dict)
    recovery: float | None = None
    stop: float | None = None
    pods: int = 14
    haste: float = 1.0


class Bench:
    """One exporter in one world."""

    def __init__(
        self, folder: Path, process: subprocess.Popen[str], around: World, port: int
    ) -> None:
        self.folder, self.process, self.world, self.port = folder, process, around, port
        self.soak = Soak()

    # --- looking ---

    def page(self) -> str | None:
        """The page now; None where there is none."""
        try:
            return page(self.port)
        except (OSError, urllib.error.URLError, ValueError):
            return None

    def up(self) -> dict[str, bool]:
        """Whether each engine is up."""
        return {name: float(value) == 1.0 for name, value in UP.findall(self.page() or "")}

    def sample(self) -> Sample:
        """A look at the exporter, with what its page and the launcher tell."""
        text = self.page()
        os.kill(self.process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        found = look(self.process.pid, self.folder / "exporter.log")
        if text is not None:
            found.series = sum(not line.startswith("#") for line in text.splitlines())
            own = OWN_FDS.search(text)
            found.own_fds = float(own[1]) if own else None
        census = self.folder / "census"
        lines = census.read_text(encoding="utf-8").splitlines() if census.exists() else []
        if lines:
            last = json.loads(lines[-1])
            found.tasks, found.kinds, found.objects = last["tasks"], last["kinds"], last["objects"]
        return found

    def note(self, found: Sample) -> None:
        """Add a sample to the file that survives us."""
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(found)) + "\n")

    def alive(self) -> bool:
        """Whether the exporter still runs; a problem where not."""
        status = self.process.poll()
        if status is not None:
            self.problem(f"the exporter ended with {status}")
        return status is None

    def problem(self, text: str) -> None:
        """Note what must not be."""
        self.soak.problems.append(text)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = RECOVERY) -> float:
        """Wait for something. Returns the seconds it took; a problem where it does not come."""
        began = time.monotonic()
        while not holds():
            if not self.alive() or time.monotonic() > began + seconds:
                self.problem(f"{what}: not within {seconds:g} s")
                break
            time.sleep(0.5)
        return time.monotonic() - began

    # --- the parts of a soak ---

    def all_up(self, names: list[str], what: str) -> float:
        """Wait until these engines and no others are shown, and up."""
        wanted = dict.fromkeys(names, True)
        took = self.until(lambda: self.up() == wanted, what)
        if (shown := self.up()) != wanted:
            wrong = {name for name, up in shown.items() if not up}
            missing, surplus = set(names) - set(shown), set(shown) - set(names)
            self.problem(f"{what}: down {wrong}, missing {missing}, should not be {surplus}")
        return took

    def quiet(self, seconds: float) -> Sample:
        """The least of some samples, since scrapers come and go."""
        ended = time.monotonic() + seconds
        found = [self.sample()]
        while time.monotonic() < ended:
            time.sleep(2.0)
            found.append(self.sample())
        best = min(found, key=lambda each: (each.fds, each.rss))
        best.tasks = min((each.tasks for each in found if each.tasks is not None), default=None)
        best.threads = min(each.threads for each in found)
        best.rss = min(each.rss for each in found)
        return best

    def misery(self, seconds: float, every: float) -> None:
        """Let all go wrong, and look."""
        self.world.tell("wild")
        began = time.monotonic()
        looks = 0
        while (now := time.monotonic()) < began + seconds and self.alive():
            time.sleep(max(0.0, min(began + looks * every, began + seconds) - now))
            found = self.sample()
            self.soak.samples.append(found)
            self.note(found)
            looks += 1
            if looks % 12 == 0:
                self.world.tell("how")

    def reload_wrongly(self, names: list[str]) -> None:
        """A configuration that cannot be used changes nothing but one metric."""
        for command, wanted in (("invalid", 0.0), ("valid", 1.0)):
            self.world.tell(command)

            def said(value: float = wanted) -> bool:
                match = RELOADED.search(self.page() or "")
                return match is not None and float(match[1]) == value

            self.until(said, f"{command} configuration: headroom_config_last_reload_successful")
            if self.up() != dict.fromkeys(names, True):
                self.problem(f"after the {command} configuration: {self.up()}")

    def read_page(self) -> None:
        """The last page must be one that can be read, with each series once."""
        text = self.page()
        if text is None:
            self.problem("no last page")
            return
        seen = set()
        for family in text_string_to_metric_families(text):
            for each in family.samples:
                key = (each.name, *sorted(each.labels.items()))
                if key in seen:
                    self.problem(f"twice on the last page: {key}")
                seen.add(key)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def soak(
    folder: Path, seconds: float, *, pods: int, seed: int, every: float = 5.0, haste: float = 1.0
) -> Soak:
    """
    Soak an exporter.

    Args:
        folder: For all files; made here.
        seconds: Of misery.
        pods: With an engine each; two more are in the configuration file.
        seed: Of all that goes wrong.
        every: Seconds between samples.
        haste: How many times as often things go wrong, for so much shorter.
    """
    folder.mkdir(parents=True)
    compile_all(folder / "code")
    port = free_port()
    rest = min(20.0, max(3.0, seconds / 10))
    with (
        world(folder, seed, pods, haste=haste) as around,
        exporter(folder, around.api, port) as process,
    ):
        bench = Bench(folder, process, around, port)
        bench.soak.pods, bench.soak.haste = pods, haste
        bench.until(lambda: bench.page() is not None, "the first page", PATIENCE)
        if not bench.alive():
            return bench.soak
        names = around.tell(f"start {port} {process.pid}")["engines"]
        bench.all_up(names, "at the start")
        bench.soak.before = bench.quiet(rest)
        bench.misery(seconds, every)
        if bench.alive():
            _aftermath(bench, rest)
        bench.soak.world = around.tell("how")
        bench.soak.stop = end(process)
        if process.returncode != 0:
            bench.problem(f"exit status after SIGTERM: {process.returncode}")
    _read_log(folder / "exporter.log", bench)
    return bench.soak


def _aftermath(bench: Bench, rest: float) -> None:
    names = bench.world.tell("calm")["engines"]
    bench.soak.recovery = bench.all_up(names, "after all healed")
    bench.reload_wrongly(names)
    bench.soak.after = bench.quiet(rest)
    bench.read_page()
    names = bench.world.tell("empty")["engines"]
    bench.all_up(names, "after every pod was deleted")
    bench.soak.empty = bench.quiet(min(rest, 10.0))


def _read_log(log: Path, bench: Bench) -> None:
    """A traceback in the log is a fault of ours, whatever the world did."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        if "Traceback" in line or "never retrieved" in line or "Unclosed" in line:
            bench.problem(f"in the log: {line[:2000]}")
            break
