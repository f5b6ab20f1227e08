"""What the kubelet's answer says, and which GPU that is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.fake_kubelet import answer, claiming, holding, messages
from headroom_exporter.discovery.pod_resources import allocations, gpu_pods
from headroom_exporter.errors import Malformed
from headroom_exporter.samples import GpuSample

UUIDS = [f"GPU-{digit * 8}-1111-2222-3333-444444444444" for digit in "abcd"]
MIG = "MIG-0a0b0c0d-1111-2222-3333-444444444444"
GPUS = tuple(GpuSample(index=str(index), uuid=uuid) for index, uuid in enumerate(UUIDS))
MINORS = dict(enumerate(UUIDS))


def owners(*pods: dict, gpus=GPUS, minors=MINORS) -> list[tuple[str | None, str, str]]:
    found, _ = gpu_pods(allocations(answer(*pods)), gpus, minors)
    assert all((each.namespace, each.container) == ("chat", "vllm") for each in found)
    return [(each.gpu, each.uuid, each.pod) for each in found]


def unmapped(*pods: dict, gpus=GPUS, minors=MINORS) -> set[str]:
    return set(gpu_pods(allocations(answer(*pods)), gpus, minors)[1])


# --- device plugins ------------------------------------------------------------------------------


def test_whole_gpus_are_named_by_uuid():
    assert owners(holding("a", UUIDS[0], UUIDS[2]), holding("b", UUIDS[1])) == [
        ("0", UUIDS[0], "a"),
        ("2", UUIDS[2], "a"),
        ("1", UUIDS[1], "b"),
    ]


def test_a_gpu_that_nvml_does_not_show_has_no_index():
    assert owners(holding("a", UUIDS[0]), gpus=()) == [(None, UUIDS[0], "a")]


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/a100"])
def test_replicas_of_a_shared_gpu_are_that_gpu(resource):
    first = holding("a", f"{UUIDS[0]}::0", f"{UUIDS[0]}::3", resource=resource)
    assert owners(first, holding("b", f"{UUIDS[0]}::1", resource=resource)) == [
        ("0", UUIDS[0], "a"),
        ("0", UUIDS[0], "b"),
    ]


@pytest.mark.parametrize("resource", ["nvidia.com/mig-1g.10gb", "nvidia.com/gpu"])
@pytest.mark.parametrize("uuid", [MIG, f"MIG-{UUIDS[0]}/1/0"])
def test_mig_instances_are_named_by_their_own_uuid(resource, uuid):
    gpus = (*GPUS, GpuSample(index="0:3", uuid=uuid, mig=True))
    assert owners(holding("a", uuid, resource=resource), gpus=gpus) == [("0:3", uuid, "a")]
    assert owners(holding("a", f"{uuid}::2", resource=resource), gpus=gpus) == [("0:3", uuid, "a")]


def test_a_device_node_is_a_minor_number():
    pods = [holding("a", "nvidia1"), holding("b", "nvidia2/vgpu0"), holding("c", "nvidia2/vgpu1")]
    assert owners(*pods) == [("1", UUIDS[1], "a"), ("2", UUIDS[2], "b"), ("2", UUIDS[2], "c")]
    assert owners(*pods, minors={}) == []
    assert unmapped(*pods, minors={}) == {
        "chat/a: nvidia1",
        "chat/b: nvidia2/vgpu0",
        "chat/c: nvidia2/vgpu1",
    }


def test_what_is_no_gpu_is_nobodys():
    pods = [
        holding("a", "GPU-1", resource="amd.com/gpu"),
        holding("b", "0000:17:00.0", resource="nvidia.com/hostdev"),
        {"name": "c", "namespace": "chat", "containers": [{"name": "x"}]},
        {"name": "d", "namespace": "chat"},
    ]
    assert owners(*pods) == []
    assert unmapped(*pods) == set()


# --- dynamic resource allocation -----------------------------------------------------------------


def test_a_claimed_gpu_is_told_where_index_and_minor_number_agree():
    assert owners(claiming("a", "gpu-2")) == [("2", UUIDS[2], "a")]


def test_a_claimed_gpu_is_not_told_where_releases_of_the_driver_would_differ():
    """gpu-N is the minor number today and was the NVML index."""
    swapped = {0: UUIDS[1], 1: UUIDS[0], 2: UUIDS[2]}
    assert owners(claiming("a", "gpu-0"), claiming("b", "gpu-2"), minors=swapped) == [
        ("2", UUIDS[2], "b")
    ]
    assert unmapped(claiming("a", "gpu-0"), minors=swapped) == {"chat/a: gpu-0"}
    assert owners(claiming("a", "gpu-0"), minors={}) == []
    assert owners(claiming("a", "gpu-0"), gpus=()) == []


def test_a_uuid_in_the_cdi_name_settles_it():
    assert owners(claiming("a", "gpu-0", f"k8s.gpu.nvidia.com/device={UUIDS[3]}")) == [
        ("3", UUIDS[3], "a")
    ]
    gpus = (GpuSample(index="0:1", uuid=MIG),)
    named = claiming("a", "gpu-0-mig-9-0-4", f"k8s.gpu.nvidia.com/claim=c-1-{MIG}")
    assert owners(named, gpus=gpus) == [("0:1", MIG, "a")]


def test_a_claimed_mig_instance_without_a_uuid_is_not_guessed():
    each = claiming("a", "gpu-0-mig-9-0-4", "k8s.gpu.nvidia.com/claim=c-gpu-0-mig-9-0-4")
    assert owners(each) == []
    assert unmapped(each) == {"chat/a: gpu-0-mig-9-0-4"}


def test_other_drivers_claims_are_not_ours():
    assert unmapped(claiming("a", "gpu-0", driver="gpu.example.com")) == set()


# --- the wire ------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=40)
IDS = st.lists(st.sampled_from([*UUIDS, MIG, f"{UUIDS[0]}::1"]), max_size=4, unique=True)
CONTAINERS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "devices": st.lists(
            st.fixed_dictionaries({"resource_name": st.just("nvidia.com/gpu"), "device_ids": IDS}),
            max_size=3,
        ),
    }
)
PODS = st.fixed_dictionaries(
    {"name": NAMES, "namespace": NAMES, "containers": st.lists(CONTAINERS, max_size=3)}
)


@given(st.lists(PODS, max_size=4))
def test_the_wire_is_read_as_protobuf_writes_it(pods):
    expected = [
        (each["namespace"], each["name"], container["name"], device)
        for each in pods
        for container in each["containers"]
        for group in container["devices"]
        for device in group["device_ids"]
    ]
    found = allocations(answer(*pods))
    assert [(a.namespace, a.pod, a.container, a.device.name) for a in found] == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw):
    with contextlib.suppress(Malformed):
        allocations(raw)


@given(st.binary(max_size=30), st.integers(0, 200))
def test_an_answer_that_was_spoilt_is_read_or_refused(noise, place):
    good = answer(holding("a", UUIDS[0]), claiming("b", "gpu-1", "x=y"))
    with contextlib.suppress(Malformed):
        allocations(good[:place] + noise + good[place + len(noise) :])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x0a\x05a", "longer than its message"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "does not end"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00", "longer than its message"),
        (b"\x0a", "does not end"),
    ],
)
def test_what_is_no_message_is_named(raw, said):
    with pytest.raises(Malformed, match=said):
        allocations(raw)


def test_fields_of_later_versions_are_passed_over():
    """A varint, a fixed32, a fixed64 and a message that we know nothing of."""
    extra = b"\x50\x96\x01" + b"\x5d\x00\x00\x00\x00" + b"\x61" + b"\x00" * 8 + b"\x6a\x02ab"
    (found,) = allocations(extra + answer(holding("a", UUIDS[0])) + extra)
    assert found.pod == "a"


def test_an_answer_of_absurd_size_is_refused():
    many = [holding(f"p{n}", *(f"{UUIDS[0]}::{m}" for m in range(100))) for n in range(50)]
    with pytest.raises(Malformed, match="more than 4096"):
        allocations(answer(*many))


def test_names_that_no_label_should_hold_are_refused():
    for name in ("a\nb", "x" * 301):
        with pytest.raises(Malformed, match="not allow"):
            allocations(answer(holding(name, UUIDS[0])))


def test_the_field_numbers_are_the_kubelets():
    """As published with the kubelet's v1 API; the .proto of the tests must not drift from it."""
    published = {
        "ListPodResourcesResponse": {"pod_resources": 1},
        "PodResources": {"name": 1, "namespace": 2, "containers": 3},
        "ContainerResources": {"name": 1, "devices": 2, "dynamic_resources": 5},
        "ContainerDevices": {"resource_name": 1, "device_ids": 2},
        "DynamicResource": {"claim_name": 2, "claim_namespace": 3, "claim_resources": 4},
        "ClaimResource": {
            "cdi_devices": 1,
            "driver_name": 2,
            "pool_name": 3,
            "device_name": 4,
        },
        "CDIDevice": {"name": 1},
    }
    ours = {
        name: {field.name: field.number for field in made.DESCRIPTOR.fields}
        for name, made in messages().items()
        if made.DESCRIPTOR.fields
    }
    assert ours == published
