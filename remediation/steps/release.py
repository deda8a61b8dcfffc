"""Gets everybody off a node's devices before they are reset, and gives back afterwards what was taken.

Open handles on a device make its reset fail (NVIDIA: `nvidia-smi --gpu-reset` refuses a GPU in use). They are the
agent's own, which it lets go of when the report's `spec.deviceRelease` says so, and those of the GPU operands, whose
pods leave the node when their label of it changes. What was changed is in the session's status before it is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec
from msgspec.structs import replace

from health.report import AcceleratorReport, DeviceRelease
from health.vocabulary import DeviceAccess
from remediation.cluster import FencedError
from remediation.fleet import Node
from remediation.orders import ReleaseOrder
from remediation.pod import Pod
from remediation.repair_state import Operand, RepairState
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import ApiError, Conflict, NotFound

PAUSED = "paused-for-sickbay"
"""The value of an operand's label while its pod is to stay off the node. Ours alone, so it can always be given back."""

RUNS = "true"
"""The value with which GPU Operator places an operand. Whatever else stands there is somebody's decision."""

OPERAND_PREFIX = "nvidia.com/gpu.deploy."
"""Labels of operands, of which the admission policy lets us change no others."""

_SOON = 1.0


class ReleaseApi(Protocol):
    """What these steps need of the Kubernetes API. Every call raises ApiError; mutations FencedError as well."""

    def get_node(self, name: str) -> Node:
        """A live read. Raises NotFound."""

    def patch_node(self, name: str, patch: bytes) -> Node:
        """A JSON merge patch that carries its preconditions. Raises Conflict."""

    def report(self, node_name: str) -> AcceleratorReport | None:
        """The node's report as it is now; None where there is none."""

    def order_release(self, report: AcceleratorReport, release: DeviceRelease | None) -> None:
        """Ask the agent to let go of the devices, or no longer. Raises Conflict where the report has changed."""

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        """All pods that are bound to the node, as they are now."""


def release_devices(
    api: ReleaseApi, node_name: str, order: ReleaseOrder, memory: RepairState, *, session: str, now: datetime
) -> Outcome:
    """The next pass of letting go; the first only writes down what will be changed."""
    if memory.release_until is None:
        return _written_down(api.get_node(node_name), order, memory)
    late = now >= memory.started + order.deadline
    again = _SOON
    try:
        waits_for = _asked(api, node_name, memory, session)
    except FencedError:
        raise
    except ApiError as error:
        if not late and not isinstance(error, Conflict):
            raise
        waits_for, again = f"the node or its report cannot be changed: {error}", 0.2
    if not waits_for:
        return Outcome(Result.DONE, "nobody of ours holds the devices any more", repair=memory)
    if late:
        return Outcome(Result.DEADLINE, waits_for, hold="DevicesNotReleased", repair=memory)
    return _wait(waits_for, memory, again)


def _written_down(node: Node, order: ReleaseOrder, memory: RepairState) -> Outcome:
    labels = node.metadata.labels
    operands = tuple(Operand(key, RUNS) for key in sorted(order.operands) if labels.get(key) == RUNS)
    pauses = f"pauses {len(operands)} operands and " if operands else ""
    return _wait(
        f"{pauses}asks the agent to let go",
        replace(memory, operands=operands, release_until=order.until),
        0.0,
    )


def _asked(api: ReleaseApi, node_name: str, memory: RepairState, session: str) -> str:
    """Ask whom there is to ask; what is still waited for, empty where everybody has let go."""
    node = api.get_node(node_name)
    running = {one.key: PAUSED for one in memory.operands if node.metadata.labels.get(one.key) == one.value}
    if running:
        api.patch_node(node_name, labels_patch(node, running))
    report = api.report(node_name)
    assert memory.release_until is not None
    release = DeviceRelease(session=session, until=memory.release_until)
    if report is not None and report.spec.device_release != release:
        api.order_release(report, release)
        return "the agent is asked to let go of the devices"
    selectors = {(one.key, one.value) for one in memory.operands}
    staying = [
        pod
        for pod in api.pods_on(node_name)
        if selectors & pod.spec.node_selector.items() and not pod.finished
    ]
    if staying:
        return f"{_names(staying)} must leave first"
    if report is None or report.status.device_access != DeviceAccess.RELEASED:
        return "the agent has not let go of the devices yet"
    return ""


def restore_devices(api: ReleaseApi, node_name: str, memory: RepairState, *, session: str) -> Outcome:
    """Give back what is still as we made it; what somebody has changed meanwhile is theirs."""
    returned = replace(memory, operands=(), release_until=None)
    try:
        node = api.get_node(node_name)
    except NotFound:
        return Outcome(Result.DONE, "the node is gone, and with it what was changed", repair=returned)
    prior = {one.key: one.value for one in memory.operands}
    paused = {
        key: prior.get(key, RUNS)
        for key, value in node.metadata.labels.items()
        if value == PAUSED and (key in prior or key.startswith(OPERAND_PREFIX))
    }
    if paused:
        try:
            node = api.patch_node(node_name, labels_patch(node, paused))
        except Conflict:
            return Outcome(
                Result.CHANGED, "the node changed while its operands were given back", repair=memory
            )
    report = api.report(node_name)
    release = report.spec.device_release if report is not None else None
    if report is not None and release is not None and release.session == session:
        try:
            api.order_release(report, None)
        except Conflict:
            return Outcome(Result.CHANGED, "the report has just changed", repair=memory)
    what = f"{len(paused)} operands and the devices are" if paused else "the devices are"
    return Outcome(Result.DONE, f"{what} given back", node=node, repair=returned)


def paused_operands(labels: Mapping[str, str]) -> tuple[Operand, ...]:
    """Operands that are paused by us, whether or not a session remembers it."""
    return tuple(
        Operand(key, RUNS)
        for key, value in sorted(labels.items())
        if value == PAUSED and key.startswith(OPERAND_PREFIX)
    )


def labels_patch(node: Node, labels: Mapping[str, str]) -> bytes:
    """A merge patch of these labels, for the node as it was read."""
    metadata = {
        "uid": node.metadata.uid,
        "resourceVersion": node.metadata.resource_version,
        "labels": dict(labels),
    }
    return msgspec.json.encode({"metadata": metadata})


def _wait(message: str, memory: RepairState, seconds: float) -> Outcome:
    return Outcome(Result.WAITING, message, again=seconds, repair=memory)


def _names(pods: Sequence[Pod]) -> str:
    named = ", ".join(sorted(pod.name for pod in pods)[:4])
    return named if len(pods) <= 4 else f"{named} and {len(pods) - 4} more"
