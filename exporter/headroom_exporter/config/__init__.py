"""
The configuration's records: frozen dataclasses with the defaults, and which plan holds for whom.

Light, because everyone imports it: how a file becomes these records stands in file.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """
    One inference server to poll.

    Attributes:
        name: The ``engine`` label, unique; host:port of the URL when the file gives none.
        url: Base address without a trailing slash; paths such as /metrics are added to it.
        kind: ``auto`` or the name of one of engines.ENGINES.
        bearer_token_file: File whose content is sent as a bearer token; read again at every poll.
        ca_file: PEM bundle that signs the server's certificate.
        insecure_skip_verify: Accept any certificate.
    """

    name: str
    url: str = "http://127.0.0.1:8000"
    kind: str = "auto"
    bearer_token_file: str | None = None
    ca_file: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PollConfig:
    """
    How engines are polled. All in seconds.

    A file that sets only ``interval`` raises the other rhythms' defaults to it where they are
    shorter: none of them may be faster than ``interval``.

    Attributes:
        interval: Fast rhythm: the gauges and counters that move; 0.1 to 60.
        fallback_interval: Fast rhythm where only the full page can be had (at least 2 advised).
        full_interval: Slow rhythm: histograms, facts about the engine.
        timeout: Deadline of one request.
        max_backoff: Longest pause after repeated failure.
    """

    interval: float = 1.0
    fallback_interval: float = 2.0
    full_interval: float = 10.0
    timeout: float = 5.0
    max_backoff: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuConfig:
    """
    Which GPUs are read.

    Attributes:
        enabled: Off: NVML is not even loaded.
        devices: Indices or UUIDs; empty for all that are visible.
        interval: Seconds between reads; 0.1 to 5, so that no reading grows too old to be shown.
        timeout: Seconds after which a read counts as hung and ``headroom_gpu_up`` becomes 0.
    """

    enabled: bool = True
    devices: tuple[str, ...] = ()
    interval: float = 1.0
    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """``reload``: accept POST /-/reload."""

    reload: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Planned lengths in tokens."""

    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """
    The declared numbers a GPU was chosen for. None: not declared, so not compared.

    Attributes:
        name: For messages and ``headroom_plan_info``; the matched model, else plan-<index>, when
            the file gives none.
        match_engine: Engine names it holds for (shell-style pattern); None for all.
        match_model_name: Model names it holds for (shell-style pattern); None for all.
        concurrency: Sequences at once the team sized and tested for.
        max_num_seqs: The engine's own limit.
        request_rate: Requests per second.
        ttft_p95_seconds: Time to first token, 95th percentile.
        tpot_p95_seconds: Time per output token, 95th percentile.
        kv_cache_tokens: KV pool the plan counts on, in tokens.
        floor_ratio: Headroom below which the state is ``low``.
        spike_factor: Multiple of today's demand that must still fit.
        overrun_probability: Accepted probability that the sequences of a full house overrun the pool.
    """

    name: str = "default"
    match_engine: str | None = None
    match_model_name: str | None = None
    concurrency: float | None = None
    max_num_seqs: float | None = None
    prompt_tokens: Lengths = field(default_factory=Lengths)
    output_tokens: Lengths = field(default_factory=Lengths)
    request_rate: float | None = None
    ttft_p95_seconds: float | None = None
    tpot_p95_seconds: float | None = None
    kv_cache_tokens: float | None = None
    floor_ratio: float = 0.2
    spike_factor: float = 2.0
    overrun_probability: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """
    Which pods of this node are inference servers.

    Attributes:
        node: The node's name; None takes the environment variable NODE_NAME.
        namespaces: Watched one by one; empty: all that the node runs, in one watch.
        label_selector: Given to the API server as it is; with one, each pod it finds is an engine, but those
            that have a sidecar.
        port_names: Names of a container port that make a pod an engine without an annotation.
    """

    node: str | None = None
    namespaces: tuple[str, ...] = ()
    label_selector: str = ""
    port_names: tuple[str, ...] = ("vllm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletConfig:
    """``socket``: of the kubelet's pod-resources service, which says whose a GPU is."""

    enabled: bool = True
    socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """Node mode: engines come from the pods of a Kubernetes node."""

    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    kubelet: KubeletConfig = field(default_factory=KubeletConfig)


def default_engines() -> tuple[EngineConfig, ...]:
    """A vLLM on localhost:8000."""
    return (EngineConfig(name="127.0.0.1:8000"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """
    The whole configuration; with no file, these defaults.

    With ``discovery`` (node mode) and no ``engines``, a file has no engine of its own.
    """

    engines: tuple[EngineConfig, ...] = field(default_factory=default_engines)
    discovery: DiscoveryConfig | None = None
    plans: tuple[PlanConfig, ...] = ()
    poll: PollConfig = field(default_factory=PollConfig)
    gpus: GpuConfig = field(default_factory=GpuConfig)
    web: WebConfig = field(default_factory=WebConfig)


# --- which plan holds ----------------------------------------------------------------------------


def plan_for(plans: Iterable[PlanConfig], engine: str, model_name: str) -> PlanConfig | None:
    """
    The most specific plan that matches an engine and the model it serves, or None.

    More keys matched by their very name win (case counts); then more keys matched at all, so both
    beat one and one beats none; then the model beats the engine; then the first in the file.
    """
    best: PlanConfig | None = None
    best_rank: tuple[int, int, int, int] | None = None
    for plan in plans:
        by_engine = _match(plan.match_engine, engine)
        by_model = _match(plan.match_model_name, model_name)
        if by_engine is None or by_model is None:
            continue
        exact = (by_engine == _EXACT) + (by_model == _EXACT)
        keys = (by_engine != _ANY) + (by_model != _ANY)
        rank = (exact, keys, int(by_model == _EXACT), int(by_model != _ANY))
        if best_rank is None or rank > best_rank:
            best, best_rank = plan, rank
    return best


_ANY, _PATTERN, _EXACT = range(3)


def _match(pattern: str | None, name: str) -> int | None:
    """How closely a pattern names this name; None where it does not."""
    if pattern is None:
        return _ANY
    # Equality first: a name that itself holds * ? or [ can then still be matched by its name.
    if pattern == name:
        return _EXACT
    return _PATTERN if fnmatchcase(name, pattern) else None
