"""
What the boards are tried on: an hour and a half of simulated traffic in a real Prometheus.

Two servers of one model on a GPU each (one calm and restarted once, one driven into overload), and one
server of another model, in a Kubernetes namespace, with two ranks and no GPU to be seen. Samples,
recording rules and alerts are the shipped ones; only what takes days to record (growth, the day's busy
level) is written by hand.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.play import Run, Server, play
from headroom_exporter.backtest.prometheus import make_blocks, serve, write_samples
from headroom_exporter.backtest.record import EPOCH, JOB, SCRAPE_SECONDS
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.gpus.simulated import RTX_4090, SimulatedGpus
from headroom_exporter.samples import GpuState
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.profiles import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from headroom_exporter.backtest import Evaluation
    from headroom_exporter.backtest.prometheus import Labels

RULES = Path(__file__).resolve().parents[2] / "rules"
SECONDS = 5400.0
STEP = 30.0
NAMESPACE = "ml-prod"
SMALL, LARGE = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"

CHAT = PlanConfig(
    name="chat",
    concurrency=24,
    max_num_seqs=256,
    prompt_tokens=Lengths(p50=512, p95=2000),
    output_tokens=Lengths(p50=200, p95=600),
    request_rate=2.2,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.1,
    kv_cache_tokens=20_000,
)
ASSISTANT = PlanConfig(
    name="assistant",
    concurrency=64,
    max_num_seqs=1024,
    prompt_tokens=Lengths(p50=512, p95=2048),
    output_tokens=Lengths(p50=200, p95=600),
    request_rate=8.0,
    ttft_p95_seconds=1.0,
    tpot_p95_seconds=0.06,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    One series of an answer.

    Attributes:
        labels: With ``__name__`` where there is one.
        times: Seconds since the recording's start; shape (n,), of an instant query (1,).
        values: Shape (n,).
    """

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A Prometheus that answers about the recording."""

    address: tuple[str, int]

    def range(
        self, expr: str, *, step: float = STEP, begin: float = 0.0, end: float = SECONDS
    ) -> list[Answer]:
        """Evaluate every step from ``begin`` on and before ``end``, as a panel over time does."""
        last = EPOCH + begin + ((end - begin) // step - 1) * step
        span = {"start": f"{EPOCH + begin}", "end": f"{last}", "step": f"{step}"}
        return self._ask("query_range", query=expr, **span)

    def instant(self, expr: str, *, at: float = SECONDS - STEP) -> list[Answer]:
        """Evaluate at one moment, as a table does; by default the last one."""
        return self._ask("query", query=expr, time=f"{EPOCH + at}")

    def _ask(self, what: str, **arguments: str) -> list[Answer]:
        connection = HTTPConnection(*self.address, timeout=120)
        try:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", f"/api/v1/{what}", urlencode(arguments), form)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer["status"] != "success":
            raise ValueError(f"{arguments['query']}: Prometheus refuses it: {answer['error']}")
        return _answers(answer["data"])


def _answers(data: Mapping[str, Any]) -> list[Answer]:
    if data["resultType"] == "scalar":
        data = {"resultType": "vector", "result": [{"metric": {}, "value": data["result"]}]}
    found = []
    for one in data["result"]:
        pairs = one.get("values") or [one["value"]]
        found.append(
            Answer(
                labels=one["metric"],
                times=tuple(float(at) - EPOCH for at, _ in pairs),
                values=tuple(float(text) for _, text in pairs),
            )
        )
    return found


@contextmanager
def trial(folder: Path) -> Iterator[Trial]:
    """
    Record, evaluate the shipped rules, serve; Prometheus ends with the block.

    Args:
        folder: Empty; gets everything.
    """
    data = record(folder)
    with serving(folder, data) as address:
        yield Trial(address=address)


@contextmanager
def serving(folder: Path, data: Path) -> Iterator[tuple[str, int]]:
    """Serve ``data``, which lies in ``folder``, and say where."""
    if data != folder / "data":
        raise ValueError(f"{data}: must be {folder / 'data'}")
    # As in backtest.evaluate: text has no staleness markers, so nothing may be seen for longer than a scrape.
    with serve(folder, origin=EPOCH, evaluation_interval=STEP, lookback=SCRAPE_SECONDS - 0.001):
        log = (folder / "prometheus.log").read_text(encoding="utf-8")
        host, port = re.findall(r'"Listening on" address=(\S+):(\d+)', log)[0]
        yield host, int(port)


def record(folder: Path) -> Path:
    """
    Make the recording.

    Returns:
        A data directory for Prometheus in ``folder``: samples, recorded series, alerts.
    """
    large = _played(folder / "large", _large())
    _in_namespace(large, NAMESPACE)
    texts = [_played(folder / "small", _small()), large]
    names = _recorded_names()
    evaluation = evaluate(
        texts[0],
        [RULES],
        start=EPOCH,
        seconds=SECONDS,
        extra_samples=texts[1:],
        extra_queries={name: name for name in names},
        workdir=folder,
    )
    rest = folder / "rest.om"
    _write_rest(rest, evaluation)
    for text in (*texts, rest):
        make_blocks(text, folder / "data")
    return folder / "data"


def _recorded_names() -> list[str]:
    text = "".join(path.read_text() for path in sorted((RULES / "recording").glob("*.yaml")))
    return sorted(set(re.findall(r"- record: (\S+)", text)))


def _played(folder: Path, run: Run) -> Path:
    folder.mkdir(parents=True)
    return play(run, folder).samples


def _in_namespace(text: Path, namespace: str) -> None:
    """As a scrape in Kubernetes labels it; the others are scraped by a static list of targets."""
    lines = text.read_text(encoding="utf-8")
    text.write_text(lines.replace(',job="', f',namespace="{namespace}",job="'), encoding="utf-8")


def _small() -> Run:
    restarted = (Event(at=2700.0, action="restart"),)
    calm = _server("chat-0", "poisson?rate=1.4&seed=1", "rtx4090-llama-3.1-8b", events=restarted)
    busy = _server("chat-1", "ramp?rate=0.8&rate_end=4.6&seed=2", "rtx4090-llama-3.1-8b")
    return Run(servers=(calm, busy), plan=CHAT, seconds=SECONDS, gpus=_card(busy.frontend))


def _large() -> Run:
    server = _server("assistant-0", "poisson?rate=7&seed=3", "h100x4-llama-3.1-70b", ranks=2)
    return Run(servers=(server,), plan=ASSISTANT, seconds=SECONDS)


def _server(
    name: str, traffic: str, profile: str, *, ranks: int = 1, events: tuple[Event, ...] = ()
) -> Server:
    kind, _, values = traffic.partition("?")
    made = generators.parse(f"{generators.PREFIX}{kind}?duration={SECONDS:g}&{values}")
    return Server(
        name=name,
        frontend=Frontend(find(profile), ranks=ranks, events=events, start_seconds=90.0),
        arrivals=takewhile(lambda request: request.arrival < SECONDS, made.requests()),
    )


def _card(frontend: Frontend) -> Callable[[float], GpuState]:
    """One card whose power follows the server's running sequences."""
    last = 0.0
    gpus = SimulatedGpus(
        lambda: frontend.engines[0].running / 40, card=RTX_4090, monotonic=lambda: last
    )

    def at(moment: float) -> GpuState:
        nonlocal last
        last = moment
        reading = gpus.read()
        return GpuState(
            up=True, driver_version=reading.driver_version, gpus=reading.gpus, read_at=moment
        )

    return at


def _write_rest(path: Path, evaluation: Evaluation) -> None:
    """What rules made of the samples: recorded series, ALERTS; and what would take days."""
    with path.open("w", encoding="utf-8") as out:
        by_name: dict[str, list[tuple[Labels, list[tuple[float, float]]]]] = {}
        for series in evaluation.series.values():
            for one in series:
                labels = dict(one.labels)
                name = labels.pop("__name__")
                pairs = list(zip(one.times, one.values, strict=True))
                by_name.setdefault(name, []).append((tuple(labels.items()), pairs))
        for name, value in _GROWTH.items():
            by_name[name] = [(_BUSY, [(at, value) for at in _evaluations()])]
        by_name["ALERTS"] = list(_alerts(evaluation))
        for name, found in by_name.items():
            for label_pairs, pairs in found:
                write_samples(out, name, label_pairs, EPOCH, pairs)
        out.write("# EOF\n")


def _alerts(evaluation: Evaluation) -> Iterator[tuple[Labels, list[tuple[float, float]]]]:
    grouped: dict[Labels, list[tuple[float, float]]] = {}
    for firing in evaluation.firings:
        if firing.fired_at is None:
            continue
        end = SECONDS if firing.resolved_at is None else firing.resolved_at
        labels = {
            **dict(firing.labels),
            "alertname": firing.alert,
            "alertstate": "firing",
            "severity": firing.severity,
        }
        times = [at for at in _evaluations() if firing.fired_at <= at < end]
        grouped.setdefault(tuple(sorted(labels.items())), []).extend((at, 1.0) for at in times)
    for labels_of, pairs in grouped.items():
        yield labels_of, sorted(pairs)


def _evaluations() -> list[float]:
    return [index * STEP for index in range(int(SECONDS // STEP))]


_BUSY: Labels = (
    ("engine", "chat-1"),
    ("instance", "chat-1:9890"),
    ("job", JOB),
    ("model_name", SMALL),
)
_GROWTH = MappingProxyType(
    {
        "engine:headroom_use:p95_1d": 0.7,
        "engine:headroom_use:growth_per_day": 0.02,
        "engine:headroom_use:growth_per_day_low": 0.005,
    }
)
