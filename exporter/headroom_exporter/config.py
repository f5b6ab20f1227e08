"""Configuration: frozen dataclasses hold the defaults; YAML comes in, an unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """
    One inference server to poll.

    Attributes:
        name: The ``engine`` label; host:port of the URL when not given.
        url: Base address, scheme and host; paths such as /metrics are added to it.
        kind: ``auto`` or the name of an engine.
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
        interval: Seconds between reads.
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
        name: For messages and ``headroom_plan_info``.
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


def default_engines() -> tuple[EngineConfig, ...]:
    """A vLLM on localhost:8000."""
    return (EngineConfig(name="127.0.0.1:8000"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration; with no file, these defaults."""

    engines: tuple[EngineConfig, ...] = field(default_factory=default_engines)
    plans: tuple[PlanConfig, ...] = ()
    poll: PollConfig = field(default_factory=PollConfig)
    gpus: GpuConfig = field(default_factory=GpuConfig)
    web: WebConfig = field(default_factory=WebConfig)
