"""The command line: what it passes on, what it prints, how it exits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import headroom_exporter
from headroom_exporter import __version__, cli
from headroom_exporter.config import Config
from headroom_exporter.config.file import parse
from headroom_exporter.errors import ConfigError, HeadroomError

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = str(Path(headroom_exporter.__file__).parents[1])


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "headroom_exporter", *arguments)


class Verb:
    """Stands where a verb's implementation does: keeps what it was given, then answers."""

    def __init__(self, answer: Callable[[], int] = lambda: 0) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> int:
        self.calls.append(arguments)
        return self.answer()


def place(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, verb: Callable[..., Any]
) -> None:
    fake = types.ModuleType(f"headroom_exporter.{module}")
    setattr(fake, name, verb)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Verb:
    verb = Verb()
    place(monkeypatch, "logs", "setup", verb)
    return verb


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, logs: Verb) -> Verb:
    verb = Verb()
    place(monkeypatch, "app", "run", verb)
    return verb


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Verb:
    verb = Verb()
    place(monkeypatch, "demo", "main", verb)
    return verb


def raises(error: BaseException) -> Callable[[], int]:
    def answer() -> int:
        raise error

    return answer


# --- run -----------------------------------------------------------------------------------------


def test_run_without_flags_needs_no_file_and_listens_on_9890(run: Verb, logs: Verb) -> None:
    assert cli.main(["run"]) == 0
    assert run.calls == [(None, [":9890"], None, False)]
    assert logs.calls == [("info", "logfmt")]


@pytest.mark.parametrize("flag", ["--config", "--config.file"])
def test_run_passes_its_flags_on(run: Verb, logs: Verb, flag: str) -> None:
    arguments = ["run", flag, "c.yaml", "--web.listen-address=:1", "--web.listen-address", "[::]:2"]
    arguments += ["--web.config.file", "w.yaml", "--log.level=debug", "--log.format=json"]
    arguments += ["--config.tolerate-invalid"]
    assert cli.main(arguments) == 0
    assert run.calls == [(Path("c.yaml"), [":1", "[::]:2"], Path("w.yaml"), True)]
    assert logs.calls == [("debug", "json")]


@pytest.mark.parametrize("level", ["warn", "warning"])
def test_both_names_of_the_warning_level_work(run: Verb, logs: Verb, level: str) -> None:
    cli.main(["run", "--log.level", level])
    assert logs.calls == [("warn", "logfmt")]


def test_the_log_module_knows_every_level_and_format_of_the_flags() -> None:
    from headroom_exporter.logs import FORMATS, LEVELS

    parser = cli._parser()
    for level in LEVELS:
        assert parser.parse_args(["run", "--log.level", level]).log_level == level
    for fmt in FORMATS:
        assert parser.parse_args(["run", "--log.format", fmt]).log_format == fmt


# --- demo ----------------------------------------------------------------------------------------


def test_demo_stays_on_this_machine_and_runs_until_stopped(demo: Verb) -> None:
    assert cli.main(["demo"]) == 0
    assert demo.calls == [(None, "127.0.0.1:9890", None)]


def test_demo_passes_its_flags_on(demo: Verb) -> None:
    assert cli.main(["demo", "--url", "http://h", "--listen", ":1", "--duration", "2.5"]) == 0
    assert demo.calls == [("http://h", ":1", 2.5)]


@pytest.mark.parametrize("duration", ["0", "-1", "soon", "nan", "inf"])
def test_a_demo_must_last(demo: Verb, duration: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", f"--duration={duration}"])
    assert caught.value.code == 2
    assert f"'{duration}': must be a number of seconds above 0" in capsys.readouterr().err
    assert demo.calls == []


# --- check ---------------------------------------------------------------------------------------


def test_check_prints_what_would_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("web: {reload: true}\n")
    assert cli.main(["check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == f"{file}: ok\n"
    assert parse(out, "printed") == parse(file.read_text(), "c.yaml") != Config()


def test_check_names_every_mistake_and_prints_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("web: {relod: true}\nplans: [{headroom: {floor_ratio: 1.7}}]\n")
    assert cli.main(["check", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"{file}: web.relod: unknown key; did you mean reload?\n"
        f"{file}: plans[0].headroom.floor_ratio: 1.7: must be a number from 0 to below 1\n"
    )


# --- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("c.yaml: x: wrong"), 2, "c.yaml: x: wrong\n"),
        (HeadroomError("no luck"), 1, "headroom-exporter: no luck\n"),
        (
            OSError(98, "address already in use"),
            1,
            "headroom-exporter: [Errno 98] address already in use\n",
        ),
        (KeyboardInterrupt(), 0, ""),
    ],
)
def test_expected_ends_have_their_code_and_no_traceback(
    run: Verb, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    run.answer = raises(error)
    assert cli.main(["run"]) == code
    assert capsys.readouterr() == ("", says)


@pytest.mark.parametrize(
    ("address", "code", "says"),
    [
        # Another process may free it: worth another try.
        (
            "127.0.0.1:{port}",
            1,
            "headroom-exporter: --web.listen-address: 127.0.0.1:{port} cannot be used: Address",
        ),
        # Nothing will make this one right.
        ("127.0.0.1", 2, "--web.listen-address: '127.0.0.1' is no address to listen on"),
    ],
)
def test_a_port_in_use_is_told_apart_from_a_wrong_address(
    address: str, code: int, says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = address.format(port=port)
        done = program("run", "--web.listen-address", address)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(says.format(port=port))


def test_a_bug_is_not_hidden(run: Verb) -> None:
    run.answer = raises(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_the_code_of_the_verb_is_the_code_of_the_program(run: Verb) -> None:
    run.answer = lambda: 1
    assert cli.main(["run"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["check"],
        ["run", "extra"],
        ["run", "--web.config", "abbreviated"],
        ["--vers"],
        ["run", "--log.level", "loud"],
        ["run", "--log.format", "xml"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_how_it_is_used(
    run: Verb, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: headroom-exporter")
    assert run.calls == []


# --- help ----------------------------------------------------------------------------------------


def test_help_names_every_verb_and_exit_code_and_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for line in ("    run  ", "    check  ", "    demo  ", "\n  0  ", "\n  1  ", "\n  2  "):
        assert line in text
    assert max(map(len, text.splitlines())) <= 100


def test_every_example_of_the_help_is_right_usage() -> None:
    lines = [line.strip() for line in cli._EPILOG.splitlines()]
    examples = [line.split()[1:] for line in lines if line.startswith("headroom-exporter ")]
    assert len(examples) == 6
    for example in examples:
        cli._parser().parse_args(example)


def test_the_mistake_shown_in_the_help_of_check_is_what_check_says() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("plans: [{headroom: {floor_ratio: 1.7}}]", "config.yaml")
    assert f"  {caught.value}\n" in cli._CHECK_EPILOG


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(flag: str) -> None:
    code = (
        "import sys\n"
        "from headroom_exporter import cli\n"
        "try: cli.main([sys.argv[1]])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'aiohttp', 'asyncio', 'prometheus_client', 'pynvml', 'ssl', 'yaml'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = python("-c", code, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_module_runs_as_a_program() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"headroom-exporter {__version__}\n")
