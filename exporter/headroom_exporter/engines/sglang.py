"""
SGLang, 0.3.6 to 0.5.23: which ranks repeat each other, and which counter moves when.

A page holds two kinds of series. The scheduler's carry the labels of their rank: those of one ``dp_rank``
repeat each other, so the largest counts. The server's own, of requests, carry none: they are sums over all
of its data-parallel ranks.

Sources: SGLang's code (srt/metrics/collector.py, later srt/observability/metrics_collector.py, the
scheduler's metrics, output and disaggregation modules, entrypoints/v1_loads.py), and its pages; see
tests/fixtures/engines/sglang.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common, sglang_server
from headroom_exporter.engines.base import (
    MAX_RANKS,
    Engine,
    Page,
    Quantity,
    approximate,
    exact,
    histogram,
    number,
    usage,
)
from headroom_exporter.engines.sglang_ranks import counted, level
from headroom_exporter.samples import Cadence, EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series
    from headroom_exporter.engines.sglang_ranks import Key

Fields = dict[str, Any]

# --- the tables ----------------------------------------------------------------------------------

RUNNING = "sglang:num_running_reqs"
USAGE = "sglang:token_usage"
CAPACITY = "sglang:max_total_num_tokens"
PAGE_SIZE = "sglang:page_size"
CACHE_CONFIG = "sglang:cache_config_info"
CONTEXT = "sglang:context_len"
# In the first release with metrics only; later the server tells it beside the page.
SLOTS = "sglang:max_running_requests"
PROMPT, GENERATED = "sglang:prompt_tokens_total", "sglang:generation_tokens_total"
CACHED = "sglang:cached_tokens_total"
REALTIME = "sglang:realtime_tokens_total"
FINISHED = "sglang:num_requests_total"
# num_retracted_reqs counts those since the last report only, and leaves a series behind per dead process.
RETRACTED, RETRACTED_BEFORE = "sglang:num_retracted_requests_total", "sglang:total_retracted_reqs"

# Both wait until this scheduler has memory and a slot for them.
WAITING = (
    "sglang:num_queue_reqs",
    # A decode worker allocates the whole prompt before it lets it be sent.
    "sglang:num_decode_prealloc_queue_reqs",
)
# These wait for something else: a compiled grammar, the other worker's memory, a transfer under way.
# Those in num_prefill_inflight_queue_reqs have had their prefill and wait for nothing here.
DEFERRED = (
    "sglang:num_grammar_queue_reqs",
    "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_prefill_prealloc_queue_reqs",
    "sglang:num_decode_transfer_queue_reqs",
)
GAPS = "sglang:inter_token_latency_seconds"
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "request_prompt_tokens": ("sglang:prompt_tokens_histogram",),
    "request_output_tokens": ("sglang:generation_tokens_histogram",),
    "time_to_first_token_seconds": ("sglang:time_to_first_token_seconds",),
    # Up to 0.4.2 each token observes the mean of its request so far: a distribution, but no gaps to add up.
    "inter_token_latency_seconds": (GAPS, "sglang:time_per_output_token_seconds"),
    "queue_time_seconds": ("sglang:queue_time_seconds", "sglang:queue_time_s"),
    "request_duration_seconds": ("sglang:e2e_request_latency_seconds",),
}

FAST_NAMES = (
    *(RUNNING, USAGE, SLOTS, *WAITING, *DEFERRED),
    *(PROMPT, GENERATED, REALTIME, RETRACTED, RETRACTED_BEFORE),
    *(f"{GAPS}_sum", f"{GAPS}_count"),
)
FULL_NAMES = frozenset(
    {
        *FAST_NAMES,
        *(CAPACITY, PAGE_SIZE, CACHE_CONFIG, CONTEXT, CACHED, FINISHED),
        *(
            name + suffix
            for names in HISTOGRAMS.values()
            for name in names
            for suffix in ("_bucket", "_sum")
        ),
    }
)
# What the server counts for all its ranks together may stand with the first of them: sums stay right, and
# nothing is derived from it that would take it for that rank's alone.
OF_ALL_RANKS = ("finished", "histograms")

# --- reading a page ------------------------------------------------------------------------------


class _Found:
    """Fields by rank, as they are met."""

    def __init__(self) -> None:
        self.fields: dict[Key, Fields] = {}

    def put(self, name: str, values: Mapping[Key, float]) -> None:
        for key, value in values.items():
            self.fields.setdefault(key, {})[name] = value

    def add(self, name: str, values: Mapping[Key, float]) -> None:
        for key, value in values.items():
            fields = self.fields.setdefault(key, {})
            fields[name] = fields.get(name, 0.0) + value


def read(page: Page) -> EngineSample:
    """One record per data-parallel rank and model."""
    found = _Found()
    found.put("running", counted(page.get((RUNNING,))))
    found.put("kv_usage", level(page.get((USAGE,)), usage))
    for field, names in {"waiting": WAITING, "deferred": DEFERRED}.items():
        for name in names:
            found.add(field, counted(page.get((name,))))
    _read_tokens(page, found)
    found.put("inter_token_seconds", counted(page.get((f"{GAPS}_sum",))))
    found.put("inter_token_count", counted(page.get((f"{GAPS}_count",))))
    for key, value in counted(page.get((FINISHED,))).items():
        # Neither why nor whether well: an answer that was cut off counts too.
        found.fields.setdefault(key, {})["finished"] = MappingProxyType({"unspecified": value})
    _read_histograms(page, found)
    found.put("slots", level(page.get((SLOTS,))))
    found.put("kv_capacity_tokens", level(page.get((CAPACITY,))))
    _read_page_size(page, found)
    ranks = _ranks(found.fields)
    kept = sorted(ranks)[:MAX_RANKS]
    return EngineSample(
        ranks=tuple(_sample(page, key, ranks[key]) for key in kept),
        dropped=len(ranks) - len(kept) + page.truncated,
        version=sglang_server.version(page),
        max_model_length=_max_model_length(page),
    )


def _read_tokens(page: Page, found: _Found) -> None:
    """
    Tokens and retractions.

    From 0.5.7 the scheduler counts tokens as it computes them; before, they are counted for the whole server
    and when a request ends. Which of both is read depends on the version alone, never on what has a series
    already: else the counter would jump when the first series of the other appears.
    """
    if not _counts_at_once(page):
        found.put("prompt_tokens", counted(page.get((PROMPT,))))
        found.put("generation_tokens", counted(page.get((GENERATED,))))
        found.put("preemptions", counted(page.get((RETRACTED_BEFORE,))))
        hits = counted(page.get((CACHED,)))
        queries = counted(page.get((PROMPT,)))
        found.put("prefix_hits", hits)
        found.put("prefix_queries", {key: queries[key] for key in hits if key in queries})
        return
    modes: dict[str, Series] = {}
    for labels, value in page.get((REALTIME,)):
        modes.setdefault(labels.get("mode", ""), []).append((labels, value))
    computed = counted(modes.get("prefill_compute", ()))
    cached = counted(modes.get("prefill_cache", ()))
    prompts = {key: value + cached.get(key, 0.0) for key, value in computed.items()}
    found.put("computed_prompt_tokens", computed)
    found.put("prompt_tokens", prompts)
    found.put("prefix_queries", prompts)
    found.put("prefix_hits", cached)
    found.put("generation_tokens", counted(modes.get("decode", ())))
    # A counter that was never incremented has no series.
    found.put("preemptions", dict.fromkeys(counted(page.get((RUNNING,))), 0.0))
    found.put("preemptions", counted(page.get((RETRACTED,))))


def _counts_at_once(page: Page) -> bool:
    """Whether it is 0.5.7 or later: there the scheduler's series say which expert rank they are of."""
    if page.series.get(REALTIME):
        return True
    return any("moe_ep_rank" in labels for labels, _ in page.get((RUNNING,)))


def _read_histograms(page: Page, found: _Found) -> None:
    for field, names in HISTOGRAMS.items():
        name = next((name for name in names if page.series.get(f"{name}_bucket")), None)
        if name is None:
            continue
        by_bound: dict[str, Series] = {}
        for labels, value in page.series[f"{name}_bucket"]:
            by_bound.setdefault(labels.get("le", ""), []).append((labels, value))
        buckets: dict[Key, Series] = {}
        for bound, series in by_bound.items():
            for key, count in counted(series).items():
                buckets.setdefault(key, []).append(({"le": bound}, count))
        sums = counted(page.get((f"{name}_sum",)))
        for key, pairs in buckets.items():
            made = histogram(pairs, sums.get(key))
            if made is not None:
                fields = found.fields.setdefault(key, {})
                fields.setdefault("histograms", {})[field] = made


def _read_page_size(page: Page, found: _Found) -> None:
    """Tokens of a page of the cache: what a sequence takes is rounded up to it."""
    found.put("block_tokens", level(page.get((PAGE_SIZE,))))
    # 0.5.9 and 0.5.10 tell it as a label.
    size = number(page.text(CACHE_CONFIG, "page_size"))
    if size is not None:
        found.put("block_tokens", dict.fromkeys(counted(page.get((RUNNING,))), size))


def _ranks(fields: Mapping[Key, Fields]) -> dict[tuple[str, str], Fields]:
    """Give what has no rank to the only one there is, and of several the first what may stand there."""
    ranks = {(rank, model): held for (rank, model), held in fields.items() if rank is not None}
    for (rank, model), held in fields.items():
        if rank is not None:
            continue
        own = sorted(key for key in ranks if key[1] == model)
        if not own:
            ranks["0", model] = held
            continue
        alone = len(own) == 1
        shown = held if alone else {name: held[name] for name in OF_ALL_RANKS if name in held}
        first = ranks[own[0]]
        histograms = {**shown.get("histograms", {}), **first.get("histograms", {})}
        ranks[own[0]] = {**shown, **first}
        if histograms:
            ranks[own[0]]["histograms"] = histograms
    return ranks


def _sample(page: Page, key: tuple[str, str], fields: Fields) -> RankSample:
    rank, model = key
    beside = {
        "slots": sglang_server.slots(page, rank),
        "kv_capacity_tokens": sglang_server.capacity(page, rank),
    }
    told = {name: value for name, value in beside.items() if value is not None}
    held = {**told, **fields}
    if "histograms" in held:
        held["histograms"] = MappingProxyType(held["histograms"])
    return RankSample(rank=rank, model_name=model or common.model(page), **held)


def _max_model_length(page: Page) -> int | None:
    told = level(page.get((CONTEXT,)))
    return int(max(told.values())) if told else common.max_model_length(page)


SGLANG = Engine(
    name="sglang",
    title="SGLang",
    versions="0.3.6 to 0.5.23",
    markers=frozenset({RUNNING, PROMPT, CAPACITY}),
    fast_names=FAST_NAMES,
    full_names=FULL_NAMES,
    read=read,
    beside=(*sglang_server.PAGES, common.MODELS),
    # Its registry (multiprocess mode) answers name[] with nothing, so there is no filtered page.
    # It reports with each prefill, and once in --decode-log-interval decode steps. A server that has gone
    # idle reports after 30 s only: until then its gauges stand while its counters do not move, which is seen
    # as such. To count 30 s as their age under load too would blind us there.
    cadence=Cadence(gauge_steps=40, tokens_at_finish=True),
    silent=(
        "SGLang has no metrics without --enable-metrics; before 0.5.6 a server that nobody has used yet "
        "shows none for 30 s."
    ),
    tells={
        Quantity.RUNNING: approximate(
            "up to 40 decode steps old; a report at a prefill leaves out those it admits"
        ),
        Quantity.WAITING: approximate(
            "as old as running; without those that wait for a grammar or another worker"
        ),
        Quantity.SLOTS: exact(
            "from /v1/loads (0.5.8 and later) or /server_info; behind a frontend of its own, as in Dynamo, "
            "better in the plan"
        ),
        Quantity.KV_USED: approximate(
            "as old as running; two decimals in many versions; the fullest pool of a hybrid model"
        ),
        Quantity.KV_CAPACITY: exact("from 0.5.6.post2, before from /get_server_info"),
        Quantity.TOKENS_PER_SEQUENCE: approximate(
            "usage over running; too high while prompts are admitted"
        ),
        Quantity.PROMPTS: exact("before 0.5.18 with --collect-tokens-histogram only"),
        Quantity.OUTPUTS: exact("before 0.5.18 with --collect-tokens-histogram only"),
        Quantity.TTFT: approximate(
            "nothing below 0.1 s is told apart; most versions time answers that are not streamed at their "
            "50th token"
        ),
        Quantity.TPOT: approximate(
            "between tokens; answers that are not streamed in means of 50 tokens, in most versions without "
            "the first 50; up to 0.4.2 the mean of the answer so far"
        ),
        Quantity.PREEMPTIONS: exact("retractions: from 0.5.7, and in releases from 0.4.7 to 0.5.1"),
        Quantity.PREFILL: exact(
            "from 0.5.7 without what a cache gave; before, whole prompts when their request ends, and "
            "unknown with data parallelism"
        ),
    },
)
