"""
An autoscaler's loop in virtual time: what a trigger does to a fleet, and the fleet to the trigger.

The autoscaler is the HorizontalPodAutoscaler's documented algorithm (autoscaling/v2, which KEDA drives too),
written down here; nothing of it is real. The replicas are the project's simulated engines, each read by the
exporter's own poller from the moment its pod exists, and triggers see what Prometheus would have scraped.
tests/deploy/scaling.py plays days with it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from headroom_exporter.backtest.record import EPOCH, SCRAPE_SECONDS
from headroom_exporter.expose import StateCollector
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.replay import Replica, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TextIO

    from headroom_exporter.backtest.truth import Requests
    from headroom_exporter.config import PlanConfig
    from headroom_exporter.samples import State
    from headroom_exporter.simulate.load import Target
    from headroom_exporter.simulate.profiles import Profile
    from headroom_exporter.simulate.requests import Request

# Of kube-controller-manager: --horizontal-pod-autoscaler-sync-period and -tolerance, as they default.
SYNC_SECONDS = 15.0
TOLERANCE = 0.1
DEMAND = "headroom_demand_sequences"
# Behaviour of autoscaling/v2 where a manifest names none.
DEFAULT_BEHAVIOUR: Mapping[str, Any] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}


# --- the autoscaler ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """
    What a metric is held against.

    Attributes:
        kind: ``AverageValue``: the metric is a sum and the goal a replica's share of it. ``Value``: the
            metric is a ratio, and replicas are multiplied by how far it is from the goal.
        value: The goal.
    """

    kind: str
    value: float


def wanted(metric: float, goal: Goal, replicas: int, ready: int) -> int:
    """
    Replicas that one metric asks for.

    Args:
        metric: Its value now.
        goal: Its target.
        replicas: Of the scale's status.
        ready: Of these, the ones that are ready.
    """
    share = metric / goal.value
    if goal.kind == "AverageValue":
        share /= replicas
    if abs(share - 1.0) <= TOLERANCE:
        return replicas
    if goal.kind == "AverageValue":
        return math.ceil(metric / goal.value)
    return math.ceil(share * ready)


@dataclass(slots=True)
class Autoscaler:
    """
    One HorizontalPodAutoscaler.

    Args:
        goal: Target of its only metric.
        least: minReplicas.
        most: maxReplicas.
        behaviour: ``spec.behavior``.

    Attributes:
        changes: (seconds, replicas after it), of every change of scale.
    """

    goal: Goal
    least: int
    most: int
    behaviour: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_BEHAVIOUR)
    changes: list[tuple[float, int]] = field(default_factory=list)
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _added: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, at: float, metric: float | None, replicas: int, ready: int) -> int:
        """
        Replicas from now on.

        Args:
            at: Seconds.
            metric: None where there is none: then nothing is changed.
            replicas: There are now.
            ready: Of these.
        """
        if metric is None or math.isnan(metric):
            return replicas
        raw = min(max(wanted(metric, self.goal, replicas, ready), self.least), self.most)
        chosen = self._stable(at, raw, replicas)
        chosen = self._limited(at, chosen, replicas)
        chosen = min(max(chosen, self.least), self.most)
        if chosen != replicas:
            self._added.append((at, chosen - replicas))
            self.changes.append((at, chosen))
        return chosen

    def _stable(self, at: float, raw: int, replicas: int) -> int:
        """The safest of the recommendations within each direction's window."""
        up, down = (
            self.behaviour[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")
        )
        if not self._recommended:
            # Whoever begins to scale takes what there is for the first recommendation.
            self._recommended.append((at, replicas))
        self._recommended.append((at, raw))
        while self._recommended[0][0] <= at - max(up, down, SYNC_SECONDS):
            self._recommended.popleft()
        least = min(what for when, what in self._recommended if when > at - max(up, SYNC_SECONDS))
        most = max(what for when, what in self._recommended if when > at - max(down, SYNC_SECONDS))
        return min(max(replicas, least), most)

    def _limited(self, at: float, chosen: int, replicas: int) -> int:
        """No faster than the policies allow; of several, the one that allows most."""
        if chosen > replicas:
            policies = self.behaviour["scaleUp"]["policies"]
            return min(chosen, max(self._ceiling(at, one, replicas) for one in policies))
        if chosen < replicas:
            policies = self.behaviour["scaleDown"]["policies"]
            return max(chosen, min(self._floor(at, one, replicas) for one in policies))
        return chosen

    def _ceiling(self, at: float, policy: Mapping[str, Any], replicas: int) -> int:
        since = [n for when, n in self._added if when > at - policy["periodSeconds"] and n > 0]
        began = replicas - sum(since)
        if policy["type"] == "Pods":
            return began + int(policy["value"])
        return math.ceil(began * (1 + int(policy["value"]) / 100))

    def _floor(self, at: float, policy: Mapping[str, Any], replicas: int) -> int:
        since = [n for when, n in self._added if when > at - policy["periodSeconds"] and n < 0]
        began = replicas - sum(since)
        if policy["type"] == "Pods":
            return began - int(policy["value"])
        return int(began * (1 - policy["value"] / 100))


# --- the fleet -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Pod:
    """
    One replica, from the moment that it is asked for.

    Attributes:
        name: Of the pod; its engine's name too.
        frontend: Its server; not up before the model is loaded.
        born: Seconds; None: nobody asked for it yet.
        ready: When it serves.
        drained_from: When it was told to go: it gets nothing new.
        gone: When it had answered its last.
    """

    name: str
    frontend: Frontend
    born: float | None = None
    ready: float | None = None
    drained_from: float | None = None
    gone: float | None = None
    busy_before: float = 0.0

    @property
    def there(self) -> bool:
        """Whether the pod exists: scraped, though it may not serve."""
        return self.born is not None and self.gone is None

    @property
    def counted(self) -> bool:
        """Whether it is one of the scale's replicas."""
        return self.there and self.drained_from is None

    @property
    def serves(self) -> bool:
        """Whether requests are sent to it."""
        return self.counted and self.frontend.up


class Fleet:
    """
    Replicas behind a router that sends each request to the one with the fewest unfinished.

    Args:
        profile: Model and card of each.
        arrivals: In order.
        requests: Told how each fares.
        most: Pods there can ever be, gone ones included.
        start_seconds: From being asked for to serving.
    """

    def __init__(
        self,
        profile: Profile,
        arrivals: Iterator[Request],
        requests: Requests,
        *,
        most: int = 200,
        start_seconds: float = 300.0,
    ) -> None:
        self.pods = [Pod(name=f"vllm-{n:03d}", frontend=Frontend(profile)) for n in range(most)]
        self.start_seconds = start_seconds
        self._arrivals = arrivals
        self._next = next(arrivals, None)
        self._requests = requests
        self._at = -1.0
        for pod in self.pods:
            pod.frontend.up = False

    @property
    def counted(self) -> list[Pod]:
        """The scale's replicas, oldest first."""
        return [pod for pod in self.pods if pod.counted]

    def replicas(self) -> list[Replica]:
        """For ``simulate.replay``."""
        return [
            Replica(name=pod.name, frontend=pod.frontend, load=_Share(self)) for pod in self.pods
        ]

    def scale(self, at: float, replicas: int) -> None:
        """Ask for more pods, or send the youngest away."""
        counted = self.counted
        for pod in counted[replicas:]:
            pod.drained_from = at
        fresh = (pod for pod in self.pods if pod.born is None)
        for _ in range(replicas - len(counted)):
            pod = next(fresh)
            pod.born, pod.ready = at, at + self.start_seconds

    def serve_at_once(self) -> None:
        """Whoever is asked for at the beginning has its model loaded."""
        for pod in self.counted:
            pod.ready = 0.0
            pod.frontend.up = True

    def drive(self, until: float) -> None:
        """Let pods become ready and go, and route what arrives before a time."""
        if until <= self._at:
            return
        self._at = until
        for pod in self.pods:
            if pod.born is None:
                break
            if pod.counted and not pod.frontend.up and pod.ready is not None and pod.ready <= until:
                pod.frontend.up = True
                pod.frontend.started = until
            if pod.drained_from is not None and pod.gone is None and not pod.frontend.unfinished:
                pod.gone = until
                pod.frontend.up = False
        while self._next is not None and self._next.arrival < until:
            self._route(self._next)
            self._next = next(self._arrivals, None)

    def _route(self, request: Request) -> None:
        serving = [pod for pod in self.pods if pod.serves]
        if not serving:
            raise AssertionError(f"at {request.arrival:.0f} s no replica serves")
        min(serving, key=lambda pod: pod.frontend.unfinished).frontend.submit(request)

    def finish(self) -> Callable[[Any], None]:
        """For whoever advances a server."""
        return self._requests.note


@dataclass(frozen=True, slots=True)
class _Share:
    """The load of one replica: what the router gives it."""

    fleet: Fleet

    def drive(self, target: Target, until: float, max_steps: int | None = None) -> bool:
        self.fleet.drive(until)
        return target.advance(until, self.fleet.finish(), max_steps)


# --- what Prometheus has -------------------------------------------------------------------------


class Scrapes:
    """
    The last minutes of scrapes, and a text of all of them where wanted.

    Args:
        plan: In force.
        out: Gets OpenMetrics text; None to keep none.
        names: Samples that go there.
    """

    def __init__(
        self, plan: PlanConfig, out: TextIO | None = None, names: frozenset[str] = frozenset()
    ) -> None:
        self._plan = plan
        self._out = out
        self._names = names
        self._pods: dict[str, deque[tuple[float, dict[str, float]]]] = {}

    @property
    def floor(self) -> float:
        """The plan's headroom floor."""
        return self._plan.floor_ratio

    def scrape(self, at: float, state: State, pods: Sequence[Pod]) -> None:
        """Scrape the exporter of every pod that is there."""
        there = {pod.name for pod in pods if pod.there}
        self._pods = {name: self._pods.get(name, deque()) for name in sorted(there)}
        for engine in state.engines:
            if engine.name in there:
                self._take(at, engine.name, state)

    def _take(self, at: float, pod: str, state: State) -> None:
        own = type(state)(
            engines=tuple(each for each in state.engines if each.name == pod),
            gpu=state.gpu,
            reload=state.reload,
        )
        target = f'job="headroom-exporter",instance="{pod}:9890",namespace="inference",pod="{pod}"'
        page: dict[str, float] = {}
        lines = [f"up{{{target}}} 1 {EPOCH + at:.3f}\n"]
        for family in StateCollector(lambda: own, lambda _e, _m: self._plan, lambda: at).collect():
            for sample in family.samples:
                page.setdefault(sample.name, sample.value)
                if sample.name in self._names:
                    inside = ",".join(f'{key}="{text}"' for key, text in sample.labels.items())
                    inside = f"{inside},{target}" if inside else target
                    lines.append(f"{sample.name}{{{inside}}} {sample.value!r} {EPOCH + at:.3f}\n")
        kept = self._pods[pod]
        kept.append((at, page))
        while kept[0][0] < at - 120.0:
            kept.popleft()
        if self._out is not None:
            self._out.writelines(lines)

    def now(self, name: str) -> dict[str, float]:
        """A metric's value by pod, where it has one now."""
        return {
            pod: kept[-1][1][name]
            for pod, kept in self._pods.items()
            if kept and name in kept[-1][1]
        }

    def mean(self, name: str, pod: str) -> float | None:
        """``avg_over_time(name[2m])`` of one pod."""
        found = [page[name] for _, page in self._pods[pod] if name in page]
        return sum(found) / len(found) if found else None

    def ratio(self, above: str, below: str, pod: str) -> float | None:
        """``rate(above[2m]) / (rate(below[2m]) > 0)`` of one pod's counters."""
        pages = [page for _, page in self._pods[pod] if above in page]
        if len(pages) < 2 or pages[-1][below] <= pages[0][below]:
            return None
        return (pages[-1][above] - pages[0][above]) / (pages[-1][below] - pages[0][below])


def replicas_wanted(scrapes: Scrapes, floor: float) -> float | None:
    """What deploy/autoscaling/rules.yaml records, of one rank a pod and no silent engine: a test compares."""
    there = sorted(scrapes.now("headroom_running_sequences"))
    demand = {pod: scrapes.ratio(f"{DEMAND}_sum", f"{DEMAND}_count", pod) for pod in there}
    room = {pod: scrapes.mean("headroom_sustainable_sequences", pod) for pod in there}
    spike = {pod: scrapes.mean("headroom_spike_multiple", pod) for pod in there}
    demands = [one for one in demand.values() if one is not None]
    rooms = [one for one in room.values() if one is not None]
    candidates = []
    for pod in there:
        if multiple := spike[pod]:
            candidates.append(1 / multiple)
        elif (most := room[pod]) and (now := demand[pod]) is not None:
            candidates.append(now / most)
    filled = [sum(candidates)] if candidates else []
    if demands and sum(rooms) > 0:
        filled.append(sum(demands) / (sum(rooms) / len(rooms)))
    elif rooms and sum(rooms) == 0:
        filled.append(float(len(there)))
    elif demands and sum(demands) == 0:
        filled.append(0.0)
    return max(filled) / (1 - floor) if filled else None


# --- the loop ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a trigger may look at: scrapes, and the cards' busy share since the last look, by pod."""

    scrapes: Scrapes
    busy: Mapping[str, float]


@dataclass(slots=True)
class Played:
    """
    One run.

    Attributes:
        replicas: (seconds, the scale's replicas) at every sync.
        metrics: (seconds, what the trigger saw) likewise.
        replica_seconds: Of all pods, from being asked for to being gone.
    """

    replicas: list[tuple[float, int]] = field(default_factory=list)
    metrics: list[tuple[float, float | None]] = field(default_factory=list)
    replica_seconds: float = 0.0

    @property
    def changes(self) -> int:
        """How often the scale changed."""
        return sum(before != after for (_, before), (_, after) in pairwise(self.replicas))

    @property
    def turns(self) -> int:
        """How often the scale's direction changed."""
        sizes = [size for _, size in self.replicas]
        steps = [after - before for before, after in pairwise(sizes) if after != before]
        return sum((one > 0) != (next_one > 0) for one, next_one in pairwise(steps))


def play(
    fleet: Fleet,
    scaler: Autoscaler,
    trigger: Callable[[Look], float | None],
    scrapes: Scrapes,
    plan: PlanConfig,
    *,
    seconds: float,
    first: int,
) -> Played:
    """Run a fleet under its traffic and an autoscaler."""
    played = Played()
    fleet.scale(0.0, first)
    fleet.serve_at_once()
    due = 0.0
    for moment in replay(
        fleet.replicas(), seconds, plan_of=lambda _engine, _model: plan, epoch=EPOCH
    ):
        if moment.at < due:
            continue
        due += SCRAPE_SECONDS
        scrapes.scrape(moment.at, moment.state, fleet.pods)
        look = Look(scrapes=scrapes, busy=_busy(fleet))
        metric = trigger(look)
        counted = fleet.counted
        ready = sum(pod.serves for pod in counted)
        size = scaler.sync(moment.at, metric, len(counted), ready)
        fleet.scale(moment.at, size)
        played.metrics.append((moment.at, metric))
        played.replicas.append((moment.at, size))
        played.replica_seconds += SCRAPE_SECONDS * sum(pod.there for pod in fleet.pods)
    return played


def _busy(fleet: Fleet) -> dict[str, float]:
    """The share of the last scrape interval that each card computed, as NVML would say."""
    shares = {}
    for pod in fleet.pods:
        if pod.born is None:
            break
        busy = pod.frontend.integrals.busy
        if pod.serves:
            shares[pod.name] = min(1.0, (busy - pod.busy_before) / SCRAPE_SECONDS)
        pod.busy_before = busy
    return shares
