"""The tables of docs/throughput.md, each between a pair of comments that names it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from throughput import claim, compare, paging, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headroom_exporter.simulate.profiles import Profile
    from throughput.constants import Entry

SEED = 1


def all_blocks(entries: dict[str, Entry], live: replay.Run, model: replay.Run) -> dict[str, str]:
    """Every block by name."""
    return {
        "constants": constants_table(entries.values()),
        "claim": claim_table(entries),
        "comparisons": comparison_table(entries),
        "formula": formula_table(),
        "per-concurrency": concurrency_table(entries),
        "paging": paging_table(),
        "replay": replay_table(live, model),
    }


def insert(text: str, blocks: dict[str, str]) -> str:
    """
    Replace the blocks of a page.

    Raises:
        ValueError: the page lacks one of them.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(_replacement(block), text)
        if count != 1:
            raise ValueError(f"block {name}: {count} pairs of begin and end comments, must be one")
    return text


def _replacement(block: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{match[1]}{block}\n{match[2]}"


def table(head: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """Return a Markdown table whose first columns are left-aligned, the others right."""
    align = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def constants_table(entries: Iterable[Entry]) -> str:
    """Step constants and pool of every profile."""
    return table(
        [
            "profile",
            "basis",
            "fixed ms",
            "ms per sequence",
            "ms per 1,000 KV tokens",
            "prompt tokens/s",
            "decode beside prompts",
            "pool, tokens",
            "fit",
        ],
        (
            [
                f"`{entry.name}`",
                entry.basis,
                f"{entry.step_fixed * 1e3:.3g}",
                f"{entry.step_per_sequence * 1e3:.3g}",
                f"{entry.step_per_kv_token * 1e6:.3g}",
                f"{float(f'{1 / entry.step_per_prefill_token:.3g}'):,.0f}",
                f"{entry.decode_beside_prefill:g}",
                f"{entry.profile().pool_tokens:,}",
                entry.quality,
            ]
            for entry in entries
        ),
        left=2,
    )


def claim_table(entries: dict[str, Entry]) -> str:
    """The claim against every 8B profile."""
    rows = []
    for label, profile, contexts in _claim_cases(entries):
        for context in contexts:
            verdict = claim.check(profile, context)
            rates = [
                f"{verdict.rates[batch]:,.0f} ({verdict.errors[batch]:+.0%})"
                for batch in claim.CLAIMED
            ]
            rows.append(
                [
                    label,
                    f"{context:,}",
                    *rates,
                    f"{verdict.fit:,}",
                    f"{profile.pool_tokens // claim.CLAIMED_LIMIT:,}",
                    f"{claim.knee(profile, context):,.0f}",
                ]
            )
    return table(
        [
            "card",
            "tokens per sequence",
            "batch 1 (95)",
            "batch 8 (620)",
            "batch 32 (2,400)",
            "pool holds",
            "tokens each if 64 fill it",
            "knee",
        ],
        rows,
    )


def _claim_cases(entries: dict[str, Entry]) -> list[tuple[str, Profile, list[int]]]:
    """Cards with their contexts: 512 and 1,024, and for the A100 those that suit the claim best."""
    cases = []
    for entry in entries.values():
        if entry.name.endswith("8b"):
            profile = entry.profile()
            contexts = {512, 1024}
            if entry.gpu == "A100-80":
                contexts |= {claim.best(profile, (1, 32)).context, claim.best(profile).context}
            cases.append((f"{entry.gpu} bf16", profile, sorted(contexts)))
    fp8 = claim.with_fp8_weights(entries["rtx4090-llama-3.1-8b"])
    cases.append(("RTX 4090 fp8 weights (scaled)", fp8, [512, 1024]))
    return cases


def comparison_table(entries: dict[str, Entry]) -> str:
    """Every published table: rows, median and worst relative error."""
    return table(
        ["profile", "table", "differs in", "compared", "rows", "median", "bias", "worst", "where"],
        (
            [
                f"`{each.profile}`",
                each.title + (" *" if each.fitted else ""),
                each.same or "nothing",
                each.how,
                str(len(each.points)),
                f"{each.median_error:.1%}",
                f"{each.bias:+.1%}",
                f"{each.worst.error:+.1%}",
                each.worst.label,
            ]
            for each in compare.compare(entries)
        ),
        left=4,
    )


def concurrency_table(entries: dict[str, Entry]) -> str:
    """Predicted against published throughput, row by row, for three tables."""
    rows = []
    for name, wanted in (
        ("h100-llama-3.1-8b", ("Poisson", "TensorRT")),
        ("a100-80-llama-3.1-8b", ("Lambda",)),
        ("h100x4-llama-3.1-70b", ("Lambda",)),
        ("a100-80x4-llama-3.1-70b", ("Lambda",)),
    ):
        for each in compare.TABLES[name](entries[name]):
            if each.how == "tokens/s" or not any(word in each.title for word in wanted):
                continue
            rows += [
                [
                    f"`{name}`",
                    each.title.split(",")[0],
                    point.label,
                    f"{point.published:,.0f}",
                    f"{point.predicted:,.0f}",
                    f"{point.error:+.1%}",
                ]
                for point in each.points
                if "TensorRT" not in each.title or "1024/512" in point.label
            ]
    return table(["profile", "table", "row", "published", "predicted", "error"], rows, left=3)


def formula_table() -> str:
    """Other precisions and card counts: constants of their own."""
    return table(
        ["table", "rows", "fixed ms", "ms per sequence", "median", "worst"],
        (
            [
                each.title,
                str(each.rows),
                f"{each.fixed * 1e3:.2f}",
                f"{each.per_sequence * 1e3:.3f}",
                f"{each.median_error:.1%}",
                f"{each.worst_error:.1%}",
            ]
            for each in compare.formula_fits()
        ),
    )


def paging_table() -> str:
    """Paged over naive memory, by length mix and by what naive means."""
    policies = paging.policies()
    rows = []
    for mix in paging.mixes():
        shares = [paging.ratio(mix, policy) for policy in policies]
        cells = ["does not fit" if share is None else f"{share:.0%}" for share in shares]
        rows.append([mix.name, *cells, f"{paging.padded_batch(mix, 8, SEED):.0%}"])
    return table(["mix", *(p.name for p in policies), "static batch of 8, padded"], rows)


def replay_table(live: replay.Run, model: replay.Run) -> str:
    """The recorded overload: recorded, simulated, error."""
    rows = [
        [
            metric.name.replace("kv_usage", "KV use"),
            f"{metric.recorded:.4g}",
            f"{metric.simulated:.4g}",
            f"{metric.error:+.1%}",
        ]
        for metric in replay.metrics(live, model)
    ]
    for name in ("running", "waiting", "kv_usage"):
        label = name.replace("kv_usage", "KV use")
        error = replay.series_error(live, model, name)
        rows.append([f"{label}, second by second", "", "", f"{error:.1%} mean distance"])
    return table(["figure", "recorded", "simulated", "error"], rows)
