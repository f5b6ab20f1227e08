"""The engine board: one replica and its GPU, rank by rank."""

from __future__ import annotations

from headroom_boards import common
from headroom_boards.common import ENGINE
from headroom_boards.model import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SOME,
    Board,
    Kind,
    Metrics,
    Panel,
    Query,
    Row,
    Style,
    Variable,
)

CHOSEN = ("job", "namespace", "model_name", "engine", "instance", "rank")

m = Metrics(chosen=CHOSEN)


def board() -> Board:
    """The board."""
    within = ', instance=~"$instance"'
    one = within + ', engine=~"$engine"'
    return Board(
        uid=ENGINE,
        title="Headroom / Engine and GPU",
        description="One replica: its batch, cache, queue, latencies and GPU, rank by rank, and how well it"
        " is observed.",
        variables=(
            common.job(),
            common.namespace(),
            common.instance(hidden=False),
            common.engine("headroom_engine_up", within, many=False),
            common.model_name(within=one),
            _rank(f'headroom_state_seconds_total{{job=~"$job"{one}}}'),
        ),
        rows=(
            Row(title="How is it now?", panels=_now()),
            Row(title="What runs at once?", panels=_batch()),
            Row(title="What does the KV cache hold?", panels=_cache()),
            Row(title="What do users feel?", panels=_latency()),
            Row(title="What does it get done?", panels=_work()),
            Row(title="Is it well observed?", panels=_polls()),
            Row(title="What does the GPU say?", panels=_gpu()),
        ),
        annotations=common.marks(m),
        scenes=({"engine": "chat-1"}, {"engine": "assistant-0"}),
        span="now-3h",
    )


def _rank(metric: str) -> Variable:
    return Variable(
        name="rank", label="Rank", query=f"label_values({metric}, rank)", all_value=".*"
    )


def _now() -> tuple[Panel, ...]:
    def tile(title: str, description: str, query: Query, **more: object) -> Panel:
        settings = {"unit": "short", "width": 4, "height": 4, **more}
        return Panel(
            kind=Kind.STAT,
            title=title,
            description=description,
            queries=(query,),
            **settings,  # type: ignore[arg-type]
        )

    return (
        tile(
            "Does it answer?",
            "Whether the last poll succeeded. Down: the process, its log, its port; the kind of error is in"
            " “Is it well observed?”.",
            Query(expr=f"min({m('headroom_engine_up')})", legend="up", expects=(1, 1)),
            mapping=common.UP,
        ),
        tile(
            "How is its worst rank?",
            "Low: below the plan's floor. Exhausted: no headroom, or requests wait. Unknown: the reason"
            " beside says why.",
            Query(expr=common.worst_state(m, ""), legend="state", expects=(1, 1)),
            mapping=common.STATES,
        ),
        tile(
            "Why?",
            "The reason for the state, of the rank with least headroom first: fits, below_floor, no_headroom,"
            " waiting, preempting, no_gauges, stale_gauges, no_capacity_known.",
            Query(
                expr=f"topk(1, sum by (reason) ({m('headroom_state_reason_info')}))",
                legend="{{reason}}",
                expects=(1, 1),
            ),
            unit="string",
            steps=common.NEUTRAL,
        ),
        tile(
            "How many more sequences fit?",
            "Of the rank with least headroom; below 0 requests wait.",
            Query(expr=f"min({m('headroom_sequences')})", legend="more fit", expects=(1, 1)),
            steps=common.ZERO_IS_EMPTY,
            decimals=0,
        ),
        tile(
            "What binds first?",
            "The constraint that bound longest in the last ten minutes. Follow its part of the runbook of"
            " HeadroomExhausted.",
            Query(
                expr=f"topk(1, sum by (constraint) ({m('engine:headroom_constraint:ratio_rate10m')}))",
                legend="{{constraint}}",
                expects=(1, 1),
            ),
            unit="string",
            steps=common.NEUTRAL,
        ),
        tile(
            "Which multiple of demand fits?",
            "Largest multiple of recent demand that fits every known limit, worst rank. Compare with the"
            " plan's factor on the plan board; unknown on an idle engine.",
            Query(expr=f"min({m('headroom_spike_multiple')})", legend="times", expects=(1, 1)),
            unit="none",
            decimals=1,
        ),
    )


def _line(expr: str, legend: str, color: str | None, **more: object) -> Query:
    settings = {"expects": (1, 1), **more}
    return Query(expr=expr, legend=legend, color=color, **settings)  # type: ignore[arg-type]


def _batch() -> tuple[Panel, ...]:
    bucket = m("headroom_effective_batch_sequences_bucket")
    return (
        Panel(
            kind=Kind.HEATMAP,
            title="How large was the batch, for how long?",
            description="Each column is a moment, each row a batch size; the colour is the time spent there,"
            " in seconds per second over the chosen ranks. A bright band near a ceiling is saturation; two"
            " bands are two kinds of traffic. Measured between scrapes, so bursts show.",
            queries=(
                Query(
                    expr=f"sum by (le) (rate({bucket}[$__rate_interval])) / 1000",
                    legend="{{le}}",
                    expects=(SOME, SOME),
                ),
            ),
            unit="short",
            height=9,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How close is each rank to what it sustains?",
            description="Peak demand of each minute and the running sequences, rank by rank; dashed, what the"
            " rank sustains. Demand above the dashed line waits. Ranks far apart: the load is not balanced"
            " between them.",
            queries=(
                Query(
                    expr=f"max by (rank) ({m('headroom_peak_demand_sequences', window='1m')})",
                    legend="peak demand, rank {{rank}}",
                    style=Style.FAINT,
                    expects=(1, 2),
                ),
                Query(
                    expr=f"max by (rank) ({m('headroom_running_sequences')})",
                    legend="running, rank {{rank}}",
                    expects=(1, 2),
                ),
                Query(
                    expr=f"min by (rank) ({m('headroom_sustainable_sequences')})",
                    legend="sustainable, rank {{rank}}",
                    style=Style.LIMIT,
                    expects=(1, 2),
                ),
            ),
            unit="short",
            height=9,
            minimum=0,
        ),
    )


def _cache() -> tuple[Panel, ...]:
    p95 = common.capped_p95(
        m, "headroom_kv_cache_occupancy_ratio", "headroom_peak_kv_cache_usage_ratio"
    )
    occupied, observed = (
        m("headroom_kv_cache_occupancy_ratio_sum"),
        m("headroom_kv_cache_occupancy_ratio_count"),
    )
    hits, asked = (
        m("headroom_prefix_cache_hits_tokens_total"),
        m("headroom_prefix_cache_queries_tokens_total"),
    )
    preempted = m("headroom_preemptions_total")
    mean = f"rate({occupied}[$__rate_interval]) / (rate({observed}[$__rate_interval]) > 0)"
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="How many tokens are in the cache?",
            description="Tokens' worth of blocks in use, rank by rank, and the pool (dashed). At the pool the"
            " next token throws a sequence out.",
            queries=(
                Query(
                    expr=f"max by (rank) ({m('headroom_kv_cache_used_tokens')})",
                    legend="used, rank {{rank}}",
                    expects=(1, 2),
                ),
                Query(
                    expr=f"min by (rank) ({m('headroom_kv_cache_capacity_tokens')})",
                    legend="pool, rank {{rank}}",
                    style=Style.LIMIT,
                    expects=(1, 2),
                ),
            ),
            unit="short",
            width=6,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How full is the cache, really?",
            description="Mean, 95th percentile over time and peak of the fullest rank. The peak is what"
            " decides: a cache that is half full on average can still throw sequences out.",
            queries=(
                _line(f"max({mean})", "mean", BLUE),
                _line(
                    f"max({p95})",
                    "p95",
                    PURPLE,
                ),
                _line(
                    f"max({m('headroom_peak_kv_cache_usage_ratio', window='1m')})",
                    "peak",
                    GREY,
                    style=Style.FAINT,
                ),
            ),
            unit="percentunit",
            width=6,
            minimum=0,
            maximum=1,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How much cache does one sequence take?",
            description="Resident tokens of one running sequence, mean and one standard deviation above it,"
            " hottest rank. Growing: conversations get longer, and fewer fit in the same pool.",
            queries=(
                _line(f"max({m('headroom_tokens_per_sequence')})", "mean", BLUE),
                _line(
                    f"max({m('headroom_tokens_per_sequence')} + {m('headroom_tokens_per_sequence_stddev')})",
                    "mean + 1 standard deviation",
                    GREY,
                    style=Style.FAINT,
                ),
            ),
            unit="short",
            width=6,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="Is work thrown away, or saved?",
            description="Preempted sequences a second are computed again from their first token: fewer slots"
            " would finish more. Prefix hits (right) are prompt tokens that cost nothing.",
            queries=(
                _line(f"sum(rate({preempted}[$__rate_interval]))", "preempted /s", RED),
                _line(
                    f"sum(rate({hits}[$__rate_interval])) / (sum(rate({asked}[$__rate_interval])) > 0)",
                    "prefix hits",
                    GREEN,
                    right=True,
                    unit="percentunit",
                ),
            ),
            unit="short",
            width=6,
            minimum=0,
        ),
    )


def _quantile(q: float, name: str) -> str:
    bucket = m(f"{name}_bucket")
    return f"histogram_quantile({q}, sum by (le) (rate({bucket}[$__rate_interval]))) >= 0"


def _latencies(title: str, name: str, description: str, dimension: str | None) -> Panel:
    limit = (
        ()
        if dimension is None
        else (
            _line(
                f"max({m('headroom_plan_limit', dimension=dimension)})",
                "planned p95",
                RED,
                style=Style.LIMIT,
            ),
        )
    )
    return Panel(
        kind=Kind.TIME_SERIES,
        title=title,
        description=description,
        queries=(
            _line(_quantile(0.95, name), "p95", PURPLE),
            _line(_quantile(0.5, name), "p50", BLUE),
            *limit,
        ),
        unit="s",
        width=6,
        minimum=0,
    )


def _latency() -> tuple[Panel, ...]:
    fixed, each = m("headroom_step_fixed_seconds"), m("headroom_step_per_sequence_seconds")
    token_sum, token_count = (
        m("headroom_inter_token_latency_seconds_sum"),
        m("headroom_inter_token_latency_seconds_count"),
    )
    return (
        _latencies(
            "How long until the first token?",
            "headroom_time_to_first_token_seconds",
            "Time to first token against the plan. Above it with an empty queue: prompts are long; with a"
            " queue: capacity.",
            "ttft_p95",
        ),
        _latencies(
            "How long between tokens?",
            "headroom_inter_token_latency_seconds",
            "Time between tokens against the plan. It grows with the batch: see the latency ceiling on the"
            " plan board.",
            "tpot_p95",
        ),
        _latencies(
            "How long do requests queue?",
            "headroom_queue_time_seconds",
            "Time before a request first ran, told when it leaves the queue: while a queue stands, look at"
            " the requests that wait.",
            None,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How long is a step?",
            description="Mean time between tokens, which is a step as users see it, and what the fit makes of"
            " the batch that runs: fixed + per sequence x batch. Observed far above fitted: prompts are"
            " computed in between, or the GPU slowed down.",
            queries=(
                _line(
                    f"sum(rate({token_sum}[$__rate_interval]))"
                    f" / (sum(rate({token_count}[$__rate_interval])) > 0)",
                    "observed",
                    BLUE,
                ),
                _line(
                    f"avg({fixed} + {each} * {m('headroom_running_sequences')})",
                    "fitted",
                    ORANGE,
                    style=Style.LIMIT,
                ),
            ),
            unit="s",
            width=6,
            minimum=0,
        ),
    )


def _work() -> tuple[Panel, ...]:
    waiting, deferred = m("headroom_waiting_sequences"), m("headroom_deferred_sequences")
    prompt, generated = m("headroom_prompt_tokens_total"), m("headroom_generation_tokens_total")
    finished, rejected = (
        m("headroom_finished_requests_total"),
        m("headroom_rejected_requests_total"),
    )
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="What waits?",
            description="Requests that wait for capacity, and those deferred for other reasons (LoRA budget,"
            " KV transfer). The former for more than a few steps is exhaustion; the latter never is.",
            queries=(
                _line(f"sum({waiting})", "for capacity", RED),
                _line(f"sum({deferred})", "deferred", GREY),
            ),
            unit="short",
            width=8,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How many tokens a second?",
            description="Prompt and generated tokens over the chosen ranks. Flat while demand grows: it is at"
            " its limit.",
            queries=(
                _line(f"sum(rate({generated}[$__rate_interval]))", "generated", BLUE),
                _line(f"sum(rate({prompt}[$__rate_interval]))", "prompt", GREEN),
            ),
            unit="short",
            width=8,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How do requests end?",
            description="Requests a second by how they ended; rejected ones met a queue limit. Many that end"
            " by length: max_tokens cuts answers.",
            queries=(
                Query(
                    expr=f"sum by (reason) (rate({finished}[$__rate_interval])) > 0",
                    legend="finished: {{reason}}",
                    expects=(1, 1),
                ),
                Query(
                    expr=f"sum by (reason) (rate({rejected}[$__rate_interval])) > 0",
                    legend="rejected: {{reason}}",
                    expects=(0, 0),
                ),
            ),
            unit="reqps",
            width=8,
            minimum=0,
        ),
    )


def _polls() -> tuple[Panel, ...]:
    errors, gap = (
        m("headroom_engine_poll_errors_total"),
        m("headroom_engine_unobserved_seconds_total"),
    )
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="How long does a poll take?",
            description="Duration of the last successful poll. Near the poll interval the exporter falls"
            " behind: poll less often, or see what keeps the engine's API server busy.",
            queries=(_line(f"max({m('headroom_engine_poll_duration_seconds')})", "poll", BLUE),),
            unit="s",
            width=8,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="Which polls fail?",
            description="Failed polls a second by kind. refused: nothing listens; timeout: the engine"
            " hangs or is too busy; malformed: something else answers at that address.",
            queries=(
                Query(
                    expr=f"sum by (kind) (rate({errors}[$__rate_interval])) > 0",
                    legend="{{kind}}",
                    expects=(0, 0),
                ),
            ),
            unit="ops",
            width=8,
            minimum=0,
            no_value="none",
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How much time was not observed?",
            description="Share of the time that no pair of polls covers: it is in no histogram and no state."
            " More than a little, and the shares elsewhere speak of the rest only.",
            queries=(_line(f"max(rate({gap}[$__rate_interval]))", "unobserved", ORANGE),),
            unit="percentunit",
            width=8,
            minimum=0,
            maximum=1,
        ),
    )


def _on_gpu(name: str, **matchers: str) -> str:
    """A GPU metric of the exporters that poll the chosen engine: GPUs have no engine label."""
    return f"({m(name, **matchers)} and on (job, instance) {m('headroom_engine_up')})"


def _gpu() -> tuple[Panel, ...]:
    gone = "no GPU seen"

    def over_time(
        title: str, description: str, unit: str, *queries: Query, no_value: str = gone
    ) -> Panel:
        return Panel(
            kind=Kind.TIME_SERIES,
            title=title,
            description=description,
            queries=queries,
            unit=unit,
            width=6,
            minimum=0,
            no_value=no_value,
        )

    def each(expr: str, legend: str, **more: object) -> Query:
        return _line(f"max by (gpu) ({expr})", legend + " {{gpu}}", None, expects=(1, 0), **more)

    return (
        over_time(
            "Who holds the GPU's memory?",
            "Bytes by owner, and all there is (dashed). “other” is no inference server: at its next start the"
            " engine gets that much less cache. Absent where the driver may not tell processes apart.",
            "bytes",
            Query(
                expr=f"sum by (owner) ({_on_gpu('headroom_gpu_memory_owner_bytes')})",
                legend="{{owner}}",
                expects=(2, 0),
            ),
            _line(
                f"sum({_on_gpu('headroom_gpu_memory_used_bytes')})",
                "used",
                GREY,
                style=Style.FAINT,
                expects=(1, 0),
            ),
            _line(
                f"sum({_on_gpu('headroom_gpu_memory_total_bytes')})",
                "all",
                RED,
                style=Style.LIMIT,
                expects=(1, 0),
            ),
        ),
        over_time(
            "Is it at its power limit?",
            "Power of each card and its limit (dashed). At the limit steps take longer and fewer sequences"
            " keep the planned speed.",
            "watt",
            each(_on_gpu("headroom_gpu_power_watts"), "power, GPU"),
            each(_on_gpu("headroom_gpu_power_limit_watts"), "limit, GPU", style=Style.LIMIT),
        ),
        over_time(
            "Is it busy? (busy is not full)",
            "Share of the time with a kernel running, and with memory being read or written. An engine with"
            " one user shows 90 % here too: read headroom, not this, for capacity.",
            "percentunit",
            each(_on_gpu("headroom_gpu_utilization_ratio"), "kernel, GPU"),
            each(_on_gpu("headroom_gpu_memory_bandwidth_utilization_ratio"), "memory, GPU"),
        ),
        over_time(
            "Does anything slow it down?",
            "Reasons that limit the clocks now, cards that have each. Heat or hw_slowdown: look at the"
            " cooling and the power supply; sw_power_cap alone comes and goes with load.",
            "short",
            Query(
                expr=f"sum by (reason) ({_on_gpu('headroom_gpu_clock_event_active')})",
                legend="{{reason}}",
                expects=(2, 0),
            ),
        ),
        over_time(
            "How hot is it?",
            "Core temperature of each card. Rising at the same power: cooling.",
            "celsius",
            each(_on_gpu("headroom_gpu_temperature_celsius"), "GPU"),
        ),
        Panel(
            kind=Kind.STAT,
            title="Is the GPU healthy?",
            description="Lost from the bus, row remaps that failed or wait for a reset, uncorrectable memory"
            " errors of the last hour. Any: drain the node, reset or replace the card"
            " (HeadroomGpuUnhealthy).",
            queries=(
                _line(f"sum({_on_gpu('headroom_gpu_lost')})", "lost", None, expects=(1, 0)),
                _line(
                    f"sum({_on_gpu('headroom_gpu_row_remap_failed')})",
                    "remap failed",
                    None,
                    expects=(0, 0),
                ),
                _line(
                    f"sum({_on_gpu('headroom_gpu_row_remap_pending')})",
                    "remap pending",
                    None,
                    expects=(0, 0),
                ),
                _line(
                    f"sum(increase({m('headroom_gpu_ecc_uncorrectable_errors_total')}[1h])"
                    f" and on (job, instance) {m('headroom_engine_up')})",
                    "memory errors",
                    None,
                    expects=(0, 0),
                ),
            ),
            unit="short",
            width=6,
            decimals=0,
            steps=common.NONE_IS_GOOD,
            no_value=gone,
        ),
        Panel(
            kind=Kind.STAT,
            title="Is the GPU read?",
            description="Whether the last reading of the driver succeeded. Down: see the exporter's log;"
            " nothing here is known meanwhile, the engine's own figures are. Not there: GPUs are switched"
            " off in the configuration.",
            queries=(_line(f"min({_on_gpu('headroom_gpu_up')})", "driver", None, expects=(1, 0)),),
            unit="short",
            width=6,
            mapping=common.UP,
            no_value=gone,
        ),
        over_time(
            "Which readings of the driver fail?",
            "Failed readings a second by kind. A hung driver shows here first.",
            "ops",
            Query(
                expr=f"sum by (kind) (rate({m('headroom_gpu_read_errors_total')}[$__rate_interval])"
                f" and on (job, instance) {m('headroom_engine_up')}) > 0",
                legend="{{kind}}",
                expects=(0, 0),
            ),
            no_value="none",
        ),
    )
