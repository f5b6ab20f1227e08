"""
What an engine is to us, and the exposition parser all engines share.

The text format itself is read by prometheus_client; before it, lines that no engine table asks for are
dropped, which is most of a page (and spares us whatever is odd in them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from headroom_exporter.errors import Malformed
from headroom_exporter.samples import EngineSample, Histogram

Labels = Mapping[str, str]
Series = list[tuple[Labels, float]]

# A page with more wanted lines than this is not an engine's. 64 ranks of vLLM 0.33 need about 13,000.
MAX_LINES = 40_000
# The longest honest line, vllm:cache_config_info, has 2,000 characters. The parser takes time in the square
# of a line's length: 7 s for one label value of 1 MB full of escaped quotes.
MAX_LINE_LENGTH = 16_384
MAX_RANKS = 64
MAX_LABEL_LENGTH = 256
# Of one histogram: engines have 25 at most, owners' own ones a few more; each is kept for minutes.
MAX_BUCKETS = 256
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """
    One kind of inference server.

    Attributes:
        name: The ``engine_kind`` label and the configuration's ``kind``.
        markers: Sample names of which one proves the kind.
        fast_names: Sample names of the fast poll: gauges and counters that move.
        full_names: Sample names of the full poll; holds the fast ones too.
        read: Page to EngineSample; pure.
        filtered_path: Path that honours ``name[]`` where the engine has one.
    """

    name: str
    markers: frozenset[str]
    fast_names: tuple[str, ...]
    full_names: frozenset[str]
    read: Callable[[Page], EngineSample]
    metrics_path: str = "/metrics"
    filtered_path: str | None = None


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
    if text and not text.endswith("\n"):
        # A page cut at a line's end cannot be told from a whole one; one cut inside a line can.
        raise Malformed(f"the answer ends in the middle of a line: …{text[-40:]!r}")
    if text.lstrip()[:1] == "<":
        raise Malformed(f"the answer is HTML or XML, not metrics: {text.strip()[:60]!r}")
    lines = [
        line
        for line in text.split("\n")
        if line and line.partition("{")[0].partition(" ")[0] in wanted
    ]
    kept = [line for line in lines if len(line) <= MAX_LINE_LENGTH][:MAX_LINES]
    return Page(_samples(kept), truncated=len(lines) - len(kept))


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
