"""The table of the configuration file: which key fills which field, and what may stand in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from headroom_exporter.config import (
    Config,
    DiscoveryConfig,
    EngineConfig,
    GpuConfig,
    KubeletConfig,
    KubernetesConfig,
    Lengths,
    PlanConfig,
    PollConfig,
    WebConfig,
)
from headroom_exporter.config import checks as check
from headroom_exporter.config.text import number, seconds

# --- what a row can be ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value. ``attribute`` is the field it fills where that is not the key; ``unit`` is written."""

    check: check.Check
    attribute: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that only the file puts together: they fill fields of the record around them."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Record:
    """
    A mapping that becomes a record of its own.

    ``complete`` sees the values read (which it may add to) and the place in the list, and yields
    (key, value, what is allowed) for whatever cannot stand together.
    """

    make: Callable[..., Any]
    keys: Keys
    complete: Callable[[dict[str, Any], int], Iterator[Complaint]] | None = None


@dataclass(frozen=True, slots=True)
class Each:
    """A list that becomes a tuple."""

    item: Leaf | Record


Keys = Mapping[str, Leaf | Group | Record | Each]
Complaint = tuple[str, Any, str]

# Stands for a value that is not there, or not sound: neither shown nor passed on.
ABSENT: Any = object()


# --- what must stand together --------------------------------------------------------------------


def _complete_engine(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    if "name" not in values:
        parts = urlsplit(values.get("url", EngineConfig(name="").url))
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        values["name"] = f"{host}:{port}"
        if len(values["name"]) > 128:
            yield "name", ABSENT, "must be given: the address is too long to be the name"


def _complete_poll(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    defaults = PollConfig()
    interval = values.get("interval", defaults.interval)
    for key in ("fallback_interval", "full_interval", "max_backoff"):
        if key not in values:
            values[key] = max(getattr(defaults, key), interval)
        elif values[key] < interval:
            yield key, values[key], f"must be at least the interval ({seconds(interval)})"


def _complete_gpus(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    devices = values.get("devices", ())
    for place, device in enumerate(devices):
        if device in devices[:place]:
            yield f"devices[{place}]", device, "must not be listed twice"


def _complete_lengths(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    if "p50" in values and "p95" in values and values["p95"] < values["p50"]:
        yield "p95", values["p95"], f"must be at least p50 ({number(values['p50'])})"


def _complete_plan(values: dict[str, Any], index: int) -> Iterator[Complaint]:
    model = values.get("match_model_name")
    values.setdefault("name", model if model is not None else f"plan-{index}")
    yield from ()


def _complete_pod_plan(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    # One name for all replicas that carry it, so that they can be told together.
    values.setdefault("name", "annotation")
    yield from ()


def _complete_kubernetes(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    for key in ("namespaces", "port_names"):
        listed = values.get(key, ())
        for place, name in enumerate(listed):
            if name in listed[:place]:
                yield f"{key}[{place}]", name, "must not be listed twice"


def _complete_config(values: dict[str, Any], _index: int) -> Iterator[Complaint]:
    if values.get("discovery") is not None:
        # Node mode: nothing is watched on localhost unless it is named.
        values.setdefault("engines", ())
    elif not values.get("engines", True):
        yield "engines", ABSENT, "must not be empty; leave the key out for the default"
    first: dict[str, int] = {}
    for place, engine in enumerate(values.get("engines", ())):
        if first.setdefault(engine.name, place) != place:
            yield (
                f"engines[{place}].name",
                engine.name,
                f"must be unique; it is also the name of engines[{first[engine.name]}]",
            )


# --- the table -----------------------------------------------------------------------------------

_NAME, _PATTERN, _PATH = check.text(128), check.text(256), check.text(4096)
_ABOVE_ZERO = check.number("a number above 0", lambda value: value > 0)
_COUNT = check.number("a whole number from 1", lambda value: value >= 1 and value.is_integer())
_DEADLINE = check.duration(0.001, 600)

LENGTHS = Record(Lengths, {"p50": Leaf(_ABOVE_ZERO), "p95": Leaf(_ABOVE_ZERO)}, _complete_lengths)
ENGINE = Record(
    EngineConfig,
    {
        "name": Leaf(_NAME),
        "url": Leaf(check.url),
        "kind": Leaf(check.kind),
        "bearer_token_file": Leaf(_PATH),
        "tls": Group({"ca_file": Leaf(_PATH), "insecure_skip_verify": Leaf(check.boolean)}),
    },
    _complete_engine,
)
DISCOVERY = Record(
    DiscoveryConfig,
    {
        "kubernetes": Record(
            KubernetesConfig,
            {
                "node": Leaf(check.node),
                "namespaces": Each(Leaf(check.namespace)),
                "label_selector": Leaf(check.label_selector),
                "port_names": Each(Leaf(check.port_name)),
            },
            _complete_kubernetes,
        ),
        "kubelet": Record(
            KubeletConfig, {"enabled": Leaf(check.boolean), "socket": Leaf(check.absolute_path)}
        ),
    },
)
POLL = Record(
    PollConfig,
    {
        "interval": Leaf(check.duration(0.1, 60), unit="s"),
        "fallback_interval": Leaf(check.duration(0.1, 600), unit="s"),
        "full_interval": Leaf(check.duration(0.1, 600), unit="s"),
        "timeout": Leaf(_DEADLINE, unit="s"),
        "max_backoff": Leaf(check.duration(0.1, 3600), unit="s"),
    },
    _complete_poll,
)
GPUS = Record(
    GpuConfig,
    {
        "enabled": Leaf(check.boolean),
        "devices": Each(Leaf(check.device)),
        # At most a third of expose.GPU_STALE_SECONDS: slower, and readings would come and go.
        "interval": Leaf(check.duration(0.1, 5), unit="s"),
        "timeout": Leaf(_DEADLINE, unit="s"),
    },
    _complete_gpus,
)
PLAN = Record(
    PlanConfig,
    {
        "name": Leaf(check.text(256)),
        "match": Group(
            {
                "engine": Leaf(_PATTERN, "match_engine"),
                "model_name": Leaf(_PATTERN, "match_model_name"),
            }
        ),
        "concurrency": Leaf(_ABOVE_ZERO),
        "max_num_seqs": Leaf(_COUNT),
        "prompt_tokens": LENGTHS,
        "output_tokens": LENGTHS,
        "request_rate": Leaf(_ABOVE_ZERO),
        "kv_cache_tokens": Leaf(_COUNT),
        "slo": Group(
            {"ttft_p95_seconds": Leaf(_ABOVE_ZERO), "tpot_p95_seconds": Leaf(_ABOVE_ZERO)}
        ),
        "headroom": Group(
            {
                "floor_ratio": Leaf(
                    check.number("a number from 0 to below 1", lambda v: 0 <= v < 1)
                ),
                "spike_factor": Leaf(check.number("a number from 1", lambda v: v >= 1)),
                "overrun_probability": Leaf(
                    check.number("a number above 0 and below 0.5", lambda v: 0 < v < 0.5)
                ),
            }
        ),
    },
    _complete_plan,
)
# A plan that a pod carries: the pod is what it holds for, so there is nothing to match.
POD_PLAN = Record(
    PlanConfig,
    {key: spec for key, spec in PLAN.keys.items() if key != "match"},
    _complete_pod_plan,
)
CONFIG = Record(
    Config,
    {
        "engines": Each(ENGINE),
        "discovery": DISCOVERY,
        "poll": POLL,
        "gpus": GPUS,
        "web": Record(WebConfig, {"reload": Leaf(check.boolean)}),
        "plans": Each(PLAN),
    },
    _complete_config,
)
