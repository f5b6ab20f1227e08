"""The published tables that the simulator is held against, as tests/fixtures/throughput keeps them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """
    So many clients, each sending its next request when one is answered.

    Attributes:
        tpot: Seconds per output token after the first.
        rate: Output tokens per second of all clients; None where not published.
    """

    clients: int
    prompt: int
    output: int
    tpot: float
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Requests at a constant mean rate; seconds, and requests per second completed."""

    rate: float
    max_num_seqs: int
    prompt: int
    output: int
    tpot: float
    ttft_p50: float
    completed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    Seconds of one engine step.

    Attributes:
        sequences: Sequences decoded in it.
        resident: KV tokens they hold; 0 where attention was not measured.
        prefill: Prompt tokens computed in it.
    """

    sequences: int
    resident: int
    prefill: int
    seconds: float


def read(name: str) -> list[dict[str, str]]:
    """
    Rows of one fixture.

    Raises:
        FileNotFoundError: no such table.
    """
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def closed(name: str) -> list[Closed]:
    """Rows of a closed-loop table with fixed lengths."""
    return [
        Closed(
            clients=int(row["clients"]),
            prompt=int(row["prompt_tokens"]),
            output=int(row["output_tokens"]),
            tpot=float(row["tpot_ms"]) / 1e3,
            rate=float(row["output_tokens_per_second"]),
        )
        for row in read(name)
    ]


def mistral_4090() -> list[Closed]:
    """
    RTX 4090 with Mistral-7B: only throughput was published.

    The time per token is what the throughput leaves when a prompt takes what the step model says, so
    it is not used: ``tpot`` is clients / rate.
    """
    return [
        Closed(
            clients=int(row["clients"]),
            prompt=int(row["prompt_tokens"]),
            output=int(row["output_tokens"]),
            tpot=int(row["clients"]) / float(row["output_tokens_per_second"]),
            rate=float(row["output_tokens_per_second"]),
        )
        for row in read("rtx4090_mistral7b.csv")
    ]


def open_loop(*, prefix_caching: bool) -> list[Open]:
    """The open-loop sweep of vLLM 0.11 on one H100, with or without prefix caching."""
    return [
        Open(
            rate=float(row["requests_per_second"]),
            max_num_seqs=int(row["max_num_seqs"]),
            prompt=round(float(row["prompt_tokens"])),
            output=round(float(row["output_tokens"])),
            tpot=float(row["tpot_ms"]) / 1e3,
            ttft_p50=float(row["ttft_p50_s"]),
            completed=float(row["completed_per_second"]),
        )
        for row in read("h100_8b_vllm_open.csv")
        if bool(int(row["prefix_caching"])) == prefix_caching
    ]


def cached_decode_steps() -> list[Step]:
    """
    Decoding steps of the same sweep with prefix caching, where prompts cost next to nothing.

    The batch is the published number running; resident tokens are prompt plus half of the output.
    """
    steps = []
    for row in read("h100_8b_vllm_open.csv"):
        running = max(1, round(float(row["running"])))
        context = float(row["prompt_tokens"]) + float(row["output_tokens"]) / 2
        if int(row["prefix_caching"]):
            steps.append(
                Step(
                    sequences=running,
                    resident=round(running * context),
                    prefill=0,
                    seconds=float(row["tpot_ms"]) / 1e3,
                )
            )
    return steps


def live_steps(gpu: str, tp: int) -> list[Step]:
    """Decoding steps read from Lambda's vLLM runs of ten requests (see the README beside them)."""
    return [
        Step(
            sequences=int(row["sequences"]),
            resident=int(row["resident_tokens"]),
            prefill=0,
            seconds=float(row["step_ms"]) / 1e3,
        )
        for row in read("vllm_steps_lambda.csv")
        if row["gpu"] == gpu and int(row["tp"]) == tp
    ]


def operator_steps(gpu: str, model: str, lm_head: float, *, prefill: bool) -> list[Step]:
    """
    Steps summed from Vidur's operator timings: no attention, no all-reduce, no launches.

    Args:
        gpu: As in the table.
        model: As in the table.
        lm_head: Seconds to add for the output layer, which the timings leave out.
        prefill: The sizes of prompts (512 tokens up) instead of those of decoding (up to 128).
    """
    steps = []
    for row in read("vidur_operators.csv"):
        tokens = int(row["tokens_in_step"])
        if (
            row["gpu"] == gpu
            and row["model"] == model
            and (tokens >= 512 if prefill else tokens <= 128)
        ):
            steps.append(
                Step(
                    sequences=0 if prefill else tokens,
                    resident=0,
                    prefill=tokens if prefill else 0,
                    seconds=float(row["step_ms"]) / 1e3 + lm_head,
                )
            )
    return steps


def static_steps(name: str, **where: str) -> list[Step]:
    """
    Decoding steps of a static-batch table: the mean context is the prompt and half of the output.

    Args:
        name: The fixture.
        where: Columns and the values that rows must have.
    """
    steps = []
    for row in read(name):
        if all(row[column] == value for column, value in where.items()):
            batch, output = int(row["batch"]), int(row["output_tokens"])
            steps.append(
                Step(
                    sequences=batch,
                    resident=batch * (int(row["prompt_tokens"]) + output // 2),
                    prefill=0,
                    seconds=float(row["tpot_ms"]) / 1e3,
                )
            )
    return steps


def nim(release: str, model: str) -> list[tuple[int, float]]:
    """Clients and seconds per token of one published NIM table."""
    return [
        (int(row["clients"]), float(row["tpot_ms"]) / 1e3)
        for row in read("nim.csv")
        if row["release"].startswith(release) and row["model"] == model
    ]
