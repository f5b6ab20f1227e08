"""Recorded runs of a real vLLM, fed through EngineTrack and StateCollector in virtual time."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter.config import EngineConfig, PlanConfig, PollConfig
from headroom_exporter.expose import StateCollector
from headroom_exporter.samples import Constraint, GpuState, ReloadState, State
from headroom_exporter.track import EngineTrack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
# Monotonic and Unix seconds at which a replay begins; any will do, but 0 would hide a mix-up.
MONOTONIC_START = 1_000.0
WALL_START = 1_790_000_000.0
POLL = PollConfig(interval=0.25)


@dataclass(frozen=True, slots=True)
class RecordedPage:
    """``t`` seconds after the first page; ``body`` as the engine sent it."""

    t: float
    body: bytes
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One rank at one moment, read from the exposition: an absent series is None."""

    t: float
    demand: float | None
    running: float | None
    waiting: float | None
    usage: float | None
    preemptions: float | None
    tokens_per_sequence: float | None
    capacities: Mapping[Constraint, float]
    slots: Mapping[str, float]
    sustainable: float | None
    headroom: float | None
    binding: str | None
    state: str | None
    reason: str | None


def pages(name: str) -> list[RecordedPage]:
    """The pages of ``vllm-0.32.0-<name>.jsonl.gz``, in order."""
    with gzip.open(RECORDINGS / f"vllm-0.32.0-{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [RecordedPage(row["t"], row["text"].encode(), row["dur"]) for row in rows]


class Replay:
    """
    One engine whose pages come from a recording.

    Args:
        plan: Holds for the engine; None for none.
        name: The ``engine`` label.
    """

    def __init__(self, plan: PlanConfig | None = None, name: str = "llama-8b") -> None:
        self.plan = plan
        self.track = EngineTrack(EngineConfig(name=name), POLL, self.plan_of)
        self.now = MONOTONIC_START
        self._next_full = 0.0

    def plan_of(self, _engine: str, _model_name: str) -> PlanConfig | None:
        """The plan, whatever the model."""
        return self.plan

    def take(self, page: RecordedPage) -> None:
        """Take one page in: the whole of it every 10 seconds, else what a filtered one holds."""
        full = page.t >= self._next_full
        if full:
            self._next_full = page.t + POLL.full_interval
        self.now = MONOTONIC_START + page.t
        wall = WALL_START + page.t
        self.track.take(page.body, full=full, at=self.now, wall=wall, duration=page.duration)

    def state(self, gpu: GpuState | None = None) -> State:
        """What a scrape would show now."""
        return State(
            engines=(self.track.state(),),
            gpu=gpu or GpuState(up=None),
            reload=ReloadState(successful=True, at=WALL_START),
        )

    def moment(self, t: float) -> Moment:
        """What is exposed now of the engine's first rank."""
        collector = StateCollector(self.state, self.plan_of, clock=lambda: self.now)
        return _moment(t, collector)


def moments(name: str, plan: PlanConfig | None = None) -> Iterator[Moment]:
    """Every page of a recording, as exposed after it was taken in."""
    replay = Replay(plan)
    for page in pages(name):
        replay.take(page)
        yield replay.moment(page.t)


def _moment(t: float, collector: StateCollector) -> Moment:
    values: dict[str, float] = {}
    by_label: dict[str, dict[str, float]] = {}
    for family in collector.collect():
        for sample in family.samples:
            own = {
                k: v for k, v in sample.labels.items() if k not in ("engine", "rank", "model_name")
            }
            if own:
                by_label.setdefault(sample.name, {})["|".join(own.values())] = sample.value
            else:
                values[sample.name] = sample.value

    def active(name: str) -> str | None:
        return next((key for key, value in by_label.get(name, {}).items() if value == 1), None)

    capacities = by_label.get("headroom_capacity_sequences", {})
    sustainable, headroom = (
        values.get("headroom_sustainable_sequences"),
        values.get("headroom_sequences"),
    )
    return Moment(
        t=t,
        demand=None if sustainable is None or headroom is None else sustainable - headroom,
        running=values.get("headroom_running_sequences"),
        waiting=values.get("headroom_waiting_sequences"),
        usage=values.get("headroom_kv_cache_usage_ratio"),
        preemptions=values.get("headroom_preemptions_total"),
        tokens_per_sequence=by_label.get("headroom_tokens_per_sequence", {}).get("live"),
        capacities={Constraint(key): value for key, value in capacities.items()},
        slots=by_label.get("headroom_max_sequences", {}),
        sustainable=sustainable,
        headroom=headroom,
        binding=active("headroom_binding_constraint"),
        state=active("headroom_state"),
        reason=active("headroom_state_reason_info"),
    )


def time_line(seen: list[Moment], every: float = 2.0) -> str:
    """One line every ``every`` seconds, and one whenever state, reason or binding change."""
    lines, shown, last = [_HEADER], -every, None
    for moment in seen:
        now = (moment.state, moment.reason, moment.binding)
        if now != last or moment.t - shown >= every:
            last, shown = now, moment.t
            lines.append(_line(moment))
    return "\n".join(lines) + "\n"


_HEADER = (
    "      t demand running usage   slots      kv latency prefill sustainable headroom "
    "binding  state     reason            preemptions"
)


def _line(moment: Moment) -> str:
    capacities = " ".join(
        _figure(moment.capacities.get(constraint), 7, 1)
        for constraint in (
            Constraint.SLOTS,
            Constraint.KV_CACHE,
            Constraint.LATENCY,
            Constraint.PREFILL,
        )
    )
    line = (
        f"{moment.t:7.2f} {_figure(moment.demand, 6, 0)} {_figure(moment.running, 7, 0)} "
        f"{_figure(moment.usage, 5, 2)} {capacities} {_figure(moment.sustainable, 11, 1)} "
        f"{_figure(moment.headroom, 8, 1)} {moment.binding or '-':8} {moment.state or '-':9} "
        f"{moment.reason or '-':17} {_figure(moment.preemptions, 11, 0)}"
    )
    return line.rstrip()


def _figure(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"
