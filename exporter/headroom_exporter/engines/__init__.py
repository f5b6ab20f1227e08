"""
The engines we read: a visible tuple, no registration. A new one is one file here and one word below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.engines.base import Engine, Page, parse_page
from headroom_exporter.engines.dynamo import DYNAMO_FRONTEND, DYNAMO_WORKER
from headroom_exporter.engines.llamacpp import LLAMACPP
from headroom_exporter.engines.lmdeploy import LMDEPLOY
from headroom_exporter.engines.nim import NIM
from headroom_exporter.engines.ollama import OLLAMA
from headroom_exporter.engines.sglang import SGLANG
from headroom_exporter.engines.tgi import TGI
from headroom_exporter.engines.triton_trtllm import TRITON_TRTLLM
from headroom_exporter.engines.trtllm import TRTLLM
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.engines.vllm_ray import VLLM_RAY
from headroom_exporter.engines.vllm_triton import VLLM_TRITON
from headroom_exporter.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series

ENGINES: tuple[Engine, ...] = (
    VLLM,
    VLLM_RAY,
    VLLM_TRITON,
    SGLANG,
    DYNAMO_WORKER,
    DYNAMO_FRONTEND,
    LLAMACPP,
    TGI,
    TRTLLM,
    TRITON_TRTLLM,
    NIM,
    LMDEPLOY,
    OLLAMA,
)
BY_NAME: Mapping[str, Engine] = {engine.name: engine for engine in ENGINES}

# Where ``kind: auto`` looks, in this order. TensorRT-LLM comes first because reading its /metrics destroys
# what its other readers wait for; the others answer that path with 404, once per start.
PATHS = ("/prometheus/metrics", "/metrics", "/v1/metrics", "/api/ps")

__all__ = ["BY_NAME", "ENGINES", "PATHS", "Engine", "Page", "detect", "parse_page", "recognise"]


def detect(series: Mapping[str, Series]) -> Engine | None:
    """
    The engine whose marker the page holds; None where it holds none.

    Raises:
        Malformed: it holds those of several, none of which is known to run the other.
    """
    found = [engine for engine in ENGINES if engine.fits(series)]
    inner = [engine for engine in found if not engine.wraps] or found
    if len(inner) > 1:
        names = " and ".join(engine.title for engine in inner)
        raise Malformed(f"the page holds series of {names}; poll each by its own", kind="mixed")
    return inner[0] if inner else None


def recognise(path: str, body: bytes) -> Engine | None:
    """
    The engine that gave this answer; None where it is nobody's we know.

    Raises:
        Malformed: as ``detect``, and where the answer is no page at all.
    """
    special = [engine for engine in ENGINES if engine.parse and path in engine.paths]
    for engine in special:
        page = engine.page(body, engine.full_names)
        if engine.fits(page.series):
            return engine
    if special:
        return None
    markers = frozenset().union(*(engine.markers for engine in ENGINES))
    return detect(parse_page(body, markers).series)
