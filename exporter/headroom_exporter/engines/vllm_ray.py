"""
vLLM under Ray: vLLM's names behind Ray's prefix, the engines of a whole node on one page.

Ray collects what its workers report every 10 s (metrics_report_interval_ms), counters too. Ray before 2.10
exports a counter as a gauge without ``_total``, later ones both; newer ones turn colons into underscores.

Sources: Ray's metrics agent and util/metrics.py, vLLM's ray_wrappers.py; tests/fixtures/engines/vllm-ray.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headroom_exporter.engines.base import (
    MAX_RANKS,
    Engine,
    Labels,
    Page,
    Quantity,
    approximate,
    clip_label,
    exact,
    unknown,
)
from headroom_exporter.engines.vllm import VLLM
from headroom_exporter.samples import Cadence, EngineSample, RankSample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headroom_exporter.engines.base import Series

PREFIX = "vllm:"
# As much of a worker's identity (56 digits) as tells those of a node apart.
MAX_WORKER_LENGTH = 12


def _names(name: str) -> tuple[str, ...]:
    """What Ray makes of one of vLLM's names; of several on a page the first counts."""
    bases = [name, name.removesuffix("_total")] if name.endswith("_total") else [name]
    return tuple(f"ray_{base}".replace(":", sign) for base in bases for sign in ("_", ":"))


def _all_names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(ray for name in names if name.startswith(PREFIX) for ray in _names(name))


def read(page: Page) -> EngineSample:
    """One record per worker and rank; the rank is ``worker/rank``."""
    ranks: list[RankSample] = []
    dropped = page.truncated
    for worker, part in sorted(_by_worker(page).items()):
        sample = VLLM.read(part)
        dropped += sample.dropped
        ranks += [_of_worker(worker, rank) for rank in sample.ranks]
    return EngineSample(
        ranks=tuple(ranks[:MAX_RANKS]), dropped=dropped + max(0, len(ranks) - MAX_RANKS)
    )


def _by_worker(page: Page) -> dict[str, Page]:
    """The page as each worker would have written it."""
    parts: dict[str, dict[str, Series]] = {}
    for name in VLLM.full_names:
        for labels, value in page.get(_names(name)):
            part = parts.setdefault(_worker(labels), {})
            part.setdefault(name, []).append((labels, value))
    return {worker: Page(series) for worker, series in parts.items()}


def _worker(labels: Labels) -> str:
    return (labels.get("ReplicaId") or labels.get("WorkerId") or "")[:MAX_WORKER_LENGTH]


def _of_worker(worker: str, rank: RankSample) -> RankSample:
    """
    A rank of one worker, without what counts steps.

    Counters that come all 10 s say nothing of a window of 5 s: it holds the steps of none or of two.
    """
    return replace(
        rank,
        rank=clip_label(f"{worker}/{rank.rank}" if worker else rank.rank),
        steps=None,
        step_tokens=None,
        inter_token_seconds=None,
    )


VLLM_RAY = Engine(
    name="vllm-ray",
    title="vLLM under Ray",
    versions="0.6 to 0.33 under Ray 2",
    markers=frozenset(_all_names(VLLM.markers)),
    fast_names=_all_names(VLLM.fast_names),
    full_names=frozenset(_all_names(sorted(VLLM.full_names))),
    read=read,
    cadence=Cadence(gauge_seconds=10.0),
    silent=(
        "Ray has the metrics of vLLM at its own metrics port of each node, not at that of the API, and only "
        "with the Ray statistics logger of vLLM."
    ),
    tells={
        Quantity.RUNNING: approximate("up to 10 s old"),
        Quantity.WAITING: approximate("up to 10 s old"),
        Quantity.SLOTS: unknown("declare max_num_seqs in the plan; inferred from a plateau"),
        Quantity.KV_USED: approximate("up to 10 s old; whole blocks"),
        Quantity.KV_CAPACITY: approximate("where this vLLM passes cache_config_info to Ray"),
        Quantity.TOKENS_PER_SEQUENCE: approximate("usage over running"),
        Quantity.PROMPTS: exact("in buckets of 1-2-5"),
        Quantity.OUTPUTS: exact("in buckets of 1-2-5"),
        Quantity.TTFT: exact(),
        Quantity.TPOT: exact("between tokens"),
        Quantity.PREEMPTIONS: exact("where this vLLM passes them to Ray"),
        Quantity.PREFILL: approximate("in lumps of 10 s"),
    },
)
