"""The messages of the kubelet's local Pods API (v1alpha1; beta and on since 1.37) and what we read of a Pod.

Numbers and types are those of k8s.io/kubelet 0.37.2, pkg/apis/pods/v1alpha1/api.proto, and of k8s.io/api 0.37.2,
core/v1/generated.proto. A pod travels as the bytes of a bare `Pod`; its times have whole seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Annotated

from runtime.protobuf import ABSENT, Message, message


class EventType(IntEnum):
    """What a watch event says. After the pods that are there, as ADDED, comes one INITIAL_SYNC_COMPLETE."""

    UNSPECIFIED = 0
    ADDED = 1
    MODIFIED = 2
    DELETED = 3
    INITIAL_SYNC_COMPLETE = 4


@message
class WatchPodsEvent(Message):
    """`type` is an EventType, or a number of a newer kubelet. Of a DELETED pod only name and UID are sure."""

    type: Annotated[int, 1] = 0
    pod: Annotated[bytes, 2] = b""


@message
class ListPodsResponse(Message):
    pods: Annotated[Sequence[bytes], 1] = ()


@message
class GetPodRequest(Message):
    pod_uid: Annotated[str, 1] = ""


@message
class GetPodResponse(Message):
    pod: Annotated[bytes, 1] = b""


# The Pod


@message
class Time(Message):
    """Since 1970 in UTC."""

    seconds: Annotated[int, 1] = 0
    nanos: Annotated[int, 2] = 0


@message
class Quantity(Message):
    """`text` is a Kubernetes quantity such as `8` or `100m`."""

    text: Annotated[str, 1] = ""


@message
class OwnerReference(Message):
    kind: Annotated[str, 1] = ""
    name: Annotated[str, 3] = ""
    uid: Annotated[str, 4] = ""
    api_version: Annotated[str, 5] = ""
    controller: Annotated[bool, 6] = False


@message
class ObjectMeta(Message):
    name: Annotated[str, 1] = ""
    namespace: Annotated[str, 3] = ""
    uid: Annotated[str, 5] = ""
    resource_version: Annotated[str, 6] = ""
    creation_timestamp: Annotated[Time, 8] = ABSENT
    deletion_timestamp: Annotated[Time, 9] = ABSENT
    deletion_grace_period_seconds: Annotated[int, 10] = 0
    labels: Annotated[Mapping[str, str], 11] = ABSENT
    annotations: Annotated[Mapping[str, str], 12] = ABSENT
    owner_references: Annotated[Sequence[OwnerReference], 13] = ()


@message
class ResourceRequirements(Message):
    limits: Annotated[Mapping[str, Quantity], 1] = ABSENT
    requests: Annotated[Mapping[str, Quantity], 2] = ABSENT


@message
class Container(Message):
    name: Annotated[str, 1] = ""
    image: Annotated[str, 2] = ""
    resources: Annotated[ResourceRequirements, 8] = ABSENT


@message
class PodSpec(Message):
    containers: Annotated[Sequence[Container], 2] = ()
    termination_grace_period_seconds: Annotated[int, 4] = 0
    node_name: Annotated[str, 10] = ""
    host_network: Annotated[bool, 11] = False
    scheduler_name: Annotated[str, 19] = ""
    init_containers: Annotated[Sequence[Container], 20] = ()
    priority: Annotated[int, 25] = 0


@message
class PodCondition(Message):
    type: Annotated[str, 1] = ""
    status: Annotated[str, 2] = ""
    last_transition_time: Annotated[Time, 4] = ABSENT
    reason: Annotated[str, 5] = ""
    message: Annotated[str, 6] = ""


@message
class ContainerStateWaiting(Message):
    reason: Annotated[str, 1] = ""
    message: Annotated[str, 2] = ""


@message
class ContainerStateRunning(Message):
    started_at: Annotated[Time, 1] = ABSENT


@message
class ContainerStateTerminated(Message):
    exit_code: Annotated[int, 1] = 0
    signal: Annotated[int, 2] = 0
    reason: Annotated[str, 3] = ""
    message: Annotated[str, 4] = ""
    started_at: Annotated[Time, 5] = ABSENT
    finished_at: Annotated[Time, 6] = ABSENT


@message
class ContainerState(Message):
    waiting: Annotated[ContainerStateWaiting, 1] = ABSENT
    running: Annotated[ContainerStateRunning, 2] = ABSENT
    terminated: Annotated[ContainerStateTerminated, 3] = ABSENT


@message
class ResourceHealth(Message):
    """`health` is Healthy, Unhealthy or Unknown (KEP-4680)."""

    resource_id: Annotated[str, 1] = ""
    health: Annotated[str, 2] = ""
    message: Annotated[str, 6] = ""


@message
class ResourceStatus(Message):
    name: Annotated[str, 1] = ""
    resources: Annotated[Sequence[ResourceHealth], 2] = ()


@message
class ContainerStatus(Message):
    name: Annotated[str, 1] = ""
    state: Annotated[ContainerState, 2] = ABSENT
    ready: Annotated[bool, 4] = False
    restart_count: Annotated[int, 5] = 0
    container_id: Annotated[str, 8] = ""
    started: Annotated[bool, 9] = False
    allocated_resources: Annotated[Mapping[str, Quantity], 10] = ABSENT
    allocated_resources_status: Annotated[Sequence[ResourceStatus], 14] = ()


@message
class PodStatus(Message):
    phase: Annotated[str, 1] = ""
    conditions: Annotated[Sequence[PodCondition], 2] = ()
    message: Annotated[str, 3] = ""
    reason: Annotated[str, 4] = ""
    start_time: Annotated[Time, 7] = ABSENT
    container_statuses: Annotated[Sequence[ContainerStatus], 8] = ()
    qos_class: Annotated[str, 9] = ""
    init_container_statuses: Annotated[Sequence[ContainerStatus], 10] = ()


@message
class Pod(Message):
    metadata: Annotated[ObjectMeta, 1] = ABSENT
    spec: Annotated[PodSpec, 2] = ABSENT
    status: Annotated[PodStatus, 3] = ABSENT
