"""
"PagedAttention needs about 75 % of the naive cache": memory held with blocks over memory reserved.

Held, of one request: the blocks its tokens fill, averaged over its decoding (it grows by one token a
step). Reserved: what an allocator without paging sets aside when it is admitted, for as long.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING

from throughput import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BLOCK_TOKENS = 16
TRACES = tables.FOLDER.parent / "traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Requests by prompt and output tokens."""

    name: str
    lengths: list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    How an allocator without paging reserves.

    Attributes:
        reserve: Tokens set aside for a request of (prompt, output) tokens.
    """

    name: str
    reserve: Callable[[int, int], int]


def held(prompt: int, output: int) -> float:
    """Return tokens' worth of blocks, averaged over the steps that give tokens 1 to ``output``."""
    total = 0
    # The step that gives token i has computed prompt + i - 1 tokens and needs a place for each.
    full, rest = divmod(prompt, BLOCK_TOKENS)
    blocks = full + (rest > 0)
    free = blocks * BLOCK_TOKENS - prompt
    left = output
    while left > 0:
        steps = min(left, free + 1) if left == output else min(left, BLOCK_TOKENS)
        total += blocks * steps
        left -= steps
        blocks += 1
    return total * BLOCK_TOKENS / output


def ratio(mix: Mix, policy: Policy) -> float | None:
    """
    Memory held with paging over memory reserved without, time-averaged.

    Returns:
        None where some request does not fit in what the policy reserves.
    """
    paged = reserved = 0.0
    for prompt, output in mix.lengths:
        room = policy.reserve(prompt, output)
        if room < prompt + output:
            return None
        # Each holds its memory for as many steps as it has output tokens.
        paged += held(prompt, output) * output
        reserved += room * output
    return paged / reserved


def policies() -> list[Policy]:
    """Reservations that systems before paging made, from the least to the most wasteful."""
    return [
        Policy(name="final length, known beforehand", reserve=lambda p, o: p + o),
        Policy(name="next power of two", reserve=lambda p, o: 1 << (p + o - 1).bit_length()),
        Policy(name="prompt + 1,024 allowed", reserve=lambda p, _: p + 1024),
        Policy(name="a window of 4,096", reserve=lambda _p, _o: 4096),
        Policy(name="a window of 8,192", reserve=lambda _p, _o: 8192),
    ]


def mixes() -> list[Mix]:
    """Public traces and the extremes that a formula covers."""
    return [
        Mix(name="prompt = output = 512", lengths=[(512, 512)] * 64),
        Mix(name="1,024 in, 128 out", lengths=[(1024, 128)] * 64),
        Mix(name="128 in, 1,024 out", lengths=[(128, 1024)] * 64),
        Mix(
            name="ShareGPT, 300 requests of the 4090 run",
            lengths=[
                (int(row["prompt_tokens"]), int(row["output_tokens"]))
                for row in tables.read("rtx4090_8b_requests.csv")
            ],
        ),
        _trace("Azure 2023 conversation", "azure2023_conv.csv.gz"),
        _trace("Azure 2023 code", "azure2023_code.csv.gz"),
        _trace("Mooncake conversation", "mooncake_conversation.csv.gz"),
    ]


def _trace(name: str, file: str) -> Mix:
    with gzip.open(TRACES / file, "rt", newline="", encoding="utf-8") as text:
        rows: Iterable[dict[str, str]] = csv.DictReader(text)
        lengths = [(int(row["prompt_tokens"]), int(row["output_tokens"])) for row in rows]
    return Mix(name=name, lengths=[each for each in lengths if min(each) > 0])


def padded_batch(mix: Mix, batch: int, seed: int) -> float:
    """
    Return the ratio where a static batch is padded to its longest member and held until its end.

    Batches are drawn at random from the mix; paged memory is what the same requests hold, freed when
    each ends.
    """
    from random import Random  # noqa: PLC0415 - only here

    order = list(mix.lengths)
    Random(seed).shuffle(order)  # noqa: S311 - batches, not secrets
    paged = reserved = 0.0
    for start in range(0, len(order) - batch + 1, batch):
        group = order[start : start + batch]
        steps = max(output for _, output in group)
        room = max(prompt for prompt, _ in group) + steps
        paged += sum(held(prompt, output) * output for prompt, output in group)
        reserved += room * steps * batch
    return paged / reserved
