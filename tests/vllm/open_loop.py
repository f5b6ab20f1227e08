"""
Send a given list of requests at the given moments, and log what became of each.

    python open_loop.py SPECIFICATION.json

It runs in a process of its own. Open loop: nobody waits for an answer before sending the next, so
the server sees the same arrivals however slow it is. Answers are streamed in two parts (the first
token, then all the rest), which tells the first token's moment without a message for every token.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

# Ids below this are the special tokens of model.py; ids from VOCABULARY on do not exist.
FIRST_ORDINARY_ID = 3
VOCABULARY = 4096
# More than any request generates: the second part of an answer comes at its end.
STREAM_INTERVAL = 1_000_000
REQUEST_SECONDS = 300.0
# Less than the 5 s after which the server closes an idle connection: else a request may just meet that.
IDLE_SECONDS = 2.0


def body(rng: random.Random, model: str, prompt_tokens: int, output_tokens: int) -> bytes:
    """JSON of a request whose prompt is random token ids, so that prefix caching finds nothing."""
    return json.dumps(
        {
            "model": model,
            "prompt": rng.choices(range(FIRST_ORDINARY_ID, VOCABULARY), k=prompt_tokens),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_interval": STREAM_INTERVAL,
        }
    ).encode()


async def send(
    session: aiohttp.ClientSession, url: str, number: int, payload: bytes, due: float
) -> tuple[float, float, float, int]:
    """
    Wait until ``due``, send, read the whole answer.

    Returns:
        Monotonic seconds: sent, first token, last token; and the status (0 without an answer).
    """
    await asyncio.sleep(due - time.monotonic())
    sent = time.monotonic()
    first = 0.0
    status = 0
    try:
        headers = {"Content-Type": "application/json", "X-Request-Id": f"r{number}"}
        async with session.post(url, data=payload, headers=headers) as answer:
            status = answer.status
            async for line in answer.content:
                if not first and line.startswith(b"data:"):
                    first = time.monotonic()
    except (OSError, TimeoutError, aiohttp.ClientError) as failure:
        print(f"request {number}: {type(failure).__name__}: {failure}", file=sys.stderr)
        status = 0
    return sent, first, time.monotonic(), status


async def run(specification: dict[str, Any]) -> list[tuple[float, float, float, int]]:
    """Send everything; the results in the order of the list."""
    rng = random.Random(specification["seed"])
    rows = specification["requests"]
    model = specification["model"]
    payloads = [body(rng, model, prompt, output) for _, prompt, output in rows]
    url = specification["url"] + "/v1/completions"
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start = specification["start"]
        tasks = [
            asyncio.create_task(send(session, url, number, payload, start + row[0]))
            for number, (row, payload) in enumerate(zip(rows, payloads, strict=True))
        ]
        return list(await asyncio.gather(*tasks))


def main() -> int:
    """Run the specification named by the only argument, write ``log_path``; return 0."""
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    gc.disable()
    results = asyncio.run(run(specification))
    Path(specification["log_path"]).write_text(json.dumps(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
