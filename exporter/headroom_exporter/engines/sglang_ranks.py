"""One value for each data-parallel rank of SGLang out of the series of many ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom_exporter.engines.base import Labels, clip_label, gauge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# (dp_rank, model name); no rank: of a server without data parallelism, or of all its ranks.
Key = tuple[str | None, str]


def _key(labels: Labels) -> Key:
    rank = labels.get("dp_rank")
    # The first release said "name".
    model = labels.get("model_name") or labels.get("name") or ""
    return clip_label(rank) if rank else None, clip_label(model)


def counted(series: Iterable[tuple[Labels, float]]) -> dict[Key, float]:
    """
    A number of things by data-parallel rank.

    Ranks of tensor, pipeline, expert or context parallelism repeat each other: the largest counts. What
    else tells series apart (streaming or not, where a cache hit came from) splits the number: summed. With
    priorities, the series of an empty priority is the total of the others.
    """
    parts: dict[Key, dict[frozenset[tuple[str, str]], list[tuple[str, float]]]] = {}
    for labels, value in series:
        repeated = frozenset(
            (name, held)
            for name, held in labels.items()
            if name.endswith("_rank") and name != "dp_rank"
        )
        part = parts.setdefault(_key(labels), {}).setdefault(repeated, [])
        part.append((labels.get("priority", ""), value))
    found: dict[Key, float] = {}
    for key, by_rank in parts.items():
        known = [total for part in by_rank.values() if (total := _total(part)) is not None]
        if known:
            found[key] = max(known)
    return found


def _total(part: list[tuple[str, float]]) -> float | None:
    """The sum of one rank's series; None where one of them is no number of things."""
    totals = [value for priority, value in part if priority == ""]
    values = [gauge(value) for value in totals or (value for _, value in part)]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def level(
    series: Iterable[tuple[Labels, float]], check: Callable[[float], float | None] = gauge
) -> dict[Key, float]:
    """The largest of a ratio or a size by data-parallel rank; absent where that one is not believable."""
    largest: dict[Key, float] = {}
    for labels, value in series:
        if gauge(value) is not None:
            key = _key(labels)
            largest[key] = max(largest.get(key, 0.0), value)
    checked = {key: check(value) for key, value in largest.items()}
    return {key: value for key, value in checked.items() if value is not None}
