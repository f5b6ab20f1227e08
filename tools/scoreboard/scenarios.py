"""
The scenarios of the scoreboard: traffic, servers and plans, with what each is there to show.

``tune`` scenarios were looked at while the rules were made, ``held`` ones were not. A plan is what a team
would have written that sized for this traffic, or for less where the scenario is about outgrowing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.simulate.events import Event
from headroom_exporter.simulate.frontend import Limits

HOUR, DAY = 3600.0, 86_400.0
TUNE, HELD = "tune", "held"
CALM, HEAL, RAMP, SUDDEN, LASTING, OTHER = "calm", "heal", "ramp", "sudden", "lasting", "other"
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """
    Requests for one server.

    Attributes:
        source: File of tests/fixtures/traffic without its ending, or ``synthetic:...``.
        start: Seconds of the file that are left out at its begin.
        keep_every: One of so many requests.
        scale: Multiplies the rate.
        after: Seconds of nothing before it: a recording that begins in mid-burst would begin with an
            exporter that has just started.
        use_cached: Whether the file's column of cached prompt tokens holds.
    """

    source: str
    start: float = 0.0
    end: float = inf
    keep_every: int = 1
    scale: float = 1.0
    after: float = 0.0
    use_cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """
    One replica.

    Attributes:
        name: The ``engine`` label.
        traffic: What it gets.
        ranks: Data-parallel ranks.
        limits: vLLM's queue limits.
        max_num_seqs: In place of the profile's.
        events: Restarts, slow cards.
        start_seconds: How long a restart takes.
        hidden: Families its page does not show.
        dialect: The engine in whose words it answers.
    """

    traffic: Traffic
    name: str = "llm-0"
    ranks: int = 1
    limits: Limits | None = None
    max_num_seqs: int | None = None
    events: tuple[Event, ...] = ()
    start_seconds: float = 40.0
    # In order, so that the scenario's text is the same in every run.
    hidden: tuple[str, ...] = ()
    dialect: str = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    One row of the scoreboard.

    Attributes:
        name: A stable word.
        story: What happens, in a sentence.
        kind: ``calm``, ``heal`` (bursts that heal themselves), ``ramp`` (can be foreseen), ``sudden``
            (cannot), ``lasting`` (a trace that goes in and out of breach), ``other``.
        split: ``tune`` or ``held``.
        profile: Of ``simulate.profiles``.
        plan: In force for every server.
        servers: All begin at 0.
        seconds: How long.
        exporter_down: (at, seconds) in which the sidecars are away.
        gpu_slow: (at, factor) of every card, told by its clock-event reasons; 1 ends it.
        expects: Alerts that must fire besides what breaches ask for.
    """

    name: str
    story: str
    kind: str
    split: str
    profile: str
    plan: PlanConfig
    servers: tuple[Server, ...]
    seconds: float
    exporter_down: tuple[tuple[float, float], ...] = ()
    gpu_slow: tuple[tuple[float, float], ...] = ()
    expects: tuple[str, ...] = field(default=())


# --- plans ---------------------------------------------------------------------------------------

P1, P2, P3, P4 = (
    "rtx4090-llama-3.1-8b",
    "a100-80-llama-3.1-8b",
    "h100-llama-3.1-8b",
    "h100x4-llama-3.1-70b",
)

CHAT_P1 = PlanConfig(
    name="chat on an RTX 4090",
    concurrency=24,
    max_num_seqs=256,
    prompt_tokens=Lengths(p50=1020, p95=4900),
    output_tokens=Lengths(p50=129, p95=600),
    request_rate=2.2,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.2,
)
CHAT_P2 = replace(CHAT_P1, name="chat on an A100", concurrency=96, request_rate=6.0)
CODE_P1 = PlanConfig(
    name="code on an RTX 4090",
    concurrency=12,
    max_num_seqs=256,
    prompt_tokens=Lengths(p50=2000, p95=7700),
    output_tokens=Lengths(p50=10, p95=100),
    request_rate=2.5,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.25,
    spike_factor=3.0,
)
CODE_P2 = replace(CODE_P1, name="code on an A100", concurrency=16, request_rate=3.0)
REASON_P3 = PlanConfig(
    name="reasoning on an H100",
    concurrency=120,
    max_num_seqs=1024,
    prompt_tokens=Lengths(p50=210, p95=7000),
    output_tokens=Lengths(p50=800, p95=5700),
    request_rate=1.3,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.1,
    spike_factor=1.5,
)
LONG_P4 = PlanConfig(
    name="long context on four H100",
    concurrency=32,
    max_num_seqs=1024,
    prompt_tokens=Lengths(p50=7000, p95=40000),
    output_tokens=Lengths(p50=350, p95=700),
    request_rate=0.8,
    ttft_p95_seconds=10.0,
    tpot_p95_seconds=0.3,
    spike_factor=1.5,
)
# Lengths of the made-up traffic: prompt 512 and 2,048, output 200 and 600 (50th and 95th percentile).
MADE_P1 = PlanConfig(
    name="made-up chat on an RTX 4090",
    concurrency=30,
    max_num_seqs=256,
    prompt_tokens=Lengths(p50=512, p95=2048),
    output_tokens=Lengths(p50=200, p95=600),
    request_rate=2.5,
    ttft_p95_seconds=2.0,
    tpot_p95_seconds=0.2,
)
MADE_P2 = replace(MADE_P1, name="made-up chat on an A100", concurrency=150, request_rate=7.0)
MADE_P3 = replace(MADE_P1, name="made-up chat on an H100", concurrency=200, request_rate=14.0)


def _one(source: str, **values: object) -> tuple[Server, ...]:
    """A single server under a single stream."""
    traffic_names = ("start", "end", "keep_every", "scale", "after", "use_cached")
    traffic = {name: values.pop(name) for name in traffic_names if name in values}
    return (Server(traffic=Traffic(source=source, **traffic), **values),)  # type: ignore[arg-type]


def _calm_days() -> list[Scenario]:
    """Diurnal days on three cards, peaks at some two thirds of what fits."""
    days = []
    for seed in range(1, 28):
        split = TUNE if seed % 2 else HELD
        profile, plan, rate = ((P1, MADE_P1, 1.2), (P2, MADE_P2, 3.4), (P3, MADE_P3, 6.5))[seed % 3]
        days.append(
            Scenario(
                name=f"calm-day-{seed}",
                story=f"A day and its night, mean {rate:g} requests/s, at noon 1.6 times that.",
                kind=CALM,
                split=split,
                profile=profile,
                plan=plan,
                servers=_one(f"synthetic:diurnal?rate={rate}&duration=86400&seed={seed}"),
                seconds=DAY,
            )
        )
    return days


def _traces_calm() -> list[Scenario]:
    return [
        Scenario(
            name="conv-saturday",
            story="Azure 2024 conversation, a Saturday, that fits.",
            kind=CALM,
            split=TUNE,
            profile=P1,
            plan=CHAT_P1,
            servers=_one("azure2024_conv_saturday"),
            seconds=DAY,
        ),
        Scenario(
            name="conv-busiest-day",
            story="Azure 2024 conversation, the week's busiest day, which just fits.",
            kind=CALM,
            split=HELD,
            profile=P1,
            plan=CHAT_P1,
            servers=_one("azure2024_conv_tuesday"),
            seconds=DAY,
        ),
        Scenario(
            name="r1-quarter",
            story="ServeGen R1 day, one of four replicas: the cache reaches 0.85 and all is well.",
            kind=CALM,
            split=TUNE,
            profile=P3,
            plan=REASON_P3,
            servers=_one("servegen_r1_day", keep_every=2),
            seconds=DAY,
        ),
        Scenario(
            name="conv2023-third",
            story="Azure 2023 conversation, one of three replicas: the cache touches 0.94, no breach.",
            kind=CALM,
            split=TUNE,
            profile=P1,
            plan=CHAT_P1,
            servers=_one("azure2023_conv", keep_every=3, after=600),
            seconds=4100,
        ),
        Scenario(
            name="mooncake-sixth",
            story="Mooncake, one of six replicas: long context that fits.",
            kind=CALM,
            split=HELD,
            profile=P4,
            plan=LONG_P4,
            servers=_one("mooncake_conversation", keep_every=6, after=600),
            seconds=4140,
        ),
        Scenario(
            name="code-night",
            story="Azure 2024 code at night: prompts longer, rate lowest.",
            kind=CALM,
            split=HELD,
            profile=P1,
            plan=CODE_P1,
            servers=_one("azure2024_code_night"),
            seconds=5 * HOUR,
        ),
        Scenario(
            name="conv-minute-spike",
            story="Azure 2024 conversation: the fleet's rate x1.4 for one minute.",
            kind=HEAL,
            split=HELD,
            profile=P1,
            plan=CHAT_P1,
            servers=_one("azure2024_conv_spike"),
            seconds=9600,
        ),
        Scenario(
            name="code-blips",
            story="Azure 2024 code on an A100: bursts that heal within a minute.",
            kind=HEAL,
            split=TUNE,
            profile=P2,
            plan=CODE_P2,
            servers=_one("azure2024_code_c"),
            seconds=17_000,
        ),
    ]


def _traces_breach() -> list[Scenario]:
    code = [
        Scenario(
            name=f"code-busy-{part}",
            story=f"Azure 2024 code, business hours ({part}): prompts queue, the cache stays empty.",
            kind=LASTING,
            split=TUNE if part in "ac" else HELD,
            profile=P1,
            plan=CODE_P1,
            servers=_one(f"azure2024_code_{part}"),
            seconds=seconds,
        )
        for part, seconds in (("a", 10_800), ("b", 14_400), ("c", 17_000), ("d", 14_400))
    ]
    return [
        *code,
        Scenario(
            name="conv2023-half",
            story="Azure 2023 conversation, one of two: load steps up 1,200 s into it and heals by 1,960 s.",
            kind=SUDDEN,
            split=TUNE,
            profile=P1,
            plan=CHAT_P1,
            servers=_one("azure2023_conv", keep_every=2, after=600),
            seconds=4100,
        ),
        Scenario(
            name="r1-half",
            story="ServeGen R1 day, one of two: outgrown from the second hour on, again from the sixth.",
            kind=RAMP,
            split=HELD,
            profile=P3,
            plan=REASON_P3,
            servers=_one("servegen_r1_day"),
            seconds=DAY,
        ),
        Scenario(
            name="r1-longer-answers",
            story="ServeGen R1, two thirds, hours 5 to 9: fewer requests, twice the output length.",
            kind=RAMP,
            split=TUNE,
            profile=P3,
            plan=REASON_P3,
            servers=_one("servegen_r1_day", start=5 * HOUR, end=9 * HOUR, scale=0.667),
            seconds=4 * HOUR,
        ),
        Scenario(
            name="code2023-third",
            story="Azure 2023 code, one of three: prefill-bound bursts, the cache at 0.1.",
            kind=SUDDEN,
            split=TUNE,
            profile=P2,
            plan=CODE_P2,
            servers=_one("azure2023_code", keep_every=3, after=600),
            seconds=4030,
        ),
        Scenario(
            name="code2023-whole",
            story="Azure 2023 code, all on one card: TTFT 40 s while the cache is almost empty.",
            kind=SUDDEN,
            split=HELD,
            profile=P2,
            plan=CODE_P2,
            servers=_one("azure2023_code", after=600),
            seconds=4030,
        ),
        Scenario(
            name="mooncake-quarter",
            story="Mooncake, one of four: long context fills the cache with twenty running.",
            kind=SUDDEN,
            split=TUNE,
            profile=P4,
            plan=LONG_P4,
            servers=_one("mooncake_conversation", keep_every=4, after=600),
            seconds=4140,
        ),
        Scenario(
            name="mooncake-half-cached",
            story="Mooncake, half of it, with the prefix cache it was recorded with.",
            kind=SUDDEN,
            split=HELD,
            profile=P4,
            plan=LONG_P4,
            servers=_one("mooncake_conversation", keep_every=2, use_cached=True, after=600),
            seconds=4140,
        ),
    ]


def _ramps() -> list[Scenario]:
    def ramp(
        name: str, story: str, split: str, profile: str, plan: PlanConfig, **rest: object
    ) -> Scenario:
        traffic = str(rest.pop("traffic"))
        seconds = float(traffic.split("duration=")[1].split("&", maxsplit=1)[0])
        return Scenario(
            name=name,
            story=story,
            kind=RAMP,
            split=split,
            profile=profile,
            plan=plan,
            servers=_one(f"synthetic:{traffic}", **rest),
            seconds=seconds,
        )

    return [
        ramp(
            "ramp-kv-2h",
            "Rate grows from 1 to 6 requests/s within two hours on an RTX 4090: KV cache.",
            TUNE,
            P1,
            MADE_P1,
            traffic="ramp?rate=1&rate_end=6&duration=7200&seed=1",
        ),
        ramp(
            "ramp-kv-8h",
            "Rate grows from 1 to 5 requests/s within eight hours on an RTX 4090: KV cache.",
            HELD,
            P1,
            MADE_P1,
            traffic="ramp?rate=1&rate_end=5&duration=28800&seed=2",
        ),
        ramp(
            "ramp-a100-3h",
            "Rate grows from 2 to 16 requests/s within three hours on an A100: KV cache and prompts.",
            HELD,
            P2,
            MADE_P2,
            traffic="ramp?rate=2&rate_end=16&duration=10800&seed=3",
        ),
        ramp(
            "ramp-slots-2h",
            "Rate grows on an A100 whose max_num_seqs is 32: slots full, cache at a fifth.",
            TUNE,
            P2,
            replace(MADE_P2, concurrency=24, max_num_seqs=32, request_rate=4.0),
            traffic="ramp?rate=2&rate_end=12&duration=7200&seed=4",
            max_num_seqs=32,
        ),
        ramp(
            "ramp-slots-untold",
            "The same on an H100 with 48 slots, and nobody told the exporter the limit.",
            HELD,
            P3,
            replace(MADE_P3, concurrency=36, max_num_seqs=None, request_rate=10.0),
            traffic="ramp?rate=4&rate_end=26&duration=10800&seed=5",
            max_num_seqs=48,
        ),
        ramp(
            "ramp-latency",
            "Rate grows on an A100 planned for 18 ms a token: tokens slow down, nobody queues.",
            TUNE,
            P2,
            replace(MADE_P2, concurrency=60, tpot_p95_seconds=0.018, request_rate=6.0),
            traffic="ramp?rate=1&rate_end=16&duration=7200&seed=6&prompt_p50=128&prompt_p95=512",
        ),
        ramp(
            "ramp-latency-h100",
            "Rate grows on an H100 planned for 16 ms a token.",
            HELD,
            P3,
            replace(MADE_P3, concurrency=100, tpot_p95_seconds=0.016, request_rate=12.0),
            traffic="ramp?rate=2&rate_end=45&duration=10800&seed=7&prompt_p50=128&prompt_p95=512",
        ),
        ramp(
            "ramp-prefill",
            "Long prompts, short answers, rate 0.5 to 3 on an RTX 4090: prompts bind.",
            HELD,
            P1,
            replace(CODE_P1, request_rate=1.5),
            traffic="ramp?rate=0.5&rate_end=4&duration=10800&seed=8&prompt_p50=2000&prompt_p95=7000"
            "&output_p50=20&output_p95=80",
        ),
        ramp(
            "ramp-rejections",
            "The ramp of ramp-kv-2h with a queue limit: overload shows as rejections.",
            TUNE,
            P1,
            MADE_P1,
            traffic="ramp?rate=1&rate_end=6&duration=7200&seed=9",
            limits=Limits(max_num_queued_reqs=48),
        ),
        ramp(
            "ramp-two-ranks",
            "Two data-parallel ranks, rate 2 to 12.",
            HELD,
            P1,
            MADE_P1,
            traffic="ramp?rate=2&rate_end=12&duration=7200&seed=10",
            ranks=2,
        ),
        ramp(
            "drift-prompts",
            "Rate flat at 1.6, prompts grow to four times their length in four hours.",
            TUNE,
            P1,
            MADE_P1,
            traffic="drift?rate=1.6&prompt_growth=4&duration=14400&seed=11",
        ),
        ramp(
            "drift-answers",
            "Rate flat at 6 on an A100, answers grow to four times their length in six hours.",
            HELD,
            P2,
            MADE_P2,
            traffic="drift?rate=6&prompt_growth=1&output_growth=4&duration=21600&seed=12",
        ),
    ]


def _spikes() -> list[Scenario]:
    return [
        Scenario(
            name="spike-heals",
            story="x2.5 for 45 seconds on an RTX 4090 at half load.",
            kind=HEAL,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one(
                "synthetic:spike?rate=1.2&factor=2.5&at=5400&seconds=45&duration=9000&seed=20"
            ),
            seconds=9000,
        ),
        Scenario(
            name="spike-heals-h100",
            story="x2 for a minute on an H100 at half load.",
            kind=HEAL,
            split=HELD,
            profile=P3,
            plan=MADE_P3,
            servers=_one(
                "synthetic:spike?rate=8&factor=2&at=5400&seconds=60&duration=9000&seed=21"
            ),
            seconds=9000,
        ),
        Scenario(
            name="spike-stays",
            story="x3 for twenty minutes, out of nothing, after four calm hours on an RTX 4090.",
            kind=SUDDEN,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one(
                "synthetic:spike?rate=2&factor=3&at=14400&seconds=1200&duration=21600&seed=22"
            ),
            seconds=21_600,
            expects=("HeadroomSpikeUnsafe",),
        ),
        Scenario(
            name="spike-stays-a100",
            story="x3 for half an hour, after four calm hours on an A100.",
            kind=SUDDEN,
            split=HELD,
            profile=P2,
            plan=MADE_P2,
            servers=_one(
                "synthetic:spike?rate=5&factor=3&at=14400&seconds=1800&duration=21600&seed=23"
            ),
            seconds=21_600,
            expects=("HeadroomSpikeUnsafe",),
        ),
        Scenario(
            name="bursty-code",
            story="Bursts (index of dispersion 40) of code prompts on an A100 at a quarter load.",
            kind=HEAL,
            split=HELD,
            profile=P2,
            plan=CODE_P2,
            servers=_one(
                "synthetic:bursty?rate=1&dispersion=12&burst_seconds=5&duration=14400&seed=24"
                "&prompt_p50=1500&prompt_p95=7000&output_p50=13&output_p95=90"
            ),
            seconds=14_400,
        ),
    ]


def _mishaps() -> list[Scenario]:
    steady = "synthetic:poisson?rate=1.6&duration=10800&seed=30"
    eight = tuple(
        Server(
            name=f"llm-{index}",
            traffic=Traffic(source=f"synthetic:poisson?rate=1.2&duration=7200&seed={40 + index}"),
        )
        for index in range(7)
    )
    hot = Server(
        name="llm-7",
        traffic=Traffic(source="synthetic:ramp?rate=1.2&rate_end=6&duration=7200&seed=47"),
    )
    return [
        Scenario(
            name="hot-replica",
            story="Eight replicas on RTX 4090; the eighth's share grows fivefold, the others are calm.",
            kind=RAMP,
            split=HELD,
            profile=P1,
            plan=MADE_P1,
            servers=(*eight, hot),
            seconds=7200,
        ),
        Scenario(
            name="engine-restart",
            story="A restart of 90 s in calm traffic: nobody is paged.",
            kind=CALM,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one(steady, events=(Event(at=5400, action="restart"),), start_seconds=90),
            seconds=10_800,
        ),
        Scenario(
            name="engine-gone",
            story="The engine is away for forty minutes.",
            kind=OTHER,
            split=HELD,
            profile=P1,
            plan=MADE_P1,
            servers=_one(steady, events=(Event(at=5400, action="restart"),), start_seconds=2400),
            seconds=10_800,
            expects=("HeadroomEngineDown",),
        ),
        Scenario(
            name="missing-kv",
            story="The ramp of ramp-kv-2h on an engine that shows neither cache usage nor its size.",
            kind=RAMP,
            split=HELD,
            profile=P1,
            plan=MADE_P1,
            servers=_one(
                "synthetic:ramp?rate=1&rate_end=6&duration=7200&seed=31",
                hidden=("vllm:kv_cache_usage_perc", "vllm:cache_config_info"),
            ),
            seconds=7200,
            expects=("HeadroomConstraintUnknown",),
        ),
        Scenario(
            name="missing-gauges",
            story="Calm traffic, no gauges at all: unknown is neither empty nor full.",
            kind=CALM,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one(
                steady,
                hidden=(
                    "vllm:num_requests_running",
                    "vllm:num_requests_waiting",
                    "vllm:num_requests_waiting_by_reason",
                    "vllm:kv_cache_usage_perc",
                ),
            ),
            seconds=10_800,
        ),
        Scenario(
            name="exporter-restart-calm",
            story="The sidecar restarts three times in calm traffic.",
            kind=CALM,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one(steady),
            seconds=10_800,
            exporter_down=((3000, 20), (5000, 60), (7000, 200)),
        ),
        Scenario(
            name="exporter-restart-ramp",
            story="The sidecar restarts while the load grows beyond what fits.",
            kind=RAMP,
            split=HELD,
            profile=P1,
            plan=MADE_P1,
            servers=_one("synthetic:ramp?rate=1&rate_end=6&duration=7200&seed=32"),
            seconds=7200,
            exporter_down=((2700, 60),),
        ),
        Scenario(
            name="gpu-throttled",
            story="The card runs at half speed from the second hour on; the load stays as it was.",
            kind=SUDDEN,
            split=TUNE,
            profile=P1,
            plan=MADE_P1,
            servers=_one("synthetic:poisson?rate=2.2&duration=10800&seed=33"),
            seconds=10_800,
            gpu_slow=((5400, 2.5),),
            expects=("HeadroomGpuThrottled",),
        ),
        Scenario(
            name="outgrown-fits",
            story="Twice the planned rate for hours on a card that carries it: a ticket, no page.",
            kind=CALM,
            split=HELD,
            profile=P2,
            plan=replace(MADE_P2, concurrency=40, request_rate=2.5),
            servers=_one("synthetic:poisson?rate=5&duration=14400&seed=34"),
            seconds=14_400,
            expects=("HeadroomPlanOutgrown",),
        ),
    ]


SCENARIOS: tuple[Scenario, ...] = (
    *_traces_calm(),
    *_calm_days(),
    *_traces_breach(),
    *_ramps(),
    *_spikes(),
    *_mishaps(),
)
