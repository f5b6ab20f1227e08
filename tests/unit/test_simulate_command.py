"""The verb: what its flags mean, what it refuses, what it says; no server is started here."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from headroom_exporter.cli import main
from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate import command, flags
from headroom_exporter.simulate.dialects import DIALECTS, Dialect
from headroom_exporter.simulate.profiles import profiles
from headroom_exporter.simulate.progress import Progress, bar, span

TRACE = Path(__file__).parents[1] / "fixtures" / "simulate" / "azure2023_conv_1200s.csv.gz"


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    return parser.parse_args(arguments)


def traffic(*arguments: str) -> command.Traffic:
    return command.read_traffic(parse("--trace", str(TRACE), *arguments))


def test_a_trace_is_played_whole_by_default():
    played = traffic()
    assert played.survey.requests == 5985
    assert played.seconds == pytest.approx(1200, abs=2)
    assert played.survey == command.survey(played.arrivals())


def test_a_window_a_share_and_a_scale_are_chosen_in_this_order():
    window = traffic("--from", "300", "--to", "600")
    assert window.seconds == 300
    assert window.survey.first >= 0
    assert window.survey.last < 300
    third = traffic("--from", "300", "--to", "600", "--keep-every", "3")
    assert third.survey.requests == pytest.approx(window.survey.requests / 3, abs=1)
    scaled = traffic("--from", "300", "--to", "600", "--scale", "2", "--seed", "5")
    assert scaled.survey.requests == 2 * window.survey.requests


def test_prefix_hits_are_those_asked_for():
    request = next(traffic("--prefix-hits", "0.5").arrivals())
    assert request.cached_tokens == request.prompt_tokens // 2


def test_made_up_traffic_lasts_as_long_as_it_says():
    text = "synthetic:poisson?rate=2&duration=900"
    assert command.read_traffic(parse("--trace", text)).seconds == 900
    assert command.read_traffic(parse("--trace", text, "--to", "300")).seconds == 300
    assert command.read_traffic(parse("--trace", text, "--from", "300")).seconds == 600


def test_limits_of_the_profile_may_be_replaced():
    given = ("--max-num-seqs", "7", "--num-gpu-blocks", "3000", "--max-model-len", "4096")
    profile = command._profile(parse("--profile", "h100-llama-3.1-8b", *given))
    assert (profile.max_num_seqs, profile.num_gpu_blocks, profile.max_model_len) == (7, 3000, 4096)
    assert profile.max_num_batched_tokens == 8192


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--trace: must be given"),
        (("--trace", "none.csv"), "none.csv: cannot be read"),
        (("--trace", "synthetic:wave"), "kind 'wave'"),
        (("--trace", str(TRACE), "--from", "5000"), "no request between --from and --to"),
        (("--trace", str(TRACE), "--profile", "abacus"), "profile abacus: must be one of"),
        (("--trace", str(TRACE), "--event", "boom@3"), "event 'boom@3': must be"),
        (("--trace", str(TRACE), "--listen", "here"), "--listen: 'here': must be HOST:PORT"),
        (("--trace", str(TRACE), "--arrival-column", "t"), ":1: no column 't'"),
        (("--trace", str(TRACE), "--max-model-len", "100000"), "must fit in the pool"),
        (("--trace", str(TRACE), "--max-num-batched-tokens", "9"), "at least max_num_seqs"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_a_port_opens(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        command.run(parse(*arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speed", "0"), "must be a number above 0"),
        (("--speed", "inf"), "must be a number above 0"),
        (("--scale", "-1"), "must be a number above 0"),
        (("--from", "-1"), "must be a number of seconds, at least 0"),
        (("--prefix-hits", "2"), "must be a number from 0 to 1"),
        (("--ranks", "0"), "must be a whole number, at least 1"),
        (("--keep-every", "1.5"), "must be a whole number, at least 1"),
        (("--max-num-queued-reqs", "-1"), "expected one argument|must be a whole number"),
        (("--at-end", "explode"), "invalid choice"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--trace", "x", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert any(word in error for word in words.split("|"))


def test_a_bad_trace_is_exit_status_2_with_file_line_and_reason(capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n1,2,3\n2,x,3\n")
    assert main(["simulate", "--trace", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"{path}:3: prompt_tokens 'x': must be a whole number, at least 1\n"
    )


def test_profiles_are_listed(capsys):
    assert main(["simulate", "--profiles"]) == 0
    text = capsys.readouterr().out
    for profile in profiles():
        assert profile.name in text


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1:00"), (725, "12:05"), (10800, "3:00:00")],
)
def test_durations_are_for_people(seconds, words):
    assert span(seconds) == words


def test_the_bar_shows_the_share_and_what_is_left():
    assert bar(300, 1200, 90, "running 3") == (
        "[######..................]  25%   5:00 of 20:00   1:30 left   running 3"
    )
    assert bar(1300, 1200, None) == "[########################] 100%   20:00 of 20:00"
    assert bar(0, 0, None).startswith("[####")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_taken_away():
    terminal = Terminal()
    progress = Progress(terminal, 100.0)
    progress.draw(10.0, 5.0)
    progress.clear()
    progress.clear()
    assert terminal.getvalue().startswith("\r[##")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert terminal.getvalue().count("\r") == 2


def test_nothing_is_drawn_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(stream, 100.0)
    progress.draw(10.0, 5.0)
    progress.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect_is_described(dialect: Dialect) -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{dialect.name}` |")]
    assert f"| `{dialect.path}`" in row
