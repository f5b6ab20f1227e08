"""
What the simulated server answers as a TGI 3.3: one model without labels, series that appear on first use.

The truth pages its blocks while TGI reserves prompt and longest answer, so what is reserved can be more than
there is; then all of it is. Histograms have the truth's bounds instead of 100 equal ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects.text import Text, json_answer

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.dialects.speaker import Answer
    from headroom_exporter.simulate.frontend import Frontend

VERSION = "3.3.6"


class Speaker:
    """Args: as ``speaker``. One rank: TGI has no data parallelism."""

    paths = ("/metrics", "/info", "/health")

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        del epoch, speed  # no time stands on its page

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """Answer; it knows no filter."""
        del names
        if path == "/metrics":
            return self._page()
        if path == "/info":
            profile = self._frontend.profile
            return json_answer(
                {
                    "model_id": profile.model_name,
                    "version": VERSION,
                    "max_concurrent_requests": 128,
                    "max_input_tokens": profile.max_model_len - 1,
                    "max_total_tokens": profile.max_model_len,
                }
            )
        return json_answer({})

    def _page(self) -> Answer:
        page, (engine, *_) = Text(), self._frontend.engines
        profile, counters = self._frontend.profile, engine.counters
        budget = profile.usable_blocks * profile.block_tokens
        ended = sum(counters.finished.values())
        asked = ended + engine.running + engine.waiting + engine.hung_up
        page.family("tgi_batch_max_total_tokens", "gauge", [({}, float(budget))])
        if not asked:
            return page.answer()
        page.family("tgi_request_count", "counter", [({}, float(asked))])
        page.family("tgi_queue_size", "gauge", [({}, float(engine.waiting))])
        if engine.steps:
            promised = min(budget, engine.promised_tokens)
            page.family("tgi_batch_current_size", "gauge", [({}, float(engine.running))])
            page.family("tgi_batch_current_max_tokens", "gauge", [({}, float(promised))])
            decodes = [({"method": "decode"}, float(engine.steps))]
            page.family("tgi_batch_inference_count", "counter", decodes)
        if ended:
            page.family("tgi_request_success", "counter", [({}, float(ended))])
            tallies = {
                "tgi_request_input_length": counters.request_prompt,
                "tgi_request_generated_tokens": counters.request_output,
                "tgi_request_queue_duration": counters.queue_time,
                "tgi_request_mean_time_per_token_duration": counters.request_token_interval,
                "tgi_request_duration": counters.duration,
            }
            for name, tally in tallies.items():
                page.histogram(name, {}, tally)
        return page.answer()
