"""What is compared, and how near it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agreement.simulated import Outcome

# Issue 3: levels within 5 %, within 10 % where the engine preempts; preemptions 25 %; times 15 %.
LEVEL = 0.05
LEVEL_PREEMPTING = 0.10
PREEMPTIONS = 0.25
TIME = 0.15
# A mean queue so short says nothing in relative terms: 5 % of it would be a hundredth of a request.
NEGLIGIBLE_SEQUENCES = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    One figure of a run.

    Attributes:
        limit: Largest relative error, for a run without and one with preemptions.
        negligible: Where both values are below this they agree.
    """

    name: str
    unit: str
    of: Callable[[Outcome], float]
    limit: tuple[float, float]
    negligible: float = 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest of the ordered values; share 0 to 1."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


KINDS = (
    Kind(
        name="running",
        unit="sequences",
        of=lambda run: fmean(poll.running for poll in run.polls),
        limit=(LEVEL, LEVEL_PREEMPTING),
    ),
    Kind(
        name="waiting",
        unit="sequences",
        of=lambda run: fmean(poll.waiting for poll in run.polls),
        limit=(LEVEL, LEVEL_PREEMPTING),
        negligible=NEGLIGIBLE_SEQUENCES,
    ),
    Kind(
        name="KV usage",
        unit="ratio",
        of=lambda run: fmean(poll.kv_usage for poll in run.polls),
        limit=(LEVEL, LEVEL_PREEMPTING),
    ),
    Kind(
        name="preemptions",
        unit="",
        of=lambda run: float(run.preemptions),
        limit=(PREEMPTIONS, PREEMPTIONS),
        negligible=1.0,
    ),
    Kind(name="TTFT p50", unit="s", of=lambda run: percentile(run.first, 0.5), limit=(TIME, TIME)),
    Kind(name="TTFT p95", unit="s", of=lambda run: percentile(run.first, 0.95), limit=(TIME, TIME)),
    Kind(name="e2e p50", unit="s", of=lambda run: percentile(run.whole, 0.5), limit=(TIME, TIME)),
    Kind(name="e2e p95", unit="s", of=lambda run: percentile(run.whole, 0.95), limit=(TIME, TIME)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """
    One figure of one workload, over its repetitions.

    Attributes:
        measured: Of each real run.
        simulated: Of the simulated run of each.
        limit: Largest relative error that is agreement.
        negligible: Where both are below this they agree.
    """

    kind: str
    unit: str
    measured: tuple[float, ...]
    simulated: tuple[float, ...]
    limit: float
    negligible: float

    @property
    def counts(self) -> bool:
        """Whether there is enough of it for a relative error."""
        return max(*self.measured, *self.simulated) >= max(self.negligible, 1e-12)

    @property
    def error(self) -> float:
        """Mean of the simulated runs over the mean of the real ones, less 1; 0 where negligible."""
        return fmean(self.simulated) / fmean(self.measured) - 1 if self.counts else 0.0

    @property
    def worst(self) -> float:
        """The largest error of a single repetition, with its sign; 0 where negligible."""
        if not self.counts:
            return 0.0
        errors = [s / m - 1 for s, m in zip(self.simulated, self.measured, strict=True)]
        return max(errors, key=abs)

    @property
    def spread(self) -> float:
        """What two real runs differ by: largest less least, over the mean; 0 where negligible."""
        if not self.counts:
            return 0.0
        return (max(self.measured) - min(self.measured)) / fmean(self.measured)

    @property
    def agrees(self) -> bool:
        """Whether the means are within the limit of each other."""
        return abs(self.error) <= self.limit


def compare(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[Figure]:
    """
    Hold the repetitions of one workload against their simulations.

    Args:
        pairs: Measured and simulated, of each repetition.
    """
    preempting = any(real.preemptions for real, _ in pairs)
    return [
        Figure(
            kind=kind.name,
            unit=kind.unit,
            measured=tuple(kind.of(real) for real, _ in pairs),
            simulated=tuple(kind.of(model) for _, model in pairs),
            limit=kind.limit[preempting],
            negligible=kind.negligible,
        )
        for kind in KINDS
    ]
