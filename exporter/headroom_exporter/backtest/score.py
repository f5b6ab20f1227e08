"""Alerts against what users felt: caught, lead, false pages, flaps, the constraint's name. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headroom_exporter.backtest.truth import Breach

# A page is false when no sustained breach goes on and none begins within so many seconds.
FORESIGHT_SECONDS = 1800.0
# Paged again so soon after all had resolved is a flap.
FLAP_SECONDS = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    One page: an alert of severity critical that fired.

    Attributes:
        alert: Its name.
        engine: Which engine it speaks of; empty where the alert names a whole model.
        begin: When it fired, seconds.
        end: When it resolved; the recording's end where it did not.
        constraint: What it says binds.
    """

    alert: str
    engine: str
    begin: float
    end: float
    constraint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """
    How one engine's pages fared against its sustained breaches.

    Attributes:
        caught: Sustained breaches with a page no later than their end.
        missed: Those without.
        lead: Seconds from the first page to the first minute of the first sustained breach; negative
            where the page came later; None where there was no breach or no page for it. What fired
            more than FORESIGHT_SECONDS before counts as that much.
        false_pages: Pages with no sustained breach going on and none beginning soon.
        flaps: Pages that came soon after all pages of before had resolved.
        named: Pages of a breach whose constraint is known, that name it right.
        nameable: Pages of a breach whose constraint is known.
    """

    caught: int = 0
    missed: int = 0
    lead: float | None = None
    false_pages: int = 0
    flaps: int = 0
    pages: int = 0
    named: int = 0
    nameable: int = 0


def score(pages: Sequence[Page], breaches: Sequence[Breach]) -> Score:
    """
    Judge the pages of one engine.

    Args:
        pages: In any order.
        breaches: All, sustained or not, in order of time.
    """
    sustained = [breach for breach in breaches if breach.sustained]
    caught = sum(any(_for(page, breach) for page in pages) for breach in sustained)
    named = nameable = false = 0
    for page in pages:
        meant = _meant(page, sustained)
        if meant is None:
            false += 1
        elif meant.constraint is not None:
            nameable += 1
            named += page.constraint == meant.constraint
    return Score(
        caught=caught,
        missed=len(sustained) - caught,
        lead=_lead(pages, sustained),
        false_pages=false,
        flaps=_flaps(pages),
        pages=len(pages),
        named=named,
        nameable=nameable,
    )


def _for(page: Page, breach: Breach) -> bool:
    """Whether a page is up before a breach ends, and still up, or not long ago, when it begins."""
    return page.begin <= breach.end and page.end >= breach.begin - FORESIGHT_SECONDS


def _meant(page: Page, sustained: Sequence[Breach]) -> Breach | None:
    """The breach that goes on when a page fires, or the next one if it begins soon."""
    for breach in sustained:
        if breach.begin - FORESIGHT_SECONDS <= page.begin <= breach.end:
            return breach
    return None


def _lead(pages: Sequence[Page], sustained: Sequence[Breach]) -> float | None:
    if not sustained:
        return None
    first = sustained[0]
    begins = [page.begin for page in pages if _for(page, first)]
    return min(first.begin - min(begins), FORESIGHT_SECONDS) if begins else None


def _flaps(pages: Sequence[Page]) -> int:
    """Times at which somebody is paged again soon after every page of before had resolved."""
    count, last_end = 0, None
    for page in sorted(pages, key=lambda each: each.begin):
        if last_end is not None and page.begin > last_end:
            count += page.begin - last_end < FLAP_SECONDS
        last_end = page.end if last_end is None else max(last_end, page.end)
    return count
