"""Trace files: what is read, what is refused and with which words, windows, scaling."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from statistics import mean, pvariance

import pytest

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.requests import Request
from headroom_exporter.simulate.trace import Columns, read
from headroom_exporter.simulate.traffic import (
    COPY_SECONDS,
    repeat,
    scale,
    select,
    survey,
    with_prefix_hits,
)

TRACES = Path(__file__).parents[1] / "fixtures" / "simulate"
HEAD = "arrival_s,prompt_tokens,output_tokens"


@pytest.fixture
def write(tmp_path):
    def make(text: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def arrivals(requests) -> list[float]:
    return [request.arrival for request in requests]


def test_rows_become_requests(write):
    path = write(f"{HEAD}\n0.5,100,20\n1.25,7,3\n")
    assert list(read(path)) == [
        Request(arrival=0.5, prompt_tokens=100, output_tokens=20),
        Request(arrival=1.25, prompt_tokens=7, output_tokens=3),
    ]


def test_optional_columns_are_read_and_others_are_not_looked_at(write):
    path = write(
        "client,output_tokens,abort_after_s,prompt_tokens,arrival_s,cached_tokens,finish_reason,id\n"
        "x,20,,100,0,64,length,a\n"
        ",20,1.5,100,1,0,,\n"
    )
    assert list(read(path)) == [
        Request(
            arrival=0,
            prompt_tokens=100,
            output_tokens=20,
            id="a",
            finish_reason="length",
            cached_tokens=64,
        ),
        Request(arrival=1, prompt_tokens=100, output_tokens=20, abort_after=1.5),
    ]


def test_a_packed_file_is_recognised_by_its_content(write):
    text = f"{HEAD}\n1,2,3\n"
    packed = write(gzip.compress(text.encode()), "plain-name.csv")
    assert list(read(packed)) == list(read(write(text)))


def test_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(write):
    path = write(f"\ufeff{HEAD}\r\n1,2,3\r\n\r\n2,2,3\r\n")
    assert arrivals(read(path)) == [1, 2]


def test_columns_may_have_other_names(write):
    path = write("t,prompt_tokens,output_tokens,hit\n3,100,5,64\n")
    (request,) = read(path, Columns(arrival="t", cached="hit"))
    assert (request.arrival, request.cached_tokens) == (3, 64)


def test_rows_that_come_a_little_late_are_put_where_they_belong(write):
    path = write(f"{HEAD}\n3,1,1\n1,1,1\n2,1,1\n30,1,1\n21,1,1\n")
    assert arrivals(read(path)) == [1, 2, 3, 21, 30]


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ("1,2", 2, "2 fields, the header has 3"),
        ("1,2,3\n2,two,3", 3, "prompt_tokens 'two': must be a whole number, at least 1"),
        ("1,0,3", 2, "prompt_tokens '0': must be a whole number, at least 1"),
        ("1,2,3.5", 2, "output_tokens '3.5': must be a whole number"),
        ("-1,2,3", 2, "arrival_s '-1': must be a number of seconds, at least 0"),
        ("nan,2,3", 2, "arrival_s 'nan'"),
        ("inf,2,3", 2, "arrival_s 'inf'"),
        (",2,3", 2, "arrival_s ''"),
        ("100,2,3\n101,2,3\n89,2,3", 4, "arrival 89.0 comes after a row with 101.0"),
        ('1,2,"3\n2', 3, "1 fields|must be a whole number|unexpected end"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_reason(write, rows, line, reason):
    path = write(f"{HEAD}\n{rows}\n")
    with pytest.raises(ConfigError, match=reason) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_optional_columns_are_checked_too(write):
    path = write(f"{HEAD},cached_tokens,abort_after_s,finish_reason\n1,2,3,-1,,\n")
    with pytest.raises(ConfigError, match=r":2: cached_tokens '-1': must be a whole number"):
        list(read(path))
    path = write(f"{HEAD},abort_after_s\n1,2,3,soon\n")
    with pytest.raises(ConfigError, match=r":2: abort_after_s 'soon': must be a number"):
        list(read(path))
    path = write(f"{HEAD},finish_reason\n1,2,3,tired\n")
    with pytest.raises(
        ConfigError, match=r":2: finish_reason 'tired': must be one of stop, length"
    ):
        list(read(path))


@pytest.mark.parametrize(
    ("content", "columns", "reason"),
    [
        ("", None, r":1: no column 'arrival_s'; it has none"),
        ("time,prompt_tokens,output_tokens\n", None, r":1: no column 'arrival_s'; it has time, "),
        (f"{HEAD}\n", Columns(cached="hits"), r":1: no column 'hits'"),
        (b"\xff\xfe\x00", None, "not UTF-8 text"),
        (gzip.compress(b"x" * 10_000)[:-20], None, "cannot be read"),
        (b"\x1f\x8bnot really", None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace_is_an_error(write, content, columns, reason):
    with pytest.raises(ConfigError, match=reason):
        list(read(write(content), columns))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read: .*No such file"):
        list(read(tmp_path / "none.csv"))


def test_the_rest_of_a_file_is_not_read_before_it_is_needed(write):
    path = write(f"{HEAD}\n" + "".join(f"{n},1,1\n" for n in range(100)) + "broken\n")
    assert len(list(islice(read(path), 50))) == 50


# --- public traces -------------------------------------------------------------------------------


def test_a_public_trace_is_read_as_it_is():
    seen = survey(read(TRACES / "azure2023_conv_1200s.csv.gz"))
    assert seen.requests == 5_985
    # Its description says 4.8, 4.7, 5.2 and 5.2 requests a second in these four times five minutes.
    assert seen.requests / seen.last == pytest.approx((4.817 + 4.740 + 5.190 + 5.203) / 4, rel=0.01)
    assert seen.prompt_tokens / seen.requests == pytest.approx(1150.0, abs=0.05)


def test_mooncakes_arrivals_can_be_the_spread_ones_with_its_prefix_hits():
    path = TRACES / "mooncake_conversation_300s.csv.gz"
    columns = Columns(arrival="arrival_jit_s", cached="prefix_hit_tokens_inf_cache")
    requests = list(read(path, columns))
    times = arrivals(requests)
    assert times == sorted(times)
    assert len(set(times)) == len(times) == 918
    assert len({request.arrival for request in read(path)}) < 110  # batches, three seconds apart
    hits = sum(request.cached_tokens for request in requests)
    assert hits / sum(request.prompt_tokens for request in requests) == pytest.approx(
        0.207, abs=1e-3
    )


# --- choosing and scaling ------------------------------------------------------------------------


def steady(count: int, gap: float = 0.1) -> list[Request]:
    return [
        Request(arrival=number * gap, prompt_tokens=10 + number % 90, output_tokens=5)
        for number in range(count)
    ]


def test_a_window_begins_at_zero():
    assert arrivals(select(steady(100, 1.0), start=10.0, end=13.0)) == [0, 1, 2]


def test_every_kth_is_counted_from_the_beginning_of_the_trace():
    whole = list(select(steady(100, 1.0), keep_every=3))
    assert arrivals(whole) == list(range(0, 100, 3))
    window = select(steady(100, 1.0), start=10.0, end=30.0, keep_every=3)
    assert arrivals(window) == [at - 10 for at in range(0, 100, 3) if 10 <= at < 30]


@pytest.mark.parametrize("factor", [0.25, 1.0, 1.5, 3.0, 7.3])
def test_scaling_multiplies_the_rate_and_keeps_lengths_order_and_duration(factor):
    requests = steady(20_000)
    scaled = list(scale(requests, factor, seed=3))
    times = arrivals(scaled)
    assert len(scaled) == pytest.approx(factor * 20_000, rel=0.02)
    assert times == sorted(times)
    assert min(times) >= 0
    assert max(times) < 2000 + COPY_SECONDS
    first_half = sum(at < 1000 for at in times)
    assert first_half == pytest.approx(len(times) / 2, rel=0.03)
    assert mean(r.prompt_tokens for r in scaled) == pytest.approx(
        mean(r.prompt_tokens for r in requests), rel=0.02
    )


def test_scaling_by_one_changes_nothing():
    assert list(scale(steady(50), 1.0)) == steady(50)


def test_the_same_seed_scales_alike():
    def times(seed: int) -> list[float]:
        return arrivals(scale(steady(500), 2.5, seed))

    assert times(1) == times(1)
    assert times(1) != times(2)


def dispersion(times: list[float], window: float) -> float:
    counts = [0] * (int(max(times) / window) + 1)
    for at in times:
        counts[int(at / window)] += 1
    return pvariance(counts) / mean(counts)


def test_copies_do_not_come_as_a_burst():
    requests = list(read(TRACES / "azure2023_conv_1200s.csv.gz"))
    once = dispersion(arrivals(requests), 1.0)
    scaled = dispersion(arrivals(scale(requests, 4.0, seed=1)), 1.0)
    together = dispersion([at for at in arrivals(requests) for _ in range(4)], 1.0)
    assert together == pytest.approx(4 * once)
    assert scaled < 1.8 * once


def test_prefix_hits_are_a_share_of_each_prompt():
    made = list(with_prefix_hits(steady(10), 0.5))
    assert [request.cached_tokens for request in made] == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]


def test_traffic_can_be_repeated():
    times = arrivals(islice(repeat(lambda: iter(steady(3, 1.0)), 2.5), 7))
    assert times == [0, 1, 2, 2.5, 3.5, 4.5, 5]
    assert list(repeat(lambda: iter(()), 10.0)) == []
    # What comes after the period is left out.
    assert arrivals(islice(repeat(lambda: iter(steady(30, 1.0)), 2.0), 4)) == [0, 1, 2, 3]


def test_a_survey_of_nothing_is_zeros():
    assert survey(iter(())).requests == 0
