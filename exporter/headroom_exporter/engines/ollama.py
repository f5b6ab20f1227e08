"""
Ollama, 0.5 to 0.33: it has no /metrics; ``/api/ps`` says which models are loaded, and that is all.

Nothing tells how many requests run or wait, so the state is unknown for as long as it is asked: no number is
made up for it. What the exporter can truthfully say: the server answers, its version, which models are in
memory (a model is one rank, gone when it is unloaded), the longest sequence. The limits are the server's
environment: OLLAMA_NUM_PARALLEL (requests of one model at once) belongs into the plan as ``max_num_seqs``.
The KV cache of a model is allocated whole when it is loaded, OLLAMA_NUM_PARALLEL x context, a context for
each request: it cannot run out before the slots do.

Sources: server/routes.go (PsHandler), api/types.go (ProcessModelResponse), llm/server.go (KvSize). Asking
neither loads a model nor keeps one loaded.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common
from headroom_exporter.engines.base import (
    MAX_RANKS,
    Beside,
    Engine,
    KvUsage,
    Page,
    Quantity,
    clip_label,
    unknown,
)
from headroom_exporter.errors import Malformed
from headroom_exporter.samples import EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series

PATH = "/api/ps"
# How many models are loaded: there on every page, while the next two need a model.
LOADED = "/api/ps.models"
MODEL = "/api/ps"
CONTEXT = "/api/ps.context_length"
NAMES = (LOADED, MODEL, CONTEXT)


def parse(body: bytes, wanted: frozenset[str]) -> Page:
    """
    Read ``/api/ps``.

    Raises:
        Malformed: It is no JSON, or not Ollama's (kind ``json``).
    """
    try:
        listed = common.member(json.loads(body), "models")
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"{PATH} is not JSON: {type(exc).__name__}") from exc
    names = [common.member(entry, "name") for entry in listed] if isinstance(listed, list) else [""]
    if not all(isinstance(name, str) and name for name in names):
        raise Malformed(f"{PATH} is JSON, but not Ollama's list of models", kind="json")
    series: dict[str, Series] = {LOADED: [({}, float(len(names)))]}
    for name, entry in zip(names[:MAX_RANKS], listed, strict=False):
        series.setdefault(MODEL, []).append(({"model": clip_label(name)}, 1.0))
        for found in common.figure(CONTEXT, common.member(entry, "context_length")).values():
            series.setdefault(CONTEXT, []).extend(found)
    return Page({name: found for name, found in series.items() if name in wanted})


def _version(answer: Any) -> Mapping[str, Series]:
    return common.info("/api/version", version=common.member(answer, "version"))


def read(page: Page) -> EngineSample:
    """One empty record for each loaded model: it is there, and nothing more is known of it."""
    names = dict.fromkeys(labels["model"] for labels, _ in page.get((MODEL,)))
    contexts = [value for _, value in page.get((CONTEXT,))]
    return EngineSample(
        ranks=tuple(RankSample(rank="0", model_name=name) for name in sorted(names)),
        dropped=max(0, int(page.value(LOADED) or 0) - MAX_RANKS),
        version=common.version(page, "/api/version"),
        # It is shown for each model, so it must be that of each.
        max_model_length=int(contexts[0])
        if len(contexts) == len(names) and len(set(contexts)) == 1
        else None,
    )


_SILENT = "Ollama does not tell; ask the gateway before it"

OLLAMA = Engine(
    name="ollama",
    title="Ollama",
    versions="0.5 to 0.33",
    markers=frozenset({LOADED}),
    fast_names=NAMES,
    full_names=frozenset(NAMES),
    read=read,
    paths=(PATH,),
    parse=parse,
    beside=(Beside("/api/version", _version),),
    kv_usage=KvUsage.NONE,
    silent="Ollama answers at /api/ps alone.",
    # Between two requests it may hold no model at all.
    empty_is_idle=True,
    tells={
        Quantity.RUNNING: unknown(_SILENT),
        Quantity.WAITING: unknown(f"{_SILENT}; beyond OLLAMA_MAX_QUEUE it answers 503"),
        Quantity.SLOTS: unknown("declare OLLAMA_NUM_PARALLEL as max_num_seqs of the plan"),
        Quantity.KV_USED: unknown("each slot has its own context, so slots bind first"),
        Quantity.KV_CAPACITY: unknown(
            "OLLAMA_NUM_PARALLEL x context, allocated when the model is loaded"
        ),
        Quantity.TOKENS_PER_SEQUENCE: unknown(_SILENT),
        Quantity.PROMPTS: unknown(_SILENT),
        Quantity.OUTPUTS: unknown(_SILENT),
        Quantity.TTFT: unknown(_SILENT),
        Quantity.TPOT: unknown(_SILENT),
        Quantity.PREEMPTIONS: unknown("there are none: a request that runs keeps its slot"),
        Quantity.PREFILL: unknown(_SILENT),
    },
)
