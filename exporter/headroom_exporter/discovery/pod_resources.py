"""
What the kubelet lends to whom: its List answer in, allocations out, and which GPU each one is. Pure.

The answer is read straight from protobuf's wire format (https://protobuf.dev/programming-guides/encoding/),
with the field numbers of tests/discovery/podresources.proto: half a screen of code in place of a library and
of generated modules that must fit its version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headroom_exporter.errors import Malformed
from headroom_exporter.samples import GpuPod

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from headroom_exporter.samples import GpuSample

RESOURCE_PREFIX = "nvidia.com/"
DRA_DRIVER = "gpu.nvidia.com"
# More containers with GPUs than a node can have; what else such an answer holds is not read.
MAX_ALLOCATIONS = 4096
_MAX_NAME_BYTES = 300
# GPU-…, MIG-… (and MIG-GPU-…/gi/ci of old drivers); ::N is a time-sliced or MPS replica of it.
_UUID = re.compile(r"((?:GPU|MIG)-[0-9A-Za-z/-]{1,120})(?:::[0-9]+)?")
# Of GKE's plugin: the device node, so the minor number; /vgpuN is a share of it.
_NODE = re.compile(r"nvidia([0-9]{1,4})(?:/vgpu[0-9]+)?")
_DRA_NAME = re.compile(r"gpu-([0-9]{1,4})")
# A UUID in a CDI device's name, as in nvidia.com/gpu=GPU-….
_IN_CDI_NAME = re.compile(r"[=-]((?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """
    A GPU or a part of one, as the kubelet calls it.

    At most one of the three says which it is: ``uuid``; ``minor``, the N of /dev/nvidiaN; ``dra``, the N of
    the DRA driver's gpu-N. Without any it cannot be told.
    """

    name: str
    uuid: str | None = None
    minor: int | None = None
    dra: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One device that one container was given."""

    namespace: str
    pod: str
    container: str
    device: Device


def allocations(answer: bytes) -> tuple[Allocation, ...]:
    """
    Every GPU in the answer to List.

    Raises:
        Malformed: It is no such message.
    """
    found: list[Allocation] = []
    for number, pod in _fields(answer):
        if number == 1:
            found += _of_pod(pod)
        if len(found) > MAX_ALLOCATIONS:
            raise Malformed(f"more than {MAX_ALLOCATIONS} GPUs are allocated", kind="malformed")
    return tuple(found)


def _of_pod(pod: bytes) -> Iterator[Allocation]:
    parts = _collect(pod)
    namespace, name = _text(parts, 2), _text(parts, 1)
    for container in parts.get(3, ()):
        inside = _collect(container)
        for device in (*_of_plugin(inside), *_of_claims(inside)):
            yield Allocation(
                namespace=namespace, pod=name, container=_text(inside, 1), device=device
            )


def _of_plugin(container: Mapping[int, list[bytes]]) -> Iterator[Device]:
    """Devices of a device plugin: nvidia.com/gpu, gpu.shared, mig-1g.10gb, or renamed ones."""
    for group in container.get(2, ()):
        parts = _collect(group)
        if not _text(parts, 1).startswith(RESOURCE_PREFIX):
            continue
        for raw in parts.get(2, ()):
            device = _decoded(raw)
            if uuid := _UUID.fullmatch(device):
                yield Device(name=device, uuid=uuid[1])
            elif node := _NODE.fullmatch(device):
                yield Device(name=device, minor=int(node[1]))
            elif device.startswith("nvidia"):
                yield Device(name=device)


def _of_claims(container: Mapping[int, list[bytes]]) -> Iterator[Device]:
    """Devices of claims (dynamic resource allocation)."""
    for claim in container.get(5, ()):
        for resource in _collect(claim).get(4, ()):
            parts = _collect(resource)
            if _text(parts, 2) != DRA_DRIVER:
                continue
            device = _text(parts, 4)
            named = [_IN_CDI_NAME.search(_text(_collect(cdi), 1)) for cdi in parts.get(1, ())]
            uuids = {match[1] for match in named if match is not None}
            if len(uuids) == 1:
                yield Device(name=device, uuid=uuids.pop())
            elif plain := _DRA_NAME.fullmatch(device):
                yield Device(name=device, dra=int(plain[1]))
            else:
                yield Device(name=device)


# --- the wire ------------------------------------------------------------------------------------


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and contents of what has a length: text, bytes, messages. Other fields are skipped."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 2:
            length, at = _varint(message, at)
            if length > end - at:
                raise Malformed("a field is longer than its message", kind="malformed")
            yield key >> 3, message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise Malformed(f"wire type {wire}", kind="malformed")
    if at > end:
        raise Malformed("a field is longer than its message", kind="malformed")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("a number does not end", kind="malformed")


def _collect(message: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for number, value in _fields(message):
        found.setdefault(number, []).append(value)
    return found


def _text(parts: Mapping[int, list[bytes]], number: int) -> str:
    """A field of text; empty where it is not there, which is what its absence means. The last one holds."""
    values = parts.get(number)
    return _decoded(values[-1]) if values else ""


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Malformed("a name is not UTF-8", kind="malformed") from exc
    if len(raw) > _MAX_NAME_BYTES or not text.isprintable():
        raise Malformed("a name that Kubernetes would not allow", kind="malformed")
    return text


# --- which GPU -----------------------------------------------------------------------------------


def gpu_pods(
    lent: Iterable[Allocation], gpus: Iterable[GpuSample], minors: Mapping[int, str]
) -> tuple[tuple[GpuPod, ...], frozenset[str]]:
    """
    Whose each GPU is, and the devices that no GPU could be found for.

    Args:
        lent: What the kubelet says.
        gpus: What NVML shows; may be none.
        minors: Minor number to UUID, as the driver has it.
    """
    indices = {gpu.uuid: gpu.index for gpu in gpus}
    found: dict[GpuPod, None] = {}
    unmapped = set()
    for each in lent:
        uuid = _uuid(each.device, indices, minors)
        if uuid is None:
            unmapped.add(f"{each.namespace}/{each.pod}: {each.device.name}")
            continue
        # A dict, because a container may hold two shares of one GPU.
        found[
            GpuPod(
                gpu=indices.get(uuid),
                uuid=uuid,
                namespace=each.namespace,
                pod=each.pod,
                container=each.container,
            )
        ] = None
    return tuple(found), frozenset(unmapped)


def _uuid(device: Device, indices: Mapping[str, str], minors: Mapping[int, str]) -> str | None:
    if device.minor is not None:
        return minors.get(device.minor)
    if device.dra is None:
        return device.uuid
    # The driver's older releases count by NVML index, the newer ones by minor number: it is certain only
    # where both say the same (https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu/issues/563).
    uuid = minors.get(device.dra)
    return uuid if uuid is not None and indices.get(uuid) == str(device.dra) else None
