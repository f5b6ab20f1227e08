"""
What the simulated server answers as an SGLang 0.5.23: gauges up to 40 decode steps old.

Histograms have the truth's bounds instead of SGLang's; what stands beside the gauges (other queues, other
pools) is 0, as on a server without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects.text import Labels, Text, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from headroom_exporter.simulate.counters import Gauges, Tally
    from headroom_exporter.simulate.dialects.speaker import Answer
    from headroom_exporter.simulate.engine import SimulatedEngine
    from headroom_exporter.simulate.frontend import Frontend

VERSION = "0.5.23"
# A server that has gone idle reports after this long only.
IDLE_SECONDS = 30.0
QUEUES = (
    "num_grammar_queue_reqs",
    "num_prefill_bootstrap_queue_reqs",
    "num_prefill_inflight_queue_reqs",
    "num_decode_prealloc_queue_reqs",
    "num_decode_transfer_queue_reqs",
)


class Speaker:
    """Args: as ``speaker``."""

    paths = ("/metrics", "/v1/loads", "/server_info", "/v1/models", "/health")

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        del epoch, speed  # no time stands on its page

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """Answer; it knows no filter."""
        del names
        if path == "/metrics":
            return self._page()
        if path == "/v1/loads":
            return json_answer(self._loads())
        if path == "/server_info":
            return json_answer({"version": VERSION, "dp_size": len(self._frontend.engines)})
        if path == "/v1/models":
            profile = self._frontend.profile
            model = {
                "id": profile.model_name,
                "object": "model",
                "owned_by": "sglang",
                "max_model_len": profile.max_model_len,
            }
            return json_answer({"object": "list", "data": [model]})
        return json_answer({})

    def _labels(self, rank: int) -> Labels:
        labels = {
            "model_name": self._frontend.profile.model_name,
            "engine_type": "unified",
            "tp_rank": "0",
            "pp_rank": "0",
            "moe_ep_rank": "0",
        }
        return labels | {"dp_rank": str(rank)} if len(self._frontend.engines) > 1 else labels

    def _page(self) -> Answer:
        page, engines = Text(), self._frontend.engines
        capacity = _capacity(self._frontend)
        gauges: dict[str, Callable[[Gauges], float]] = {
            "num_running_reqs": lambda last: last.running,
            "num_queue_reqs": lambda last: last.waiting,
            "token_usage": lambda last: round(last.kv_usage, 2),
            "full_token_usage": lambda last: round(last.kv_usage, 2),
            "num_used_tokens": lambda last: round(last.kv_usage * capacity),
        }
        for name, read in gauges.items():
            told = [
                (self._labels(rank), read(last))
                for rank, engine in enumerate(engines)
                if (last := _reported(engine)) is not None
            ]
            page.family(f"sglang:{name}", "gauge", told)
        constants = {
            **dict.fromkeys(QUEUES, 0.0),
            "max_total_num_tokens": capacity,
            "page_size": self._frontend.profile.block_tokens,
            "context_len": self._frontend.profile.max_model_len,
        }
        for name, value in constants.items():
            each = [(self._labels(rank), float(value)) for rank in range(len(engines))]
            page.family(f"sglang:{name}", "gauge", each)
        self._counters(page)
        return page.answer()

    def _counters(self, page: Text) -> None:
        engines = self._frontend.engines
        realtime = []
        for rank, engine in enumerate(engines):
            last = engine.gauges
            if last is not None:
                labels = self._labels(rank)
                # The simulated cache is looked up per request, not logged by step: all of it is computed.
                modes = {"prefill_compute": last.prompt_tokens, "decode": last.generation_tokens}
                realtime += [(labels | {"mode": mode}, float(n)) for mode, n in modes.items()]
        page.family("sglang:realtime_tokens_total", "counter", realtime)
        retracted = [
            (self._labels(rank), float(engine.counters.preemptions))
            for rank, engine in enumerate(engines)
            if engine.counters.preemptions
        ]
        page.family("sglang:num_retracted_requests_total", "counter", retracted)
        model = {"model_name": self._frontend.profile.model_name, "is_streaming": "True"}
        ended = sum(sum(engine.counters.finished.values()) for engine in engines)
        at_finish = {
            "prompt_tokens": sum(engine.counters.request_prompt.sum for engine in engines),
            "generation_tokens": sum(engine.counters.request_output.sum for engine in engines),
            "num_requests": float(ended),
        }
        for name, value in at_finish.items():
            page.family(f"sglang:{name}_total", "counter", [(model, value)] if ended else [])
        tallies: dict[str, Callable[[SimulatedEngine], Tally]] = {
            "prompt_tokens_histogram": lambda engine: engine.counters.request_prompt,
            "generation_tokens_histogram": lambda engine: engine.counters.request_output,
            "time_to_first_token_seconds": lambda engine: engine.counters.first_token,
            "inter_token_latency_seconds": lambda engine: engine.counters.token_interval,
            "queue_time_seconds": lambda engine: engine.counters.queue_time,
            "e2e_request_latency_seconds": lambda engine: engine.counters.duration,
        }
        for name, of in tallies.items():
            page.histogram(f"sglang:{name}", model, _together([of(engine) for engine in engines]))

    def _loads(self) -> dict[str, object]:
        profile = self._frontend.profile
        loads = [
            {
                "dp_rank": rank,
                "num_running_reqs": engine.running,
                "num_waiting_reqs": engine.waiting,
                "max_running_requests": profile.max_num_seqs,
                "max_total_num_tokens": _capacity(self._frontend),
            }
            for rank, engine in enumerate(self._frontend.engines)
        ]
        return {"version": VERSION, "dp_rank_count": len(loads), "loads": loads}


def _capacity(frontend: Frontend) -> int:
    """Tokens of a rank's pool; SGLang keeps no block for itself."""
    return frontend.profile.usable_blocks * frontend.profile.block_tokens


def _reported(engine: SimulatedEngine) -> Gauges | None:
    """What it last reported; one that has gone idle reports that late."""
    last = engine.gauges
    if last is None or engine.running or engine.waiting:
        return last
    if engine.clock - last.at < IDLE_SECONDS:
        return last
    engine.refresh_gauges()
    return engine.gauges


def _together(tallies: list[Tally]) -> Tally:
    """The server counts requests for all its ranks."""
    first, *others = tallies
    if not others:
        return first
    total = type(first)(first.bounds)
    total.counts = [sum(each) for each in zip(*(t.counts for t in tallies), strict=True)]
    total.sum = sum(tally.sum for tally in tallies)
    return total
