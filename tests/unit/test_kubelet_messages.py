"""The kubelet's messages on the wire, against bytes made by hand (protobuf.dev, encoding)."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import kubelet_messages as wire
from runtime import kubelet_pods as pods
from runtime.protobuf import ABSENT, DecodeError, Message, message

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """A base 128 varint; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: int | bytes | str) -> bytes:
    if isinstance(content, int):
        return varint(number << 3 | VARINT) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | BYTES) + varint(len(data)) + data


UNKNOWN_FIELDS = (
    field(150, 7)
    + field(151, "of a newer kubelet")
    + varint(152 << 3 | FIXED64)
    + bytes(8)
    + varint(153 << 3 | FIXED32)
    + bytes(4)
)


def test_a_registration_has_the_bytes_that_the_kubelet_expects() -> None:
    request = wire.RegisterRequest(
        version="v1beta1",
        endpoint="nvidia-gpu.sock",
        resource_name="nvidia.com/gpu",
        options=wire.DevicePluginOptions(get_preferred_allocation_available=True),
    )
    by_hand = (
        field(1, "v1beta1") + field(2, "nvidia-gpu.sock") + field(3, "nvidia.com/gpu") + field(4, field(2, 1))
    )
    assert request.SerializeToString() == by_hand
    assert wire.RegisterRequest.FromString(by_hand) == request


def test_devices_carry_their_health_and_numa_nodes() -> None:
    by_hand = field(1, field(1, "GPU-a") + field(2, "Unhealthy") + field(3, field(1, field(1, 3)))) + field(
        1, field(1, "GPU-b") + field(2, "Healthy")
    )
    devices = wire.ListAndWatchResponse.FromString(by_hand).devices
    assert [(device.id, device.health, device.HasField("topology")) for device in devices] == [
        ("GPU-a", wire.UNHEALTHY, True),
        ("GPU-b", wire.HEALTHY, False),
    ]
    assert [node.id for node in devices[0].topology.nodes] == [3]
    assert list(devices[1].topology.nodes) == []


def test_an_allocation_sets_variables_mounts_and_devices() -> None:
    answer = wire.AllocateResponse(
        container_responses=[
            wire.ContainerAllocateResponse(
                envs={"NVIDIA_VISIBLE_DEVICES": "GPU-a"},
                mounts=[wire.Mount(container_path="/c", host_path="/h", read_only=True)],
                devices=[wire.DeviceSpec(container_path="/dev/n0", host_path="/dev/n0", permissions="rw")],
                cdi_devices=[wire.CdiDevice(name="nvidia.com/gpu=0")],
            )
        ]
    )
    by_hand = field(
        1,
        field(1, field(1, "NVIDIA_VISIBLE_DEVICES") + field(2, "GPU-a"))
        + field(2, field(1, "/c") + field(2, "/h") + field(3, 1))
        + field(3, field(1, "/dev/n0") + field(2, "/dev/n0") + field(3, "rw"))
        + field(5, field(1, "nvidia.com/gpu=0")),
    )
    assert answer.SerializeToString() == by_hand


def test_a_preferred_allocation_is_asked_with_a_size() -> None:
    by_hand = field(1, field(1, "a") + field(1, "b") + field(2, "b") + field(3, 2))
    (asked,) = wire.PreferredAllocationRequest.FromString(by_hand).container_requests
    assert (list(asked.available_device_ids), list(asked.must_include_device_ids), asked.allocation_size) == (
        ["a", "b"],
        ["b"],
        2,
    )


def test_a_list_of_pod_resources_reads_devices_cpus_memory_and_claims() -> None:
    container = (
        field(1, "main")
        + field(2, field(1, "nvidia.com/gpu") + field(2, "GPU-a"))
        + field(3, varint(2) + varint(300))  # numbers come packed
        + field(4, field(1, "hugepages-2Mi") + field(2, 2**40))
        + field(
            5, field(2, "claim") + field(3, "ns") + field(4, field(2, "gpu.nvidia.com") + field(4, "gpu-0"))
        )
    )
    (pod,) = wire.ListPodResourcesResponse.FromString(
        field(1, field(1, "p") + field(2, "ns") + field(3, container))
    ).pod_resources
    (held,) = pod.containers
    assert (pod.namespace, pod.name, held.name) == ("ns", "p", "main")
    assert [(d.resource_name, list(d.device_ids)) for d in held.devices] == [("nvidia.com/gpu", ["GPU-a"])]
    assert list(held.cpu_ids) == [2, 300]
    assert held.memory[0].size == 2**40
    claim = held.dynamic_resources[0]
    assert (claim.claim_name, claim.claim_resources[0].device_name) == ("claim", "gpu-0")


def test_a_pod_event_holds_a_pod_as_bytes() -> None:
    status = field(1, "Running") + field(
        8,
        field(1, "main")
        + field(2, field(2, field(1, field(1, 1_795_502_077))))
        + field(4, 1)
        + field(14, field(1, "nvidia.com/gpu") + field(2, field(1, "GPU-a") + field(2, "Unhealthy"))),
    )
    limits = field(1, field(1, "nvidia.com/gpu") + field(2, field(1, "2")))
    pod = (
        field(1, field(1, "p") + field(3, "ns") + field(5, "uid-1") + field(8, field(1, 1_795_502_076)))
        + field(2, field(2, field(1, "main") + field(8, limits)) + field(10, "n1"))
        + field(3, status)
    )
    event = pods.WatchPodsEvent.FromString(field(1, 2) + field(2, pod))
    assert event.type == pods.EventType.MODIFIED
    seen = pods.Pod.FromString(event.pod)
    assert (seen.metadata.uid, seen.spec.node_name, seen.status.phase) == ("uid-1", "n1", "Running")
    assert seen.spec.containers[0].resources.limits["nvidia.com/gpu"].text == "2"
    (container,) = seen.status.container_statuses
    assert container.state.HasField("running")
    assert not container.state.HasField("waiting")
    assert container.state.running.started_at.seconds == 1_795_502_077
    assert container.allocated_resources_status[0].resources[0].health == "Unhealthy"
    assert not seen.metadata.HasField("deletion_timestamp")


def test_numbers_that_are_negative_keep_their_sign() -> None:
    exited = pods.ContainerStateTerminated.FromString(field(1, -1))
    assert exited.exit_code == -1


@pytest.mark.parametrize("kind", [wire.Device, wire.ListPodResourcesResponse, pods.Pod, wire.Empty])
def test_fields_of_a_newer_kubelet_are_skipped(kind: type[Message]) -> None:
    assert kind.FromString(UNKNOWN_FIELDS).ListFields() == []
    known = wire.Device.FromString(field(1, "GPU-a") + UNKNOWN_FIELDS + field(2, "Healthy"))
    assert (known.id, known.health) == ("GPU-a", "Healthy")


@pytest.mark.parametrize(
    "data",
    [b"\x0a\xff", field(1, b"\xff\xfe"), b"\x0a", b"\x07"],
    ids=["cut", "no text", "no length", "no type"],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.Device.FromString(data)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DEVICES = st.lists(st.tuples(TEXT, st.sampled_from(["Healthy", "Unhealthy"]), st.lists(st.integers(0, 64))))


@given(DEVICES)
def test_any_devices_survive_the_way_there_and_back(devices: list[tuple[str, str, list[int]]]) -> None:
    sent = wire.ListAndWatchResponse(
        devices=[
            wire.Device(
                id=name,
                health=health,
                topology=wire.TopologyInfo(nodes=[wire.NumaNode(id=number) for number in nodes]),
            )
            for name, health, nodes in devices
        ]
    )
    got = wire.ListAndWatchResponse.FromString(sent.SerializeToString())
    assert [(d.id, d.health, [n.id for n in d.topology.nodes]) for d in got.devices] == devices
    by_hand = b"".join(
        field(
            1,
            (field(1, name) if name else b"")
            + field(2, health)
            + field(3, b"".join(field(1, field(1, number) if number else b"") for number in nodes)),
        )
        for name, health, nodes in devices
    )
    assert sent.SerializeToString() == by_hand


@given(st.dictionaries(TEXT, TEXT, max_size=5), st.integers(-(2**63), 2**63 - 1))
def test_any_map_and_number_survive(labels: dict[str, str], number: int) -> None:
    sent = pods.ObjectMeta(labels=labels, deletion_grace_period_seconds=number)
    got = pods.ObjectMeta.FromString(sent.SerializeToString())
    assert dict(got.labels) == labels
    assert got.deletion_grace_period_seconds == number


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pod_or_are_refused(data: bytes) -> None:
    try:
        pod = pods.Pod.FromString(data)
    except DecodeError:
        return
    assert pods.Pod.FromString(pod.SerializeToString()) == pod


def test_a_declaration_without_a_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Bad.name: expected Annotated\[TYPE, NUMBER\]"):

        @message
        class Bad(Message):
            name: str = ""


def test_a_declaration_of_a_type_that_is_not_supported_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ratio: .* is none of str, bytes, bool, int"):

        @message
        class Bad(Message):
            ratio: Annotated[float, 1] = 0.0


def test_a_map_may_hold_messages() -> None:
    @message
    class Book(Message):
        pages: Annotated[Mapping[str, wire.Mount], 3] = ABSENT
        lines: Annotated[Sequence[bytes], 4] = ()

    sent = Book(pages={"a": wire.Mount(host_path="/h")}, lines=[b"\x00\xff"])
    assert sent.SerializeToString() == field(3, field(1, "a") + field(2, field(2, "/h"))) + field(
        4, b"\x00\xff"
    )
