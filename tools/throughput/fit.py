"""Step constants from published tables: non-negative least squares on relative errors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from throughput.tables import Closed, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One observation: the columns times the coefficients should give ``seconds``."""

    columns: tuple[float, ...]
    seconds: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Coefficients, and the relative error of every row (fitted / published - 1)."""

    values: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def median_error(self) -> float:
        """Median of the absolute relative errors."""
        return median_absolute(self.errors)

    @property
    def worst_error(self) -> float:
        """Largest absolute relative error."""
        return max(abs(error) for error in self.errors)


def median_absolute(errors: Sequence[float]) -> float:
    """Median absolute value; the mean of the middle two where they are even."""
    ordered = sorted(abs(error) for error in errors)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def non_negative(rows: Sequence[Row]) -> Fit:
    """
    Coefficients of 0 or more with the least sum of weighted squared relative errors.

    There are at most a handful of coefficients, so every set of non-zero ones is tried.

    Raises:
        ValueError: no set gives a solution.
    """
    count = len(rows[0].columns)
    best: tuple[float, tuple[float, ...]] | None = None
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            solved = _solve(rows, chosen)
            if solved is None or min(solved) < 0:
                continue
            values = [0.0] * count
            for index, value in zip(chosen, solved, strict=True):
                values[index] = value
            loss = sum(row.weight * _error(row, values) ** 2 for row in rows)
            if best is None or loss < best[0]:
                best = loss, tuple(values)
    if best is None:
        raise ValueError(f"{len(rows)} rows: no non-negative fit")
    return Fit(values=best[1], errors=tuple(_error(row, best[1]) for row in rows))


def _error(row: Row, values: Sequence[float]) -> float:
    return sum(x * v for x, v in zip(row.columns, values, strict=True)) / row.seconds - 1


def _solve(rows: Sequence[Row], chosen: tuple[int, ...]) -> list[float] | None:
    """Weighted normal equations of the chosen columns, by Gauss-Jordan; None if singular."""
    size = len(chosen)
    system = [[0.0] * (size + 1) for _ in range(size)]
    for row in rows:
        scaled = [row.columns[index] / row.seconds for index in chosen]
        for i in range(size):
            for j in range(size):
                system[i][j] += row.weight * scaled[i] * scaled[j]
            system[i][size] += row.weight * scaled[i]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(system[r][i]))
        if abs(system[pivot][i]) < 1e-12 * max(abs(v) for v in system[pivot]) + 1e-300:
            return None
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [value / system[i][i] for value in system[i]]
        for r in range(size):
            if r != i:
                factor = system[r][i]
                system[r] = [a - factor * b for a, b in zip(system[r], system[i], strict=True)]
    return [line[size] for line in system]


def closed_rows(table: Sequence[Closed]) -> list[Row]:
    """
    A closed loop in its steady state: fixed, per sequence, per KV token, per prompt token.

    While a token is generated, each of the other clients computes prompt / output of a prompt token.
    """
    return [
        Row(
            columns=(
                1.0,
                float(row.clients),
                row.clients * (row.prompt + row.output / 2),
                row.clients * row.prompt / row.output,
            ),
            seconds=row.tpot,
        )
        for row in table
    ]


def step_rows(steps: Sequence[Step], per_kv_token: float, weight: float = 1.0) -> list[Row]:
    """Decoding steps with the known cost of their cache taken off: fixed and per sequence."""
    return [
        Row(
            columns=(1.0, float(step.sequences)),
            seconds=step.seconds - per_kv_token * step.resident,
            weight=weight / len(steps),
        )
        for step in steps
    ]
