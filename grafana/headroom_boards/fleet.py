"""The fleet board: every model and replica, the one with least headroom first."""

from __future__ import annotations

from headroom_boards import common
from headroom_boards.common import ENGINE, FLEET, KEY, PLAN
from headroom_boards.model import (
    SOME,
    Board,
    Column,
    Kind,
    Metrics,
    Panel,
    Query,
    Row,
)
from headroom_boards.trial import SMALL

CHOSEN = ("job", "namespace", "model_name", "instance")
ROWS_SHOWN, LINES_SHOWN = 50, 10
# Of a thousand engines over six hours, four times the points would take four times as long.
STEP = 120

m = Metrics(chosen=CHOSEN)
_EACH = f"by ({KEY})"
_WORST = f"bottomk({ROWS_SHOWN}, min {_EACH} ({m('headroom_ratio')}))"
_BY_MODEL = "by (cluster, namespace, model_name)"

_INSTANCE_LINK = (
    f"/d/{ENGINE}?var-datasource=${{datasource}}&var-instance=${{__data.fields.Instance:percentencode}}"
    "&var-engine=${__data.fields.Engine:percentencode}&${__url_time_range}"
)
_MODEL_LINK = (
    f"/d/{PLAN}?var-datasource=${{datasource}}"
    "&var-model_name=${__data.fields.Model:percentencode}&${__url_time_range}"
)
_WHO = (
    Column(label="engine", header="Engine", width=130, link=_INSTANCE_LINK),
    Column(label="model_name", header="Model", width=210, link=_MODEL_LINK),
    Column(label="instance", header="Instance", width=140, link=_INSTANCE_LINK),
)


def board() -> Board:
    """The board."""
    return Board(
        uid=FLEET,
        title="Headroom / Fleet",
        description="Every model and replica, the one with least headroom first: who is short, who is"
        " about to be, who is paid for and idle.",
        variables=(
            common.job(),
            common.namespace(),
            common.model_name(),
            common.instance(hidden=True),
        ),
        rows=(
            Row(title="Is anything short right now?", panels=_tiles()),
            Row(title="Who is short?", panels=(_table(), _paging(), _unseen())),
            Row(title="Where is it heading?", panels=_over_time()),
            Row(title="Is the load where the capacity is?", panels=_spread()),
        ),
        annotations=common.marks(m),
        scenes=({}, {"model_name": SMALL}),
    )


def _tile(title: str, description: str, *queries: Query, unit: str = "short") -> Panel:
    return Panel(
        kind=Kind.STAT,
        title=title,
        description=description,
        queries=queries,
        unit=unit,
        width=4,
        height=4,
        steps=common.NONE_IS_GOOD,
        no_value="no data",
        decimals=0,
    )


def _count(state: str) -> Query:
    return Query(
        expr=f"sum(max {_EACH} ({m('headroom_state', state=state)}))",
        legend=state,
        expects=(1, 1),
    )


def _tiles() -> tuple[Panel, ...]:
    up, fits = m("headroom_engine_up"), m("headroom_sequences")
    pages = common.firing(CHOSEN, 'severity="critical"')
    return (
        _tile(
            "How many engines do not answer?",
            "Engines whose last poll failed. Any: see “Who is not seen?” below, then that engine's log."
            " While one is down nothing is known of its headroom.",
            Query(expr=f"sum(1 - {up})", legend="down", expects=(1, 1)),
        ),
        _tile(
            "How many pages fire?",
            "Critical Headroom alerts that fire now. Any: open the table of alerts and follow the runbook.",
            # Nothing firing is a known zero only where an exporter is seen at all.
            Query(
                expr=f"count({pages}) or 0 * count({up})",
                legend="pages",
                expects=(1, 1),
            ),
        ),
        _tile(
            "How many have no headroom?",
            "Engines with a rank that is exhausted: requests wait, or sequences are thrown out. Send new"
            " traffic elsewhere, then see what binds.",
            _count("exhausted"),
        ),
        _tile(
            "How many are below their floor?",
            "Engines with a rank below the headroom that its plan asks for. Not urgent; it is what the next"
            " burst eats.",
            _count("low"),
        ),
        _tile(
            "How many are unknown?",
            "Engines of which no limit is known, or whose gauges stand still. Unknown is not well: the reason"
            " is on the engine's board.",
            _count("unknown"),
        ),
        Panel(
            kind=Kind.STAT,
            title="How many more sequences fit?",
            description="Sum over all ranks whose headroom is known. It is not one pool: a router that sends"
            " unevenly fills one replica while this is still large.",
            queries=(Query(expr=f"sum({fits})", legend="more fit", expects=(1, 1)),),
            unit="short",
            width=4,
            height=4,
            steps=common.ZERO_IS_EMPTY,
            no_value="no data",
            decimals=0,
        ),
    )


def _worst(aggregated: str) -> str:
    """Of the engines in the table only."""
    return f"{aggregated} and on ({KEY}) {_WORST}"


def _table() -> Panel:
    use, floor = m("engine:headroom_use:ratio5m"), m("headroom_plan_floor_ratio")
    spike, factor = m("engine:headroom_spike_multiple:median1h"), m("headroom_plan_spike_factor")
    busy, growth = m("engine:headroom_use:p95_1d"), m("engine:headroom_use:growth_per_day")
    bound = f"topk without (constraint) (1, {m('engine:headroom_constraint:ratio_rate10m')})"
    queries = (
        Query(expr=_WORST, legend="Headroom", unit="percentunit", decimals=0, expects=(3, 2)),
        Query(
            expr=_worst(common.worst_state(m, _EACH)),
            legend="State",
            mapping=common.STATES,
            width=100,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"min {_EACH} ({m('headroom_sequences')})"),
            legend="More fit",
            decimals=0,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"min {_EACH} ({m('headroom_ratio')} - {floor})"),
            legend="Above the floor",
            unit="percentunit",
            decimals=0,
            steps=common.ZERO_IS_EMPTY,
            expects=(3, 2),
        ),
        # Its value says how long it bound; what bound is the label.
        Query(expr=_worst(f"max by ({KEY}, constraint) ({bound})"), expects=(3, 2)),
        Query(
            expr=_worst(f"min {_EACH} ({spike})"),
            legend="Spike that fits",
            unit="suffix:×",
            decimals=1,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"min {_EACH} ({spike} / max without (rank) ({factor}))"),
            legend="Of the planned spike",
            unit="percentunit",
            decimals=0,
            steps=common.ONE_IS_ENOUGH,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"max {_EACH} ({m('engine:headroom_plan_use:ratio1h')})"),
            legend="Plan used",
            unit="percentunit",
            decimals=0,
            steps=common.ONE_IS_FULL,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"max {_EACH} ({use} - {use} offset 1h)"),
            legend="Use, against 1 h ago",
            unit="percentunit",
            decimals=0,
            expects=(3, 2),
        ),
        Query(
            expr=_worst(f"min {_EACH} ((1 - {busy}) / ({growth} > 0))"),
            legend="Days left",
            unit="d",
            decimals=0,
            expects=(1, 1),
        ),
    )
    return Panel(
        kind=Kind.TABLE,
        title=f"Which engines have least headroom? (the {ROWS_SHOWN} worst)",
        description="One line for each engine, its worst rank. “Above the floor” and “Of the planned spike”"
        " are measured against the plan; “Plan used” is the dimension that is used most, of the last hour;"
        " “Days left” needs eight days of history and growth. Begin at the top: follow the engine's link"
        " and read what binds. An empty cell is unknown.",
        queries=queries,
        unit="short",
        width=24,
        height=10,
        columns=(*_WHO, Column(label="constraint", header="Bound by", width=90)),
        order=(
            "Engine",
            "Model",
            "Instance",
            "State",
            "Headroom",
            "More fit",
            "Bound by",
            "Above the floor",
        ),
        sort=("Headroom", False),
        no_value="",
    )


def _paging() -> Panel:
    return Panel(
        kind=Kind.TABLE,
        title="Which alerts fire?",
        description="Headroom alerts that fire now, a hundred at most. Critical ones page; the others are"
        " tickets and notes. Each alert has a runbook of its name.",
        queries=(
            Query(
                expr=f"topk(100, max by (alertname, severity, {KEY}) ({common.firing(CHOSEN)}))",
                expects=(SOME, SOME),
            ),
        ),
        unit="short",
        width=14,
        height=7,
        columns=(
            Column(label="severity", header="Severity", width=90),
            Column(label="alertname", header="Alert"),
            *_WHO,
        ),
        sort=("Severity", False),
        no_value="none fires",
    )


def _unseen() -> Panel:
    up, unknown = m("headroom_engine_up"), m("headroom_state", state="unknown")
    seen = f"max by ({KEY}) ({unknown} == 1) or max by ({KEY}) ({up} == 0)"
    return Panel(
        kind=Kind.TABLE,
        title="Who is not seen?",
        description="Engines that do not answer, or of which no limit is known: they are in no other panel."
        " Look at the engine's log, or at its board for the reason.",
        queries=(Query(expr=f"topk(100, {seen})", expects=(0, 0)),),
        unit="short",
        width=10,
        height=7,
        columns=_WHO,
        sort=("Engine", False),
        no_value="all are seen",
    )


def _over_time() -> tuple[Panel, ...]:
    demand, fits = (
        m("model:headroom_demand_sequences:sum5m"),
        m("model:headroom_sustainable_sequences:sum5m"),
    )
    burn = m("engine:headroom_exhausted:ratio_rate5m")
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            step=STEP,
            title="Which models use most of what fits?",
            description=f"Demand over sustainable sequences, the {LINES_SHOWN} fullest models. At 100 % the"
            " next sequence waits. A model that stays near it needs a replica; one that only touches it in"
            " bursts needs a better router, or nothing.",
            queries=(
                Query(
                    expr=f"topk({LINES_SHOWN}, max {_BY_MODEL} ({demand} / ({fits} > 0)))",
                    legend="{{model_name}} {{namespace}}",
                    expects=(2, 1),
                ),
            ),
            unit="percentunit",
            minimum=0,
            steps=common.ONE_IS_FULL,
        ),
        Panel(
            kind=Kind.TIME_SERIES,
            step=STEP,
            title="Who spends the error budget?",
            description="Share of the last five minutes without any headroom, the"
            f" {LINES_SHOWN} worst engines that had such time. HeadroomBudgetBurn pages when it lasts.",
            queries=(
                Query(
                    expr=f"topk({LINES_SHOWN}, {burn} > 0)",
                    legend="{{engine}} {{instance}}",
                    expects=(SOME, SOME),
                ),
            ),
            unit="percentunit",
            minimum=0,
            maximum=1,
            no_value="nobody",
        ),
    )


def _spread() -> tuple[Panel, ...]:
    use = m("engine:headroom_use:ratio5m")
    demand, fits = (
        m("model:headroom_demand_sequences:sum5m"),
        m("model:headroom_sustainable_sequences:sum5m"),
    )
    less_one = m("model:headroom_sustainable_sequences:sum_less_one5m")
    busy = f"quantile_over_time(0.95, {demand}[1d])"
    pool = f"max {_BY_MODEL} ({demand} / ({fits} > 0))"
    lost = f"quantile_over_time(0.95, {demand}[1h]) / {less_one}"
    idle = f"count {_BY_MODEL} ({use}) * (1 - max {_BY_MODEL} ({busy} / ({fits} > 0)))"
    return (
        Panel(
            kind=Kind.TIME_SERIES,
            step=STEP,
            title="Does one replica carry more than its share?",
            description="The hottest replica's use less its model's use as a pool: 0 is even. Well above 0"
            " and the router is the problem, not the capacity; a new replica would stay as idle as the"
            " others.",
            queries=(
                Query(
                    expr=f"topk({LINES_SHOWN}, max {_BY_MODEL} ({use}) - {pool})",
                    legend="{{model_name}} {{namespace}}",
                    expects=(2, 1),
                ),
            ),
            unit="percentunit",
            width=8,
        ),
        Panel(
            kind=Kind.BAR_GAUGE,
            title="Would each model survive losing its largest replica?",
            description="The last hour's busy level over what the other replicas carry. Above 100 % a node"
            " drain means queueing users. Models with one replica are not here: they would not.",
            queries=(
                Query(
                    expr=f"topk({LINES_SHOWN}, max {_BY_MODEL} ({lost}))",
                    legend="{{model_name}} {{namespace}}",
                    expects=(1, 1),
                ),
            ),
            unit="percentunit",
            width=8,
            minimum=0,
            steps=common.ONE_IS_FULL,
            no_value="no model with two replicas",
        ),
        Panel(
            kind=Kind.BAR_GAUGE,
            title="How many replicas' worth is paid for and idle?",
            description="Replicas of a model times the share of their capacity that the day's busy level"
            " (95th percentile) leaves over. Above 1 a replica could go, once losing another one is still"
            " survived (beside) and the planned spike still fits.",
            queries=(
                Query(
                    expr=f"topk({LINES_SHOWN}, {idle})",
                    legend="{{model_name}} {{namespace}}",
                    expects=(2, 1),
                ),
            ),
            unit="short",
            width=8,
            decimals=1,
            minimum=0,
        ),
    )
