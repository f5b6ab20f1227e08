"""What a page of ours must be beyond parsable: promtool's rules, and our own on names, units and labels."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from headroom_exporter.catalog import BY_NAME, Kind, MetricSpec
from headroom_exporter.expose import family_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

# All label names there are. A new one multiplies series: it belongs into an info metric unless its values
# are few and fixed.
LABELS = frozenset(
    {
        *("engine", "rank", "model_name", "gpu"),
        *(
            "kind",
            "reason",
            "window",
            "state",
            "constraint",
            "basis",
            "dimension",
            "bound",
            "owner",
            "source",
        ),
        # of info metrics
        *("namespace", "pod", "container", "uid"),
        *(
            "engine_kind",
            "version",
            "poll_mode",
            "kv_usage",
            "plan",
            "uuid",
            "name",
            "driver_version",
            "mig",
        ),
        "le",
    }
)
# Units that a name must end with where its value has them; counts of things may be named freely.
SUFFIXED_UNITS = ("seconds", "bytes", "ratio", "watts", "joules", "celsius")
WRONG_UNITS = re.compile(
    r"_(percent|percentage|perc|pct|mib|gib|kib|mb|gb|kb|milliseconds|millis|ms|us|micros|minutes|hours|"
    r"milliwatts|kilowatts|mhz|fahrenheit)(_|$)"
)
# Below 0 when overloaded; how far is the information.
MAY_BE_NEGATIVE = frozenset({"headroom_ratio", "headroom_sequences"})


def promtool(text: str) -> str:
    """What ``promtool check metrics`` has to say; nothing when all is well."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.fail("promtool is missing: install the Debian package prometheus", pytrace=False)
    done = subprocess.run(
        [binary, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
    said = done.stdout + done.stderr
    return said if done.returncode == 0 else f"exit status {done.returncode}\n{said}"


def problems(families: Iterable[Metric]) -> list[str]:
    """Our own rules: one line for each breach."""
    specs = {family_name(spec.name): spec for spec in BY_NAME.values()}
    found: list[str] = []
    for family in families:
        # Without OpenMetrics, an info's family is its sample's name.
        spec = specs.get(family.name) or BY_NAME.get(family.name)
        if spec is None:
            found.append(f"{family.name}: not in the catalog")
            continue
        found += (f"{family.name}: {text}" for text in _problems(family, spec))
    return found


def _problems(family: Metric, spec: MetricSpec) -> Iterator[str]:
    if not family.documentation.strip():
        yield "no HELP"
    if not re.fullmatch(r"headroom_[a-z0-9]+(_[a-z0-9]+)*", spec.name):
        yield "not lower snake case after headroom_"
    if WRONG_UNITS.search(spec.name):
        yield "not a base unit"
    stem = spec.name.removesuffix("_total")
    if spec.unit in SUFFIXED_UNITS and not stem.endswith(f"_{spec.unit}"):
        yield f"measured in {spec.unit} but not named so"
    if spec.name.endswith("_total") != (spec.kind == Kind.COUNTER):
        yield "_total belongs to counters, to all of them, and to nothing else"
    if spec.name.endswith("_info") != (spec.kind == Kind.INFO):
        yield "_info belongs to infos"
    for sample in family.samples:
        labels = set(sample.labels) - {"le"}
        if labels != set(spec.labels):
            yield f"labels {sorted(labels)} where the catalog says {sorted(spec.labels)}"
        if not labels <= LABELS:
            yield f"labels that are not in the fixed set: {sorted(labels - LABELS)}"
        if sample.name.endswith("_created"):
            yield "a _created sample"
        yield from _value_problems(sample.name, sample.value, spec)


def _value_problems(name: str, value: float, spec: MetricSpec) -> Iterator[str]:
    if not math.isfinite(value):
        yield f"{name} is {value}: unknown is absent"
    elif value < 0 and spec.name not in MAY_BE_NEGATIVE:
        yield f"{name} is {value}"
    if spec.kind == Kind.GAUGE and spec.unit == "ratio" and value > 1:
        yield f"{name} is {value}: a ratio is at most 1"
    if spec.unit == "boolean" and value not in (0, 1):
        yield f"{name} is {value}: 0 or 1"
    if spec.kind == Kind.INFO and value != 1:
        yield f"{name} is {value}: an info is 1"
