"""
Which pods are inference servers, and where: one pod of the API in, targets out. Pure.

A pod is written by whoever may write to a namespace: what its annotations can do is choose a port and a
scheme of the pod's own address, an engine kind, and numbers of a plan. Nothing in them can name a host, a
path, a file or a header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, TypeGuard

from headroom_exporter.config import EngineConfig, PlanConfig
from headroom_exporter.errors import ConfigError
from headroom_exporter.samples import PodIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headroom_exporter.config import KubernetesConfig

PREFIX = "headroom-exporter/"
SCRAPE, PORT, SCHEME, KIND, PLAN = (
    PREFIX + key for key in ("scrape", "port", "scheme", "kind", "plan")
)
# The label and the container of pods that carry an exporter of their own. Both, since not every controller
# hands a workload's labels on to its pods (KServe).
SIDECAR, CONTAINER = PREFIX + "sidecar", "headroom-exporter"
# Where a pod is to be watched and names no port.
DEFAULT_PORT = 8000
SCHEMES = ("http", "https")
# A plan of every key is 400 bytes; Kubernetes allows 256 KiB of annotations.
MAX_PLAN_CHARACTERS = 8192
MAX_SHORT_CHARACTERS = 128
# Data-parallel servers of one pod: one port for each GPU of the largest node, twice.
MAX_PORTS = 16
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    One engine to poll.

    Attributes:
        config: Its name and address.
        pod: Where it runs; None for an engine of the configuration file.
        plan: The pod's own plan, which goes before those of the file.
    """

    config: EngineConfig
    pod: PodIdentity | None = None
    plan: PlanConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Something in a pod that cannot be used; ``kind`` is the error counter's label."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReading:
    """
    What one pod means for us.

    Attributes:
        targets: Engines to poll now, one for each port.
        complaints: What is wrong with it.
        finished: It runs no more, whatever the kubelet still lists of it.
    """

    targets: tuple[Target, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    finished: bool = False


# Most pods of a node are neither ours nor finished: they share one record.
NOT_OURS = PodReading()
FINISHED = PodReading(finished=True)


def identity(pod: Mapping[str, Any]) -> PodIdentity | None:
    """Namespace, name and uid; None where they are none that Kubernetes would allow."""
    metadata = _mapping(pod.get("metadata"))
    namespace, name, uid = (metadata.get(key) for key in ("namespace", "name", "uid"))
    named = all(isinstance(text, str) and _NAME.fullmatch(text) for text in (namespace, name))
    if not named or not isinstance(uid, str) or not 1 <= len(uid) <= 64 or not uid.isprintable():
        return None
    return PodIdentity(namespace=str(namespace), name=str(name), uid=uid)


def read_pod(pod: Mapping[str, Any], who: PodIdentity, rules: KubernetesConfig) -> PodReading:
    """
    Decide whether a pod is an engine, and where.

    A pod counts while it is Running with an address; also while it is being deleted, until the API
    server says that it is gone: a terminating engine still serves.

    Args:
        pod: As the API has it, or only the fields of ``kubernetes.KEPT``.
        who: Its identity.
        rules: What makes a pod an engine.
    """
    status = _mapping(pod.get("status"))
    phase = status.get("phase")
    if phase in ("Succeeded", "Failed"):
        return FINISHED
    metadata = _mapping(pod.get("metadata"))
    wanted = _Wanted(who, _mapping(metadata.get("annotations")))
    asked = wanted.scrape()
    spec = _mapping(pod.get("spec"))
    if asked is None and _has_sidecar(metadata, spec):
        # Watched here as well, it would be counted twice.
        asked = False
    ports = list(_container_ports(spec))
    named = [port for name, port in ports if name in rules.port_names]
    if asked is None:
        asked = bool(rules.label_selector) or bool(named)
    if not asked:
        return _with(wanted, ())
    if phase != "Running" or not status.get("podIP"):
        return _with(wanted, ())
    host = wanted.host(status["podIP"])
    numbers = wanted.ports(ports, named)
    scheme = wanted.scheme()
    if host is None or scheme is None or not numbers:
        return _with(wanted, ())
    kind, plan = wanted.kind(), wanted.plan()
    names = engine_names(who, numbers)
    targets = tuple(
        Target(
            config=EngineConfig(
                name=name,
                url=f"{scheme}://{host}:{number}",
                kind=kind,
                # No certificate is made out to a pod's address, and nothing secret is ever sent.
                insecure_skip_verify=scheme == "https",
            ),
            pod=who,
            plan=plan,
        )
        for name, number in zip(names, numbers, strict=True)
    )
    return _with(wanted, targets)


def engine_names(who: PodIdentity, ports: list[int]) -> list[str]:
    """``namespace/pod``, with ``:port`` where there are several."""
    base = f"{who.namespace}/{who.name}"
    return [base] if len(ports) == 1 else [f"{base}:{port}" for port in ports]


def _with(wanted: _Wanted, targets: tuple[Target, ...]) -> PodReading:
    if not targets and not wanted.complaints:
        return NOT_OURS
    return PodReading(targets=targets, complaints=tuple(wanted.complaints))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _has_sidecar(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    labelled = _mapping(metadata.get("labels")).get(SIDECAR) == "true"
    return labelled or any(each.get("name") == CONTAINER for each in _containers(spec))


def _containers(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The containers that stay, native sidecars among them (init containers that stay)."""
    for key in ("containers", "initContainers"):
        listed = spec.get(key)
        for container in listed if isinstance(listed, list) else ():
            described = _mapping(container)
            if key == "containers" or described.get("restartPolicy") == "Always":
                yield described


def _container_ports(spec: Mapping[str, Any]) -> Iterator[tuple[str | None, int]]:
    """Name and number of each TCP port."""
    for container in _containers(spec):
        ports = container.get("ports")
        for port in ports if isinstance(ports, list) else ():
            name, number = _mapping(port).get("name"), _mapping(port).get("containerPort")
            if _is_port(number) and _mapping(port).get("protocol", "TCP") == "TCP":
                yield (name if isinstance(name, str) else None), number


def _is_port(number: Any) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 65536


def _address(text: Any) -> IPv4Address | IPv6Address | None:
    """An address that a pod can have; None for what is none."""
    try:
        ip = ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and (ip.ipv4_mapped is not None or ip.scope_id is not None):
        return None
    # Link-local is where clouds keep their credentials. Loopback is a node's own address only in
    # clusters of one machine, but there it is.
    if ip is None or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return None
    return ip


class _Wanted:
    """Reads one pod's annotations; keeps what is wrong with them."""

    def __init__(self, who: PodIdentity, annotations: Mapping[str, Any]) -> None:
        self._where = f"pod {who.namespace}/{who.name}"
        self._annotations = annotations
        self.complaints: list[Complaint] = []

    def _complain(self, key: str, value: object, allowed: str) -> None:
        shown = value if not isinstance(value, str) or len(value) <= 60 else value[:57] + "..."
        text = f"{self._where}: annotation {key}: {shown!r}: {allowed}"
        self.complaints.append(Complaint(kind="annotation", text=text))

    def _short(self, key: str) -> str | None:
        """An annotation of one short line; None where there is none, or it is another."""
        value = self._annotations.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > MAX_SHORT_CHARACTERS:
            self._complain(key, value, f"must be text of at most {MAX_SHORT_CHARACTERS} characters")
            return None
        return value.strip()

    def scrape(self) -> bool | None:
        """Whether the pod asks to be watched; None where it does not say."""
        value = self._short(SCRAPE)
        if value in (None, "true", "false"):
            return None if value is None else value == "true"
        self._complain(SCRAPE, value, 'must be "true" or "false"')
        return None

    def host(self, address: Any) -> str | None:
        """The pod's own address as a URL has it; None where nobody should be asked."""
        ip = _address(address)
        if ip is None:
            text = f"{self._where}: status.podIP: {str(address)[:60]!r}: not an address of a pod"
            self.complaints.append(Complaint(kind="address", text=text))
            return None
        return f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)

    def scheme(self) -> str | None:
        """The scheme, http where none is said; None where it is not one of SCHEMES."""
        if SCHEME not in self._annotations:
            return "http"
        value = self._short(SCHEME)
        if value is not None and value not in SCHEMES:
            self._complain(SCHEME, value, f"must be one of {', '.join(SCHEMES)}")
            return None
        return value

    def ports(self, ports: list[tuple[str | None, int]], named: list[int]) -> list[int]:
        """Ports to ask: the annotation's, else those of a known name, else the only one, else 8000."""
        if PORT in self._annotations:
            return self._annotated_ports(ports)
        numbers = list(dict.fromkeys(named))
        if not numbers:
            declared = list(dict.fromkeys(number for _, number in ports))
            numbers = declared if len(declared) == 1 else [DEFAULT_PORT]
        if len(numbers) > MAX_PORTS:
            text = (
                f"{self._where}: has {len(numbers)} engine ports: at most {MAX_PORTS} are watched"
            )
            self.complaints.append(Complaint(kind="too_many", text=text))
        return numbers[:MAX_PORTS]

    def _annotated_ports(self, ports: list[tuple[str | None, int]]) -> list[int]:
        value = self._short(PORT)
        if value is None:
            return []
        by_name = {name: number for name, number in ports if name is not None}
        numbers = []
        for word in (part.strip() for part in value.split(",")):
            number = int(word) if re.fullmatch(r"[0-9]{1,5}", word) else by_name.get(word)
            if number is None or not _is_port(number):
                allowed = (
                    "must be port numbers or names of this pod's TCP ports, with commas between"
                )
                self._complain(PORT, value, allowed)
                return []
            numbers.append(number)
        if len(numbers) > MAX_PORTS:
            self._complain(PORT, value, f"must be at most {MAX_PORTS} ports")
            return []
        return list(dict.fromkeys(numbers))

    def kind(self) -> str:
        """The engine's kind; ``auto`` where it is not said or not known."""
        # Beside the engines, not at the top: whoever runs no node mode need not load the checks.
        from headroom_exporter.config.checks import KINDS  # noqa: PLC0415

        value = self._short(KIND)
        if value is None or value in KINDS:
            return value or "auto"
        self._complain(KIND, value, f"must be one of {', '.join(KINDS)}")
        return "auto"

    def plan(self) -> PlanConfig | None:
        """The pod's own plan; None where it has none, or a wrong one."""
        text = self._annotations.get(PLAN)
        if text is None:
            return None
        source = f"{self._where}: annotation {PLAN}"
        if not isinstance(text, str) or len(text) > MAX_PLAN_CHARACTERS:
            said = f"{source}: must be text of at most {MAX_PLAN_CHARACTERS} characters"
            self.complaints.append(Complaint(kind="plan", text=said))
            return None
        plan, said = _plan(text)
        if plan is None:
            text = "\n".join(f"{source}: {line}" for line in said.splitlines())
            self.complaints.append(Complaint(kind="plan", text=text))
        return plan


@lru_cache(maxsize=32)
def _plan(text: str) -> tuple[PlanConfig | None, str]:
    """The plan, or what is wrong with it; remembered, since a pod's status changes more often."""
    from headroom_exporter.config.file import parse_plan  # noqa: PLC0415

    try:
        plan = parse_plan(text, "")
    except ConfigError as error:
        return None, "\n".join(line.removeprefix(": ") for line in str(error).splitlines())
    return plan, ""
