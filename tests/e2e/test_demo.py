"""The demo as a process: it shows a simulated engine, answers scrapes and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

PROGRAM = """
import sys
from headroom_exporter import demo
demo.LOCAL_VLLM = "http://127.0.0.1:1"  # nobody is there
sys.exit(demo.main(None, sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else None))
"""
SECONDS = 30.0


@pytest.fixture
def listen() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(*arguments: str, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=stdout, stderr=subprocess.PIPE
    )


def wait_for_page(listen: str, text: str) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{listen}/metrics", timeout=5) as answer:
                if text in answer.read().decode():
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"no {text} within {SECONDS} s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(listen, number):
    process = start(listen, stdout=subprocess.PIPE)
    try:
        wait_for_page(listen, "headroom_running_sequences{")
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, b"")
    text = out.decode()
    assert f"http://{listen}/metrics" in text
    assert "SIMULATED" in text
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(tuple(listen.rsplit(":", 1)), timeout=5)


def test_it_ends_when_its_time_is_up(listen):
    process = start(listen, "1.5", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().count("state=") == 2


def test_a_reader_that_leaves_is_no_error(listen):
    process = start(listen, "10", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=SECONDS) == 0
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""


def test_on_a_terminal_it_redraws_and_shows_the_cursor_again(listen):
    ours, theirs = pty.openpty()
    process = start(listen, "2", stdout=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux ends a terminal
        pass
    os.close(ours)
    assert process.wait(timeout=SECONDS) == 0
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    text = shown.decode()
    assert text.count("headroom-exporter demo   SIMULATED vLLM") >= 3
    assert "effective batch" in text
    assert "Simulated RTX 4090" in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")
