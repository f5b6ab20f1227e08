"""Log lines stay one line and can be read back, whatever is put into them."""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headroom_exporter import logs
from headroom_exporter.errors import ConfigError

PAIR = re.compile(r'([A-Za-z0-9_.\-/]+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)( |$)')
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

# Every code point, half surrogate pairs included, and more than chance of the nasty ones.
nasty_text = st.text(
    st.one_of(
        st.characters(exclude_categories=()), st.sampled_from(LINE_ENDS + '"\\= \t\x00\x1b\x7f')
    )
)
extra_keys = nasty_text.filter(lambda key: key not in logs._RECORD_FIELDS)
extra_values = st.one_of(
    nasty_text,
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(),
    st.lists(nasty_text),
    st.dictionaries(nasty_text, nasty_text),
)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text\nfor you")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def line(fmt: str, message: object, *args: object, **kwargs: object) -> str:
    record = logging.getLogger("headroom_exporter.poll").makeRecord(
        "headroom_exporter.poll", logging.INFO, "f.py", 1, message, args, None, **kwargs
    )
    return logs.LineFormatter(logs.FORMATS[fmt]).format(record)


def read_logfmt(text: str) -> dict[str, str]:
    """A strict reader: every character must belong to a pair."""
    pairs, at = {}, 0
    while at < len(text):
        match = PAIR.match(text, at)
        assert match, text[at:]
        key, value, _ = match.groups()
        pairs[key] = json.loads(value) if value.startswith('"') else value
        at = match.end()
    return pairs


@given(message=nasty_text, extra=st.dictionaries(extra_keys, extra_values, max_size=5))
def test_a_json_line_is_one_line_and_reads_back(message, extra):
    text = line("json", "%s", message, extra=extra)
    assert text.splitlines() == [text]
    fields = json.loads(text, parse_constant=pytest.fail)
    assert fields["msg"] == message
    assert fields["level"] == "info"
    present = [value for value in extra.values() if value is not None]
    assert len(fields) == 4 + len(present)
    assert list(fields.values())[4:] == [logs._plain(value) for value in present]


@given(message=nasty_text, extra=st.dictionaries(extra_keys, extra_values, max_size=5))
@example(message="a=b", extra={"a=b": "c=d"})
def test_a_logfmt_line_is_one_line_and_reads_back(message, extra):
    text = line("logfmt", "%s", message, extra=extra)
    assert text.splitlines() == [text]
    assert not set(text) & set(LINE_ENDS)
    text.encode("utf-8")  # a half surrogate pair would fail here, as it would in the stream
    fields = read_logfmt(text)
    assert fields["msg"] == message
    assert fields["logger"] == "headroom_exporter.poll"


def test_a_plain_line_reads_well_in_both_formats():
    record = logging.makeLogRecord(
        {
            "created": datetime(2026, 3, 4, 5, 6, 7, 89_400, UTC).timestamp(),
            "levelname": "WARNING",
            "name": "headroom_exporter.poll",
            "msg": 'engine "%s" down',
            "args": ("a",),
            "engine": "llama 8b",
            "kind": "unreachable",
            "tries": 3,
            "up": False,
            "since": None,
        }
    )
    assert logs.LineFormatter(logs.as_logfmt).format(record) == (
        "ts=2026-03-04T05:06:07.089Z level=warn logger=headroom_exporter.poll "
        'msg="engine \\"a\\" down" engine="llama 8b" kind=unreachable tries=3 up=false'
    )
    assert json.loads(logs.LineFormatter(logs.as_json).format(record)) == {
        "ts": "2026-03-04T05:06:07.089Z",
        "level": "warn",
        "logger": "headroom_exporter.poll",
        "msg": 'engine "a" down',
        "engine": "llama 8b",
        "kind": "unreachable",
        "tries": 3,
        "up": False,
    }


def test_readable_text_of_any_script_stays_readable_in_logfmt():
    assert 'msg="modèle 模型 is 90°"' in line("logfmt", "modèle 模型 is 90°")


@pytest.mark.parametrize("fmt", logs.FORMATS)
def test_an_exception_is_one_field_of_the_same_line(root, fmt):
    stream = io.StringIO()
    logs.setup("info", fmt, stream)
    try:
        json.loads("first\nsecond")
    except ValueError:
        logging.getLogger("x").exception("it broke", extra={"exc": "mine"}, stack_info=True)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    fields = (read_logfmt if fmt == "logfmt" else json.loads)(text[:-1])
    assert fields["exc"].startswith("Traceback (most recent call last):\n")
    assert "\n  File " in fields["exc"]
    assert "JSONDecodeError: Expecting value" in fields["exc"]
    assert fields["stack"].startswith("Stack (most recent call last):\n")
    assert fields["exc_"] == "mine"


def test_an_extra_named_like_a_field_does_not_replace_it():
    fields = json.loads(line("json", "hello", extra={"level": "mine", "ts": 1, "level_": "too"}))
    assert fields["level"] == "info"
    assert fields["level_"] == "mine"
    assert fields["level__"] == "too"
    assert fields["ts_"] == 1


def test_numbers_json_cannot_carry_become_text():
    fields = json.loads(
        line("json", "x", extra={"nan": float("nan"), "inf": float("-inf"), "big": 2**64})
    )
    assert fields["nan"] == "nan"
    assert fields["inf"] == "-inf"
    assert fields["big"] == "18446744073709551616"


@pytest.mark.parametrize("fmt", logs.FORMATS)
def test_a_value_without_text_does_not_cost_the_line(fmt):
    text = line(fmt, Unprintable(), extra={"thing": Unprintable(), "huge": 10**5000})
    assert "<Unprintable: RuntimeError in str()>" in text
    assert "<int: ValueError in str()>" in text


@pytest.mark.parametrize("fmt", logs.FORMATS)
def test_a_wrong_format_string_still_gives_one_line(fmt):
    text = line(fmt, "%d sequences", "many\n")
    assert "%d sequences" in text
    assert "many" in text
    assert len(text.splitlines()) == 1


def test_a_long_value_is_cut_in_the_middle():
    fields = json.loads(line("json", "a" * 50_000 + "end", extra={"body": "b" * 1_000_000}))
    assert len(fields["msg"]) < 9000
    assert fields["msg"].endswith("end")
    assert len(fields["body"]) < 9000
    assert "991808 characters left out" in fields["body"]


def test_setup_writes_from_its_level_up(root):
    stream = io.StringIO()
    logs.setup("warn", "logfmt", stream)
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert [read_logfmt(text)["msg"] for text in stream.getvalue().splitlines()] == ["loud"]


def test_a_second_setup_replaces_the_first_and_leaves_other_handlers(root):
    first, second, other = io.StringIO(), io.StringIO(), logging.NullHandler()
    root.addHandler(other)
    logs.setup("info", "logfmt", first)
    logs.setup("info", "json", second)
    logging.getLogger("x").info("hello")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["msg"] == "hello"
    assert other in root.handlers


def test_without_a_stream_lines_go_to_standard_error(root, capsys):
    logs.setup()
    logging.getLogger("x").info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert read_logfmt(captured.err.rstrip("\n"))["msg"] == "hello"


def test_a_python_warning_becomes_a_line(root):
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.setup("info", "json", stream)
        warnings.warn("old\nthing", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    fields = json.loads(stream.getvalue())
    assert fields["logger"] == "py.warnings"
    assert "old\nthing" in fields["msg"]


@pytest.mark.parametrize(
    ("level", "fmt", "message"),
    [
        ("loud", "json", "--log.level: 'loud' is not a level; allowed: debug, info, warn, error"),
        ("info", "xml", "--log.format: 'xml' is not a format; allowed: logfmt, json"),
    ],
)
def test_an_unknown_level_or_format_names_what_is_allowed(root, level, fmt, message):
    before = root.handlers[:]
    with pytest.raises(ConfigError, match=re.escape(message)):
        logs.setup(level, fmt)
    assert root.handlers == before
