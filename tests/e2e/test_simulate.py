"""``headroom-exporter simulate`` as a process: it serves, it ends, it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from headroom_exporter.engines import recognise
from headroom_exporter.simulate.dialects import DIALECTS, Dialect

SECONDS = 30.0
TRACE = "synthetic:poisson?rate=3&duration=400"


def start(*arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "headroom_exporter", "simulate"]
    return subprocess.Popen(
        [*program, "--listen", "127.0.0.1:0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def wait_for_url(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line.decode()
        if match := re.search(r"serving on (\S+)/metrics", said):
            return match[1], said
    raise AssertionError(said)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_where_a_dialect_says_it_serves_is_its_page(dialect: Dialect) -> None:
    process = start("--trace", TRACE, "--dialect", dialect.name)
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"serving on (\S+)", said)):
            line = process.stderr.readline().decode()
            assert line, said
            said += line
        assert ("in the words of" in said) is (dialect.name != "vllm")
        body = get(found[1]).encode()
        kind = recognise(dialect.path, body)
        assert found[1].endswith(dialect.path)
        assert kind is not None
        assert kind.name == dialect.name
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_says_what_became_of_the_requests(number):
    process = start("--trace", TRACE, "--speed", "50")
    try:
        url, said = wait_for_url(process)
        assert "SIMULATED vLLM: rtx4090-llama-3.1-8b" in said
        assert "per second" in said
        end = time.monotonic() + SECONDS
        while 'finished_reason="stop",model_name="meta-llama/Llama-3.1-8B"} 0.0' in (
            page := get(f"{url}/metrics")
        ):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "vllm:kv_cache_usage_perc{" in page
        assert get(f"{url}/metrics/?name[]=vllm:num_requests_running").count("\n") == 3
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, b"")
    assert re.search(r"simulated; requests: [\d,]+ finished", err.decode())
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5)


def test_it_stops_at_the_end_of_the_traffic_where_that_is_wanted():
    arguments = ("--trace", TRACE, "--to", "100", "--speed", "100", "--at-end", "stop")
    process = start(*arguments, "--event", "restart@50", "--start-seconds", "10")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, b"")
    said = err.decode().splitlines()
    requests = int(re.search(r"([\d,]+) requests in 1:40", err.decode())[1].replace(",", ""))
    finished, lost = (int(number) for number in re.findall(r"(\d+) (?:finished|lost)", said[-1]))
    assert finished + lost == requests
    assert 10 < lost < 60


def test_an_address_that_is_taken_is_exit_status_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start("--trace", TRACE, "--listen", address)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (1, b"")
    last = err.decode().splitlines()[-1]
    assert last.startswith(f"headroom-exporter: --listen: {address}: cannot be used: ")
    assert "Traceback" not in err.decode()


def test_on_a_terminal_it_shows_how_far_it_is_and_what_is_left():
    ours, theirs = pty.openpty()
    arguments = ("--trace", TRACE, "--to", "200", "--speed", "100", "--at-end", "stop")
    process = start(*arguments, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux ends a terminal
        pass
    os.close(ours)
    assert process.wait(timeout=SECONDS) == 0
    assert process.stdout is not None
    process.stdout.close()
    bars = re.findall(r"\r\[[#.]{24}\] +(\d+)%   [\d: s]+ of 3:20   (\d+) s left", shown.decode())
    assert len(bars) >= 2
    shares = [int(share) for share, _ in bars]
    assert shares == sorted(shares)
    assert int(bars[0][1]) <= 2
