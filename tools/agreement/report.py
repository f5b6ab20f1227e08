"""The tables of docs/simulator-validation.md."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from throughput.blocks import table

from agreement import constants, decisions, figures, recorded, simulated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agreement.constants import Constants
    from agreement.figures import Figure
    from agreement.recorded import Run
    from agreement.simulated import FrontEnd
    from headroom_exporter.simulate.profiles import Profile

# Steps so much longer show how far each figure follows the machine's speed.
LONGER = 1.01
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """
    One workload.

    Attributes:
        runs: The real ones.
        figures: All of them against the simulation.
        own_speed: Those whose steps were logged, against a simulation with steps longer or shorter by
            what the log says of that very run; empty where there is none.
        speeds: Of each run, by constants.speed.
        moved: What 1 % longer steps change, of each figure.
    """

    name: str
    runs: list[Run]
    figures: list[Figure]
    own_speed: list[Figure]
    speeds: list[float | None]
    moved: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """
    One run whose steps were logged, step by step beside the simulated scheduler.

    Attributes:
        differing: Steps in which the two decided otherwise.
        preemptions: Of the real run, of the simulated one.
    """

    name: str
    steps: int
    differing: int
    preemptions: tuple[int, int]


def calibrate(folder: Path) -> tuple[Constants, FrontEnd]:
    """
    Fit the constants of a step and of the front end to the calibration runs.

    Raises:
        ValueError: the folder holds none.
    """
    names = [
        name for name in recorded.names_with_steps(folder) if name.startswith(recorded.CALIBRATION)
    ]
    if not names:
        raise ValueError(f"{folder}: no calibration run with a log of its steps")
    steps = [step for name in names for step in recorded.steps(folder, name)]
    runs = [recorded.load(folder, name) for name in names]
    return constants.fit(steps), constants.front_end(runs)


def workloads(folder: Path, profile: Profile, front_end: FrontEnd) -> list[Workload]:
    """Compare every workload of a folder with its simulation, in the order of their names."""
    by_name: dict[str, list[Run]] = {}
    for name in recorded.names(folder):
        run = recorded.load(folder, name)
        by_name.setdefault(run.workload, []).append(run)
    by_name.pop(recorded.CALIBRATION, None)
    return [_workload(name, runs, profile, front_end) for name, runs in by_name.items()]


def _workload(name: str, runs: list[Run], profile: Profile, front_end: FrontEnd) -> Workload:
    speeds = [constants.speed(run, profile) for run in runs]
    pairs = [(simulated.measured(run), simulated.simulate(run, profile, front_end)) for run in runs]
    own_pairs = [
        (simulated.measured(run), simulated.simulate(run, _at(profile, speed), front_end))
        for run, speed in zip(runs, speeds, strict=True)
        if speed is not None
    ]
    model = pairs[0][1]
    slow = simulated.simulate(runs[0], _at(profile, LONGER), front_end)
    return Workload(
        name=name,
        runs=runs,
        figures=figures.compare(pairs),
        own_speed=figures.compare(own_pairs) if own_pairs else [],
        speeds=speeds,
        moved=[
            kind.of(slow) / kind.of(model) - 1 if kind.of(model) else 0.0 for kind in figures.KINDS
        ],
    )


def _at(profile: Profile, speed: float) -> Profile:
    return constants.scaled(profile, speed)


def checked(folder: Path, profile: Profile) -> list[Checked]:
    """Replay every run whose steps were logged."""
    found = []
    for name in recorded.names_with_steps(folder):
        run, steps = recorded.load(folder, name), recorded.steps(folder, name)
        decided, preemptions = decisions.simulated(run, steps, profile)
        differing = sum(
            decision != decisions.real(step) for decision, step in zip(decided, steps, strict=True)
        )
        found.append(
            Checked(
                name=name,
                steps=len(steps),
                differing=differing,
                preemptions=(run.preemptions, preemptions),
            )
        )
    return found


# --- tables --------------------------------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """``+1.2 %``."""
    return f"{value * 100:+.{digits}f} %"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summary_table(found: Iterable[Workload]) -> str:
    """Errors of every figure of every workload, and by how much the real runs differ."""
    rows = [
        [workload.name]
        + [
            f"{percent(each.error)} ({each.spread * 100:.1f})" if each.counts else "none"
            for each in workload.figures
        ]
        for workload in found
    ]
    return table(["workload", *(kind.name for kind in figures.KINDS)], rows)


def own_speed_table(found: Iterable[Workload]) -> str:
    """The same at each run's own step time: the largest error of a single run."""
    rows = [
        [workload.name]
        + [percent(each.worst) if each.counts else "none" for each in workload.own_speed]
        for workload in found
        if workload.own_speed
    ]
    return table(["workload", *(kind.name for kind in figures.KINDS)], rows)


def workload_tables(found: Iterable[Workload]) -> str:
    """Every figure of every workload with its values."""
    return "\n\n".join(f"### {each.name}\n\n{workload_table(each)}" for each in found)


def workload_table(workload: Workload) -> str:
    """One workload."""
    rows = [
        [
            figure.kind + (f", {figure.unit}" if figure.unit else ""),
            " / ".join(number(value) for value in figure.measured),
            number(fmean(figure.simulated)),
            percent(figure.error),
            percent(figure.worst),
            f"{figure.limit * 100:.0f} %" + ("" if figure.agrees else ": **missed**"),
            f"{figure.spread * 100:.1f} %",
            percent(moved),
        ]
        for figure, moved in zip(workload.figures, workload.moved, strict=True)
    ]
    head = ["figure", "real runs", "simulated", "error", "worst single run", "limit"]
    return table([*head, "spread of the real runs", "steps 1 % longer"], rows)


def constants_table(found: Constants, front_end: FrontEnd) -> str:
    """Every constant."""
    rows = [
        ["fixed", f"{found.fixed * 1e3:.3f} ms"],
        ["per sequence", f"{found.per_sequence * 1e6:.1f} us"],
        ["per resident KV token", f"{found.per_kv_token * 1e9:.0f} ns"],
        ["per prompt token", f"{found.per_prefill_token * 1e6:.1f} us"],
        ["front end, towards the engine", f"{front_end.before * 1e3:.1f} ms"],
        ["front end, first token to the client", f"{front_end.after_first * 1e3:.1f} ms"],
        ["front end, last token to the client", f"{front_end.after_last * 1e3:.1f} ms"],
    ]
    return table(["constant", "fitted"], rows)


def batch_table(found: Constants) -> str:
    """Decoding steps of the calibration by batch size."""
    rows = [
        [str(size), f"{real * 1e3:.2f}", f"{fitted * 1e3:.2f}", percent(fitted / real - 1)]
        for size, real, fitted in found.by_batch
        if size in BATCHES
    ]
    return table(["sequences", "measured ms", "fitted ms", "error"], rows, left=0)


def prompt_table(found: Constants) -> str:
    """What a prompt token costs by the length of the prompt."""
    rows = [
        [f"{length:.0f}", f"{cost * 1e6:.1f}", percent(found.per_prefill_token / cost - 1)]
        for length, cost in found.by_prompt
    ]
    return table(["prompt tokens", "measured us a token", "error of the constant"], rows, left=0)


def checked_table(found: Iterable[Checked]) -> str:
    """How many decisions were checked and how many differ."""
    rows = [
        [each.name, f"{each.steps:,}", str(each.differing), *(str(n) for n in each.preemptions)]
        for each in found
    ]
    head = ["run", "steps", "decided otherwise", "preemptions, vLLM", "preemptions, simulated"]
    return table(head, rows)


def machine_table(found: Iterable[Workload]) -> str:
    """What else the machine did during each run."""
    rows = [
        [
            run.name,
            str(len(run.requests)),
            f"{run.summary['seconds']:.0f}",
            f"{run.summary['cpu_seconds']['engine']:.0f}",
            f"{run.summary['cpu_seconds']['server'] + run.summary['cpu_seconds']['client']:.0f}",
            f"{run.summary['cpu_seconds']['others']:.0f}",
            percent(speed - 1) if speed is not None else "not logged",
        ]
        for workload in found
        for run, speed in zip(workload.runs, workload.speeds, strict=True)
    ]
    head = ["run", "requests", "seconds", "engine CPU s", "server and client CPU s"]
    return table([*head, "others' CPU s", "step time against the constants"], rows)
