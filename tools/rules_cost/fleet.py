"""Who is in the fleet: names of thousands of engines that all say what one of two engines said."""

from __future__ import annotations

from dataclasses import dataclass

REPLICAS = 25
NAMESPACES = 20
# One in so many is without headroom, all the time: its alerts fire, and their texts cost queries too.
FULL_EVERY = 20
JOB = "headroom-exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """
    One engine with its sidecar.

    Attributes:
        place: Its number, from 0.
        kind: Whose samples it repeats: ``calm`` or ``full``.
        engine: The ``engine`` label; also its pod.
        model: The ``model_name`` label.
        namespace: Of its model.
    """

    place: int
    kind: str
    engine: str
    model: str
    namespace: str

    @property
    def target(self) -> dict[str, str]:
        """What a scrape adds to its samples."""
        return {
            "instance": f"{self.engine}:9890",
            "job": JOB,
            "namespace": self.namespace,
            "pod": self.engine,
        }


def fleet(engines: int) -> tuple[Member, ...]:
    """That many engines, REPLICAS of each model."""
    return tuple(_member(place) for place in range(engines))


def _member(place: int) -> Member:
    model = place // REPLICAS
    return Member(
        place=place,
        kind="calm" if place % FULL_EVERY else "full",
        engine=f"vllm-{place:05d}",
        model=f"example/model-{model:04d}",
        namespace=f"team-{model % NAMESPACES:02d}",
    )
