"""What the simulated server answers as a trtllm-serve after 1.2: counters move when a request ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects.text import Text, json_answer

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.dialects.speaker import Answer
    from headroom_exporter.simulate.frontend import Frontend

VERSION = "1.3.0"


class Speaker:
    """
    Args: as ``speaker``. One rank.

    Its /metrics, which reading takes away, is a list with nothing in it.
    """

    paths = ("/prometheus/metrics", "/metrics", "/version", "/v1/models", "/health")

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        del epoch, speed  # no time stands on its page

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """Answer; it knows no filter."""
        del names
        if path == "/prometheus/metrics":
            return self._page()
        if path == "/metrics":
            return json_answer([])
        if path == "/version":
            return json_answer({"version": VERSION})
        if path == "/v1/models":
            model = {"id": self._frontend.profile.model_name, "owned_by": "tensorrt_llm"}
            return json_answer({"object": "list", "data": [model]})
        return json_answer({})

    def _page(self) -> Answer:
        page, engine = Text(), self._frontend.engines[0]
        profile, counters = self._frontend.profile, engine.counters
        labels = {"model_name": profile.model_name, "engine_type": "trtllm"}
        last = engine.gauges
        figures: dict[str, tuple[str, float]] = {
            "kv_cache_max_blocks": ("gauge", profile.usable_blocks),
            "kv_cache_tokens_per_block": ("gauge", profile.block_tokens),
            "max_batch_size_runtime": ("gauge", profile.max_num_seqs),
        }
        if last is not None:
            figures |= {
                "num_requests_running": ("gauge", last.running),
                "num_requests_waiting": ("gauge", last.waiting),
                "kv_cache_utilization": ("gauge", last.kv_usage),
                "kv_cache_used_blocks": ("gauge", round(last.kv_usage * profile.usable_blocks)),
            }
        if sum(counters.finished.values()):
            figures |= {
                "prompt_tokens_total": ("counter", counters.request_prompt.sum),
                "generation_tokens_total": ("counter", counters.request_output.sum),
            }
        for name, (kind, value) in figures.items():
            page.family(f"trtllm_{name}", kind, [(labels, float(value))])
        ended = [
            (labels | {"finished_reason": reason}, float(count))
            for reason, count in counters.finished.items()
            if count
        ]
        page.family("trtllm_request_success_total", "counter", ended)
        tallies = {
            "time_to_first_token_seconds": counters.first_token,
            "time_per_output_token_seconds": counters.request_token_interval,
            "request_queue_time_seconds": counters.queue_time,
            "e2e_request_latency_seconds": counters.duration,
        }
        for name, tally in tallies.items():
            page.histogram(f"trtllm_{name}", labels, tally)
        return page.answer()
