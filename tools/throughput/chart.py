"""The two pictures of docs/throughput.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from throughput import claim, constants, replay, svg, tables

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile

BLUE, ORANGE, GREEN, RED, PURPLE = "#0b62c4", "#b35900", "#1a7f37", "#c9252d", "#7a3fb0"
BATCHES = tuple(round(2 ** (i / 8)) for i in range(8 * 9 + 1))
UP = svg.Axis(low=10, high=20_000, ticks=(10, 100, 1_000, 10_000), log=True)
ACROSS = svg.Axis(low=0.9, high=600, ticks=(1, 8, 32, 64, 128, 256, 512), log=True)

Points = list[tuple[float, float]]


def _curve(profile: Profile, context: int) -> Points:
    """Return the model's line, up to what slots and pool allow."""
    most = min(profile.max_num_seqs, profile.pool_tokens // context)
    batches = sorted({batch for batch in BATCHES if batch <= most} | {most})
    return [(batch, claim.decode_rate(profile, batch, context)) for batch in batches]


def _panel(column: int, profile: Profile, title: str, contexts: tuple[int, int]) -> svg.Panel:
    """One card: lines at two contexts, where the longer one ends, the knee and the claim."""
    panel = svg.Panel(x=66 + column * 330, y=78, width=294, height=330, across=ACROSS, up=UP)
    panel.frame(title, labels_up=column == 0)
    short, long = contexts
    panel.upright(claim.CLAIMED_LIMIT, RED, "claimed limit: 64", 322)
    panel.line(_curve(profile, short), BLUE, dash="6 3")
    line = _curve(profile, long)
    panel.line(line, BLUE, 2.4)
    panel.dots([line[-1]], BLUE, 5)
    pool, slots = profile.pool_tokens // long, profile.max_num_seqs
    end = (
        f"ends at {pool:,}: pool full"
        if pool <= slots
        else f"ends at {slots:,} slots (pool {pool:,})"
    )
    knee = claim.knee(profile, long)
    panel.diamonds(list(claim.CLAIMED.items()), RED)
    below = (
        (f"— model at {long:,} tokens each, {end}", BLUE),
        (f"- - model at {short:,} tokens each", BLUE),
        (f"▲ knee at {knee:,.0f}{'' if knee <= line[-1][0] else ': beyond the end'}", GREEN),
    )
    if knee <= line[-1][0]:
        panel.triangle((knee, claim.decode_rate(profile, round(knee), long)), GREEN)
    panel.below(below)
    return panel


def _published() -> dict[str, list[tuple[str, Points]]]:
    """Published points by profile, each with what it is."""

    def steps(rows: list[tables.Step]) -> Points:
        return [(step.sequences, step.sequences / step.seconds) for step in rows]

    trt = [
        row
        for row in tables.closed("h100_8b_trtllm.csv")
        if (row.prompt, row.output) == (1024, 512)
    ]
    return {
        "rtx4090-llama-3.1-8b": [
            ("vLLM 0.19, seconds of the recorded run", replay.decode_points())
        ],
        "a100-80-llama-3.1-8b": [("vLLM 0.6, ten requests", steps(tables.live_steps("a100", 1)))],
        "h100-llama-3.1-8b": [
            ("vLLM 0.11, prompts cached, 235 tokens", steps(tables.cached_decode_steps())),
            (
                "TensorRT-LLM, 1,024 in, 512 out",
                [(row.clients, row.clients / row.tpot) for row in trt],
            ),
        ],
    }


def curve(entries: dict[str, constants.Entry]) -> str:
    """Throughput over batch: model, published points, knee, pool and the claim."""
    shown = (
        ("rtx4090-llama-3.1-8b", "RTX 4090", (256, 1024)),
        ("a100-80-llama-3.1-8b", "A100-80", (256, 640)),
        ("h100-llama-3.1-8b", "H100", (256, 1024)),
    )
    published = _published()
    parts = [
        svg.text(66, 24, "Llama-3.1-8B: output tokens per second", size=16, bold=True),
        svg.text(66, 42, "over sequences running, decoding alone, bfloat16", color=svg.MUTED),
        "<path d='M640 20l6 -6l6 6l-6 6z' fill='#c9252d'/>",
        svg.text(658, 24, "claimed: 95 at 1, 620 at 8, 2,400 at 32", color=RED),
    ]
    for column, (name, title, contexts) in enumerate(shown):
        panel = _panel(column, entries[name].profile(), title, contexts)
        for (label, points), color in zip(published[name], (ORANGE, PURPLE), strict=False):
            panel.dots(points, color)
            panel.below([(f"○ {label}", color)])
        parts += panel.parts
    return svg.document(1060, 520, "Llama-3.1-8B throughput over batch", parts)


def overload(live: replay.Run, model: replay.Run) -> str:
    """Running, waiting and cache use over time, recorded and simulated."""
    parts = [
        svg.text(
            66,
            24,
            "RTX 4090, 300 requests: recorded vLLM 0.19 and the simulator",
            size=16,
            bold=True,
        ),
        svg.text(590, 48, "recorded", color=ORANGE, bold=True),
        svg.text(660, 48, "simulated", color=BLUE, bold=True),
        svg.text(66, 522, "seconds", color=svg.MUTED),
    ]
    across = svg.Axis(low=0, high=190, ticks=(0, 30, 60, 90, 120, 150, 180))
    for row, (name, title, up) in enumerate(
        (
            ("running", "running", svg.Axis(low=0, high=60, ticks=(0, 20, 40, 60))),
            ("waiting", "waiting", svg.Axis(low=0, high=240, ticks=(0, 80, 160, 240))),
            ("kv_usage", "KV cache use", svg.Axis(low=0, high=1.0, ticks=(0, 0.5, 1))),
        )
    ):
        panel = svg.Panel(x=66, y=62 + row * 154, width=650, height=118, across=across, up=up)
        panel.frame(title, labels_across=row == 2)
        for run, color in ((live, ORANGE), (model, BLUE)):
            panel.line([(s.at, float(getattr(s, name))) for s in run.seconds], color, 1.6)
        parts += panel.parts
    return svg.document(740, 534, "Recorded and simulated overload", parts)
