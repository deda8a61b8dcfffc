"""Restart a node's device plugin by deleting its pod, and remove the pods that failed meanwhile.

One pass each time: the pod is chosen and written down, deleted in the next pass, and its replacement waited for in
those after. Facts about plugins and kubelets: a restart takes 0.6 to 1.6 s, in which every pod that arrives with a
claim on a device fails for good; a kubelet whose plugin hangs in Allocate admits no pod any more, of whatever kind,
and can be healed by nothing that it would have to start itself (measured on kubelet 1.37, NVIDIA's plugin 0.20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from msgspec.structs import replace

from health.accelerators import ACCELERATOR_RESOURCES
from remediation.cluster import FencedError
from remediation.orders import CleanOrder, RestartOrder
from remediation.plugin_state import PluginRestart
from remediation.pod import Pod
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import ApiError, Conflict, NotFound

JUST_STARTED = timedelta(seconds=20)
"""A plugin's pod that is younger is not restarted: somebody has just done it, and its registration may be late."""

STUCK_AFTER = timedelta(seconds=5)
"""So long a pod may be without its kubelet's admission, behind a plugin that hangs, before it counts as stuck."""

NO_PLUGIN_AFTER = timedelta(seconds=30)
"""So long a plugin that left the node for a reset may take to come back."""

_SOON = 0.5
_LATER = 2.0
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class DaemonSetView:
    """What decides whether deleting a DaemonSet's pod restarts it or upgrades it."""

    on_delete: bool
    current_revision: str


class PluginApi(Protocol):
    """What these steps need of the Kubernetes API. Every call raises ApiError; mutations FencedError as well."""

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        """All pods that are bound to the node, as they are now."""

    def daemon_set(self, namespace: str, name: str) -> DaemonSetView:
        """The DaemonSet as it is now. Raises NotFound."""

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Delete the pod with this UID, with its own grace. Raises NotFound, and Conflict for another UID."""


def restart_plugin(
    api: PluginApi, node_name: str, order: RestartOrder, memory: PluginRestart | None, *, now: datetime
) -> Outcome:
    """The next pass of a restart; without a memory it is the first."""
    memory = memory or PluginRestart(started=now)
    if now >= memory.started + order.policy.time_limit:
        message = f"the plugin was not restarted within {order.policy.deadline}"
        return Outcome(Result.DEADLINE, message, hold="PluginNotRestarted", restart=memory)
    pods = api.pods_on(node_name)
    if memory.pod_uid and not any(pod.uid == memory.pod_uid for pod in pods):
        return _replaced(pods, memory, now)
    if order.after is not None and not memory.pod_uid and (came := _came_back(pods, order, memory, now)):
        return came
    waiting = [pod for pod in pods if pod.unadmitted and pod.metadata.deletion_timestamp is None]
    if waiting and order.hung and now - memory.started >= STUCK_AFTER:
        message = (
            f"{_names(waiting)} cannot be admitted behind the plugin that hangs, so this kubelet starts and stops "
            "no pod: kill the plugin's process or restart the kubelet by hand"
        )
        return Outcome(Result.BLOCKED, message, hold="AdmissionStuck", restart=memory)
    if waiting:
        return _wait(f"{_names(waiting)} must be admitted first, or would fail", memory, _LATER)
    if memory.pod_uid:
        return _delete(api, pods, memory)
    return _choose(api, pods, order, memory, now)


def _came_back(
    pods: Sequence[Pod], order: RestartOrder, memory: PluginRestart, now: datetime
) -> Outcome | None:
    """After a reset for which the plugin had left the node: its pod is a new one. None where it has stayed.

    The node's clock is not ours: creation times are the API server's, in whole seconds, as the controller's are near.
    """
    assert order.after is not None
    plugins = [
        pod
        for pod in pods
        if order.policy.selects(pod.metadata.namespace, pod.metadata.labels) and not pod.finished
    ]
    if not plugins:
        if now < memory.started + NO_PLUGIN_AFTER:
            return _wait("waits for the device plugin to come back to the node", memory, _SOON)
        done = replace(memory, done_time=now)
        return Outcome(Result.DONE, "no device plugin runs on the node", restart=done)
    newest = max(plugins, key=lambda pod: (pod.metadata.creation_timestamp or order.after, pod.uid))
    born = newest.metadata.creation_timestamp
    if born is None or born < order.after.replace(microsecond=0):
        return None
    if not newest.ready:
        return _wait(f"{newest.name} is not Ready yet", memory, _SOON)
    return Outcome(
        Result.DONE, f"{newest.name} has come back to the node", restart=replace(memory, done_time=now)
    )


def _choose(
    api: PluginApi, pods: Sequence[Pod], order: RestartOrder, memory: PluginRestart, now: datetime
) -> Outcome:
    """Find the plugin's pod, make sure that its deletion is a restart and nothing else, and write it down."""
    plugins = [
        pod
        for pod in pods
        if order.policy.selects(pod.metadata.namespace, pod.metadata.labels) and not pod.finished
    ]
    if not plugins:
        message = "no pod on the node has the labels of a device plugin (policy: devicePlugin.selectors)"
        return Outcome(Result.BLOCKED, message, hold="PluginNotFound", restart=memory)
    if len(plugins) > 1:
        message = (
            f"{_names(plugins)} are all device plugins: two on one socket are healed by a kubelet restart"
        )
        return Outcome(Result.BLOCKED, message, hold="SeveralPlugins", restart=memory)
    plugin = plugins[0]
    owner = plugin.controller
    if owner is None or not plugin.of_daemon_set:
        message = f"{plugin.name} is not of a DaemonSet, so nobody would replace it"
        return Outcome(Result.BLOCKED, message, hold="PluginNotFound", restart=memory)
    if plugin.metadata.deletion_timestamp is not None:
        return _wait(f"{plugin.name} is being replaced by somebody else", memory, _LATER)
    born = plugin.metadata.creation_timestamp
    if born is not None and now - born < JUST_STARTED:
        return _wait(f"{plugin.name} has only just been started", memory, _LATER)
    try:
        daemon_set = api.daemon_set(plugin.metadata.namespace, owner.name)
    except NotFound:
        message = f"the DaemonSet {owner.name} of {plugin.name} is gone, so nobody would replace it"
        return Outcome(Result.BLOCKED, message, hold="PluginNotFound", restart=memory)
    revision = plugin.metadata.labels.get("controller-revision-hash", "")
    if daemon_set.current_revision not in ("", revision):
        if daemon_set.on_delete:
            message = f"deleting {plugin.name} would upgrade it to revision {daemon_set.current_revision}"
            return Outcome(Result.BLOCKED, message, hold="WouldUpgrade", restart=memory)
        return _wait(f"an upgrade of {plugin.name} is under way", memory, _LATER)
    chosen = replace(memory, pod=plugin.name, pod_uid=plugin.uid, daemon_set_uid=owner.uid)
    return _wait(f"restarts {plugin.name} by deleting its pod", chosen, 0.0)


def _delete(api: PluginApi, pods: Sequence[Pod], memory: PluginRestart) -> Outcome:
    plugin = next(pod for pod in pods if pod.uid == memory.pod_uid)
    if plugin.metadata.deletion_timestamp is None:
        try:
            api.delete_pod(plugin.metadata.namespace, plugin.metadata.name, plugin.uid)
        except (NotFound, Conflict):
            return _wait(f"{memory.pod} has gone by itself", memory, _SOON)
    return _wait(f"{memory.pod} is on its way out", memory, _SOON)


def _replaced(pods: Sequence[Pod], memory: PluginRestart, now: datetime) -> Outcome:
    for pod in pods:
        owner = pod.controller
        if owner is not None and owner.uid == memory.daemon_set_uid and pod.ready:
            done = replace(memory, done_time=now, attempts=memory.attempts + 1)
            return Outcome(Result.DONE, f"{pod.name} took the place of {memory.pod}", restart=done)
    return _wait(f"{memory.pod} is gone, its replacement is not Ready yet", memory, _SOON)


def remove_failed_pods(
    api: PluginApi, node_name: str, order: CleanOrder, memory: PluginRestart | None, *, now: datetime
) -> Outcome:
    """Delete the accelerator pods that the kubelet refused since the order's time and that have a controller.

    They never run again, and their controller has replaced them already; left alone they stay for ever. A pod
    without a controller is its owner's to look at. One that cannot be deleted holds up no other, and fails the step.
    """
    refused = [
        pod
        for pod in api.pods_on(node_name)
        if pod.failed_admission
        and pod.controller is not None
        and pod.asks_for(ACCELERATOR_RESOURCES)
        and pod.metadata.creation_timestamp is not None
        and pod.metadata.creation_timestamp >= order.since
    ]
    stay: list[str] = []
    for pod in refused[:_AT_ONCE]:
        try:
            api.delete_pod(pod.metadata.namespace, pod.metadata.name, pod.uid)
        except NotFound:
            continue
        except FencedError:
            raise
        except ApiError as error:
            stay.append(f"{pod.name} stays: {error}")
    memory = memory or PluginRestart(started=now)
    if stay:
        message = f"{len(stay)} of {len(refused)} pods that failed meanwhile cannot be removed: {stay[0]}"
        return Outcome(Result.FAILED, message, restart=memory)
    if len(refused) > _AT_ONCE:
        return _wait(f"{len(refused)} pods failed meanwhile", memory, _SOON)
    what = f"removed {_names(refused)}, which failed meanwhile" if refused else "no pod failed meanwhile"
    return Outcome(Result.DONE, what, restart=replace(memory, cleaned=True))


def _wait(message: str, memory: PluginRestart, seconds: float) -> Outcome:
    return Outcome(Result.WAITING, message, again=seconds, restart=memory)


def _names(pods: Sequence[Pod]) -> str:
    named = ", ".join(sorted(pod.name for pod in pods)[:4])
    return named if len(pods) <= 4 else f"{named} and {len(pods) - 4} more"
