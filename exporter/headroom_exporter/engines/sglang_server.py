"""What an SGLang server tells beside its metrics: limits, and its version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common
from headroom_exporter.engines.base import MAX_RANKS, Beside, Page, clip_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headroom_exporter.engines.base import Series

LOADS = "/v1/loads"
# Which names it has depends on the version; 0.5.6 to 0.5.23 answer to both.
SERVER_INFO = ("/server_info", "/get_server_info")


def _loads(answer: Any) -> Mapping[str, Series]:
    """``/v1/loads`` (0.5.8 and later): the limits of each data-parallel rank."""
    found: dict[str, Series] = dict(common.info(LOADS, version=common.member(answer, "version")))
    loads = common.member(answer, "loads")
    for load in loads[:MAX_RANKS] if isinstance(loads, list) else []:
        rank = common.member(load, "dp_rank")
        labels = {"dp_rank": clip_label(str(rank)) if isinstance(rank, int | str) else "0"}
        for name in ("max_running_requests", "max_total_num_tokens"):
            for path, series in common.figure(f"{LOADS}.{name}", common.member(load, name)).items():
                found.setdefault(path, []).append((labels, series[0][1]))
    return found


def _server_info(path: str) -> Callable[[Any], Mapping[str, Series]]:
    """
    Its arguments and what became of them; holds keys and passwords too, so nothing else is taken.

    ``effective_max_running_requests_per_dp`` is the limit; ``max_running_requests`` is what was asked for,
    by all data-parallel ranks together.
    """

    def series(answer: Any) -> Mapping[str, Series]:
        states = common.member(answer, "internal_states")
        held = states[:MAX_RANKS] if isinstance(states, list) else []
        asked, ranks = _amount(answer, "max_running_requests"), _amount(answer, "dp_size")
        limit = _least(_amount(state, "effective_max_running_requests_per_dp") for state in held)
        if limit is None and asked is not None:
            limit = asked // max(1.0, ranks or 1.0)
        capacity = _amount(answer, "max_total_num_tokens")
        if capacity is None:
            capacity = _least(_amount(state, "memory_usage", "token_capacity") for state in held)
        return {
            **common.info(path, version=common.member(answer, "version")),
            **common.figure(f"{path}.slots", limit),
            **common.figure(f"{path}.max_total_num_tokens", capacity),
        }

    return series


def _amount(answer: Any, *path: str | int) -> float | None:
    for series in common.figure("", common.member(answer, *path)).values():
        return series[0][1]
    return None


def _least(amounts: Iterable[float | None]) -> float | None:
    return min((amount for amount in amounts if amount is not None), default=None)


PAGES = (Beside(LOADS, _loads), *(Beside(path, _server_info(path)) for path in SERVER_INFO))


def slots(page: Page, rank: str) -> float | None:
    """How many sequences a data-parallel rank runs at most; the engine's own figure can be one off."""
    told = _of_rank(page, f"{LOADS}.max_running_requests", rank)
    return told or _of_server(page, "slots")


def capacity(page: Page, rank: str) -> float | None:
    """Tokens of a data-parallel rank's KV pool."""
    told = _of_rank(page, f"{LOADS}.max_total_num_tokens", rank)
    return told or _of_server(page, "max_total_num_tokens")


def version(page: Page) -> str | None:
    """SGLang's version."""
    told = (common.version(page, path) for path in (*SERVER_INFO, LOADS))
    return next((version for version in told if version), None)


def _of_rank(page: Page, name: str, rank: str) -> float | None:
    for labels, value in page.series.get(name, ()):
        if labels.get("dp_rank") == rank:
            return value
    return None


def _of_server(page: Page, name: str) -> float | None:
    told = (page.value(f"{path}.{name}") for path in SERVER_INFO)
    return next((value for value in told if value), None)
