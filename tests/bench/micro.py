"""The steps of one poll and one scrape in this process, on the pages of a recording."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bench.engines import PAGE_SECONDS, load_pages, restrict
from bench.report import Part, Row
from bench.settings import FULL_PLAN
from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.config.file import parse
from headroom_exporter.derive.memory import RankMemory
from headroom_exporter.engines import parse_page
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.expose import StateCollector, make_registry
from headroom_exporter.samples import GpuState, RankSample, ReloadState, State
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from headroom_exporter.samples import EngineState

STEPS = Part("Steps on their own, one engine of 430 series: median CPU time")
SERIES = Part("Series of one rank (labels engine, rank and model), most over the whole recording")
FAST_NAMES = frozenset(VLLM.fast_names)
# 10 s at 4 Hz: every so many pages one is full.
FULL_EVERY = 40

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Pages:
    """The recording, each page whole and filtered."""

    full: list[bytes]
    fast: list[bytes]


def rows() -> list[Row]:
    """Microseconds of each step, and how many series a rank has."""
    pages = _pages()
    registry, most = _play(pages, full_plan())
    _, most_without = _play(pages, None)
    return [
        *_parsing(pages),
        *_tracking(pages),
        *_rendering(registry),
        SERIES.row("with a plan that declares everything", most, most=200),
        SERIES.row("without a plan", most_without, most=200),
    ]


def _pages() -> Pages:
    texts = load_pages()
    return Pages(
        [text.encode() for text in texts], [restrict(text, FAST_NAMES).encode() for text in texts]
    )


def full_plan() -> PlanConfig:
    """The plan that declares everything."""
    return parse(json.dumps({"plans": [FULL_PLAN]}), "bench").plans[0]


def _parsing(pages: Pages) -> list[Row]:
    size, size_full = (len(page[-1]) / 1024 for page in (pages.fast, pages.full))
    return [
        STEPS.row(
            f"parse the filtered page ({size:.1f} KiB)",
            microseconds(lambda page: parse_page(page, FAST_NAMES), pages.fast),
            "us",
        ),
        STEPS.row(
            f"parse the full page ({size_full:.0f} KiB), wanted names only",
            microseconds(lambda page: parse_page(page, VLLM.full_names), pages.full[::4]),
            "us",
        ),
        STEPS.row(
            "prometheus_client alone on the full page, all names",
            microseconds(
                lambda page: list(text_string_to_metric_families(page.decode())), pages.full[::8]
            ),
            "us",
        ),
    ]


def _tracking(pages: Pages) -> list[Row]:
    fast = [VLLM.read(parse_page(page, FAST_NAMES)).ranks[0] for page in pages.fast]
    return [
        STEPS.row("read a parsed filtered page", _read_time(pages.fast, FAST_NAMES), "us"),
        STEPS.row("read a parsed full page", _read_time(pages.full[::4], VLLM.full_names), "us"),
        STEPS.row("observe one sample: learn, derive, integrate", _observe_time(fast), "us"),
        STEPS.row("snapshot of the memory", _snapshot_time(fast), "us"),
        STEPS.row("a whole filtered poll but for HTTP", take_time(pages), "us"),
    ]


def _rendering(registry: CollectorRegistry) -> list[Row]:
    again = range(100)
    return [
        STEPS.row(
            "collect families", microseconds(lambda _: list(registry.collect()), again), "us"
        ),
        STEPS.row(
            "render text (collect included)",
            microseconds(lambda _: generate_latest(registry), again),
            "us",
        ),
        STEPS.row(
            "render OpenMetrics (collect included)",
            microseconds(
                lambda _: generate_openmetrics(registry),  # type: ignore[no-untyped-call]
                again,
            ),
            "us",
        ),
    ]


def microseconds(step: Callable[[Input], object], inputs: Iterable[Input]) -> float:
    """Median CPU time of a step over its inputs: a neighbour that takes the core does not count."""
    return 1e6 * median(thread_seconds(step, each) for each in inputs)


def thread_seconds(step: Callable[[Input], object], given: Input) -> float:
    """CPU seconds of a step, once."""
    began = time.thread_time()
    step(given)
    return time.thread_time() - began


def _read_time(pages: list[bytes], names: frozenset[str]) -> float:
    return microseconds(VLLM.read, [parse_page(page, names) for page in pages])


def _observe_time(samples: list[RankSample]) -> float:
    memory = RankMemory(5.0)
    return microseconds(
        lambda each: memory.observe(each[0] * PAGE_SECONDS, each[1]), list(enumerate(samples))
    )


def _snapshot_time(samples: list[RankSample]) -> float:
    memory = RankMemory(5.0)
    for i, sample in enumerate(samples):
        memory.observe(i * PAGE_SECONDS, sample)
    return microseconds(memory.snapshot, [len(samples) * PAGE_SECONDS] * len(samples))


def take_time(pages: Pages | None = None) -> float:
    """Microseconds of a whole filtered poll but for HTTP: parse, learn, derive, State."""
    pages = pages or _pages()
    track = EngineTrack(EngineConfig(name="bench"), PollConfig(interval=PAGE_SECONDS), _no_plan)
    _take(track, pages.full[0], 0, full=True)
    return microseconds(
        lambda each: (_take(track, each[1], each[0], full=False), track.state()),
        list(enumerate(pages.fast))[1:],
    )


def _take(track: EngineTrack, page: bytes, number: int, *, full: bool) -> bool:
    return track.take(page, full=full, at=number * PAGE_SECONDS, wall=0.0, duration=0.001)


def _no_plan(_engine: str, _model: str) -> PlanConfig | None:
    return None


def _play(pages: Pages, plan: PlanConfig | None) -> tuple[CollectorRegistry, int]:
    """
    Poll the whole recording in virtual time.

    Returns:
        A registry that shows its last moment, and the most series that its rank had at any full poll.
    """
    track = EngineTrack(
        EngineConfig(name="bench"), PollConfig(interval=PAGE_SECONDS), lambda *_: plan
    )
    now, most = 0.0, 0
    collector = StateCollector(lambda: state_of(track.state()), lambda *_: plan, lambda: now)
    registry = make_registry(collector)
    for number, page in enumerate(pages.fast):
        now, full = number * PAGE_SECONDS, number % FULL_EVERY == 0
        _take(track, pages.full[number] if full else page, number, full=full)
        if full:
            most = max(most, _rank_series(registry))
    return registry, most


def state_of(engine: EngineState) -> State:
    """What the exporter would show of this engine alone."""
    return State(
        engines=(engine,), gpu=GpuState(up=None), reload=ReloadState(successful=True, at=0)
    )


def collector_of(state: State, plan: PlanConfig, now: float) -> StateCollector:
    """What /metrics is made from, with one plan for all."""
    return StateCollector(lambda: state, lambda *_: plan, lambda: now)


def _rank_series(registry: CollectorRegistry) -> int:
    """Samples that carry a rank."""
    found = Counter(
        "rank" in sample.labels for family in registry.collect() for sample in family.samples
    )
    return found[True]
