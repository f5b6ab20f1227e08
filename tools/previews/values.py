"""Numbers as Grafana would write them, by unit; its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE, CARD, EDGE, TEXT, DIM, GRID = (
    "#111217",
    "#181b1f",
    "#2a2d33",
    "#d8d9da",
    "#8e9097",
    "#2c3036",
)
NAMED = {
    "red": "#f2495c",
    "orange": "#ff9830",
    "yellow": "#fade2a",
    "green": "#73bf69",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0")


def color(name: str | None, place: int = 0) -> str:
    """A colour of ours by name, or the palette's at a place."""
    return PALETTE[place % len(PALETTE)] if name is None else NAMED.get(name, name)


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit."""
    if unit == "percentunit":
        return f"{value * 100:.{_places(value * 100, decimals)}f}%"
    if unit == "s":
        return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), decimals)
    if unit == "bytes":
        return _scaled(value, ((2**30, "GiB"), (2**20, "MiB"), (1, "B")), decimals)
    if unit == "d":
        return f"{value:.0f} days"
    suffix = {"watt": " W", "celsius": " °C", "reqps": " req/s", "ops": " ops/s"}.get(unit, "")
    if unit.startswith("suffix:"):
        suffix = unit.removeprefix("suffix:")
    if abs(value) >= 1000 and unit != "none":
        return f"{value / 1000:.{_places(value / 1000, None)}f} K{suffix}"
    return f"{value:.{_places(value, decimals)}f}{suffix}"


def _scaled(value: float, steps: Sequence[tuple[float, str]], decimals: int | None) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.{_places(value / size, decimals)}f} {name}"
    return f"{value:g} {steps[0][1]}"


def _places(value: float, decimals: int | None) -> int:
    if decimals is not None:
        return decimals
    if abs(value - round(value)) < 1e-6 or abs(value) >= 100:
        return 0
    return 1 if abs(value) >= 10 else 2


def step_color(value: float, steps: Sequence[tuple[float | None, str]]) -> str:
    """The colour of the last step that a value has reached."""
    reached = [name for bound, name in steps if bound is None or value >= bound]
    return color(reached[-1]) if reached else TEXT
