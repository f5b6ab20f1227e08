"""
Hugging Face Text Generation Inference 2 and 3: admission reserves the longest answer, nothing tells what
is used.

Sources: router/src/server.rs, validation.rs and infer, backends/v3 of huggingface/text-generation-inference,
and a captured page; see tests/fixtures/engines/tgi. What they say:

- A series appears with its first use. An engine nobody has used yet has an empty page: then what runs and
  waits is 0 for a fact. Once a request has been counted, an absent gauge is an unknown one.
- ``tgi_batch_current_max_tokens`` is prompt + longest answer of each running request: a reservation.
- Prompts are counted when they arrive, answers when they end, and no gap between tokens is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common
from headroom_exporter.engines.base import (
    Beside,
    Engine,
    KvUsage,
    Labels,
    Page,
    Quantity,
    approximate,
    exact,
    gauge,
    unknown,
    usage,
)
from headroom_exporter.engines.tables import Key, Ranks, Table
from headroom_exporter.samples import Cadence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series
    from headroom_exporter.samples import EngineSample

RUNNING, WAITING = "tgi_batch_current_size", "tgi_queue_size"
RESERVED, BUDGET = "tgi_batch_current_max_tokens", "tgi_batch_max_total_tokens"
REQUESTS, SUCCESS, FAILURE = "tgi_request_count", "tgi_request_success", "tgi_request_failure"
STEPS = "tgi_batch_inference_count"
# Refused before anything ran: no finished request.
REFUSED = ("validation", "overloaded")
TABLE = Table(
    moving={
        "running": (RUNNING,),
        "waiting": (WAITING,),
        "prompt_tokens": ("tgi_request_input_length_sum",),
        "generation_tokens": ("tgi_request_generated_tokens_sum",),
    },
    # tgi_batch_next_size has 1,024 buckets, most of the page, and tells nothing we need.
    histograms={
        "request_prompt_tokens": ("tgi_request_input_length",),
        "request_output_tokens": ("tgi_request_generated_tokens",),
        "queue_time_seconds": ("tgi_request_queue_duration",),
        # One mean per request, prefill and all.
        "inter_token_latency_seconds": ("tgi_request_mean_time_per_token_duration",),
        "request_duration_seconds": ("tgi_request_duration",),
    },
    fast=(RESERVED, BUDGET, REQUESTS, STEPS),
    full=(SUCCESS, FAILURE),
)
MARKERS = frozenset({REQUESTS, WAITING, BUDGET})
INFO = "/info"
# Up to 2.3 the budget and the limit of the batch, where one is set, stand in /info.
INFO_BUDGET, INFO_BATCH = "/info.max_batch_total_tokens", "/info.max_batch_size"
INFO_LENGTH = "/info.max_total_tokens"


def _info(answer: Any) -> Mapping[str, Series]:
    """
    Model, version and limits; {} from a server that is not TGI (others have an /info too).

    ``max_concurrent_requests`` is where the router refuses, in queue and batch together: no slots.
    """
    length = common.figure(INFO_LENGTH, common.member(answer, "max_total_tokens"))
    facts = common.info(
        INFO, model=common.member(answer, "model_id"), version=common.member(answer, "version")
    )
    if not length or not facts:
        return {}
    limits = {INFO_BUDGET: "max_batch_total_tokens", INFO_BATCH: "max_batch_size"}
    told = [common.figure(name, common.member(answer, key)) for name, key in limits.items()]
    return {**facts, **length, **{name: series for each in told for name, series in each.items()}}


FACTS = Beside(INFO, _info)


def read(page: Page) -> EngineSample:
    """One record: a TGI serves one model, and its series carry no label for it."""
    key: Key = ("0", page.text(INFO, "model") or "")

    def of_all(_: Labels) -> Key:
        return key

    ranks = Ranks(of_all)
    ranks.put_all(page, TABLE)
    fields = ranks.fields.setdefault(key, {})
    if REQUESTS not in page.series and INFO in page.series:
        # It said that it is a TGI, and has counted no request since its start.
        fields.setdefault("running", 0.0)
        fields.setdefault("waiting", 0.0)
    _read_budget(page, fields)
    slots = page.value(INFO_BATCH)
    if slots is not None:
        fields["slots"] = slots
    steps = [known for _, value in page.get((STEPS,)) if (known := gauge(value)) is not None]
    if steps:
        # Prefills and decodes of a batch; IBM's fork has another text in their label method.
        fields["steps"] = sum(steps)
    _read_ends(page, ranks)
    return ranks.sample(
        page,
        version=common.version(page, INFO),
        max_model_length=common.max_model_length(page, INFO_LENGTH),
    )


def _read_budget(page: Page, fields: dict[str, Any]) -> None:
    """The tokens that admission may promise, and the share of them that it has promised."""
    budget = page.value(BUDGET) or page.value(INFO_BUDGET)
    if not budget:
        return
    fields["kv_capacity_tokens"] = budget
    promised = page.value(RESERVED)
    if promised is None and REQUESTS not in page.series and INFO in page.series:
        promised = 0.0
    share = None if promised is None else usage(promised / budget)
    if share is not None:
        fields["kv_reserved"] = share


def _read_ends(page: Page, ranks: Ranks) -> None:
    ended: Series = [({"err": "success"}, value) for _, value in page.get((SUCCESS,))]
    refused: Series = []
    for labels, value in page.get((FAILURE,)):
        (refused if labels.get("err") in REFUSED else ended).append((labels, value))
    ranks.put_by_label(ended, "finished", "err")
    ranks.put_by_label(refused, "rejected", "err")


TGI = Engine(
    name="tgi",
    title="Text Generation Inference",
    versions="2.0 to 3.3",
    markers=MARKERS,
    fast_names=TABLE.fast_names(),
    full_names=TABLE.full_names(MARKERS),
    read=read,
    beside=(FACTS,),
    known_by=FACTS,
    cadence=Cadence(tokens_at_finish=True),
    kv_usage=KvUsage.RESERVED,
    silent="TGI has an empty page until its first request, and then is known by its /info.",
    empty_is_idle=True,
    tells={
        Quantity.RUNNING: exact("of the current batch"),
        Quantity.WAITING: exact(),
        Quantity.SLOTS: approximate(
            "tokens are the limit; where --max-batch-size is set, up to 2.3 from /info, else declare it as "
            "max_num_seqs in the plan"
        ),
        Quantity.KV_USED: approximate(
            "what is reserved for prompts and longest answers; where the page or /info tells the budget"
        ),
        Quantity.KV_CAPACITY: approximate(
            "the token budget, where the page or, up to 2.3, /info tells it; else declare "
            "kv_cache_tokens in the plan"
        ),
        Quantity.TOKENS_PER_SEQUENCE: approximate("reserved, not used"),
        Quantity.PROMPTS: exact("100 equal buckets; when they arrive"),
        Quantity.OUTPUTS: exact("100 equal buckets"),
        Quantity.TTFT: unknown("not published: measure it where the clients are"),
        Quantity.TPOT: approximate("one mean per request, with its prefill"),
        Quantity.PREEMPTIONS: unknown("there are none: admission reserves the longest answer"),
        Quantity.PREFILL: approximate("prompts as they arrive, with what a cache gave"),
    },
)
