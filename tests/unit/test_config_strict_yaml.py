"""Strict YAML: what is read, what is refused, and that messages hold no value."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.config.strict_yaml import read_text, read_yaml, text_or_null
from headroom_exporter.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_TAG = "tags (!) are not used here; put text that begins so in quotes"
_ALIAS = "an alias (*) without its anchor (&) before it"


def value(text: str) -> Any:
    read, complaints = read_yaml(text, "f.yaml")
    assert complaints == []
    return read


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "must be UTF-8 text: invalid start byte"),
        (b"#" * ((1 << 20) + 1), "must hold at most 1 MiB"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, data: bytes | None, says: str) -> None:
    path = tmp_path / "c.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path}: {says}"


def test_a_file_of_just_1_mib_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"#" * (1 << 20))
    assert len(read_text(tmp_path / "c.yaml")) == 1 << 20


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("", None),
        ("# nothing", None),
        ("[~, null, Null, NULL]", [None] * 4),
        ("-\n- x\n-", [None, "x", None]),
        ("[true, True, TRUE, false, False, FALSE]", [True, True, True, False, False, False]),
        ("[0, -7, +7, 010]", [0, -7, 7, 10]),
        ("[1e-3, 1., .5, -2.5E+1]", [0.001, 1.0, 0.5, -25.0]),
        # Other YAML takes these for truth, base 60, a date, base 16 and 8, and for numbers at all.
        (
            "[no, On, 12:30, 2026-01-02, 0x1f, 0o7, .inf, .nan, 1_000]",
            ["no", "On", "12:30", "2026-01-02", "0x1f", "0o7", ".inf", ".nan", "1_000"],
        ),
        ("['1', \"true\", '~', '']", ["1", "true", "~", ""]),
        ("a: |\n  1\n", {"a": "1\n"}),
        ("1: a\n~: b", {"1": "a", "~": "b"}),
        ("a: &x {b: 2}\nc: *x", {"a": {"b": 2}, "c": {"b": 2}}),
    ],
)
def test_values_are_what_yaml_1_2_says(text: str, means: object) -> None:
    read = value(text)
    assert read == means
    assert repr(read) == repr(means)  # 1 is not True, and 7 not 7.0


def test_for_texts_every_scalar_is_as_written_or_nothing() -> None:
    text = "[0, 010, true, 1e3, no, '~', ~, null, x]"
    read, _ = read_yaml(text, "f", unquoted=text_or_null)
    assert read == ["0", "010", "true", "1e3", "no", "~", None, None, "x"]


def test_aliases_of_aliases_cost_nothing() -> None:
    """Nine levels of ten would be 10^9 items if each were a copy."""
    levels = ["a0: &a0 [x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert value("\n".join(levels))["a9"][9][9][9][9][9][9][9][9][9] == ["x"]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a:\n  b: true\n  b: false", "a.b: given twice, on lines 2 and 3"),
        ("a: {}\na: {}", "a: given twice, on lines 1 and 2"),
        ("a: [{b c: 1, b c: 2}]", "a[0]['b c']: given twice, on lines 1 and 1"),
        ("a: {<<: {b: true}}", "a['<<']: merge keys are not supported"),
        ("a: [{b: !!int 3}]", f"a[0].b: {_TAG}"),
        ("a: !!python/object/apply:os.getcwd {}", f"a: {_TAG}"),
        ("!x []", _TAG),
    ],
)
def test_what_can_be_read_but_is_not_allowed_is_told_by_its_path(text: str, says: str) -> None:
    _, complaints = read_yaml(text, "f.yaml")
    assert complaints == [f"f.yaml: {says}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}\n---\n{}", "must be a single YAML document"),
        ("a: [", "line 2, column 1: not YAML: did not find expected node content"),
        ("a: *x", f"line 1: {_ALIAS}"),
        ("a: &x [*x]", f"line 1: {_ALIAS}"),
        ("? [a]\n: 1", "line 1: a key must be plain text"),
        ("a: " + "[" * 100_000, "line 1: nested too deeply"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "line 1: nested too deeply"),
        ("- " * 100_000, "line 1: nested too deeply"),
        ("a: \ud800", "not YAML: surrogates not allowed"),
        ("\0", "not YAML: control characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_says_where(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "f.yaml")
    assert str(caught.value) == f"f.yaml: {says}"


@given(
    before=st.sampled_from(
        ["", "&", "*", "!", "!!", "%", "@", "`", "'", '"', "{", "[x, ", "|", "- "]
    ),
    after=st.sampled_from(
        ["", " ", ":", ": x", "'", '"', "}", "]", "\n b", "\0", "\ud800", ",", "!x"]
    ),
)
def test_no_message_and_no_traceback_holds_a_value(before: str, after: str) -> None:
    text = f"a: 1\na: {before}hunter2{after}"
    try:
        _, complaints = read_yaml(text, "f")
    except ConfigError as error:
        complaints = ["".join(traceback.format_exception(error))]
    assert complaints  # at the least, that "a" is given twice
    assert not any("hunter2" in line for line in complaints)


def test_the_python_parser_reads_the_same_where_libyaml_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a: [{b: 1e1, c: &s {d: 2}}, {c: *s}]  # x"
    expected = value(text)
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert value(text) == expected
    with pytest.raises(ConfigError, match=r"^f\.yaml: line 1: nested too deeply$"):
        value("a: " + "[" * 50_000)
    with pytest.raises(ConfigError, match=r"^f\.yaml: line 1, column 5: not YAML: "):
        value("a: [")
