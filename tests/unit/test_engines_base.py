"""The exposition parser: what is read of a page and what is refused."""

from __future__ import annotations

import contextlib
import math
import time
import tracemalloc

import pytest

from headroom_exporter.engines.base import (
    MAX_BUCKETS,
    MAX_LABEL_LENGTH,
    MAX_LINE_LENGTH,
    MAX_LINES,
    clip_label,
    gauge,
    histogram,
    number,
    parse_page,
    usage,
)
from headroom_exporter.errors import Malformed

WANTED = frozenset({"a", "a_total", "b_bucket"})


def values(text: str | bytes) -> dict[str, list[float]]:
    body = text.encode() if isinstance(text, str) else text
    return {name: [v for _, v in found] for name, found in parse_page(body, WANTED).series.items()}


# --- what is read --------------------------------------------------------------------------------


def test_samples_are_matched_by_their_exact_name() -> None:
    """Never by family or prefix: one name is often the beginning of another."""
    text = "# TYPE a counter\na 1\na_total 2\na_total_more 3\nab 4\nx_a 5\na_created 6\n"
    assert values(text) == {"a": [1], "a_total": [2]}


def test_a_family_declared_with_or_without_total_reads_the_same() -> None:
    """The Rust frontend declares counters without it, the Python one with it."""
    declared = "# TYPE a counter\na_total 2\n", "# TYPE a_total counter\na_total 2\n", "a_total 2\n"
    assert [values(text) for text in declared] == [{"a_total": [2]}] * 3


def test_what_is_odd_in_lines_nobody_asked_for_does_not_matter() -> None:
    text = 'x{broken 1\ny NaN NaN\n...\nz 1\nz 1\n{"utf8.name"} 1\na 7\n# EOF\n'
    assert values(text) == {"a": [7]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a 1", 1.0),
        ("a 1.0463768576e+010", 10463768576.0),
        ("a 1e+06", 1e6),
        ("a +Inf", math.inf),
        ("a 9" + "9" * 400, math.inf),
        ("a -9" + "9" * 400, -math.inf),
        ("a 5 1700000000000", 5.0),
        ("a\t5", 5.0),
        ('a{x="y"} 5\r', 5.0),
        ('a{x="}"} 5', 5.0),
        ("a{} 5", 5.0),
        ('a{x="y",} 5', 5.0),
    ],
)
def test_numbers_as_they_are_seen(line: str, expected: float) -> None:
    (found,) = values(line.replace("\t", " ") + "\n")["a"]
    assert found == expected
    assert isinstance(found, float)


def test_label_values_are_unescaped() -> None:
    page = parse_page(rb'a{model_name="C:\\models\\\"q\"\nx \xc3\xbc {,}="} 1' + b"\n", WANTED)
    assert page.series["a"][0][0]["model_name"] == 'C:\\models\\"q"\nx \\xc3\\xbc {,}='
    page = parse_page('a{model_name="Qwen/Größe-模型-🦙"} 1\n'.encode(), WANTED)
    assert page.series["a"][0][0]["model_name"] == "Qwen/Größe-模型-🦙"


def test_the_first_known_name_counts() -> None:
    page = parse_page(b"a 1\na_total 2\n", WANTED)
    assert [value for _, value in page.get(("c", "a_total", "a"))] == [2]
    assert page.get(("c",)) == []


def test_an_empty_page_is_empty_not_broken() -> None:
    assert values("") == {}
    assert values("\n\n# nothing\n") == {}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"a 1\n\xff\xfe\n", "UTF-8"),
        ("a 1\n".encode("utf-16"), "UTF-8"),
        (b"a 1\na_tot", "middle of a line"),
        (b"a 1", "middle of a line"),
        (b"<html><body>a 1</body></html>\n", "HTML"),
        (b"\n  <!DOCTYPE html>\n", "HTML"),
        (b"a one\n", "unparsable"),
        (b"a 0x10\n", "unparsable"),
        (b"a 1_000\n", "unparsable"),
        (b'a{x="y"}\n', "unparsable"),
        (b'a{x="y} 1\n', "unparsable"),
        (b"a{x=y} 1\n", "unparsable"),
        (b'a{x="1",x="2"} 1\n', "unparsable"),
        (b'a{=" "} 1\n', "unparsable"),
        (b"a 1 " + b"9" * 4000 + b"\n", "unparsable"),
        (b"a 1\na 1\n", "twice"),
        (b'a{x="1",y="2"} 1\na{y="2",x="1"} 3\n', "twice"),
    ],
)
def test_a_page_that_cannot_be_trusted_is_refused_whole(body: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason) as caught:
        parse_page(body, WANTED)
    assert caught.value.kind == "malformed"
    assert len(str(caught.value)) < 300


def test_a_refusal_does_not_repeat_the_page() -> None:
    """Its text goes to the log; the page may hold anything, and much of it."""
    for body in (b'a{x="' + b"s" * 9000 + b'"} 1\n') * 2, b"a " + b"s" * 9000 + b"\n":
        with pytest.raises(Malformed) as caught:
            parse_page(body, WANTED)
        assert len(str(caught.value)) < 200


# --- how much is read ----------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_left_out_and_counted() -> None:
    long = b'a{x="' + b"y" * MAX_LINE_LENGTH + b'"} 1\n'
    page = parse_page(long + b"a_total 2\n", WANTED)
    assert (set(page.series), page.truncated) == ({"a_total"}, 1)


def test_no_more_than_so_many_lines_are_read() -> None:
    body = b"".join(b'a{x="%d"} 1\n' % i for i in range(MAX_LINES + 10))
    page = parse_page(body, WANTED)
    assert (len(page.series["a"]), page.truncated) == (MAX_LINES, 10)


@pytest.mark.parametrize(
    "line",
    [
        b'a{x="' + b'\\"' * 4_000_000 + b'"} 1\n',
        b"a{" + b",".join(b'l%d="x"' % i for i in range(600_000)) + b"} 1\n",
        b'a{x="' + b"\\\\" * 4_000_000 + b'"} 1\n',
        (b'a{x="' + b'\\"' * 8_000 + b'"} 1\n') * 480,
    ],
    ids=["escaped quotes", "labels", "backslashes", "many lines at the limit"],
)
def test_eight_hostile_megabytes_are_dealt_with_in_seconds(line: bytes) -> None:
    """The parser's time grows with the square of a line's length; unbounded, the first takes minutes."""
    assert len(line) > 7_000_000
    began = time.thread_time()
    with contextlib.suppress(Malformed):
        parse_page(line, WANTED)
    assert time.thread_time() - began < 5


def test_memory_stays_in_proportion_to_the_page() -> None:
    body = b"".join(b'a{x="%d"} 1\n' % i for i in range(MAX_LINES))
    tracemalloc.start()
    try:
        parse_page(body, WANTED)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000


# --- single values -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -0.001])
def test_sentinels_are_unknown(value: float) -> None:
    assert gauge(value) is None
    assert usage(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.05, 1.0), (1.06, None), (99.0, None)],
)
def test_usage_above_one_is_rounding_or_broken(value: float, expected: float | None) -> None:
    assert usage(value) == expected


@pytest.mark.parametrize("text", [None, "None", "auto", "", "-1", "0", "nan", "inf", "16 GB"])
def test_a_label_that_holds_no_number_is_unknown(text: str | None) -> None:
    assert number(text) is None


def test_a_label_that_holds_a_number_is_read() -> None:
    assert [number("16"), number("1.5"), number("1e3")] == [16, 1.5, 1000]


def test_a_long_label_is_clipped() -> None:
    assert clip_label("x" * MAX_LABEL_LENGTH) == "x" * MAX_LABEL_LENGTH
    clipped = clip_label("x" * 1_000_000)
    assert (len(clipped), clipped[-1]) == (MAX_LABEL_LENGTH, "…")


def bucket(le: str, count: float) -> tuple[dict[str, str], float]:
    return {"le": le}, count


def test_a_histogram_is_put_together_in_any_order() -> None:
    made = histogram(
        [bucket("+Inf", 3), bucket("1.0", 1), bucket("1e+06", 3), bucket("10", 2)], 12.5
    )
    assert made is not None
    assert (made.bounds, made.counts, made.sum, made.count) == ((1, 10, 1e6), (1, 2, 3, 3), 12.5, 3)


@pytest.mark.parametrize(
    ("buckets", "total"),
    [
        ([bucket("1", 1), bucket("2", 2)], 3.0),
        ([bucket("1", 1), bucket("+Inf", 2)], None),
        ([bucket("1", 1), bucket("+Inf", 2)], math.nan),
        ([bucket("1", 1), bucket("+Inf", 2)], -1.0),
        ([bucket("1", 3), bucket("+Inf", 2)], 3.0),
        ([bucket("1", math.nan), bucket("+Inf", 2)], 3.0),
        ([bucket("1", -1), bucket("+Inf", 2)], 3.0),
        ([bucket("one", 1), bucket("+Inf", 2)], 3.0),
        ([bucket("NaN", 1), bucket("+Inf", 2)], 3.0),
        ([bucket("-Inf", 1), bucket("+Inf", 2)], 3.0),
        ([bucket("1", 1), bucket("1.0", 1), bucket("+Inf", 2)], 3.0),
        ([({}, 1.0), bucket("+Inf", 2)], 3.0),
        ([], 3.0),
    ],
)
def test_half_a_histogram_is_none(
    buckets: list[tuple[dict[str, str], float]], total: float | None
) -> None:
    assert histogram(buckets, total) is None


def test_a_histogram_with_more_buckets_than_any_engine_has_is_none():
    def many(count):
        bounds = [*(str(index) for index in range(count - 1)), "+Inf"]
        return [({"le": bound}, float(index)) for index, bound in enumerate(bounds)]

    assert histogram(many(MAX_BUCKETS), 1.0) is not None
    assert histogram(many(MAX_BUCKETS + 1), 1.0) is None
