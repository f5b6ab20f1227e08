"""
vLLM's own scheduler that also writes down every step and every request; runs in the vLLM environment.

    vllm serve --scheduler-cls step_log.StepLog ...       with HEADROOM_STEP_LOG=DIRECTORY

It decides nothing. ``steps.bin`` holds one record of ``STEP`` for each engine step, ``requests.csv``
one line for each request that ended. It costs 5 to 20 microseconds a step, and says so.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found]

DIRECTORY_VARIABLE = "HEADROOM_STEP_LOG"
# Monotonic seconds at which scheduling began and at which the output was ready; seconds this log took.
# What the step computed: sequences, their tokens, those of them that belong to prompts or parts of
# prompts, tokens resident as it began, preemptions. What it left: running, waiting, free blocks.
STEP = struct.Struct("<ddd8i")


class StepLog(Scheduler):  # type: ignore[misc]
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        directory = Path(os.environ[DIRECTORY_VARIABLE])
        self._steps = (directory / "steps.bin").open("wb", buffering=1 << 20)
        self._ended = (directory / "requests.csv").open("w", encoding="utf-8", buffering=1 << 20)
        # Request id to when the scheduler got it and when its first token was ready.
        self._times: dict[str, tuple[float, float]] = {}
        self._step: tuple[float, float, int, int, int, int, int] = (0.0, 0.0, 0, 0, 0, 0, 0)

    def add_request(self, request: Any) -> None:
        self._times[request.request_id] = (time.monotonic(), 0.0)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        output = super().schedule(*args, **kwargs)
        done = time.monotonic()
        scheduled = output.num_scheduled_tokens
        total = sum(scheduled.values())
        prompts = 0
        for name, tokens in scheduled.items():
            request = self.requests[name]
            # One token beyond the prompt is a decoding sequence, or one that lost only its last.
            if tokens != 1 or request.num_computed_tokens <= request.num_prompt_tokens:
                prompts += tokens
        resident = sum(each.num_computed_tokens for each in self.running) - total
        preempted = len(output.preempted_req_ids or ())
        own = time.monotonic() - done
        self._step = (start, own, len(scheduled), total, prompts, resident, preempted)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        end = time.monotonic()
        for client in outputs.values():
            for each in client.outputs:
                added, first = self._times[each.request_id]
                if not first and each.new_token_ids:
                    first = end
                    self._times[each.request_id] = (added, first)
                if each.finish_reason is not None:
                    del self._times[each.request_id]
                    self._ended.write(f"{each.request_id},{added!r},{first!r},{end!r}\n")
        running, waiting = self.get_request_counts()
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        start, own, *what = self._step
        own += time.monotonic() - end
        self._steps.write(STEP.pack(start, end, own, *what, running, waiting, free))
        if not running and not waiting:
            self._steps.flush()
            self._ended.flush()
        return outputs
