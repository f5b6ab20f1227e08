"""What the status page says where no script runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headroom_exporter.expose import is_fresh

if TYPE_CHECKING:
    from headroom_exporter.app import Exporter


def landing(exporter: Exporter) -> str:
    """One line for each engine, one for each of its ranks, plain text."""
    now, lines = time.monotonic(), []
    for engine in exporter.state.engines:
        up = engine.up and is_fresh(engine, now)
        lines.append(f"{engine.name}: {'up' if up else engine.last_error or 'not asked yet'}")
        lines += [
            f"  rank {rank.rank} {rank.model_name}: {rank.derived.state} ({rank.derived.reason})"
            for rank in engine.ranks
            if up and rank.derived is not None
        ]
    return "\n".join(lines)
