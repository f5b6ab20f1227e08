"""How a source of node mode does: counted, and logged once per change of state."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING

from headroom_exporter.samples import DiscoverySource

if TYPE_CHECKING:
    from collections.abc import Callable

    from headroom_exporter.errors import SourceError

log = logging.getLogger(__name__)


class Health:
    """
    One source's ups and downs.

    Args:
        source: ``kubernetes`` or ``kubelet``.
        where: What of it, for log lines: an address, a namespace, a socket.
        wall: Unix seconds.
    """

    def __init__(self, source: str, where: str, wall: Callable[[], float]) -> None:
        self._source = source
        self._where = where
        self._wall = wall
        self._errors: dict[str, float] = {}
        self._reported: str | None = ""
        self.up = False
        self.last_success: float | None = None
        # Whether it was asked at all, with whatever result.
        self.settled = False

    def good(self) -> None:
        """It said all it knows, or that nothing is new."""
        self.up, self.settled, self.last_success = True, True, self._wall()
        if self._reported is not None:
            self._reported = None
            log.info("discovery source is up", extra=self._extra())

    def bad(self, error: SourceError, *, level: int = logging.WARNING) -> None:
        """It failed: what it said before stands."""
        self.up, self.settled = False, True
        self.count(error.kind)
        if self._reported != error.kind:
            self._reported = error.kind
            extra = {**self._extra(), "kind": error.kind, "reason": str(error)}
            log.log(level, "discovery source failed, what it said before stands", extra=extra)

    def count(self, kind: str, times: int = 1) -> None:
        """Count what is worth a number and no change of state."""
        self._errors[kind] = self._errors.get(kind, 0.0) + times

    def _extra(self) -> dict[str, str]:
        return {"source": self._source, "where": self._where}

    def state(self) -> DiscoverySource:
        """As the scrape shows it."""
        return DiscoverySource(
            up=self.up,
            last_success=self.last_success,
            errors=MappingProxyType(dict(self._errors)),
        )


def together(sources: list[DiscoverySource]) -> DiscoverySource:
    """Several of one kind as one: up when all are, as old as the oldest, errors added up."""
    errors: dict[str, float] = {}
    for source in sources:
        for kind, count in source.errors.items():
            errors[kind] = errors.get(kind, 0.0) + count
    times = [source.last_success for source in sources]
    known = [at for at in times if at is not None]
    return DiscoverySource(
        up=all(source.up for source in sources),
        last_success=min(known) if known and len(known) == len(times) else None,
        errors=MappingProxyType(errors),
    )
