"""What the measured exporter is configured with: 4 polls a second and a plan that declares everything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERVAL_SECONDS = 0.25
# Every dimension, so that nothing the exporter can derive or show is left out of its cost.
FULL_PLAN: dict[str, Any] = {
    "name": "bench",
    "concurrency": 24,
    "max_num_seqs": 48,
    "prompt_tokens": {"p50": 180, "p95": 240},
    "output_tokens": {"p50": 220, "p95": 290},
    "request_rate": 4,
    "kv_cache_tokens": 9088,
    "slo": {"ttft_p95_seconds": 1, "tpot_p95_seconds": 0.05},
}


def configuration(addresses: Iterable[str]) -> str:
    """The configuration file for these engines (JSON, which is YAML); all else as by default."""
    engines = [
        {"name": f"engine-{number:02}", "url": address} for number, address in enumerate(addresses)
    ]
    poll = {"interval": INTERVAL_SECONDS}
    return json.dumps({"engines": engines, "poll": poll, "plans": [FULL_PLAN]})
