"""The same words in the terminal and on the page: times, durations, the verdict. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.backtest.score import FORESIGHT_SECONDS
from headroom_exporter.config.text import number
from headroom_exporter.simulate.progress import span

if TYPE_CHECKING:
    from headroom_exporter.backtest import Firing
    from headroom_exporter.backtest.report import Report, Stage
    from headroom_exporter.config import PlanConfig

SOON_SECONDS = 120.0
# Labels that are the same for everything that one server's alerts say.
_OF_THE_SERVER = frozenset({"engine", "model_name", "instance", "job", "severity", "alertname"})


def clock(seconds: float) -> str:
    """A moment of the traffic's own clock, ``h:mm``; hours go on beyond a day."""
    minutes = int(seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02}"


def lasting(seconds: float) -> str:
    """A duration for people: ``30 s``, ``1.5 min``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds < 60:
        return f"{round(seconds)} s"
    if seconds < 600:
        # Evaluations come every 30 s: half a minute can be told.
        return f"{round(seconds / 30) / 2:g} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes:02} min" if minutes else f"{hours} h"
    return f"{minutes} min"


def count(how_many: int, thing: str) -> str:
    """``no page``, ``1 page``, ``2 pages``; for words that take an s, or a breach."""
    plural = thing + ("es" if thing.endswith("ch") else "s")
    return f"{how_many or 'no'} {thing if how_many == 1 else plural}"


# --- the verdict ---------------------------------------------------------------------------------


def headline(report: Report) -> str:
    """The finding in one sentence."""
    score = report.score
    sustained = score.caught + score.missed
    false = f"{count(score.false_pages, 'false page')}."
    if not sustained:
        rest = f"; {false}" if score.pages else ", and nothing paged."
        return f"Users felt no sustained breach{rest}"
    if not score.caught:
        return f"Users felt {count(sustained, 'sustained breach')}, and nobody was paged for it; {false}"
    ahead = "" if score.lead is None else f", the first time {lead(score.lead)}"
    if not score.missed:
        return (
            f"Every sustained breach was paged for ({score.caught} of {sustained}){ahead}; {false}"
        )
    return f"{score.caught} of {sustained} sustained breaches were paged for{ahead}; {false}"


def lead(seconds: float) -> str:
    """When the first page came, seen from the first sustained breach."""
    if seconds >= FORESIGHT_SECONDS:
        return f"{lasting(seconds)} or more before it began"
    if seconds > 0:
        return f"{lasting(seconds)} before it began"
    return f"{lasting(-seconds)} after it began" if seconds < 0 else "as it began"


def verdict(report: Report) -> tuple[tuple[str, str, bool | None], ...]:
    """What was judged: its name, the finding, and whether it is good (None: neither)."""
    score = report.score
    sustained = score.caught + score.missed
    named = f"{score.named} of {score.nameable}" if score.nameable else "–"
    return (
        (
            "sustained breaches paged for",
            f"{score.caught} of {sustained}" if sustained else "none to catch",
            not score.missed if sustained else None,
        ),
        (
            "first page",
            lead(score.lead) if score.lead is not None else "–",
            _in_time(score.lead),
        ),
        ("false pages", f"{score.false_pages} of {score.pages}", not score.false_pages),
        ("flaps", str(score.flaps), not score.flaps),
        (
            "constraint named right",
            named,
            score.named == score.nameable if score.nameable else None,
        ),
    )


def _in_time(seconds: float | None) -> bool | None:
    """A sudden spike cannot be foreseen: a page soon after its begin is neither good nor bad."""
    if seconds is None or -SOON_SECONDS <= seconds < 0:
        return None
    return seconds >= 0


def rule_names(stage: Stage) -> str:
    """The rule files, each with its folder."""
    return ", ".join(f"{file.parent.name}/{file.name}" for file in stage.rule_files)


# --- what was played -----------------------------------------------------------------------------


def facts(stage: Stage) -> tuple[tuple[str, str], ...]:
    """What was played, on what, against what."""
    seen, profile = stage.survey, stage.profile
    cards = f"{profile.gpus} x {profile.gpu}" if profile.gpus > 1 else profile.gpu
    ranks = f", {stage.ranks} ranks" if stage.ranks > 1 else ""
    events = f"; {', '.join(stage.events)}" if stage.events else ""
    traffic = (
        f"{stage.trace}: {seen.requests:,} requests in {span(stage.seconds)} "
        f"({seen.requests / stage.seconds:.2f} a second), on average "
        f"{seen.prompt_tokens / seen.requests:,.0f} prompt and "
        f"{seen.output_tokens / seen.requests:,.0f} output tokens{events}"
    )
    engine = (
        f"SIMULATED {profile.name} ({cards or 'no card'}): KV pool {profile.pool_tokens:,} tokens, "
        f"{profile.max_num_seqs} slots{ranks}; {profile.basis or 'own'} profile"
        f"{f': {profile.quality}' if profile.quality else ''}"
    )
    plan = f"{stage.plan.name} ({stage.plan_file}): {planned(stage.plan)}"
    return ("traffic", traffic), ("engine", engine), ("plan", plan)


def planned(plan: PlanConfig) -> str:
    """The declared numbers that a reader of the report needs."""
    parts = (
        ("{} at once", plan.concurrency),
        ("{} requests a second", plan.request_rate),
        ("prompts p95 {} tokens", plan.prompt_tokens.p95),
        ("outputs p95 {} tokens", plan.output_tokens.p95),
        ("TTFT p95 {} s", plan.ttft_p95_seconds),
        ("TPOT p95 {} s", plan.tpot_p95_seconds),
    )
    known = [text.format(number(value)) for text, value in parts if value is not None]
    return ", ".join(known) or "no number declared"


def about(firing: Firing, constraint: str | None) -> str:
    """What an alert speaks of, beyond the server: its other labels, and what a page says binds."""
    labels = [f"{name} {text}" for name, text in firing.labels if name not in _OF_THE_SERVER]
    return ", ".join([*labels, *([f"bound by {constraint}"] if constraint else [])])


def how_long(firing: Firing, end: float) -> str:
    """For how long an alert fired."""
    if firing.fired_at is None:
        return ""
    return lasting((end if firing.resolved_at is None else firing.resolved_at) - firing.fired_at)
