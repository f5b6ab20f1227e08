"""What the simulated server answers as a llama.cpp server of 2026: no labels, six digits, no histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects.text import Text, json_answer, six_digits

if TYPE_CHECKING:
    from collections.abc import Collection

    from headroom_exporter.simulate.dialects.speaker import Answer
    from headroom_exporter.simulate.frontend import Frontend


class Speaker:
    """Args: as ``speaker``. One rank; the slots are max_num_seqs, each with its share of the pool."""

    paths = ("/metrics", "/props", "/slots", "/v1/models", "/health")

    def __init__(self, frontend: Frontend, *, epoch: float, speed: float = 1.0) -> None:
        self._frontend = frontend
        del epoch, speed  # no time stands on its page

    def answer(self, path: str, names: Collection[str]) -> Answer:
        """Answer; it knows no filter."""
        del names
        profile = self._frontend.profile
        if path == "/metrics":
            return self._page()
        if path == "/props":
            return json_answer(
                {
                    "total_slots": profile.max_num_seqs,
                    "model_alias": profile.model_name,
                    "build_info": "b8000-0c1e570",
                    "default_generation_settings": {"n_ctx": self._n_ctx()},
                }
            )
        if path == "/slots":
            return json_answer(self._slots())
        if path == "/v1/models":
            return json_answer({"object": "list", "data": [{"id": profile.model_name}]})
        return json_answer({"status": "ok"})

    def _n_ctx(self) -> int:
        profile = self._frontend.profile
        share = profile.usable_blocks * profile.block_tokens // profile.max_num_seqs
        return max(1, min(share, profile.max_model_len))

    def _slots(self) -> list[object]:
        """The tokens of all slots, evenly: only their sum is read."""
        engine = self._frontend.engines[0]
        each, rest = divmod(engine.resident_tokens, max(1, engine.running))
        return [
            {
                "id": i,
                "n_ctx": self._n_ctx(),
                "is_processing": i < engine.running,
                "n_prompt_tokens_cache": 0,
                "n_prompt_tokens_processed": each + (rest if i == 0 else 0),
                "next_token": [{"n_decoded": 0}],
            }
            for i in range(self._frontend.profile.max_num_seqs)
        ]

    def _page(self) -> Answer:
        page, engine = Text(six_digits), self._frontend.engines[0]
        counters = engine.counters
        computed = counters.prompt_tokens - counters.cached_prompt_tokens
        figures = {
            "prompt_tokens_total": ("counter", computed),
            "prompt_tokens_cached_total": ("counter", counters.cached_prompt_tokens),
            "tokens_predicted_total": ("counter", counters.request_output.sum),
            "n_decode_total": ("counter", engine.steps),
            "requests_processing": ("gauge", engine.running),
            "requests_deferred": ("gauge", engine.waiting),
        }
        for name, (kind, value) in figures.items():
            page.family(f"llamacpp:{name}", kind, [({}, float(value))])
        return page.answer()
