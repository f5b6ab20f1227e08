"""
What Prometheus would have scraped: samples in virtual time, as OpenMetrics text.

Each server has a sidecar of its own, as in a cluster: its ``instance`` tells them apart. Scrapes come at
multiples of the interval; what is down gives ``up`` 0 and nothing else. The figures of the exporter's
own process (``headroom_process_*``) are not there: it has none here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from prometheus_client.utils import floatToGoString

from headroom_exporter.expose import StateCollector
from headroom_exporter.simulate.exposition import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from headroom_exporter.samples import State
    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.load import Load, Target
    from headroom_exporter.simulate.replay import Moment
    from headroom_exporter.track import PlanOf

JOB = "headroom-exporter"
ENGINE_JOB = "vllm"
# 2026-01-01T00:00:00Z: a multiple of every block length of Prometheus.
EPOCH = 1_767_225_600.0
SCRAPE_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """
    Writes the sidecars' samples as they come.

    Attributes:
        out: Gets the exporter's samples, lines in the order of time.
        plan_of: The plan of an engine and a model.
        names: Sample names to keep; None for all.
        interval: Seconds between scrapes.
        down: (at, seconds) in which the sidecars are down.
    """

    out: TextIO
    plan_of: PlanOf
    names: Collection[str] | None = None
    interval: float = SCRAPE_SECONDS
    down: Sequence[tuple[float, float]] = ()

    def record(
        self, moments: Iterable[Moment], names: Sequence[str], seconds: float
    ) -> Iterator[Moment]:
        """
        Scrape while the moments pass by.

        Args:
            moments: From ``simulate.replay``, with EPOCH as its epoch.
            names: The ``engine`` labels of the replicas.
            seconds: How long; the last scrape comes before this.

        Yields:
            Every moment, once it has been looked at: others can follow it too.
        """
        due, latest = 0.0, None
        for moment in moments:
            while due < moment.at:
                self._scrape(due, latest, names)
                due += self.interval
            latest = moment.state
            if due == moment.at:
                self._scrape(due, latest, names)
                due += self.interval
            yield moment
        while due < seconds:
            self._scrape(due, latest, names)
            due += self.interval
        self.out.write("# EOF\n")

    def _scrape(self, at: float, state: State | None, engines: Sequence[str]) -> None:
        away = state is None or any(begin <= at < begin + long for begin, long in self.down)
        for engine in engines:
            target = {"job": JOB, "instance": f"{engine}:9890"}
            _write(self.out, "up", target, float(not away), at)
            if state is None or away:
                continue
            own = replace(
                state, engines=tuple(each for each in state.engines if each.name == engine)
            )
            for sample in self._samples(own, at):
                if self.names is None or sample.name in self.names:
                    _write(self.out, sample.name, {**sample.labels, **target}, sample.value, at)

    def _samples(self, state: State, at: float) -> Iterator[_Sample]:
        now: Callable[[], float] = lambda: at  # noqa: E731
        for family in StateCollector(lambda: state, self.plan_of, now).collect():
            for sample in family.samples:
                yield _Sample(sample.name, sample.labels, sample.value)


class EngineRecorder:
    """
    Writes down one engine's own page, for rules that read those.

    Args:
        out: Gets the samples; the caller ends the text with ``# EOF``.
        name: The replica's.
        frontend: Its server.
        names: Sample names to keep.
        hidden: Families that its page does not have.
    """

    def __init__(
        self,
        out: TextIO,
        name: str,
        frontend: Frontend,
        names: Collection[str],
        hidden: Collection[str] = (),
    ) -> None:
        self._out = out
        self._target = f'job="{ENGINE_JOB}",instance="{_escaped(name)}:8000"'
        self._frontend = frontend
        self._page = Page(frontend, epoch=EPOCH)
        self._names = frozenset(names)
        self._hidden = frozenset(hidden)

    def scrape(self, at: float) -> None:
        """Scrape once; the server must have come to this moment."""
        stamp = f"{EPOCH + at:.3f}"
        self._out.write(f"up{{{self._target}}} {int(self._frontend.up)} {stamp}\n")
        if not self._frontend.up:
            return
        # With several API servers a filtered page is empty, as in vLLM.
        text = self._page.render(self._names) or self._page.render()
        for name, labels, value in samples_of(text, self._hidden):
            if name in self._names:
                inside = f"{labels},{self._target}" if labels else self._target
                self._out.write(f"{name}{{{inside}}} {value} {stamp}\n")


def samples_of(page: str, hidden: Collection[str] = ()) -> Iterator[tuple[str, str, str]]:
    """
    Take a page apart: each sample's name, the text between its braces, and its value's.

    Args:
        page: Text exposition format without timestamps, as the client library writes it.
        hidden: Families to leave out, as their TYPE lines name them.
    """
    shown = True
    # Not splitlines: a label's value may hold what it takes for the end of a line.
    for line in page.split("\n"):
        if line.startswith("# TYPE "):
            shown = line.split(" ")[2] not in hidden
        if not shown or not line or line.startswith("#"):
            continue
        # The last brace: a label's value may hold others, the number after it does not.
        series, _, value = line.rpartition("} ")
        if series:
            name, _, labels = series.partition("{")
        else:
            name, _, value = line.rpartition(" ")
            labels = ""
        yield name, labels, value


class Watched:
    """
    A load that is stopped at an even rhythm, so that its target is looked at whoever else asks when.

    Args:
        load: What drives the target.
        every: Seconds of the target between two looks; the first comes at 0.
        look: Told the time, once everything before it has happened.
    """

    def __init__(self, load: Load, every: float, look: Callable[[float], None]) -> None:
        self._load = load
        self._every = every
        self._look = look
        self._due = 0.0

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        """See ``Load.drive``."""
        limit = None if max_steps is None else target.steps + max_steps
        while self._due <= until:
            steps = None if limit is None else limit - target.steps
            if not self._load.drive(target, self._due, steps):
                return False
            self._look(self._due)
            self._due += self._every
        steps = None if limit is None else limit - target.steps
        return self._load.drive(target, until, steps)


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    labels: Mapping[str, str]
    value: float


def _write(out: TextIO, name: str, labels: Mapping[str, str], value: float, at: float) -> None:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = str(floatToGoString(value))  # type: ignore[no-untyped-call]
    out.write(f"{name}{{{pairs}}} {number} {EPOCH + at:.3f}\n")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
