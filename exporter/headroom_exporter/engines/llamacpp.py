"""
llama.cpp's server, 2024-03 to 2026-10: ``/metrics`` (started with --metrics), ``/props``, ``/slots``.

Sources: tools/server of llama.cpp (earlier examples/server) as vendored in llama-cpp-python 0.2.57, 0.3.9
and 0.3.36 (commit 0c1e57098), and that last server itself: tests/llamacpp. What is odd about it:

- No labels; who is served is asked of ``/props``.
- Values have six significant digits, so a counter of N moves in steps of up to N / 100,000. Nothing is fitted
  to windows of seconds: token counters jump by whole answers when a request ends anyway. A rate over w
  seconds of a server that has run for T at an even pace is off by at most T / (100,000 w): 2 % of a rate
  over five minutes after a week.
- Reading /metrics starts its gauges ``prompt_tokens_seconds`` and ``predicted_tokens_seconds`` anew, for
  other readers too: they are means since anybody's last read. They are not read here, and of no use to
  anyone else once this exporter polls; rates of the counters are. ``n_busy_slots_per_decode`` is a mean
  since the start, ``n_tokens_max`` a maximum called a counter: not read.
- ``kv_cache_usage_ratio`` (to May 2025) counts prompts kept for later in idle slots, which give way at once:
  it is no usage of live sequences, so it is not read.
- ``/slots`` tells each slot's tokens, but asking wakes a server that sleeps (--sleep-idle-seconds) and keeps
  one that is awake from falling asleep: it is asked only while something runs. Servers before autumn 2025,
  and later ones in debug mode, put the prompts into it: of the answer only sums are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import arguments, common
from headroom_exporter.engines.base import (
    Beside,
    Engine,
    Page,
    Quantity,
    Rhythm,
    approximate,
    exact,
    unknown,
    usage,
)
from headroom_exporter.samples import Cadence, EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series

# --- the table: field -> upstream sample name ----------------------------------------------------

RUNNING = "llamacpp:requests_processing"
FIELDS: Mapping[str, str] = {
    "running": RUNNING,
    # For a slot: a task that no idle slot can take.
    "waiting": "llamacpp:requests_deferred",
    # In all eras only what was computed, whatever the help text says: cached tokens are apart, or untold.
    "computed_prompt_tokens": "llamacpp:prompt_tokens_total",
    "generation_tokens": "llamacpp:tokens_predicted_total",
    # One batch of all slots each, from September 2024.
    "steps": "llamacpp:n_decode_total",
    "spec_drafts": "llamacpp:spec_decode_num_drafts_total",
    "spec_accepted_tokens": "llamacpp:spec_decode_num_accepted_tokens_total",
}
CACHED_PROMPT = "llamacpp:prompt_tokens_cached_total"
NAMES = (*FIELDS.values(), CACHED_PROMPT)

# More slots than anybody serves from one process; a list longer than this is not believed.
MAX_SLOTS = 4096
# Slots where -np is not given, from December 2025: then they share one pool. Before, it was one slot.
AUTOMATIC_SLOTS = 4


# --- what stands beside the page -----------------------------------------------------------------


def _props(answer: Any) -> Mapping[str, Series]:
    """``/props``: slots, the context of one slot, and who is served by which build."""
    alias = common.member(answer, "model_alias") or _file_name(common.member(answer, "model_path"))
    return {
        **common.figure("/props.total_slots", common.member(answer, "total_slots")),
        **common.figure(
            "/props.n_ctx", common.member(answer, "default_generation_settings", "n_ctx")
        ),
        **common.info("/props", model=alias, version=common.member(answer, "build_info")),
    }


def _file_name(path: Any) -> str | None:
    """What servers without an alias are known by in /v1/models too, less the directories."""
    return path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else None


def _slots(answer: Any) -> Mapping[str, Series]:
    """
    ``/slots``: how many there are, and the tokens of those that process a request.

    Cached + processed + decoded is each slot's resident sequence in every version that tells the three;
    ``n_prompt_tokens`` alone is the whole prompt in some, and all that is resident in others.
    """
    if not isinstance(answer, list) or not 0 < len(answer) <= MAX_SLOTS:
        return {}
    held = [_tokens(slot) for slot in answer if common.member(slot, "is_processing") is True]
    found: dict[str, Series] = {"/slots.count": [({}, float(len(answer)))]}
    known = [tokens for tokens in held if tokens is not None]
    if len(known) == len(held):
        found["/slots.tokens"] = [({}, sum(known))]
    return found


def _tokens(slot: Any) -> float | None:
    """Tokens of one slot's sequence, at most its context; None where a part is not told."""
    decoded = common.member(slot, "next_token", 0, "n_decoded")
    parts = (
        common.member(slot, "n_prompt_tokens_cache"),
        common.member(slot, "n_prompt_tokens_processed"),
        decoded,
        common.member(slot, "n_ctx"),
    )
    numbers = [
        float(part)
        for part in parts
        if isinstance(part, int) and not isinstance(part, bool) and 0 <= part < 1e12
    ]
    return min(sum(numbers[:3]), numbers[3]) if len(numbers) == len(parts) else None


def command_line(url: str, proc: Path = Path("/proc")) -> Mapping[str, Series]:
    """
    Whether slots share one pool, and its size, from the command line of the server behind a URL.

    No page tells. ``split``: -np N gives each slot its own share. ``shared``: --kv-unified, or no -np, which
    from December 2025 means four slots and one pool (before, one slot, where it makes no difference).
    """
    command = arguments.command_line(url, "llama-server", default_port=8080, proc=proc)
    if command is None:
        return {}
    given = frozenset(command)
    if given & {"--no-kv-unified", "-no-kvu"}:
        layout = "split"
    elif given & {"--kv-unified", "-kvu", "--kv-unified-per-slot"}:
        layout = "shared"
    else:
        parallel = arguments.option(command, "--parallel", "-np")
        layout = "split" if parallel else "automatic"
    size = arguments.option(command, "--ctx-size", "-c")
    return {
        **common.info("llama-server", layout=layout),
        **common.figure("llama-server.ctx_size", size),
    }


# --- reading a page ------------------------------------------------------------------------------


def read(page: Page) -> EngineSample:
    """Turn a page and what stands beside it into the one rank there is."""
    fields: dict[str, Any] = {
        field: value for field, name in FIELDS.items() if (value := page.value(name)) is not None
    }
    version, n_ctx = common.version(page, "/props"), page.value("/props.n_ctx")
    cached, computed = page.value(CACHED_PROMPT), fields.get("computed_prompt_tokens")
    if cached is not None and computed is not None:
        fields["prompt_tokens"] = cached + computed
    # Without speculative decoding they stand at 0, and then a step yields each sequence one token.
    if not fields.get("spec_drafts"):
        fields.pop("spec_drafts", None)
        fields.pop("spec_accepted_tokens", None)
    slots = page.value("/props.total_slots") or page.value("/slots.count")
    pool = _pool(page, slots, n_ctx)
    ranks: tuple[RankSample, ...] = ()
    if fields:
        rank = RankSample(
            rank="0",
            model_name=page.text("/props", "model") or common.model(page),
            slots=slots,
            kv_capacity_tokens=pool,
            kv_usage=_usage(page, fields.get("running"), pool),
            **fields,
        )
        ranks = (rank,)
    return EngineSample(
        ranks=ranks,
        dropped=page.truncated,
        version=version,
        max_model_length=None if n_ctx is None else int(n_ctx),
    )


def _pool(page: Page, slots: float | None, n_ctx: float | None) -> float | None:
    """
    Tokens of the whole KV cache; None where it cannot be told whether the slots share one.

    A slot's context is its share of a split pool, and the whole of a shared one, in both cases no more than
    the model was trained for.
    """
    if slots is None or n_ctx is None:
        return None
    layout = page.text("llama-server", "layout")
    if layout == "split":
        return slots * n_ctx
    shared = layout == "shared" or (layout == "automatic" and slots == AUTOMATIC_SLOTS)
    if shared or slots == 1:
        return max(n_ctx, page.value("llama-server.ctx_size") or 0.0)
    return None


def _usage(page: Page, running: float | None, pool: float | None) -> float | None:
    """
    Share of the pool that live sequences hold.

    A slot keeps its last prompt for the next one like it, but gives way at once: idle slots do not count.
    """
    if running is None or pool is None:
        return None
    tokens = 0.0 if running == 0 else page.value("/slots.tokens")
    return None if tokens is None else usage(tokens / pool)


LLAMACPP = Engine(
    name="llamacpp",
    title="llama.cpp",
    versions="2024-03 to 2026-10",
    markers=frozenset({RUNNING}),
    fast_names=NAMES,
    full_names=frozenset(NAMES),
    read=read,
    beside=(
        Beside("/props", _props),
        common.MODELS,
        Beside("/slots", _slots, rhythm=Rhythm.FAST, while_above_zero=RUNNING),
    ),
    command_line=command_line,
    cadence=Cadence(tokens_at_finish=True, gauges_when_asked=True),
    silent="llama-server has no metrics unless it is started with --metrics.",
    tells={
        Quantity.RUNNING: exact(),
        Quantity.WAITING: exact(
            "older servers take only --threads-http requests at once; what is beyond waits unseen"
        ),
        Quantity.SLOTS: exact("from /props"),
        Quantity.KV_USED: approximate(
            "tokens of the slots that process, from /slots (autumn 2025 and later), where the pool is known"
        ),
        Quantity.KV_CAPACITY: approximate(
            "whether slots share one pool (--kv-unified, or no -np) only the command line tells where it can "
            "be seen (shared process namespace); unknown otherwise with more than one slot"
        ),
        Quantity.TOKENS_PER_SEQUENCE: approximate("KV used over running"),
        Quantity.PROMPTS: unknown("only counters of tokens; declare prompt_tokens in the plan"),
        Quantity.OUTPUTS: unknown("only counters of tokens; declare output_tokens in the plan"),
        Quantity.TTFT: unknown("not told; measure it at the gateway"),
        Quantity.TPOT: unknown(
            "not told: only seconds per finished answer, and means since anybody's last read"
        ),
        Quantity.PREEMPTIONS: unknown("a sequence that has begun keeps its slot: there are none"),
        Quantity.PREFILL: approximate("counter of six digits; without what a cache gave"),
    },
)
