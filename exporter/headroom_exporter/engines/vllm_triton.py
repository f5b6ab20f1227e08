"""
Triton's vLLM backend: a few of vLLM's counters and histograms under its names, and no gauges.

Source: the README of triton-inference-server/vllm_backend; see tests/fixtures/engines/vllm-triton.
"""

from __future__ import annotations

from headroom_exporter.engines.base import Engine, KvUsage, Quantity, exact, unknown
from headroom_exporter.engines.vllm import COUNTERS, HISTOGRAMS, VLLM, under_triton

MARKER = "vllm:prompt_tokens_total"
FAST_NAMES = tuple(
    name
    for field in ("prompt_tokens", "generation_tokens", "inter_token_seconds", "inter_token_count")
    for name in COUNTERS[field]
)
FULL_NAMES = frozenset(
    {
        *FAST_NAMES,
        *(
            name + suffix
            for names in HISTOGRAMS.values()
            for name in names
            for suffix in ("_bucket", "_sum")
        ),
    }
)
NO_GAUGES = "not published; run vLLM's own server (vllm serve), or poll it where Triton lets you"


VLLM_TRITON = Engine(
    name="vllm-triton",
    title="Triton's vLLM backend",
    versions="README of 2025",
    markers=frozenset({MARKER}),
    proves=under_triton,
    fast_names=FAST_NAMES,
    full_names=FULL_NAMES,
    read=VLLM.read,
    kv_usage=KvUsage.NONE,
    silent="Triton shows vLLM's counters only with REPORT_CUSTOM_METRICS in the model's configuration.",
    tells={
        Quantity.RUNNING: unknown(NO_GAUGES),
        Quantity.WAITING: unknown(NO_GAUGES),
        Quantity.SLOTS: unknown("declare max_num_seqs in the plan"),
        Quantity.KV_USED: unknown(NO_GAUGES),
        Quantity.KV_CAPACITY: unknown("declare kv_cache_tokens in the plan"),
        Quantity.TOKENS_PER_SEQUENCE: unknown(NO_GAUGES),
        Quantity.PROMPTS: exact("in buckets of 1-2-5"),
        Quantity.OUTPUTS: exact("in buckets of 1-2-5"),
        Quantity.TTFT: exact(),
        Quantity.TPOT: exact("between tokens"),
        Quantity.PREEMPTIONS: unknown("not published: a full KV cache does not show"),
        Quantity.PREFILL: exact("with what a cache gave"),
    },
)
