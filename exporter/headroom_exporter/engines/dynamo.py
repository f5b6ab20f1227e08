"""
NVIDIA Dynamo: a worker's system port, which passes on what the engine inside it publishes, and the frontend.

Sources: Dynamo's metrics catalog and captured pages; see tests/fixtures/engines/dynamo.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from headroom_exporter.engines.base import (
    MAX_RANKS,
    MAX_REASONS,
    Engine,
    KvUsage,
    Page,
    Quantity,
    approximate,
    clip_label,
    exact,
    gauge,
    histogram,
    unknown,
)
from headroom_exporter.samples import EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series

WORKER = "dynamo_component"
FRONTEND = "dynamo_frontend"
# Other endpoints of a worker (clear_kv_blocks, load_lora) serve no tokens.
ENDPOINT = "generate"

WORKER_INFLIGHT = f"{WORKER}_inflight_requests"
WORKER_DURATION = f"{WORKER}_request_duration_seconds"
OUTPUT_TOKENS = f"{FRONTEND}_output_tokens_total"
CONTEXT = f"{FRONTEND}_model_context_length"
REQUESTS = f"{FRONTEND}_requests_total"
FRONTEND_HISTOGRAMS: Mapping[str, str] = {
    "request_prompt_tokens": f"{FRONTEND}_input_sequence_tokens",
    "request_output_tokens": f"{FRONTEND}_output_sequence_tokens",
    "time_to_first_token_seconds": f"{FRONTEND}_time_to_first_token_seconds",
    "inter_token_latency_seconds": f"{FRONTEND}_inter_token_latency_seconds",
    "request_duration_seconds": f"{FRONTEND}_request_duration_seconds",
}
WORKER_MARKERS = frozenset(
    {WORKER_INFLIGHT, f"{WORKER}_uptime_seconds", f"{WORKER}_requests_total"}
)
FRONTEND_MARKERS = frozenset(
    {
        f"{FRONTEND}_inflight_requests",
        f"{FRONTEND}_active_requests",
        f"{FRONTEND}_disconnected_clients",
        CONTEXT,
        OUTPUT_TOKENS,
        REQUESTS,
    }
)

Fields = dict[str, Any]


class _Models:
    """Fields by model; what tells the series of a model apart is summed."""

    def __init__(self) -> None:
        self.fields: dict[str, Fields] = {}

    def of(self, model: str) -> Fields:
        return self.fields.setdefault(clip_label(model), {})

    def put_sum(self, field: str, series: Series) -> None:
        for labels, value in series:
            known, fields = gauge(value), self.of(labels.get("model", ""))
            if known is not None:
                fields[field] = fields.get(field, 0.0) + known

    def put_finished(self, series: Series) -> None:
        for labels, value in series:
            known = gauge(value)
            reasons = self.of(labels.get("model", "")).setdefault("finished", {})
            status = clip_label(labels.get("status", ""))
            if known is not None and (status in reasons or len(reasons) < MAX_REASONS):
                reasons[status] = reasons.get(status, 0.0) + known

    def put_histogram(self, field: str, buckets: Series, sums: Series) -> None:
        """A histogram that stands there once per model; several of one model are left out."""
        by_model: dict[str, Series] = {}
        for labels, value in buckets:
            by_model.setdefault(labels.get("model", ""), []).append((labels, value))
        totals = {labels.get("model", ""): value for labels, value in sums}
        for model, found in by_model.items():
            made = histogram(found, totals.get(model))
            if made is not None:
                self.of(model).setdefault("histograms", {})[field] = made

    def sample(self, page: Page, names: Mapping[str, str], **more: Any) -> EngineSample:
        kept = sorted(self.fields)[:MAX_RANKS]
        ranks = tuple(_rank(names.get(model.lower(), model), self.fields[model]) for model in kept)
        dropped = len(self.fields) - len(kept) + page.truncated
        return EngineSample(ranks=ranks, dropped=dropped, **more)


def _rank(model: str, fields: Fields) -> RankSample:
    held: Fields = {
        field: MappingProxyType(value) if isinstance(value, dict) else value
        for field, value in fields.items()
    }
    return RankSample(rank="0", model_name=model, **held)


# --- the worker ----------------------------------------------------------------------------------


def read_worker(page: Page) -> EngineSample:
    """
    A worker whose engine publishes nothing that we know.

    ``inflight_requests`` holds running and waiting together, and ``…gpu_cache_usage_percent`` is 0 where the
    engine does not tell, and else whatever it means by it: neither is taken for what it is not.
    """
    models = _Models()
    for labels, _ in page.get((WORKER_INFLIGHT,)):
        models.of(labels.get("model", ""))
    buckets, sums = (
        [
            (labels, value)
            for labels, value in page.get((f"{WORKER_DURATION}_{part}",))
            if labels.get("dynamo_endpoint") == ENDPOINT
        ]
        for part in ("bucket", "sum")
    )
    models.put_histogram("request_duration_seconds", buckets, sums)
    return models.sample(page, {})


INNER = (
    "poll the system port of a worker that passes on its engine's metrics (vllm:, sglang:, trtllm_)"
)

DYNAMO_WORKER = Engine(
    name="dynamo-worker",
    title="NVIDIA Dynamo worker",
    versions="January 2026 (0.8)",
    markers=WORKER_MARKERS,
    fast_names=(WORKER_INFLIGHT,),
    full_names=frozenset({*WORKER_MARKERS, f"{WORKER_DURATION}_bucket", f"{WORKER_DURATION}_sum"}),
    read=read_worker,
    kv_usage=KvUsage.NONE,
    wraps=True,
    silent="A Dynamo worker has metrics only where DYN_SYSTEM_PORT is set.",
    tells={
        Quantity.RUNNING: unknown(f"inflight_requests holds running and waiting together; {INNER}"),
        Quantity.WAITING: unknown(INNER),
        Quantity.SLOTS: unknown("declare max_num_seqs in the plan"),
        Quantity.KV_USED: unknown(f"0 where the engine tells none; {INNER}"),
        Quantity.KV_CAPACITY: unknown("in blocks of a size it does not tell"),
        Quantity.TOKENS_PER_SEQUENCE: unknown(INNER),
        Quantity.PROMPTS: unknown("poll the frontend for them"),
        Quantity.OUTPUTS: unknown("poll the frontend for them"),
        Quantity.TTFT: unknown("poll the frontend for it"),
        Quantity.TPOT: unknown("poll the frontend for it"),
        Quantity.PREEMPTIONS: unknown(INNER),
        Quantity.PREFILL: unknown(INNER),
    },
)


# --- the frontend --------------------------------------------------------------------------------


def read_frontend(page: Page) -> EngineSample:
    """
    One record per model, over all its workers.

    The limits (``model_max_num_seqs``, ``model_total_kv_blocks``) are those of one worker, and nothing says
    how many there are. Traffic carries the model's name in small letters, the limits as it is.
    """
    models = _Models()
    contexts = page.get((CONTEXT,))
    names = {
        clip_label(labels["model"]).lower(): clip_label(labels["model"])
        for labels, _ in contexts
        if labels.get("model")
    }
    for model in names:
        models.of(model)
    models.put_sum("generation_tokens", page.get((OUTPUT_TOKENS,)))
    models.put_finished(page.get((REQUESTS,)))
    for field, name in FRONTEND_HISTOGRAMS.items():
        models.put_histogram(field, page.get((f"{name}_bucket",)), page.get((f"{name}_sum",)))
    lengths = [length for _, value in contexts if (length := gauge(value))]
    return models.sample(
        page, names, max_model_length=int(max(lengths)) if len(contexts) == 1 and lengths else None
    )


WORKERS = "the sum over all workers of what runs and waits is told; poll the workers' system ports"
ONE_WORKER = "that of one worker, and nothing tells how many there are; poll the workers"

DYNAMO_FRONTEND = Engine(
    name="dynamo-frontend",
    title="NVIDIA Dynamo frontend",
    versions="January 2026 (0.8)",
    markers=FRONTEND_MARKERS,
    # The limits carry the name of the model as it is written: without them a fast poll would see another.
    fast_names=(OUTPUT_TOKENS, CONTEXT),
    full_names=frozenset(
        {
            *FRONTEND_MARKERS,
            *(
                name + suffix
                for name in FRONTEND_HISTOGRAMS.values()
                for suffix in ("_bucket", "_sum")
            ),
        }
    ),
    read=read_frontend,
    kv_usage=KvUsage.NONE,
    silent="Dynamo's frontend is known by its usual names only, not with a DYN_METRICS_PREFIX of your own.",
    tells={
        Quantity.RUNNING: unknown(WORKERS),
        Quantity.WAITING: unknown(
            "queued_requests also counts those whose prompt is being computed; poll the workers"
        ),
        Quantity.SLOTS: unknown(ONE_WORKER),
        Quantity.KV_USED: unknown(WORKERS),
        Quantity.KV_CAPACITY: unknown(ONE_WORKER),
        Quantity.TOKENS_PER_SEQUENCE: unknown(WORKERS),
        Quantity.PROMPTS: exact("of all workers together"),
        Quantity.OUTPUTS: exact("of all workers together"),
        Quantity.TTFT: approximate("at the frontend, with routing; of all workers together"),
        Quantity.TPOT: approximate("at the frontend; of all workers together"),
        Quantity.PREEMPTIONS: unknown("poll the workers"),
        Quantity.PREFILL: unknown("poll the workers"),
    },
)
