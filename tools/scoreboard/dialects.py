"""
The same traffic told by other engines: what of the pages is left. Writes docs/dialects.md: ``make dialects``.

Truth, rules and judgement are those of the scoreboard; only what the exporter can read differs.
"""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects import DIALECTS
from scoreboard.judge import judge
from scoreboard.scenarios import SCENARIOS
from scoreboard.stage import ROOT

if TYPE_CHECKING:
    from scoreboard.judge import Outcome
    from scoreboard.scenarios import Scenario

DOC = ROOT / "docs" / "dialects.md"
# One for each constraint that can bind, a sudden breach, one that heals by itself, one that is none.
CHOSEN = (
    "conv2023-third",
    "spike-heals",
    "conv2023-half",
    "ramp-kv-2h",
    "ramp-slots-2h",
    "ramp-latency",
    "ramp-prefill",
)
HEAD = """\
<!-- Written by tools/scoreboard/dialects.py (make dialects). Do not edit. -->

# The same traffic, told by other engines

The simulated engine can use the words of several (`headroom-exporter simulate --dialect`): one hidden
truth, vLLM's scheduler and block pool, rendered with what each engine publishes, as seldom and as rounded as
it does. Rules, plans, traffic and the judgement of what users felt are those of
[the scoreboard](backtest.md); what differs is only what can be read. So a cell says what an engine's *page*
lets us know, and nothing about the engine: TGI's reservation and llama.cpp's split slots would schedule
otherwise than this truth does.

Each cell: when the first page fired before (+) or after (-) the first minute that users felt, and what it
named. `-` is silence, which is right where users felt nothing. Lead is minutes:seconds.

"""


def main() -> int:
    logging.getLogger("headroom_exporter").setLevel(logging.CRITICAL)
    known = {each.name: each for each in SCENARIOS}
    told = [_told(known[name], dialect) for name, dialect in product(CHOSEN, DIALECTS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = dict(zip(product(CHOSEN, DIALECTS), pool.map(judge, told), strict=True))
    DOC.write_text(HEAD + _table(known, outcomes) + _lost(outcomes))
    print(f"{DOC.relative_to(ROOT)} written")
    return 0


def _told(scenario: Scenario, dialect: str) -> Scenario:
    """A scenario in another engine's words."""
    servers = tuple(replace(server, dialect=dialect) for server in scenario.servers)
    return replace(scenario, name=f"{scenario.name}-{dialect}", servers=servers)


def _table(known: dict[str, Scenario], outcomes: dict[tuple[str, str], Outcome]) -> str:
    titles = [dialect.title for dialect in DIALECTS.values()]
    lines = [
        f"| scenario | users felt it | {' | '.join(titles)} |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for name in CHOSEN:
        first = outcomes[name, "vllm"]
        felt = any(breach.sustained for found in first.breaches.values() for breach in found)
        cells = [_cell(outcomes[name, dialect]) for dialect in DIALECTS]
        lines.append(
            f"| {name}: {known[name].story} | {'yes' if felt else 'no'} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome) -> str:
    pages = [each for each in outcome.firings if _is_page(each)]
    if not pages:
        missed = outcome.ours.missed
        return "**missed**" if missed else "-"
    if outcome.ours.lead is None:
        return f"{len(pages)} false"
    named = (
        ""
        if not outcome.ours.nameable
        else f", named {outcome.ours.named} of {outcome.ours.nameable}"
    )
    false = f", {outcome.ours.false_pages} false" if outcome.ours.false_pages else ""
    return f"{_clock(outcome.ours.lead)}{named}{false}"


def _is_page(firing: object) -> bool:
    return (
        getattr(firing, "severity", "") == "critical"
        and getattr(firing, "fired_at", None) is not None
        and getattr(firing, "alert", "") != "HeadroomEngineDown"
    )


def _clock(seconds: float) -> str:
    sign = "+" if seconds >= 0 else "-"
    return f"{sign}{int(abs(seconds)) // 60}:{int(abs(seconds)) % 60:02d}"


def _lost(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """The alerts, tickets too, that fired on vLLM's page and on no other scenario of a dialect's."""
    lines = ["", "## What else did not fire", ""]
    lines.append(
        "Alerts of any severity that fired from vLLM's page in these scenarios and from the other's not:"
    )
    lines.append("")
    for dialect, about in DIALECTS.items():
        if dialect == "vllm":
            continue
        missing = sorted(
            {
                f"`{alert}` ({name})"
                for name in CHOSEN
                for alert in _fired(outcomes[name, "vllm"]) - _fired(outcomes[name, dialect])
            }
        )
        lines.append(f"- {about.title}: {', '.join(missing) if missing else 'none'}")
    return "\n".join(lines) + "\n"


def _fired(outcome: Outcome) -> set[str]:
    return {each.alert for each in outcome.firings if each.fired_at is not None}


if __name__ == "__main__":
    sys.exit(main())
