"""Every published table against the profile of its card and model: relative errors, per table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from throughput import constants, fit, predict, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.simulate.profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """
    One row of a table.

    Attributes:
        label: What was run.
        published: Output tokens per second.
        predicted: The same of the simulator.
    """

    label: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """
    One table against one profile.

    Attributes:
        same: Whether it is the profile's own card, model and dtype; else what differs.
        fitted: Whether the profile's constants were fitted to this table.
    """

    profile: str
    title: str
    how: str
    same: str
    fitted: bool
    points: list[Point]

    @property
    def median_error(self) -> float:
        """Median absolute relative error."""
        return fit.median_absolute([point.error for point in self.points])

    @property
    def worst(self) -> Point:
        """The row that is furthest off."""
        return max(self.points, key=lambda point: abs(point.error))

    @property
    def bias(self) -> float:
        """Median signed relative error: positive where the simulator is faster."""
        ordered = sorted(point.error for point in self.points)
        return ordered[len(ordered) // 2]


def _closed(profile: Profile, rows: list[tables.Closed]) -> list[Point]:
    """Decoding throughput, clients / time per token, of the engine run to its steady state."""
    points = []
    for row in rows:
        outcome = predict.closed(profile, row)
        points.append(
            Point(
                label=f"{row.clients} x {row.prompt}/{row.output}",
                published=row.clients / row.tpot,
                predicted=row.clients / outcome.tpot,
            )
        )
    return points


def _served(profile: Profile, rows: list[tables.Closed]) -> list[Point]:
    """Output tokens per second as published, time to first token included."""
    return [
        Point(
            label=f"{row.clients} x {row.prompt}/{row.output}",
            published=row.rate,
            predicted=predict.closed(profile, row).rate,
        )
        for row in rows
        if row.rate is not None
    ]


def _open(profile: Profile, rows: list[tables.Open], *, cached: bool = False) -> list[Point]:
    """One sequence's tokens per second, 1 / median time per token."""
    points = []
    for row in rows:
        limited = replace(profile, max_num_seqs=row.max_num_seqs)
        points.append(
            Point(
                label=f"{row.rate:g} req/s, {row.max_num_seqs} slots",
                published=1 / row.tpot,
                predicted=1 / predict.open_loop(limited, row, cached=cached).tpot_p50,
            )
        )
    return points


def _saturated(profile: Profile, rows: list[tables.Open], *, cached: bool = False) -> list[Point]:
    """Output tokens per second where more arrives than the engine can serve."""
    points = []
    for row in rows:
        if row.rate > 1.05 * row.completed:
            limited = replace(profile, max_num_seqs=row.max_num_seqs)
            points.append(
                Point(
                    label=f"{row.rate:g} req/s, {row.max_num_seqs} slots",
                    published=row.completed * row.output,
                    predicted=predict.open_loop(limited, row, cached=cached).completed * row.output,
                )
            )
    return points


def _steps(profile: Profile, steps: list[tables.Step]) -> list[Point]:
    """Tokens per second of single steps, by the formula alone; prompts count their own tokens."""
    points = []
    for step in steps:
        tokens = step.sequences or step.prefill
        seconds = profile.step_seconds(step.sequences, step.resident, step.prefill)
        points.append(
            Point(
                label=f"batch {step.sequences}" if step.sequences else f"prompt {step.prefill}",
                published=tokens / step.seconds,
                predicted=tokens / seconds,
            )
        )
    return points


def _h100(entry: constants.Entry) -> list[Comparison]:
    profile = entry.profile()
    trt = tables.closed("h100_8b_trtllm.csv")
    sweep = tables.open_loop(prefix_caching=False)
    cached = tables.open_loop(prefix_caching=True)
    own = fit.non_negative(fit.closed_rows(trt)).values
    alike = replace(
        profile,
        step_fixed=own[0],
        step_per_sequence=own[1],
        step_per_kv_token=own[2],
        step_per_prefill_token=own[3],
    )
    title = "TensorRT-LLM 1.0rc3, 1024-4096 in, 128-512 out, 8-128 clients"
    return [
        _comparison(
            entry,
            "vLLM 0.11, 204 in, 62 out, Poisson 1-223 req/s",
            "time per token",
            _open(profile, sweep),
        ),
        _comparison(entry, "the same, overloaded", "tokens/s", _saturated(profile, sweep)),
        _comparison(
            entry,
            "the same with prefix caching, overloaded",
            "tokens/s",
            _saturated(profile, cached, cached=True),
        ),
        _comparison(
            entry,
            "the same with prefix caching",
            "steps",
            _steps(profile, tables.cached_decode_steps()),
            fitted=True,
        ),
        _comparison(
            entry,
            "vLLM 0.6, 1-10 requests (Lambda)",
            "steps",
            _steps(profile, tables.live_steps("h100", 1)),
            fitted=True,
        ),
        _comparison(
            entry, title, "time per token", _closed(profile, trt), same="other engine", fitted=True
        ),
        _comparison(entry, title, "tokens/s", _served(profile, trt), same="other engine"),
        _comparison(
            entry,
            "the same, constants fitted to it",
            "time per token",
            _closed(alike, trt),
            same="nothing: is the form right?",
            fitted=True,
        ),
    ]


def _a100(entry: constants.Entry) -> list[Comparison]:
    profile = entry.profile()
    operators = tables.operator_steps("a100", "Meta-Llama-3-8B", 0.6e-3, prefill=False)
    prompts = tables.operator_steps("a100", "Meta-Llama-3-8B", 0.6e-3, prefill=True)
    return [
        _comparison(
            entry,
            "vLLM 0.6, 1-10 requests (Lambda)",
            "steps",
            _steps(profile, tables.live_steps("a100", 1)),
            fitted=True,
        ),
        _comparison(
            entry,
            "operators, 1-128 tokens (Vidur)",
            "steps",
            _steps(profile, operators),
            same="no attention",
            fitted=True,
        ),
        _comparison(
            entry,
            "operators, prompts of 512-4096 (Vidur)",
            "steps",
            _steps(profile, prompts),
            same="no attention",
            fitted=True,
        ),
    ]


def _rtx4090(entry: constants.Entry) -> list[Comparison]:
    scale = 7.25 / 8.03
    mistral = replace(
        entry.profile(),
        step_fixed=entry.step_fixed * scale,
        step_per_prefill_token=entry.step_per_prefill_token * scale,
    )
    return [
        _comparison(
            entry,
            "Mistral-7B, 256 in, 128 out, 4-48 clients (mushfiqrahman.dev)",
            "tokens/s",
            _served(mistral, tables.mistral_4090()),
            same="other model, engine version not given",
        )
    ]


def _h200(entry: constants.Entry) -> list[Comparison]:
    rows = tables.closed("h200_8b_fp8_sglang.csv")
    return [
        _comparison(
            entry,
            "SGLang 0.5.6 fp8, 1000-8000 in, 100-2000 out, 20-352 clients",
            "time per token",
            _closed(entry.profile(), rows),
            same="fp8, other engine",
        )
    ]


def _l4(entry: constants.Entry) -> list[Comparison]:
    profile = entry.profile()
    twice = replace(
        profile,
        step_fixed=profile.step_fixed / 2,
        step_per_kv_token=profile.step_per_kv_token / 2,
        step_per_prefill_token=1 / 4_300,
    )
    rows = [row for row in tables.closed("a10g_8b_vllm.csv") if row.clients <= 16]
    return [
        _comparison(
            entry,
            "A10G, vLLM 0.4.3 fp16, 550 in, 150 out, 1-16 clients (llmperf)",
            "time per token",
            _closed(twice, rows),
            same="other card, constants halved",
        )
    ]


def _seventy(key: str, model: str) -> Callable[[constants.Entry], list[Comparison]]:
    def compare(entry: constants.Entry) -> list[Comparison]:
        profile = entry.profile()
        operators = tables.operator_steps(key, model, 0.3e-3, prefill=False)
        static = tables.static_steps("llama2_70b_static.csv", gpu=key)
        return [
            _comparison(
                entry,
                "vLLM 0.6, 1-10 requests (Lambda)",
                "steps",
                _steps(profile, tables.live_steps(key, 4)),
                fitted=True,
            ),
            _comparison(
                entry,
                f"operators of {model}, 1-128 tokens (Vidur)",
                "steps",
                _steps(profile, operators),
                same="no attention, no all-reduce",
                fitted=True,
            ),
            _comparison(
                entry,
                "Llama-2-70B, batch 1-64 (Splitwise)",
                "steps",
                _steps(profile, static),
                same="engine of 2023",
            ),
        ]

    return compare


def _comparison(
    entry: constants.Entry,
    title: str,
    how: str,
    points: list[Point],
    *,
    same: str = "",
    fitted: bool = False,
) -> Comparison:
    return Comparison(
        profile=entry.name, title=title, how=how, same=same, fitted=fitted, points=points
    )


TABLES: dict[str, Callable[[constants.Entry], list[Comparison]]] = {
    "l4-llama-3.1-8b": _l4,
    "rtx4090-llama-3.1-8b": _rtx4090,
    "a100-80-llama-3.1-8b": _a100,
    "h100-llama-3.1-8b": _h100,
    "h200-llama-3.1-8b": _h200,
    "a100-80x4-llama-3.1-70b": _seventy("a100", "Meta-Llama-3-70B"),
    "h100x4-llama-3.1-70b": _seventy("h100", "Llama-2-70b-hf"),
}


def compare(entries: dict[str, constants.Entry]) -> list[Comparison]:
    """All tables against all profiles that have one."""
    return [each for name, table in TABLES.items() for each in table(entries[name])]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulaFit:
    """How well the formula itself, with constants of its own, follows a table it does not profile."""

    title: str
    rows: int
    fixed: float
    per_sequence: float
    median_error: float
    worst_error: float


def formula_fits() -> list[FormulaFit]:
    """Tables of other precisions and card counts: is the *form* right, fixed + per sequence."""
    lines = [
        (
            "NIM 1.8.0 Llama-3.1-8B, 1 x H100, 1-100 clients",
            tables.nim("NIM 1.8.0", "Llama-3.1-8B"),
        ),
        (
            "NIM 1.3.0 Llama-3.1-8B, 1 x H100, 1-100 clients",
            tables.nim("NIM 1.3.0", "Llama-3.1-8B"),
        ),
        (
            "NIM 1.8.0 Llama-3.3-70B fp8, 2 x H100, 1-50 clients",
            [row for row in tables.nim("NIM 1.8.0", "Llama-3.3-70B") if row[0] <= 50],
        ),
        (
            "NIM 1.3.0 Llama-3.1-70B, 1-200 clients",
            tables.nim("NIM 1.3.0", "Llama-3.1-70B"),
        ),
        (
            "Llama-3.1-8B, 2 x A100-80, 512 in, batch 1-32 (SageServe)",
            [
                (step.sequences, step.seconds)
                for step in tables.static_steps(
                    "a100_tp2_8b_static.csv", prompt_tokens="512", output_tokens="128"
                )
            ],
        ),
    ]
    found = []
    for title, rows in lines:
        kept = [row for row in rows if row[0] <= 100 or "200" in title]
        fitted = fit.non_negative(
            [fit.Row(columns=(1.0, float(clients)), seconds=tpot) for clients, tpot in kept]
        )
        found.append(
            FormulaFit(
                title=title,
                rows=len(kept),
                fixed=fitted.values[0],
                per_sequence=fitted.values[1],
                median_error=fitted.median_error,
                worst_error=fitted.worst_error,
            )
        )
    return found
