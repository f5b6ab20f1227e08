"""
A real Prometheus, fed with blocks: nothing of PromQL is ours.

``promtool`` makes blocks of OpenMetrics text, ``prometheus`` answers range queries about them. Neither
scrapes nor alerts anybody; both come from the Debian package prometheus (2.42 or newer: that release
brought keep_firing_for).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from headroom_exporter.errors import HeadroomError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

Labels = tuple[tuple[str, str], ...]

# Prometheus refuses more than 11,000 points a series in one query.
MAX_POINTS = 10_000
START_SECONDS = 60.0
STOP_SECONDS = 20.0
QUERY_SECONDS = 900.0
_LISTENING = re.compile(r'"Listening on" address=(\S+):(\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """
    One series of an answer.

    Attributes:
        labels: Sorted by name; the metric's name as ``__name__`` where the answer has one.
        times: When it had a value, seconds since the recording's start, ascending; shape (n,).
        values: What it was; shape (n,).
    """

    labels: Labels
    times: Sequence[float]
    values: Sequence[float]


def program(name: str) -> str:
    """
    Where a program of the Debian package prometheus lies.

    Raises:
        HeadroomError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise HeadroomError(f"{name}: not found on PATH; install the Debian package prometheus")
    return found


def promtool(*arguments: str) -> None:
    """
    Run promtool.

    Raises:
        HeadroomError: it is not installed, or ends with an error: what it said is in the text.
    """
    done = subprocess.run(  # noqa: S603 - no shell, our own arguments
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        raise HeadroomError(f"promtool {' '.join(arguments[:3])} failed: {said}")


def check_rules(files: Sequence[Path]) -> None:
    """
    Have rule files checked.

    Raises:
        HeadroomError: promtool refuses one; its words are in the text.
    """
    promtool("check", "rules", *map(str, files))


def make_blocks(samples: Path, data: Path) -> None:
    """
    Turn OpenMetrics text with timestamps into blocks of a data directory that no Prometheus has open.

    promtool reads the whole text again for each block, and makes them two hours long by default: a day
    of 50 series took 2.3 s that way, 0.5 s in one block.

    Raises:
        HeadroomError: the text is not OpenMetrics with an ``# EOF``.
    """
    long = "--max-block-duration=162h"
    promtool("tsdb", "create-blocks-from", "openmetrics", "--quiet", long, str(samples), str(data))


def write_samples(
    out: TextIO, name: str, labels: Labels, origin: float, samples: Iterable[tuple[float, float]]
) -> None:
    """
    Write one series as OpenMetrics lines; the caller ends the text with ``# EOF``.

    Args:
        out: Gets the lines.
        name: The metric.
        labels: Without the name.
        origin: Unix seconds of the samples' time 0.
        samples: Seconds since then (in whole milliseconds) and value.
    """
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    head = f"{name}{{{pairs}}}" if pairs else name
    out.writelines(f"{head} {value!r} {origin + at:.3f}\n" for at, value in samples)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def by_labels(
    rule: str, series: Iterable[tuple[Labels, Series]]
) -> dict[Labels, dict[float, float]]:
    """
    Put together what has the same labels once a rule has set its own.

    Args:
        rule: Its name, for the error.
        series: New labels and the series that gets them.

    Returns:
        Values by time, seconds since the start; ascending where one series alone has the labels.

    Raises:
        HeadroomError: two series have the same labels at one time (Prometheus fails such an evaluation).
    """
    found: dict[Labels, dict[float, float]] = {}
    for labels, one in series:
        values = found.setdefault(labels, {})
        before = len(values)
        values.update(zip(one.times, one.values, strict=True))
        if len(values) != before + len(one.times):
            raise HeadroomError(
                f"{rule}: two series have the same labels {dict(labels)} at one time, which"
                " Prometheus refuses; aggregate them, or keep the label that tells them apart"
            )
    return found


class Prometheus:
    """
    A Prometheus that is up, and speaks only of one recording.

    Args:
        address: Host and port.
        origin: Unix seconds of the recording's start.
    """

    def __init__(self, address: tuple[str, int], origin: float) -> None:
        self._connection = HTTPConnection(*address, timeout=QUERY_SECONDS)
        self._origin = origin

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rule_groups(self) -> list[dict[str, Any]]:
        """
        The groups of rules it has loaded, as parsed by it.

        Raises:
            HeadroomError: it does not answer.
        """
        groups: list[dict[str, Any]] = self._get("rules", {}, "rules")["groups"]
        return groups

    def query_range(self, expr: str, *, seconds: float, step: float) -> tuple[Series, ...]:
        """
        Evaluate an expression at 0, step, 2 x step ... of the recording, before ``seconds``.

        Returns:
            Every series that ever had a value.

        Raises:
            HeadroomError: Prometheus refuses the expression or cannot answer it.
        """
        found: dict[Labels, tuple[array[float], array[float]]] = {}
        points = evaluations(seconds, step)
        for first in range(0, points, MAX_POINTS):
            last = min(first + MAX_POINTS, points) - 1
            arguments = {
                "query": expr,
                "start": f"{self._origin + first * step:.3f}",
                "end": f"{self._origin + last * step:.3f}",
                "step": f"{step:.3f}",
            }
            for one in self._get("query_range", arguments, expr)["result"]:
                labels = tuple(sorted(one["metric"].items()))
                times, values = found.setdefault(labels, (array("d"), array("d")))
                times.extend(round(at - self._origin, 3) for at, _ in one["values"])
                values.extend(float(text) for _, text in one["values"])
        return tuple(
            Series(labels=labels, times=times, values=values)
            for labels, (times, values) in sorted(found.items())
        )

    def _get(self, what: str, arguments: dict[str, str], named: str) -> Any:
        try:
            # A query does not always fit into an address; both ways mean the same to Prometheus.
            if arguments:
                form = {"Content-Type": "application/x-www-form-urlencoded"}
                self._connection.request("POST", f"/api/v1/{what}", urlencode(arguments), form)
            else:
                self._connection.request("GET", f"/api/v1/{what}")
            answer = json.loads(self._connection.getresponse().read())
        except (OSError, HTTPException, ValueError) as error:
            raise HeadroomError(f"{named}: Prometheus does not answer: {error!r}") from error
        if answer["status"] != "success":
            raise HeadroomError(f"{named}: Prometheus refuses it: {answer['error']}")
        return answer["data"]


def evaluations(seconds: float, step: float) -> int:
    """How many evaluations a recording has: at 0, step, 2 x step ... before its end."""
    return -(-round(seconds * 1000) // round(step * 1000))


@contextmanager
def serve(
    folder: Path,
    *,
    origin: float,
    evaluation_interval: float,
    lookback: float,
    rules: Sequence[Path] = (),
) -> Iterator[Prometheus]:
    """
    Run a Prometheus over ``folder/data`` on a loopback port of its own choosing; it ends with the block.

    Args:
        folder: Gets its configuration and log.
        origin: Unix seconds of the recording's start.
        evaluation_interval: Seconds; also the step of subqueries that name none.
        lookback: How old the sample may be that an instant sees, seconds.
        rules: Rule files to load. It evaluates them at the present, and so writes series there: give
            them to a server whose data nobody queries.

    Raises:
        HeadroomError: it is not installed or does not start; its log is in the text.
    """
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    milliseconds = f"{round(evaluation_interval * 1000)}ms"
    # JSON is YAML.
    settings = {
        "global": {"evaluation_interval": milliseconds},
        "rule_files": [str(file) for file in rules],
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=100y",
        "--web.listen-address=127.0.0.1:0",
        f"--query.lookback-delta={round(lookback * 1000)}ms",
        f"--query.timeout={round(QUERY_SECONDS)}s",
        "--query.max-samples=500000000",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)  # noqa: S603
    try:
        prometheus = Prometheus(_address(process, log), origin)
        try:
            yield prometheus
        finally:
            prometheus.close()
    finally:
        _end(process)


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    """Wait until it is ready, and read from its log which port the system gave it."""
    end = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        text = log.read_text(encoding="utf-8", errors="replace")
        listening = _LISTENING.search(text)
        if listening is not None and "Server is ready" in text:
            return listening[1], int(listening[2])
        if ended or time.monotonic() > end:
            raise HeadroomError(f"prometheus did not start; its log ends: {text[-2000:].strip()}")
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it for certain: also when it takes too long, or when somebody interrupts the waiting."""
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
