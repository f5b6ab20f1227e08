"""The report as one self-contained HTML page: no script, no request, light and dark. Pure."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from headroom_exporter import __version__
from headroom_exporter.backtest.picture import picture
from headroom_exporter.backtest.report import rank_of
from headroom_exporter.backtest.words import (
    about,
    clock,
    facts,
    headline,
    how_long,
    lasting,
    rule_names,
    verdict,
)
from headroom_exporter.links import RUNBOOKS
from headroom_exporter.simulate.progress import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headroom_exporter.backtest import AlertRule
    from headroom_exporter.backtest.report import Report

_DOCS = RUNBOOKS.rpartition("/")[0]
# Nothing may be loaded from anywhere, whatever a file's text tries to smuggle in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SIGNS = {True: ("good", "✓"), False: ("bad", "✕"), None: ("", "")}
_TONES = ("critical", "warning", "info")


def page(report: Report) -> str:
    """
    Write the page.

    Returns:
        A whole HTML document, UTF-8; what comes from files is escaped.
    """
    style = (resources.files(__package__) / "page.css").read_text(encoding="utf-8")
    title = escape(f"Backtest: {report.stage.trace}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(
            (
                _header(report),
                _tiles(report),
                _picture(report),
                _alerts(report),
                _breaches(report),
                _facts(report),
                _rules(report),
            )
        )
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    badge = '<span class="badge">SIMULATED engine</span>'
    return (
        f"<header><p>{badge} headroom-exporter {escape(__version__)} backtest,"
        f" rules evaluated by a real Prometheus</p><h1>{escape(headline(report))}</h1></header>"
    )


def _tiles(report: Report) -> str:
    tiles = []
    for name, found, good in verdict(report):
        tone, sign = _SIGNS[good]
        mark = f'<span aria-hidden="true">{sign}</span>' if sign else ""
        tiles.append(
            f'<div class="{tone}"><dt>{escape(name)}</dt><dd>{mark}{escape(found)}</dd></div>'
        )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _picture(report: Report) -> str:
    keys = (
        ("sustained", "users miss the plan, five minutes or longer"),
        ("short", "users miss the plan, shorter"),
        ("pending", "pending"),
        ("critical", "firing: page"),
        ("warning", "firing: ticket"),
        ("info", "firing: info"),
    )
    legend = "".join(f'<li><i class="i-{kind}"></i>{said}</li>' for kind, said in keys)
    return (
        '<section class="card"><h2>Time line</h2>'
        f'<div class="scroll">{picture(report)}</div><ul class="legend">{legend}</ul></section>'
    )


# --- tables --------------------------------------------------------------------------------------


def _alerts(report: Report) -> str:
    offset = report.stage.offset
    urls = {rule.name: _runbook(rule) for rule in report.evaluation.rules}
    rows = [
        (
            _toned(each.severity),
            _link(each.alert, urls.get(each.alert)),
            escape(about(each, report.constraint(each)) or "–"),
            clock(offset + each.pending_at),
            clock(offset + (each.fired_at or 0.0)),
            "at the end" if each.resolved_at is None else clock(offset + each.resolved_at),
            how_long(each, report.end),
        )
        for each in report.fired
    ]
    fired = {each.alert for each in report.fired}
    only = list(dict.fromkeys(name for _, name in report.up if name not in fired))
    waited = f'<p class="worth">Only pending: {escape(", ".join(only))}.</p>' if only else ""
    if not rows:
        return _card("Alerts", f"<p>No alert fired.</p>{waited}")
    heads = ("severity", "alert", "what", "pending", "fired", "cleared", "for")
    return _card("Alerts that fired", _table(heads, rows, from_right=4) + waited)


def _breaches(report: Report) -> str:
    offset, felt = report.stage.offset, report.felt
    rows = [
        (
            "sustained" if each.sustained else "short",
            escape(each.constraint or "unknown"),
            clock(offset + each.begin),
            clock(offset + each.end),
            lasting(each.end - each.begin),
        )
        for each in felt.breaches
    ]
    lost = (
        f" {felt.lost:,} more were lost with the server: refused while it was down, or cut off."
        if felt.lost
        else ""
    )
    words = (
        f'<p class="worth">Of {felt.requests - felt.lost:,} requests.{lost} A breach: of the requests that'
        " arrived within five minutes (at least 20) more than 5 % missed the planned TTFT or TPOT, or more"
        " than 1 % were turned away.</p>"
    )
    if not rows:
        return _card("What users felt", f"<p>They missed the plan in no minute.</p>{words}")
    heads = ("breach", "bound by", "from", "to", "for")
    return _card("What users felt", _table(heads, rows, from_right=3) + words)


def _rules(report: Report) -> str:
    rules = sorted(report.evaluation.rules, key=lambda rule: rank_of(rule.severity))
    rows = [
        (
            _toned(rule.severity),
            _link(rule.name, _runbook(rule)),
            f"<details><summary>expression</summary><pre>{escape(rule.expr)}</pre></details>",
            lasting(rule.for_seconds) if rule.for_seconds else "–",
            lasting(rule.keep_firing_for) if rule.keep_firing_for else "–",
        )
        for rule in rules
    ]
    heads = ("severity", "alert", "fires when", "holds for", "kept for")
    files = rule_names(report.stage)
    return _card(
        "Rules", _table(heads, rows, from_right=2) + f'<p class="worth">{escape(files)}</p>'
    )


def _facts(report: Report) -> str:
    stage = report.stage
    rows = [
        *facts(stage),
        ("played", f"{span(stage.seconds)} of traffic in {report.wall_seconds:.1f} s"),
        *(("note", note) for note in stage.notes),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(said)}</dd></div>" for name, said in rows)
    worth = (
        '<p class="worth">The engine is simulated: its answers are worth what its profile is worth. How well'
        f' it agrees with a real vLLM: <a href="{_DOCS}/simulator-validation.md">simulator-validation</a>;'
        f' how to read this page: <a href="{_DOCS}/backtesting.md">backtesting</a>.</p>'
    )
    return _card("What was played", f'<dl class="facts">{listed}</dl>{worth}')


def _card(title: str, inside: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{inside}</section>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, from_right: int) -> str:
    """A table of HTML cells whose last ``from_right`` columns are numbers."""
    first = len(heads) - from_right

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=' + chr(34) + 'num' + chr(34) if index >= first else ''}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line(heads, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _toned(severity: str) -> str:
    tone = severity if severity in _TONES else "info"
    return f'<span class="tone-{tone}">{escape(severity or "–")}</span>'


def _runbook(rule: AlertRule) -> str | None:
    """Its address, if it is one: other people's rules may hold anything, templates too."""
    url = dict(rule.annotations).get("runbook_url", "")
    return url if url.startswith(("https://", "http://")) and "{{" not in url else None


def _link(name: str, url: str | None) -> str:
    return escape(name) if url is None else f'<a href="{escape(url)}">{escape(name)}</a>'
