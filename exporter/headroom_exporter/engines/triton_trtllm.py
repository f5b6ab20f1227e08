"""
Triton's TensorRT-LLM backend: few families whose meaning stands in a label, gauges only.

Sources: the README of triton-inference-server/tensorrtllm_backend and TensorRT-LLM's executor (see trtllm.py
for what a used block is); see tests/fixtures/engines/triton-trtllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines.base import (
    Engine,
    Labels,
    Page,
    Quantity,
    approximate,
    exact,
    gauge,
    unknown,
    usage,
)
from headroom_exporter.engines.tables import Key, Ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.samples import EngineSample

REQUESTS, REQUEST_TYPE = "nv_trt_llm_request_metrics", "request_type"
BLOCKS, BLOCK_TYPE = "nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type"
GENERAL, GENERAL_TYPE = "nv_trt_llm_general_metrics", "general_type"
MARKERS = frozenset({REQUESTS, BLOCKS})
FAST_NAMES = (REQUESTS, BLOCKS, GENERAL)


def _key(labels: Labels) -> Key:
    """Two versions of one model are two instances: the version takes the place of the rank."""
    return labels.get("version", "0"), labels.get("model", "")


def read(page: Page) -> EngineSample:
    """One record per model and version."""
    ranks = Ranks(_key)
    for told in _by_meaning(page, REQUESTS, REQUEST_TYPE, ranks):
        fields, values = told
        # "active" are those that the executor has admitted, as in trtllm-serve; "scheduled" those in the
        # step at hand, which with pipeline parallelism is one of several micro-batches. So it is never more,
        # but in the backend's own example.
        running = [values[name] for name in ("active", "scheduled") if name in values]
        _put(fields, "running", max(running, default=None))
        _put(fields, "waiting", values.get("waiting"))
        _put(fields, "slots", values.get("max") or None)
    for fields, values in _by_meaning(page, BLOCKS, BLOCK_TYPE, ranks):
        _read_pool(fields, values)
    for fields, values in _by_meaning(page, GENERAL, GENERAL_TYPE, ranks):
        # Not a step's tokens, but that it moves shows that the engine does.
        _put(fields, "steps", values.get("iteration_counter"))
    return ranks.sample(page)


def _read_pool(fields: dict[str, Any], values: Mapping[str, float]) -> None:
    """
    Blocks used of the pool's, and the pool in tokens.

    The backend's own example has the fraction contradict the blocks, so the blocks are preferred.
    """
    pool, used, block = values.get("max"), values.get("used"), values.get("tokens_per")
    if pool and used is not None:
        _put(fields, "kv_usage", usage(used / pool))
    elif "fraction" in values:
        _put(fields, "kv_usage", usage(values["fraction"]))
    if pool and block:
        fields["block_tokens"], fields["kv_capacity_tokens"] = block, pool * block


def _by_meaning(
    page: Page, name: str, label: str, ranks: Ranks
) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Each record's fields, and the family's values of it by the label that says what they are."""
    found: dict[int, tuple[dict[str, Any], dict[str, float]]] = {}
    for labels, value in page.get((name,)):
        fields, known = ranks.of(labels), gauge(value)
        if fields is not None and known is not None:
            found.setdefault(id(fields), (fields, {}))[1][labels.get(label, "")] = known
    return list(found.values())


def _put(fields: dict[str, Any], name: str, value: float | None) -> None:
    if value is not None:
        fields[name] = value


TRITON_TRTLLM = Engine(
    name="triton-trtllm",
    title="Triton with TensorRT-LLM",
    versions="the backend's documented metrics (in-flight and V1 batching), with its C++ batch manager",
    markers=MARKERS,
    fast_names=FAST_NAMES,
    full_names=frozenset(FAST_NAMES),
    read=read,
    silent=(
        "Triton has its metrics on a port of their own (8002), and those of TensorRT-LLM only with its "
        "backend in C++."
    ),
    tells={
        Quantity.RUNNING: approximate("admitted requests; some may wait for KV cache"),
        Quantity.WAITING: approximate(
            "the backend's queue, without those that were admitted and wait"
        ),
        Quantity.SLOTS: exact("request_type max"),
        Quantity.KV_USED: approximate(
            "whole blocks; the default scheduler also holds back what running answers may still need, "
            "which is not in it"
        ),
        Quantity.KV_CAPACITY: exact(),
        Quantity.TOKENS_PER_SEQUENCE: approximate(
            "usage over running, of which some may hold no blocks yet"
        ),
        Quantity.PROMPTS: unknown("not published: declare prompt_tokens in the plan"),
        Quantity.OUTPUTS: unknown("not published: declare output_tokens in the plan"),
        Quantity.TTFT: unknown("not published: measure it where the clients are"),
        Quantity.TPOT: unknown("not published: measure it where the clients are"),
        Quantity.PREEMPTIONS: unknown("not published"),
        Quantity.PREFILL: unknown(
            "not published, so the prefill limit takes no part in the capacity"
        ),
    },
)
