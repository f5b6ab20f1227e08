"""What the boards share: choices, states, annotations."""

from __future__ import annotations

from headroom_boards.model import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Annotation,
    Metrics,
    Variable,
)

FLEET, PLAN, ENGINE = "headroom-fleet", "headroom-plan", "headroom-engine"

# Whatever the scrape adds; a label that is not there groups as empty.
KEY = "cluster, namespace, job, instance, engine, model_name"

# Worst last, so that max() finds it; unknown is worse than ok and better than what is known to be bad.
STATES = ((0, "ok", GREEN), (1, "unknown", GREY), (2, "low", YELLOW), (3, "exhausted", RED))
YES_NO = ((0, "no", GREEN), (1, "yes", RED))
UP = ((0, "down", RED), (1, "up", GREEN))

STATE_COLORS = tuple((name, color) for _, name, color in STATES)
CONSTRAINT_COLORS = (
    ("slots", GREY),
    ("kv_cache", ORANGE),
    ("latency", RED),
    ("prefill", YELLOW),
    ("plan", PURPLE),
)
# Words are neither good nor bad.
NEUTRAL = ((None, BLUE),)

# Values that mean the same under every plan.
ZERO_IS_EMPTY = ((None, RED), (0.0, GREEN))
ONE_IS_FULL = ((None, GREEN), (1.0, RED))
ONE_IS_ENOUGH = ((None, RED), (1.0, GREEN))
NONE_IS_GOOD = ((None, GREEN), (1.0, RED))

# Labels of alerts by which a board may choose; each alert has only some of them.
_OF_ALERTS = ("namespace", "model_name", "engine", "instance")


def worst_state(metric: Metrics, by: str) -> str:
    """The worst of the chosen ranks' states, as a number of STATES."""
    one, two, three = (
        metric("headroom_state", state=each) for each in ("unknown", "low", "exhausted")
    )
    return f"max{by and f' {by}'} ({three} * 3 or {two} * 2 or {one})"


def firing(chosen: tuple[str, ...], more: str = "") -> str:
    """
    Headroom alerts that fire, of the choices of a board and of none: an alert about a model names no engine.

    Args:
        chosen: Names of the board's variables.
        more: Further matchers.
    """
    parts = ['alertstate="firing"', 'alertname=~"Headroom.+"']
    parts += [f'{label}=~"${label}|"' for label in _OF_ALERTS if label in chosen]
    return f"ALERTS{{{', '.join([*parts, *([more] if more else [])])}}}"


def capped_p95(metric: Metrics, histogram: str, peak: str) -> str:
    """
    95th percentile over time of each rank, at most the peak that was seen.

    Buckets are coarse: a quantile inside one is interpolated, and can lie above all that happened.
    """
    bucket = metric(f"{histogram}_bucket")
    seen = f"max without (window) (max_over_time({metric(peak, window='1m')}[$__rate_interval]))"
    quantile = f"histogram_quantile(0.95, rate({bucket}[$__rate_interval]))"
    return f"({quantile} <= {seen} or {seen} and {quantile})"


def job() -> Variable:
    """The scrape job; hidden, as there is one as a rule."""
    return Variable(
        name="job", label="Job", query="label_values(headroom_build_info, job)", hidden=True
    )


def namespace() -> Variable:
    """Of Kubernetes; only "All" where the scrape adds no such label."""
    return Variable(
        name="namespace",
        label="Namespace",
        query='label_values(headroom_build_info{job=~"$job"}, namespace)',
        all_value=".*",
    )


def model_name(*, many: bool = True, within: str = "") -> Variable:
    """The served model, of the choices before it."""
    chosen = f'job=~"$job", namespace=~"$namespace"{within}'
    return Variable(
        name="model_name",
        label="Model",
        query=f"label_values(headroom_state_seconds_total{{{chosen}}}, model_name)",
        all_value=".*",
        many=many,
    )


def instance(*, hidden: bool, within: str = "") -> Variable:
    """The exporter that is scraped: it tells replicas apart whose engines have the same name."""
    chosen = f'job=~"$job", namespace=~"$namespace"{within}'
    return Variable(
        name="instance",
        label="Instance",
        query=f"label_values(headroom_engine_up{{{chosen}}}, instance)",
        hidden=hidden,
    )


def engine(metric: str, within: str, *, many: bool) -> Variable:
    """The polled server."""
    chosen = f'job=~"$job", namespace=~"$namespace"{within}'
    return Variable(
        name="engine",
        label="Engine",
        query=f"label_values({metric}{{{chosen}}}, engine)",
        all_value=".*",
        many=many,
    )


def marks(metric: Metrics) -> tuple[Annotation, ...]:
    """Alerts that fire, and engines that began anew."""
    steps = metric("headroom_steps_total")
    restarted = f"resets({steps}[10m]) > 0 unless resets({steps}[10m] offset $__rate_interval) > 0"
    return (
        Annotation(
            name="Alerts",
            expr=firing(metric.chosen),
            color=RED,
            title="{{alertname}}",
            text="{{severity}}: {{engine}} {{model_name}} {{instance}}",
        ),
        Annotation(
            name="Engine restarts",
            # A counter that starts again, in the minute in which it shows: longer away than ten minutes, and
            # the gap in every panel says so.
            expr=f"max by (engine, instance) ({restarted})",
            color=BLUE,
            title="Engine restarted",
            text="{{engine}} {{instance}}: its counters began anew",
        ),
    )
