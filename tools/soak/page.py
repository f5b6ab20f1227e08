"""docs/resources.md from a soak and a measurement of costs."""

from __future__ import annotations

import math
import os
import platform
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from soak import verdict
from soak.processes import ROOT, Sample
from soak.soaking import Soak

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = ROOT / "docs" / "resources.md"
MIB = 2**20
# Requests and limits are multiples of this.
STEP = 16 * MIB
SPARE, TWICE = 1.25, 2.0
# In the title of what also asks the kubelet.
MAPPED = "gRPC"
HEAD = """\
# What the exporter needs

Written by `make resources` (`python -m soak page`); do not edit it by hand. `make soak` is its hour alone,
`tests/e2e/test_soak.py` half a minute of it. Everything is a real `headroom-exporter run` process with its
byte code ready, as in the image; memory and CPU time are the kernel's figures. GPUs are a fake NVML library
under the real bindings: NVIDIA's own library was not there, so what it maps and allocates is **not** in these
figures. The fake one reads a file at every call, so CPU seconds with GPUs are too high rather than too low.
"""
SOAKED = """\
Node mode with GPUs mapped, {pods} pods of which half are there at a time, and 2 engines of the configuration
file. {faults:,} faults by a seed:

{listed}
A scraper asked twice a second, another hung, a third sent nonsense, and a visitor looked at the status page.
{looks} looks, 5 s apart. MiB, or counts:
"""
GROWTH = """\
Growth is Theil and Sen's slope over one-minute medians of the second half, with its interval of 95 %. It
counts where 0 is below the interval and the slope above 2 MiB, 2 descriptors, 1 thread or 2 tasks an hour.
What is more after than before is, once, labels that are remembered (of 8,192 series at most, of strange
engines too) and memory that was freed and not given back.
"""
PEERS = """\
For comparison, what others ask for: NVIDIA Dynamo's per-node NVML agent was measured at about 80 MiB resident
and asks for 96Mi with a limit of 256Mi; dcgm-exporter's chart asks for 128Mi with a limit of 512Mi. Neither
was run here, and neither watches engines.
"""
RULE = """\
The rule: the request is the highest resident memory measured while all is well, and a quarter more. The limit
is at least twice that peak, and a quarter more than the highest peak among engines that misbehave: those of
the table below and, in node mode, the soak's. Both are rounded up to 16 MiB. No CPU limit: a throttled
exporter measures late. The CPU request is what was used, times two, rounded up to 10m, and at least 20m.
"""


def soak_of(found: dict[str, Any]) -> Soak:
    """The records again, as ``run`` wrote them."""
    one = {
        key: None if found[key] is None else Sample(**found[key])
        for key in ("before", "after", "empty")
    }
    samples = [Sample(**each) for each in found["samples"]]
    return Soak(**{**found, **one, "samples": samples})


def write(soaks: list[dict[str, Any]], costs: list[dict[str, Any]], note: str = "") -> None:
    """Write the page."""
    PATH.write_text(render([soak_of(each) for each in soaks], costs, note), encoding="utf-8")


def render(soaks: Sequence[Soak], costs: list[dict[str, Any]], note: str = "") -> str:
    """The page's text; ``note`` is said of the measurement."""
    parts = [
        HEAD,
        _machine(),
        textwrap.fill(note, 110) + "\n" if note else "",
        _costs([each for each in costs if not each["hostile"]]),
        PEERS,
        _requests(costs, soaks),
        _hostile([each for each in costs if each["hostile"]]),
        *(_soak(each) for each in soaks),
    ]
    return "\n".join(part for part in parts if part)


def _machine() -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores shared with other work, Python "
        f"{platform.python_version()}. CPU is given in seconds of CPU time, which\n"
        "depends little on who else runs; it is no share of an idle core.\n"
    )


def _mib(value: float) -> str:
    return f"{value / MIB:.1f}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" if n == 0 else "---:" for n in range(len(head))), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _costs(costs: list[dict[str, Any]]) -> str:
    minutes = (costs[0]["seconds"] + 60) / 60
    head = (
        *("what runs", "series", "resident after 1 min", f"after {minutes:.0f} min", "peak"),
        *("of it private", "CPU seconds a minute"),
    )
    rows = [
        (
            *(each["title"], f"{each['series']:,}", _mib(each["warm"]), _mib(each["late"])),
            *(
                _mib(each["peak"]),
                _mib(each["private"]),
                f"{60 * each['cpu'] / each['seconds']:.2f}",
            ),
        )
        for each in costs
    ]
    said = (
        "## While all is well\n\nMiB. The default rhythm (a poll a second, a full page every ten), a "
        "captured vLLM 0.32 of 430 series behind\neach engine, a scrape every 15 s. Private is what no "
        "other process shares (USS).\n\n"
    )
    return said + _table(head, rows)


def _up(value: float) -> int:
    return math.ceil(value / STEP) * STEP // MIB


def _requests(costs: list[dict[str, Any]], soaks: Sequence[Soak]) -> str:
    kinds = (
        ("sidecar", [each for each in costs if each["title"].startswith("sidecar")], 0.0),
        (
            "node mode",
            [each for each in _nodes(costs) if MAPPED not in each["title"]],
            _most(soaks),
        ),
        ("node mode with GPUs mapped", _nodes(costs), _most(soaks)),
    )
    rows = [(title, *_asked(fitting, misery)) for title, fitting, misery in kinds]
    head = ("", "peak, MiB", "peak among faults", "memory request", "memory limit", "CPU request")
    return f"## Requests and limits\n\n{RULE}\n{_table(head, rows)}"


def _nodes(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in costs if each["title"].startswith("node mode")]


def _most(soaks: Sequence[Soak]) -> float:
    return max(each.peak for soaked in soaks for each in soaked.samples)


def _asked(costs: list[dict[str, Any]], misery: float) -> tuple[str, ...]:
    """One row by the rule: what was measured, and what to ask for."""
    well = [each for each in costs if not each["hostile"]]
    peak = max(each["peak"] for each in well)
    misery = max(misery, *(each["peak"] for each in costs if not each["beyond"]))
    cpu = max(each["cpu"] / each["seconds"] for each in well)
    limit = max(TWICE * peak, SPARE * misery)
    milli = max(20, math.ceil(200 * cpu) * 10)
    asked = f"**{_up(SPARE * peak)}Mi**", f"**{_up(limit)}Mi**", f"**{milli}m**"
    return (_mib(peak), _mib(misery), *asked)


def _hostile(costs: list[dict[str, Any]]) -> str:
    if not costs:
        return ""
    rows = [
        (
            *(each["title"], f"{each['series']:,}", _mib(each["late"]), _mib(each["peak"])),
            f"{60 * each['cpu'] / each['seconds']:.2f}",
        )
        for each in costs
    ]
    head = ("every engine answers with", "series", "resident", "peak", "CPU seconds a minute")
    said = (
        "## Beside an engine that tells too much\n\nMiB. What a hostile or broken engine can make the "
        "exporter hold. Where a limit does not hold it, the kernel\nends the exporter and nothing else. "
        "Limits are not for a node whose 32 engines are all hostile at once.\n\n"
    )
    return said + _table(head, rows)


WHAT = (
    ("resident (RSS), MiB", "rss", MIB),
    ("proportional (PSS), MiB", "pss", MIB),
    ("private (USS), MiB", "uss", MIB),
    ("file descriptors", "fds", 1),
    ("threads", "threads", 1),
    ("asyncio tasks", "tasks", 1),
    ("objects known to the garbage collector", "objects", 1),
    ("series on /metrics", "series", 1),
)


def _soak(soaked: Soak) -> str:
    minutes = (soaked.samples[-1].at - soaked.samples[0].at) / 60
    faults = soaked.world["faults"]
    head = (
        "",
        "before",
        "in it: median",
        "most",
        "after",
        "no pods",
        "second half, growth an hour",
    )
    wrong = verdict.judge(soaked)
    said = (
        "; ".join(wrong)
        or "nothing grows by that, no descriptor, thread or task is left behind, nothing crashed."
    )
    parts = [
        f"## {minutes:.0f} minutes of faults{_haste(soaked)}\n",
        SOAKED.format(
            faults=sum(faults.values()),
            listed=_listed(faults),
            looks=len(soaked.samples),
            pods=soaked.pods,
        ),
        _table(head, [_row(soaked, *each) for each in WHAT]),
        GROWTH,
        "".join(f"- {line}\n" for line in _more(soaked)),
        f"Verdict: {said}\n",
    ]
    return "\n".join(parts)


def _haste(soaked: Soak) -> str:
    return "" if soaked.haste == 1.0 else f", {soaked.haste:g} times as often"


def _more(soaked: Soak) -> list[str]:
    """What has no row of its own."""
    first, last = soaked.samples[0], soaked.samples[-1]
    wall = last.at - first.at
    times = soaked.world.get("seconds") or [0.0]
    middle, most = (1000 * _at(times, share) for share in (0.5, 0.95))
    scrapes, failed = soaked.world["scrapes"], sum(soaked.world["failures"].values())
    return [
        f"Highest resident memory: {_mib(last.peak)} MiB.",
        f"CPU: {last.cpu - first.cpu:.1f} s in {wall:.0f} s.",
        f"Scrapes: {scrapes:,}, and {failed} that failed.",
        f"Half were answered within {middle:.0f} ms, 95 % within {most:.0f} ms, all in {times[-1]:.1f} s.",
        f"Log: {60 * (last.log_lines - first.log_lines) / wall:.1f} lines a minute.",
        f"After the world had healed, every engine was up within {soaked.recovery or 0:.0f} s.",
        f"SIGTERM ended it within {soaked.stop or 0:.1f} s.",
    ]


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def _row(soaked: Soak, title: str, what: str, scale: int) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value / scale:.1f}" if scale > 1 else f"{value:,.0f}"

    values = sorted(v for each in soaked.samples if (v := getattr(each, what)) is not None)
    line = verdict.growth(soaked.samples, what)
    growth = "-"
    if line is not None:
        growth = "{:+.1f} ({:+.1f} to {:+.1f})".format(
            *(number / scale for number in (line.hourly, line.low, line.high))
        )
    return (
        title,
        *(shown(None if (one := soaked.before) is None else getattr(one, what)),),
        *((shown(_at(values, 0.5)), shown(values[-1])) if values else ("-", "-")),
        *(
            shown(None if one is None else getattr(one, what))
            for one in (soaked.after, soaked.empty)
        ),
        growth,
    )


def _listed(faults: dict[str, int]) -> str:
    """Faults by the first word of their names, the most frequent first."""
    kinds: dict[str, int] = {}
    for name, count in faults.items():
        word = name.partition(" ")[0].rstrip(":")
        kinds[word] = kinds.get(word, 0) + count
    names = {
        "engine": "of engines (refused, hung, slow, garbage, half pages, errors, too large, packed)",
        "configuration": "of the configuration file (valid and not)",
        "node": "of the API server or the kubelet (410, 401, 503, hung, cut off, half events)",
        "GPU": "of GPUs (lost, hung calls, errors, MIG, none)",
        "pod": "pods that came or went",
    }
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return "".join(f"- {count:,} {names.get(word, word)}\n" for word, count in ordered)
