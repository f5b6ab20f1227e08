"""The engines we read: a visible tuple, no registration."""

from headroom_exporter.engines.base import Engine, Page, parse_page
from headroom_exporter.engines.vllm import VLLM

ENGINES: tuple[Engine, ...] = (VLLM,)
ALL_FULL_NAMES: frozenset[str] = frozenset().union(*(engine.full_names for engine in ENGINES))

__all__ = ["ALL_FULL_NAMES", "ENGINES", "Engine", "Page", "detect", "parse_page"]


def detect(page: Page) -> Engine | None:
    """The engine whose marker the page holds; None where it holds none."""
    for engine in ENGINES:
        if any(name in page.series for name in engine.markers):
            return engine
    return None
