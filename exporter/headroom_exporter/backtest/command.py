"""``headroom-exporter backtest``: would the alerts have fired on this traffic, and when?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import headroom_exporter
from headroom_exporter.backtest import evaluate
from headroom_exporter.backtest.page import page
from headroom_exporter.backtest.play import Played, Run, Server, play
from headroom_exporter.backtest.prometheus import check_rules, program
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.backtest.report import QUERIES, Report, Stage, build, document
from headroom_exporter.backtest.rules import expressions, metric_names, names_in, rule_files
from headroom_exporter.backtest.text import marks_for, text
from headroom_exporter.catalog import CATALOG, Kind
from headroom_exporter.config import plan_for
from headroom_exporter.config.file import load
from headroom_exporter.errors import ConfigError, HeadroomError
from headroom_exporter.simulate.command import make_frontend, read_traffic
from headroom_exporter.simulate.progress import Progress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from headroom_exporter.backtest import Evaluation
    from headroom_exporter.config import PlanConfig
    from headroom_exporter.simulate.command import Traffic
    from headroom_exporter.simulate.frontend import Frontend
    from headroom_exporter.simulate.replay import Moment

ENGINE = "simulated"
_REDRAW_SECONDS = 0.5
_STDOUT = "-"


def run(arguments: argparse.Namespace) -> int:
    """
    Play, evaluate, judge, and say so.

    Args:
        arguments: As backtest_flags.add_arguments defines them.

    Returns:
        Exit status: 0, whatever the verdict.

    Raises:
        ConfigError: trace, profile, plan, event, rules or an output cannot be used; raised before
            anything is played.
        HeadroomError: Prometheus is missing, or a rule cannot be evaluated over a recording.
        KeyboardInterrupt: SIGINT or SIGTERM came; the Prometheus that was started has ended.
    """
    begun = time.monotonic()
    _refuse_outputs(arguments)
    frontend = make_frontend(arguments)
    traffic = read_traffic(arguments)
    stage = _stage(arguments, frontend, traffic)
    _refuse_rules(stage)
    progress = Progress(sys.stderr, stage.seconds)
    with (
        _terminable(),
        tempfile.TemporaryDirectory(prefix="headroom-backtest-") as folder,
    ):
        try:
            played = _play(stage, frontend, traffic, Path(folder), progress)
            progress.draw(stage.seconds, None, "Prometheus evaluates the rules")
            evaluation = _evaluate(stage, played, Path(folder))
        finally:
            progress.clear()
    report = build(stage, played.felt[ENGINE], evaluation, time.monotonic() - begun)
    _write(arguments, report)
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end this as Ctrl-C does: what was started is ended on the way out."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- what the flags mean -------------------------------------------------------------------------


def shipped_rules() -> Path:
    """
    Where the rules lie that come with this release.

    Raises:
        HeadroomError: they are neither in the package nor beside its sources.
    """
    package = Path(headroom_exporter.__file__).parent
    # A wheel carries them in the package; beside the sources they stand once, where users look.
    for folder in (package / "backtest" / "shipped", package.parents[1] / "rules"):
        if (folder / "alerts").is_dir():
            return folder
    raise HeadroomError(f"{package}: the shipped rules are missing; name yours with --rules DIR")


def read_plan(path: Path, model_name: str) -> tuple[PlanConfig, str | None]:
    """
    The plan of a configuration, or of a file with only ``plans``, that holds for a model.

    Args:
        path: The file.
        model_name: What the simulated engine serves.

    Returns:
        The plan, and what the reader should know of the choice.

    Raises:
        ConfigError: the file is wrong, or no plan of it, or more than one, is meant.
    """
    config = load(path)
    if not config.plans:
        raise ConfigError(f"{path}: plans: must hold the plan that users were promised")
    engines = [each.name for each in config.engines]
    found = {
        plan
        for plan in (plan_for(config.plans, name, model_name) for name in engines)
        if plan is not None
    }
    if len(found) == 1:
        return found.pop(), None
    names = ", ".join(sorted(each.name for each in found or config.plans))
    if found:
        raise ConfigError(
            f"{path}: plans: {names} each hold for {model_name}, on different engines: must be one;"
            " leave the others out"
        )
    if len(config.plans) == 1:
        (plan,) = config.plans
        note = f"the plan {plan.name} does not match {model_name}; the only one of its file, it was used"
        return plan, note
    raise ConfigError(
        f"{path}: plans: none of {names} matches {model_name}, which the profile serves: must match"
        " it, or be the only one"
    )


def _stage(arguments: argparse.Namespace, frontend: Frontend, traffic: Traffic) -> Stage:
    plan, note = read_plan(arguments.plan, frontend.profile.model_name)
    notes = [] if note is None else [note]
    if plan.ttft_p95_seconds is None and plan.tpot_p95_seconds is None:
        notes.append(
            f"the plan {plan.name} promises neither TTFT nor TPOT (slo): only requests turned away are a"
            " breach"
        )
    return Stage(
        trace=arguments.trace,
        offset=arguments.start,
        seconds=traffic.seconds,
        survey=traffic.survey,
        events=tuple(arguments.event),
        profile=frontend.profile,
        ranks=arguments.ranks,
        plan=plan,
        plan_file=arguments.plan,
        notes=tuple(notes),
        rule_files=_rules(arguments.rules),
    )


def _rules(given: Path | None) -> tuple[Path, ...]:
    if given is None:
        return rule_files([shipped_rules()])
    try:
        return rule_files([given])
    except HeadroomError as error:
        raise ConfigError(f"--rules: {error}") from error


def _refuse_rules(stage: Stage) -> None:
    """Before anything is played: what is missing, and what promtool says of the files."""
    for each in ("prometheus", "promtool"):
        program(each)
    try:
        check_rules(stage.rule_files)
        # promtool also takes what is not UTF-8.
        expressions(stage.rule_files)
    except HeadroomError as error:
        raise ConfigError(f"--rules: {error}") from error


def _refuse_outputs(arguments: argparse.Namespace) -> None:
    """A day's play would be lost if only then it showed that there is nowhere to write to."""
    given = {"--out": arguments.out, "--json": arguments.json}
    for flag, value in given.items():
        if value is None or (flag == "--json" and value == _STDOUT):
            continue
        path = Path(value)
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"{flag}: {value}: must be a file in a directory that exists")


# --- playing -------------------------------------------------------------------------------------


def _play(
    stage: Stage, frontend: Frontend, traffic: Traffic, folder: Path, progress: Progress
) -> Played:
    # Restarts are asked for here: the poller's words about them would stand between the lines.
    logging.getLogger("headroom_exporter").addHandler(logging.NullHandler())
    arrivals = takewhile(lambda request: request.arrival < stage.seconds, traffic.arrivals())
    return play(
        Run(
            servers=[Server(name=ENGINE, frontend=frontend, arrivals=arrivals)],
            plan=stage.plan,
            seconds=stage.seconds,
            names=_names(stage.rule_files),
        ),
        folder,
        _follower(progress, stage.seconds),
    )


def _evaluate(stage: Stage, played: Played, folder: Path) -> Evaluation:
    return evaluate(
        played.samples,
        stage.rule_files,
        start=EPOCH,
        seconds=stage.seconds,
        extra_queries={name: query.expr for name, query in QUERIES.items()},
        workdir=folder,
    )


def _names(files: Sequence[Path]) -> frozenset[str]:
    """What rules and report read: nothing else is recorded."""
    known: set[str] = set()
    for spec in CATALOG:
        suffixes = ("_bucket", "_count", "_sum") if spec.kind is Kind.HISTOGRAM else ("",)
        known.update(spec.name + suffix for suffix in suffixes)
    drawn = frozenset[str]().union(*(names_in(each.expr, known) for each in QUERIES.values()))
    return metric_names(files, known) | drawn


def _follower(progress: Progress, seconds: float) -> Callable[[Moment], None]:
    """Draws the progress now and then."""
    begun = drawn = time.monotonic()

    def follow(moment: Moment) -> None:
        nonlocal drawn
        now = time.monotonic()
        if progress.shown and now - drawn >= _REDRAW_SECONDS:
            left = (now - begun) * (seconds - moment.at) / moment.at if moment.at else None
            progress.draw(moment.at, left)
            drawn = now

    return follow


# --- saying it -----------------------------------------------------------------------------------


def _write(arguments: argparse.Namespace, report: Report) -> None:
    """Files first: whoever reads the lines may look at them at once."""
    if arguments.out is not None:
        arguments.out.write_text(page(report), encoding="utf-8")
    if arguments.json not in (None, _STDOUT):
        Path(arguments.json).write_text(_json(report), encoding="utf-8")
    try:
        sys.stdout.write(_said(arguments, report))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the lines has seen enough. Else Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(arguments: argparse.Namespace, report: Report) -> str:
    """What standard output gets."""
    if arguments.json == _STDOUT:
        return _json(report)
    width = shutil.get_terminal_size((100, 24)).columns
    said = text(report, width=width, marks=marks_for(sys.stdout.encoding))
    return said if arguments.out is None else f"{said}\nthe picture: {arguments.out}\n"


def _json(report: Report) -> str:
    return json.dumps(document(report), allow_nan=False, separators=(",", ":")) + "\n"
