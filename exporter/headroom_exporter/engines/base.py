"""
What an engine is to us, and the exposition parser all engines share.

The text format itself is read by prometheus_client; before it, lines that no engine table asks for are
dropped, which is most of a page (and spares us whatever is odd in them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from headroom_exporter.errors import Malformed
from headroom_exporter.samples import Cadence, EngineSample, Histogram, nothing

Labels = Mapping[str, str]
Series = list[tuple[Labels, float]]

# A page with more wanted lines than this is not an engine's. 64 ranks of vLLM 0.33 need about 13,000.
MAX_LINES = 40_000
# Characters split into lines at once: 8 MiB of lines of two letters would be a list of 200 MiB.
PIECE = 65_536
# The longest honest line, vllm:cache_config_info, has 2,000 characters. The parser takes time in the square
# of a line's length: 7 s for one label value of 1 MB full of escaped quotes.
MAX_LINE_LENGTH = 16_384
MAX_RANKS = 64
MAX_LABEL_LENGTH = 256
# Of one histogram: engines have 25 at most, owners' own ones a few more; each is kept for minutes.
MAX_BUCKETS = 256
# The beginning of a line that is neither empty nor a comment.
_SAMPLE = re.compile(rb"^[ \t\r\f\v]*+[^#\s]", re.MULTILINE)
# Values of one label (reasons) that are told apart; the most seen is 5.
MAX_REASONS = 16


@dataclass(frozen=True, slots=True)
class Page:
    """
    The wanted samples of one page, by exact sample name.

    Attributes:
        series: Sample name to its (labels, value) pairs, in the order of the page.
        truncated: Wanted lines left out: beyond MAX_LINES, or longer than MAX_LINE_LENGTH.
    """

    series: Mapping[str, Series]
    truncated: int = 0

    def get(self, names: Iterable[str]) -> Series:
        """Series of the first name that the page holds; empty when it holds none."""
        for name in names:
            found = self.series.get(name)
            if found:
                return found
        return []

    def text(self, name: str, label: str) -> str | None:
        """A label of the first series of that name; None where there is none, or it is empty."""
        for labels, _ in self.series.get(name, ()):
            return clip_label(labels[label]) if labels.get(label) else None
        return None

    def value(self, name: str) -> float | None:
        """The first value of that name, where it is finite and not negative."""
        for _, found in self.series.get(name, ()):
            return gauge(found)
        return None

    def beside(self, extra: Mapping[str, Series]) -> Page:
        """This page and what other pages of the engine said."""
        return Page({**self.series, **extra}, self.truncated) if extra else self


class Quantity(StrEnum):
    """What an engine may or may not tell: the columns of docs/engines.md."""

    RUNNING = "running"
    WAITING = "waiting"
    SLOTS = "slots"
    KV_USED = "KV used"
    KV_CAPACITY = "KV capacity"
    TOKENS_PER_SEQUENCE = "tokens per sequence"
    PROMPTS = "prompts"
    OUTPUTS = "outputs"
    TTFT = "TTFT"
    TPOT = "TPOT"
    PREEMPTIONS = "preemptions"
    PREFILL = "prefill"


class Certainty(StrEnum):
    """How well an engine tells a quantity."""

    EXACT = "exact"
    APPROXIMATE = "approximate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Told:
    """
    How well, and the words behind it.

    Attributes:
        note: exact: since when, or nothing. approximate: why. unknown: what to configure, or what is lost.
    """

    certainty: Certainty
    note: str = ""


def exact(note: str = "") -> Told:
    """The engine tells it as it is."""
    return Told(Certainty.EXACT, note)


def approximate(why: str) -> Told:
    """The engine tells something near it."""
    return Told(Certainty.APPROXIMATE, why)


def unknown(remedy: str) -> Told:
    """The engine does not tell it."""
    return Told(Certainty.UNKNOWN, remedy)


class KvUsage(StrEnum):
    """What the engine's KV usage counts; a label of ``headroom_engine_info``."""

    # Tokens of live sequences; cache that could be evicted at once is free.
    LIVE = "live"
    # What admission promised (prompt + longest answer), whether it holds tokens yet or not.
    RESERVED = "reserved"
    NONE = "none"


class Rhythm(StrEnum):
    """How often a page of JSON is asked."""

    START = "start"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class Beside:
    """
    A page of JSON that an engine answers beside its metrics; always optional.

    Attributes:
        path: Below the base address.
        series: The decoded JSON (anything a server may send) to series; {} where it tells nothing. Their
            names begin with the path (``/props.total_slots``), so that no metric can be mistaken for one.
        rhythm: Once per start of the engine, or with each poll.
        while_above_zero: A gauge of the engine's page; while it is 0 or absent the page is not asked, and
            tells nothing. None: always asked.
    """

    path: str
    series: Callable[[Any], Mapping[str, Series]]
    rhythm: Rhythm = Rhythm.START
    while_above_zero: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """
    One kind of inference server.

    Attributes:
        name: The ``engine_kind`` label and the configuration's ``kind``.
        title: What people call it.
        versions: The versions whose pages or code were read, for docs/engines.md.
        markers: Sample names of which one proves the kind.
        proves: What must hold besides, of the series of those names, where others may use the names too.
        known_by: Page of JSON that proves the kind while the page holds no sample at all.
        fast_names: Sample names of the fast poll: gauges and counters that move.
        full_names: Sample names of the full poll; holds the fast ones too.
        read: Page to EngineSample; pure.
        paths: Where its page is found; tried in this order.
        filtered_path: Path that honours ``name[]`` where the engine has one.
        parse: Answer and wanted names to Page; for an engine whose page is no exposition.
        beside: Pages of JSON that complete the page.
        command_line: Series from the command line of the server behind a URL, where it can be seen; asked
            with the pages of the rhythm START.
        cadence: How old its gauges can be.
        kv_usage: What its usage of the pool means.
        wraps: Its series stand beside those of the engine it runs, which then is the one to read.
        silent: Why a page of this engine may hold none of its series, for the message.
        empty_is_idle: Its series appear with the first request: where the kind is configured, an empty page
            is an engine nobody has used yet.
        tells: How well each quantity is told.
    """

    name: str
    title: str
    versions: str
    markers: frozenset[str]
    fast_names: tuple[str, ...]
    full_names: frozenset[str]
    read: Callable[[Page], EngineSample]
    proves: Callable[[Mapping[str, Series]], bool] | None = None
    known_by: Beside | None = None
    paths: tuple[str, ...] = ("/metrics",)
    filtered_path: str | None = None
    parse: Callable[[bytes, frozenset[str]], Page] | None = None
    beside: tuple[Beside, ...] = ()
    command_line: Callable[[str], Mapping[str, Series]] | None = None
    cadence: Cadence = Cadence()  # noqa: RUF009 - frozen
    kv_usage: KvUsage = KvUsage.LIVE
    wraps: bool = False
    silent: str = ""
    empty_is_idle: bool = False
    tells: Mapping[Quantity, Told] = field(default_factory=nothing)

    def fits(self, series: Mapping[str, Series]) -> bool:
        """Whether series, read with the markers among the wanted names, are those of this engine."""
        if self.markers.isdisjoint(series):
            return False
        return self.proves is None or self.proves(series)

    def page(self, body: bytes, wanted: frozenset[str]) -> Page:
        """
        Read the wanted samples of an answer.

        Raises:
            Malformed: It cannot be trusted.
        """
        return (self.parse or parse_page)(body, wanted)


def parse_page(body: bytes, wanted: frozenset[str]) -> Page:
    """
    Read the wanted samples of an exposition, text format 0.0.4 or OpenMetrics.

    Samples are matched by their exact name, never by family or prefix: families are declared with and
    without ``_total``, and one name is often the beginning of another.

    Raises:
        Malformed: not UTF-8, cut off in the middle of a line, HTML, an unparsable wanted line, or the
            same series twice.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Malformed(f"the answer is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    if text.lstrip()[:1] in ("[", "{"):
        raise Malformed(f"the answer is JSON, not metrics: {text.strip()[:60]!r}", kind="json")
    if text and not text.endswith("\n"):
        # A page cut at a line's end cannot be told from a whole one; one cut inside a line can.
        raise Malformed(f"the answer ends in the middle of a line: …{text[-40:]!r}")
    if text.lstrip()[:1] == "<":
        raise Malformed(f"the answer is HTML or XML, not metrics: {text.strip()[:60]!r}")
    lines = [
        line for line in _lines(text) if line and line.partition("{")[0].partition(" ")[0] in wanted
    ]
    kept = [line for line in lines if len(line) <= MAX_LINE_LENGTH][:MAX_LINES]
    return Page(_samples(kept), truncated=len(lines) - len(kept))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text that ends with one, a piece of the text at a time."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + PIECE)
        if end < 0:
            # A line longer than a piece.
            end = text.find("\n", start)
        yield from text[start:end].split("\n")
        start = end + 1


def is_blank(body: bytes) -> bool:
    """Whether a page holds no sample at all, of nobody."""
    return _SAMPLE.search(body) is None


Identity = tuple[str, frozenset[tuple[str, str]]]

# Labels as prometheus_client read them, by the text of the series before its value. Pages repeat the same few
# hundred series poll after poll, and reading labels was three quarters of the cost of a poll.
_read_before: dict[str, tuple[Identity, Labels]] = {}
MAX_REMEMBERED_SERIES = 8192
MAX_REMEMBERED_LENGTH = 512


def _samples(lines: list[str]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    seen: set[Identity] = set()
    try:
        for line in lines:
            identity, labels, value = _remembered(line) or _parse_line(line)
            if identity in seen:
                raise Malformed(f"the series {identity[0]}{_shown(labels)} appears twice")
            seen.add(identity)
            series.setdefault(identity[0], []).append((labels, value))
    except (ValueError, KeyError, IndexError, OverflowError) as exc:
        raise Malformed(f"unparsable exposition: {_shown(exc)}") from exc
    return series


def _remembered(line: str) -> tuple[Identity, Labels, float] | None:
    """The line's sample where its series was read before and nothing but a value follows it."""
    head, brace, value = line.rpartition("}")
    known = _read_before.get(head) if brace else None
    if known is None or "_" in value:
        return None
    try:
        return *known, float(value)
    except ValueError:
        return None


def _parse_line(line: str) -> tuple[Identity, Labels, float]:
    for family in text_string_to_metric_families(line + "\n"):
        for sample in family.samples:
            identity = (sample.name, frozenset(sample.labels.items()))
            _remember(line, identity, sample.labels)
            return identity, sample.labels, _float(sample.value)
    raise ValueError(f"no sample in {_shown(line)!r}")


def _remember(line: str, identity: Identity, labels: Labels) -> None:
    """Keep a series' labels; not where an exemplar or a comment could stand behind the value."""
    head, brace, _ = line.rpartition("}")
    if not brace or "#" in line or len(head) > MAX_REMEMBERED_LENGTH:
        return
    if len(_read_before) >= MAX_REMEMBERED_SERIES:
        _read_before.clear()
    _read_before[head] = (identity, labels)


def _float(value: float) -> float:
    """A sample's value; the parser gives an int of any size where the text has no point."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(found: object) -> str:
    """What was found, short enough for a message: it comes from the page."""
    text = str(found)
    return text if len(text) <= 120 else text[:120] + "…"


def gauge(value: float) -> float | None:
    """A gauge's value, or None where it is not finite or negative (sentinels such as -1)."""
    return value if math.isfinite(value) and value >= 0 else None


def usage(value: float) -> float | None:
    """
    A usage ratio.

    Up to 1.05 is rounding and becomes 1; more is a broken gauge, so unknown (seen on SGLang, whose
    context-parallel ranks multiplied it).
    """
    known = gauge(value)
    if known is None or known > 1.05:
        return None
    return min(known, 1.0)


def number(text: str | None) -> float | None:
    """A label's number; None for an absent label and for the texts ``None`` and ``auto``."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def histogram(buckets: Iterable[tuple[Labels, float]], total: float | None) -> Histogram | None:
    """
    Put a histogram together.

    Args:
        buckets: (labels with ``le``, cumulative count) of one series.
        total: Its ``_sum``.

    Returns:
        None where it is incomplete (no +Inf, no sum), not cumulative, has more than MAX_BUCKETS, or where a
        bound is not a number or stands there twice (1 and 1.0): half a histogram is no evidence.
    """
    pairs: list[tuple[float, float]] = []
    for labels, value in buckets:
        if len(pairs) == MAX_BUCKETS:
            return None
        try:
            pairs.append((float(labels["le"]), value))
        except (KeyError, ValueError):
            return None
    pairs.sort()
    bounds = tuple(bound for bound, _ in pairs[:-1])
    counts = tuple(count for _, count in pairs)
    if total is None or gauge(total) is None or not pairs or pairs[-1][0] != math.inf:
        return None
    if not all(map(math.isfinite, bounds)) or len(set(bounds)) < len(bounds):
        return None
    if any(gauge(count) is None for count in counts) or list(counts) != sorted(counts):
        return None
    return Histogram(bounds=bounds, counts=counts, sum=total)


def clip_label(text: str) -> str:
    """A label value no longer than MAX_LABEL_LENGTH."""
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"
