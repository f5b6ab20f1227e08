"""
The engines whose words the simulated server can use: the same hidden truth, told as each would tell it.

What differs is what a page holds, how old it is, how it is rounded; scheduler and block pool stay vLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    A way to tell the truth.

    Attributes:
        name: The exporter's ``engine_kind`` for it.
        title: What people call the engine.
        gauge_steps: Decode steps between two refreshes of its gauges.
        ranks: Whether its page tells data-parallel ranks apart.
        path: Where its page is.
    """

    name: str
    title: str
    gauge_steps: int = 1
    ranks: bool = False
    path: str = "/metrics"


VLLM = Dialect(name="vllm", title="vLLM 0.32", ranks=True)
SGLANG = Dialect(name="sglang", title="SGLang 0.5.23", gauge_steps=40, ranks=True)
TGI = Dialect(name="tgi", title="TGI 3.3")
LLAMACPP = Dialect(name="llamacpp", title="llama.cpp")
TRTLLM = Dialect(name="trtllm", title="trtllm-serve", path="/prometheus/metrics")
DIALECTS = {dialect.name: dialect for dialect in (VLLM, SGLANG, TGI, LLAMACPP, TRTLLM)}
