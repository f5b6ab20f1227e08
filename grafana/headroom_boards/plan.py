"""The plan board: what one model was sized for, beside what it really gets."""

from __future__ import annotations

from headroom_boards import common
from headroom_boards.common import PLAN
from headroom_boards.model import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Board,
    Kind,
    Metrics,
    Panel,
    Query,
    Row,
    Style,
)
from headroom_boards.names import limit_in_alert
from headroom_boards.trial import LARGE, SMALL

CHOSEN = ("job", "namespace", "model_name", "engine", "instance")
# Of 28 days: rules/alerts/pages.yaml.
BUDGET = 0.01
# What the planned p95 means: one prompt in twenty is longer.
OVER_P95 = 0.05

m = Metrics(chosen=CHOSEN)


def board() -> Board:
    """The board."""
    within = ', model_name=~"$model_name"'
    return Board(
        uid=PLAN,
        title="Headroom / Plan against reality",
        description="One model: the numbers it was sized for beside what it really gets, and what stops it.",
        variables=(
            common.job(),
            common.namespace(),
            common.model_name(many=False),
            common.engine("headroom_state_seconds_total", within, many=True),
            common.instance(hidden=True),
        ),
        rows=(
            Row(
                title="Does the plan still hold?", panels=(*_verdict()[:2], _use(), *_verdict()[2:])
            ),
            Row(title="Demand against the ceilings", panels=_ceilings()),
            Row(title="Each planned number, and what was seen", panels=(*_speed(), *_sizes())),
            Row(title="What binds, and how long?", panels=_binding()),
            Row(title="Does batching still buy throughput?", panels=_batching()),
            Row(title="Would a spike fit, and what is spent?", panels=_spike()),
        ),
        annotations=common.marks(m),
        scenes=({"model_name": SMALL}, {"model_name": LARGE}),
    )


def _known_sum(name: str, label: str, **matchers: str) -> str:
    """A sum over ranks by a label, absent where it is unknown for any of them."""
    metric = m(name, **matchers)
    ranks = f"count({m('headroom_state', state='ok')})"
    return (
        f"sum by ({label}) ({metric})"
        f" and (count by ({label}) ({metric}) == on () group_left () {ranks})"
    )


def _verdict() -> tuple[Panel, ...]:
    spike, factor = m("engine:headroom_spike_multiple:median1h"), m("headroom_plan_spike_factor")
    constraint = m("engine:headroom_constraint:ratio_rate10m")
    return (
        Panel(
            kind=Kind.STAT,
            title="How is the worst replica?",
            description="State of the chosen replicas' worst rank: low is below the plan's floor, exhausted"
            " means requests wait or nothing more fits. Unknown: see the reason on the engine's board.",
            queries=(Query(expr=common.worst_state(m, ""), legend="state", expects=(1, 1)),),
            unit="short",
            width=8,
            height=4,
            mapping=common.STATES,
        ),
        Panel(
            kind=Kind.STAT,
            title="How many more sequences fit?",
            description="Of today's mix of prompts, in the worst rank and over all chosen replicas. Worst"
            " below 0 and together above: requests wait in one replica while another has"
            " room; look at the router.",
            queries=(
                Query(expr=f"min({m('headroom_sequences')})", legend="worst rank", expects=(1, 1)),
                Query(expr=f"sum({m('headroom_sequences')})", legend="together", expects=(1, 1)),
            ),
            unit="short",
            width=8,
            height=4,
            decimals=0,
            steps=common.ZERO_IS_EMPTY,
        ),
        Panel(
            kind=Kind.STAT,
            title="What binds first?",
            description="What bound longest in the last ten minutes: slots (raise max_num_seqs), kv_cache"
            " (shorter contexts, more memory), latency (another replica), prefill (fewer or shorter"
            " prompts, prefix caching). The runbook of HeadroomExhausted has a part for each.",
            queries=(
                Query(
                    expr=f"topk(1, sum by (constraint) ({constraint}))",
                    legend="{{constraint}}",
                    expects=(1, 1),
                ),
            ),
            unit="string",
            steps=common.NEUTRAL,
            width=8,
            height=4,
        ),
        Panel(
            kind=Kind.STAT,
            title="How much of the planned spike would fit?",
            description="The spike that fits (median of the hour, worst replica) over the plan's spike"
            " factor. Below 100 % such a spike queues users within seconds: make room before it comes.",
            queries=(
                Query(
                    expr=f"min({spike} / max without (rank) ({factor}))",
                    legend="of the spike",
                    expects=(1, 1),
                ),
            ),
            unit="percentunit",
            width=8,
            height=4,
            decimals=0,
            steps=common.ONE_IS_ENOUGH,
            no_value="unknown, or idle",
        ),
    )


def _use() -> Panel:
    over = m("engine:headroom_prompts_over_plan:ratio2h")
    return Panel(
        kind=Kind.BAR_GAUGE,
        title="How much of each planned number is used?",
        description="Observed over planned, last hour, worst replica. Above 100 % the plan no longer"
        " describes the traffic: write the new number into the plan and see what it leaves."
        " Long prompts: their share over the planned p95 against the 5 % that the word p95 allows, two"
        " hours.",
        queries=(
            Query(
                expr=f"max by (dimension) ({m('engine:headroom_plan_use:ratio1h')})",
                legend="{{dimension}}",
                expects=(4, 4),
            ),
            Query(expr=f"max({over}) / {OVER_P95}", legend="long prompts", expects=(1, 1)),
        ),
        unit="percentunit",
        width=8,
        height=8,
        minimum=0,
        steps=common.ONE_IS_FULL,
        no_value="no plan",
    )


def _demand_p95() -> str:
    return common.capped_p95(m, "headroom_demand_sequences", "headroom_peak_demand_sequences")


def _mean(histogram: str) -> str:
    """Exact mean over time of each rank."""
    total, observed = m(f"{histogram}_sum"), m(f"{histogram}_count")
    return f"rate({total}[$__rate_interval]) / (rate({observed}[$__rate_interval]) > 0)"


def _ceilings() -> tuple[Panel, ...]:
    demand, batch = _mean("headroom_demand_sequences"), _mean("headroom_effective_batch_sequences")
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="Does demand stay below every ceiling?",
            description="Demand (running and waiting) of the chosen replicas as mean, 95th percentile and"
            " peak; dashed, how many sequences of today's mix each constraint lets run. The lowest dashed"
            " line is what stops the next sequence. A gap between demand and batch is queue. Of several"
            " replicas, p95 and peak are sums of each one's, so at most what they had together; a ceiling"
            " that is unknown for one of them is left out. The axis is logarithmic above 8.",
            queries=(
                Query(expr=f"sum({demand})", legend="demand, mean", color=BLUE, expects=(1, 1)),
                Query(
                    expr=f"sum({_demand_p95()})",
                    legend="demand, p95",
                    color=PURPLE,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"sum({m('headroom_peak_demand_sequences', window='1m')})",
                    legend="demand, peak",
                    color=GREY,
                    style=Style.FAINT,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"sum({batch})",
                    legend="batch, mean",
                    color=GREEN,
                    expects=(1, 1),
                ),
                *(
                    Query(
                        expr=_known_sum(
                            "headroom_capacity_sequences", "constraint", constraint=name
                        ),
                        legend=f"ceiling: {name}",
                        color=color,
                        style=Style.LIMIT,
                        # In the trial one replica of the first model never learns its latency ceiling.
                        expects=(0 if name == "latency" else 1, 1),
                    )
                    for name, color in common.CONSTRAINT_COLORS
                ),
            ),
            unit="short",
            axis="symlog",
            width=16,
            height=11,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="Does headroom stay above the floor?",
            description="Headroom of the worst and the best rank, and the floor that the plan asks for"
            " (dashed). Below the floor a burst has nowhere to go; below 0 requests wait.",
            queries=(
                Query(
                    expr=f"max({m('headroom_ratio')})", legend="best", color=BLUE, expects=(1, 1)
                ),
                Query(
                    expr=f"min({m('headroom_ratio')})",
                    legend="worst",
                    color=BLUE,
                    style=Style.BAND,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"max({m('headroom_plan_floor_ratio')})",
                    legend="floor",
                    color=RED,
                    style=Style.LIMIT,
                    expects=(1, 1),
                ),
            ),
            unit="percentunit",
            width=8,
            height=11,
            maximum=1,
        ),
    )


def _limit(dimension: str, *, expects: tuple[int, int] = (1, 1), of: str = "plan") -> Query:
    return Query(
        expr=f"max({m('headroom_plan_limit', dimension=dimension)})",
        legend=of,
        color=RED,
        style=Style.LIMIT,
        expects=expects,
    )


def _band(title: str, description: str, each: str, dimension: str, unit: str) -> Panel:
    """Hottest to calmest replica, and the plan."""
    return Panel(
        kind=Kind.TIME_SERIES,
        title=title,
        description=description
        + " The band goes from the calmest to the hottest replica; dashed, the plan.",
        queries=(
            Query(expr=f"max({each})", legend="hottest", color=BLUE, expects=(1, 1)),
            Query(
                expr=f"min({each})",
                legend="calmest",
                color=BLUE,
                style=Style.BAND,
                expects=(1, 1),
            ),
            _limit(dimension),
        ),
        unit=unit,
        width=6,
        minimum=0,
    )


def _speed() -> tuple[Panel, ...]:
    finished = m("headroom_finished_requests_total")
    return (
        _band(
            "Is concurrency within the plan?",
            "95th percentile of demand over time, each rank. Above the plan, the card carries more than it"
            " was tested for.",
            _demand_p95(),
            "concurrency",
            "short",
        ),
        _band(
            "Do requests come as often as planned?",
            "Finished requests a second, each rank. More than planned: the plan is too small, or a router"
            " sends unevenly.",
            f"sum without (reason) (rate({finished}[$__rate_interval]))",
            "request_rate",
            "reqps",
        ),
        _band(
            "Do users see the first token in time?",
            "95th percentile of the time to first token, five minutes. Above the plan while headroom is"
            " left: prompts are long or arrive in bursts; without headroom: they queue.",
            m("engine:headroom_time_to_first_token_seconds:p95_5m"),
            "ttft_p95",
            "s",
        ),
        _band(
            "Do tokens follow fast enough?",
            "95th percentile of the time between tokens, five minutes. Above the plan the batch is larger"
            " than the planned speed allows: cap max_num_seqs at the latency ceiling, or add a replica.",
            m("engine:headroom_inter_token_latency_seconds:p95_5m"),
            "tpot_p95",
            "s",
        ),
    )


def _quantile(q: float, name: str) -> str:
    bucket = m(f"{name}_bucket")
    return f"histogram_quantile({q}, sum by (le) (increase({bucket}[15m]))) >= 0"


def _lengths(what: str, name: str, dimension: str, description: str) -> Panel:
    return Panel(
        kind=Kind.TIME_SERIES,
        title=f"Are {what} as long as planned?",
        description=description
        + " Observed median and 95th percentile of a quarter of an hour; dashed,"
        " the planned ones.",
        queries=(
            Query(expr=_quantile(0.95, name), legend="p95", color=PURPLE, expects=(1, 1)),
            Query(expr=_quantile(0.5, name), legend="p50", color=BLUE, expects=(1, 1)),
            _limit(f"{dimension}_p95", of="planned p95"),
            Query(
                expr=f"max({m('headroom_plan_limit', dimension=f'{dimension}_p50')})",
                legend="planned p50",
                color=ORANGE,
                style=Style.LIMIT,
                expects=(1, 1),
            ),
        ),
        unit="short",
        width=6,
        minimum=0,
    )


def _sizes() -> tuple[Panel, ...]:
    prompts = m("headroom_prompts_total")
    return (
        _lengths(
            "prompts",
            "headroom_request_prompt_tokens",
            "prompt",
            "Longer prompts take cache and prefill time: fewer fit.",
        ),
        _lengths(
            "answers",
            "headroom_request_output_tokens",
            "output",
            "Longer answers hold their slot and cache for longer: more run at once for the same requests.",
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How many prompts are above the planned p95?",
            description="Share of an hour's prompts, between what is certain and what is possible, as the"
            " engine's buckets leave it open. On plan it is 5 %, the line. HeadroomPromptsOutgrewPlan"
            " speaks when it is certain over two hours.",
            queries=(
                Query(
                    expr=_exceeding("upper", prompts),
                    legend="at most",
                    color=BLUE,
                    expects=(1, 1),
                ),
                Query(
                    expr=_exceeding("lower", prompts),
                    legend="certainly",
                    color=BLUE,
                    style=Style.BAND,
                    expects=(1, 1),
                ),
            ),
            unit="percentunit",
            width=6,
            minimum=0,
            steps=((None, GREEN), (OVER_P95, RED)),
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="Does the KV cache hold what the plan counts on?",
            description="Tokens in use in the hottest rank; dashed, the pool that the plan counts on and the"
            " one there is. A pool below the plan: something took GPU memory before the engine started.",
            queries=(
                Query(
                    expr=f"max({m('headroom_kv_cache_used_tokens')})",
                    legend="used, hottest",
                    color=BLUE,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"min({m('headroom_kv_cache_capacity_tokens')})",
                    legend="pool, smallest",
                    color=ORANGE,
                    style=Style.LIMIT,
                    expects=(1, 1),
                ),
                _limit("kv_tokens", expects=(1, 0)),
            ),
            unit="short",
            width=6,
            minimum=0,
        ),
    )


def _exceeding(bound: str, prompts: str) -> str:
    over = m("headroom_prompts_over_plan_total", bound=bound)
    return f"sum(increase({over}[1h])) / (sum(increase({prompts}[1h])) > 0)"


def _share(name: str, label: str) -> str:
    rate = f"rate({m(name)}[$__rate_interval])"
    return f"sum by ({label}) ({rate}) / ignoring ({label}) group_left () (sum({rate}) > 0)"


def _binding() -> tuple[Panel, ...]:
    short = m("headroom_exhausted_seconds_total")
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="Which constraint binds, for what share of the time?",
            description="Share of the observed time for which each constraint was the lowest. What binds"
            " most of the time is what to change first; a change of colour is a change of traffic.",
            queries=(
                Query(
                    expr=_share("headroom_constraint_seconds_total", "constraint"),
                    legend="{{constraint}}",
                    expects=(4, 4),
                ),
            ),
            colors=common.CONSTRAINT_COLORS,
            unit="percentunit",
            width=8,
            stack=True,
            minimum=0,
            maximum=1,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="In which state, for what share of the time?",
            description="Share of the time in each state over the chosen ranks. Exhausted time is what the"
            " error budget counts; low time is what the plan's floor was meant to prevent.",
            queries=(
                Query(
                    expr=_share("headroom_state_seconds_total", "state"),
                    legend="{{state}}",
                    expects=(4, 4),
                ),
            ),
            colors=common.STATE_COLORS,
            unit="percentunit",
            width=8,
            stack=True,
            minimum=0,
            maximum=1,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="What was short while nothing more fit?",
            description="Ranks without headroom, by the constraint that was the limit then, as a mean over"
            " each interval: 0.5 is one rank half of the time. This is the time that the error budget"
            " counts: what stands here is what to change.",
            queries=(
                Query(
                    expr=f"sum by (constraint) (rate({short}[$__rate_interval]))",
                    legend="{{constraint}}",
                    expects=(4, 4),
                ),
            ),
            colors=common.CONSTRAINT_COLORS,
            unit="short",
            width=8,
            stack=True,
            minimum=0,
            no_value="never, or unknown",
        ),
    )


def _batching() -> tuple[Panel, ...]:
    generated = f"rate({m('headroom_generation_tokens_total')}[$__rate_interval])"
    batch = _mean("headroom_effective_batch_sequences")
    fixed, each = m("headroom_step_fixed_seconds"), m("headroom_step_per_sequence_seconds")
    knee = m("headroom_knee_sequences")
    stalled = limit_in_alert("HeadroomBatchingStalled", ") <")
    return (
        Panel(
            kind=Kind.XY_CHART,
            title="How fast is it at each batch?",
            description="One point for each moment of the time range: mean batch of the chosen ranks and the"
            " tokens a second of one. “Fitted” is batch / (fixed + per sequence x batch), the step time"
            " that the exporter learnt; the knee is where 80 % of a step is paid per sequence. Points far"
            " below the curve: prompts take the time, or the engine idles between requests. Points beyond"
            " the knee: more slots buy latency only. Choose one engine for an exact picture.",
            queries=(
                Query(expr=f"avg({batch})", legend="batch", expects=(1, 1)),
                Query(
                    expr=f"avg({generated})", legend="observed tokens/s", color=BLUE, expects=(1, 1)
                ),
                Query(
                    expr=f"avg({batch}) / (avg({fixed}) + avg({each}) * avg({batch}))",
                    legend="fitted tokens/s",
                    color=ORANGE,
                    expects=(1, 1),
                ),
                Query(expr=f"avg({knee})", legend="knee", expects=(1, 1)),
                Query(
                    expr=f"avg({knee}) / (avg({fixed}) + avg({each}) * avg({knee}))",
                    legend="tokens/s at the knee",
                    color=RED,
                    expects=(1, 1),
                ),
            ),
            unit="short",
            pairs=(
                ("batch", "observed tokens/s"),
                ("batch", "fitted tokens/s"),
                ("knee", "tokens/s at the knee"),
            ),
            height=9,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="What does one more sequence still add?",
            description="Throughput that the next sequence adds, against what the first one gave (estimate):"
            " hottest and calmest rank. HeadroomBatchingStalled speaks when it stays below"
            f" {stalled:.0%} (line): spread the load, more slots"
            " would not help.",
            queries=(
                Query(
                    expr=f"max({m('headroom_batching_marginal_gain_ratio')})",
                    legend="calmest",
                    color=BLUE,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"min({m('headroom_batching_marginal_gain_ratio')})",
                    legend="hottest",
                    color=BLUE,
                    style=Style.BAND,
                    expects=(1, 1),
                ),
            ),
            unit="percentunit",
            height=9,
            minimum=0,
            maximum=1,
            steps=((None, RED), (stalled, GREEN)),
        ),
    )


def _spike() -> tuple[Panel, ...]:
    mean, factor = m("rank:headroom_demand_sequences:mean5m"), m("headroom_plan_spike_factor")
    exhausted, low = (
        m("engine:headroom_exhausted:ratio_rate5m"),
        m("engine:headroom_low:ratio_rate5m"),
    )
    fast = limit_in_alert("HeadroomBudgetBurn", "[1h]) / 120 >") / BUDGET
    slow = limit_in_alert("HeadroomBudgetBurn", "[6h]) / 720 >") / BUDGET
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            title="What would a spike of the plan's factor do?",
            description="Mean demand of five minutes, the same times the plan's spike factor, and what fits"
            " (dashed) over the chosen replicas. Where the spike's line is above, such a spike queues.",
            queries=(
                Query(expr=f"sum({mean})", legend="demand", color=BLUE, expects=(1, 1)),
                Query(
                    expr=f"sum({mean} * {factor})",
                    legend="a planned spike",
                    color=PURPLE,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"sum({m('headroom_sustainable_sequences')})",
                    legend="fits",
                    color=RED,
                    style=Style.LIMIT,
                    expects=(1, 1),
                ),
            ),
            unit="short",
            width=8,
            minimum=0,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How fast is the error budget spent?",
            description="Time without any headroom against a budget of 1 % of 28 days, worst replica: at 1 it"
            f" is spent exactly in 28 days. HeadroomBudgetBurn pages above {fast:.1f} over an hour"
            f" or {slow:.0f} over six (lines).",
            queries=(
                Query(
                    expr=f"max(avg_over_time({exhausted}[1h])) / {BUDGET}",
                    legend="1 h",
                    color=PURPLE,
                    expects=(1, 1),
                ),
                Query(
                    expr=f"max(avg_over_time({exhausted}[6h])) / {BUDGET}",
                    legend="6 h",
                    color=BLUE,
                    expects=(1, 1),
                ),
            ),
            unit="short",
            width=8,
            minimum=0,
            steps=((None, GREEN), (slow, YELLOW), (fast, RED)),
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            title="How much of the time is below the floor?",
            description="Share of five minutes below the plan's headroom floor, and without any headroom,"
            " worst replica. Low alone is a ticket; exhausted pages when it lasts.",
            queries=(
                Query(expr=f"max({low})", legend="below the floor", color=YELLOW, expects=(1, 1)),
                Query(expr=f"max({exhausted})", legend="no headroom", color=RED, expects=(1, 1)),
            ),
            unit="percentunit",
            width=8,
            minimum=0,
            maximum=1,
        ),
    )
