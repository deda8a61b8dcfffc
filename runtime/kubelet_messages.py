"""The messages of device plugins (v1beta1) and of the kubelet's pod resources (v1), both on sockets of a node.

Numbers and types are those of k8s.io/kubelet 0.37.2, pkg/apis/deviceplugin/v1beta1/api.proto and
pkg/apis/podresources/v1/api.proto; both have only ever grown. What two of them have in common is declared once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from runtime.protobuf import ABSENT, Message, message

DEVICE_PLUGIN_VERSION = "v1beta1"
"""What a plugin says in `RegisterRequest.version`."""

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"


@message
class Empty(Message):
    """A request or an answer that says nothing but that it was sent."""


@message
class NumaNode(Message):
    id: Annotated[int, 1] = 0


@message
class TopologyInfo(Message):
    nodes: Annotated[Sequence[NumaNode], 1] = ()


@message
class CdiDevice(Message):
    name: Annotated[str, 1] = ""


# Device plugin: Registration and DevicePlugin


@message
class DevicePluginOptions(Message):
    pre_start_required: Annotated[bool, 1] = False
    get_preferred_allocation_available: Annotated[bool, 2] = False


@message
class RegisterRequest(Message):
    """`endpoint` is the file name of the plugin's socket beside the kubelet's."""

    version: Annotated[str, 1] = ""
    endpoint: Annotated[str, 2] = ""
    resource_name: Annotated[str, 3] = ""
    options: Annotated[DevicePluginOptions, 4] = ABSENT


@message
class Device(Message):
    """`health` is HEALTHY or UNHEALTHY."""

    id: Annotated[str, 1] = ""
    health: Annotated[str, 2] = ""
    topology: Annotated[TopologyInfo, 3] = ABSENT


@message
class ListAndWatchResponse(Message):
    devices: Annotated[Sequence[Device], 1] = ()


@message
class PreStartContainerRequest(Message):
    device_ids: Annotated[Sequence[str], 1] = ()


@message
class ContainerPreferredAllocationRequest(Message):
    available_device_ids: Annotated[Sequence[str], 1] = ()
    must_include_device_ids: Annotated[Sequence[str], 2] = ()
    allocation_size: Annotated[int, 3] = 0


@message
class PreferredAllocationRequest(Message):
    container_requests: Annotated[Sequence[ContainerPreferredAllocationRequest], 1] = ()


@message
class ContainerPreferredAllocationResponse(Message):
    device_ids: Annotated[Sequence[str], 1] = ()


@message
class PreferredAllocationResponse(Message):
    container_responses: Annotated[Sequence[ContainerPreferredAllocationResponse], 1] = ()


@message
class ContainerAllocateRequest(Message):
    device_ids: Annotated[Sequence[str], 1] = ()


@message
class AllocateRequest(Message):
    container_requests: Annotated[Sequence[ContainerAllocateRequest], 1] = ()


@message
class Mount(Message):
    container_path: Annotated[str, 1] = ""
    host_path: Annotated[str, 2] = ""
    read_only: Annotated[bool, 3] = False


@message
class DeviceSpec(Message):
    container_path: Annotated[str, 1] = ""
    host_path: Annotated[str, 2] = ""
    permissions: Annotated[str, 3] = ""


@message
class ContainerAllocateResponse(Message):
    envs: Annotated[Mapping[str, str], 1] = ABSENT
    mounts: Annotated[Sequence[Mount], 2] = ()
    devices: Annotated[Sequence[DeviceSpec], 3] = ()
    annotations: Annotated[Mapping[str, str], 4] = ABSENT
    cdi_devices: Annotated[Sequence[CdiDevice], 5] = ()


@message
class AllocateResponse(Message):
    container_responses: Annotated[Sequence[ContainerAllocateResponse], 1] = ()


# Pod resources: PodResourcesLister


@message
class ContainerDevices(Message):
    """Devices of one resource with the same topology."""

    resource_name: Annotated[str, 1] = ""
    device_ids: Annotated[Sequence[str], 2] = ()
    topology: Annotated[TopologyInfo, 3] = ABSENT


@message
class ContainerMemory(Message):
    """`size` is bytes."""

    memory_type: Annotated[str, 1] = ""
    size: Annotated[int, 2] = 0
    topology: Annotated[TopologyInfo, 3] = ABSENT


@message
class ClaimResource(Message):
    cdi_devices: Annotated[Sequence[CdiDevice], 1] = ()
    driver_name: Annotated[str, 2] = ""
    pool_name: Annotated[str, 3] = ""
    device_name: Annotated[str, 4] = ""
    share_id: Annotated[str, 5] = ""


@message
class DynamicResource(Message):
    claim_name: Annotated[str, 2] = ""
    claim_namespace: Annotated[str, 3] = ""
    claim_resources: Annotated[Sequence[ClaimResource], 4] = ()


@message
class ContainerResources(Message):
    name: Annotated[str, 1] = ""
    devices: Annotated[Sequence[ContainerDevices], 2] = ()
    cpu_ids: Annotated[Sequence[int], 3] = ()
    memory: Annotated[Sequence[ContainerMemory], 4] = ()
    dynamic_resources: Annotated[Sequence[DynamicResource], 5] = ()


@message
class PodResources(Message):
    name: Annotated[str, 1] = ""
    namespace: Annotated[str, 2] = ""
    containers: Annotated[Sequence[ContainerResources], 3] = ()
    cpu_ids: Annotated[Sequence[int], 4] = ()
    memory: Annotated[Sequence[ContainerMemory], 5] = ()


@message
class ListPodResourcesResponse(Message):
    pod_resources: Annotated[Sequence[PodResources], 1] = ()


@message
class AllocatableResourcesResponse(Message):
    """The devices that are healthy, whether a pod holds them or not."""

    devices: Annotated[Sequence[ContainerDevices], 1] = ()
    cpu_ids: Annotated[Sequence[int], 2] = ()
    memory: Annotated[Sequence[ContainerMemory], 3] = ()


@message
class GetPodResourcesRequest(Message):
    pod_name: Annotated[str, 1] = ""
    pod_namespace: Annotated[str, 2] = ""


@message
class GetPodResourcesResponse(Message):
    pod_resources: Annotated[PodResources, 1] = ABSENT
