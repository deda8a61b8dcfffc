"""The status that a simulated kubelet writes of a pod, in the shape and with the reasons of the real one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simulation.cluster.interface import Object
from simulation.cluster.kubelet_pod import ContainerRun, PodRun

OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")

ResourceHealth = Callable[[str], list[Object]]
"""The `allocatedResourcesStatus` of a container, by its name."""


def running_status(run: PodRun, old: Object, *, now: float, stamp: str, health: ResourceHealth) -> Object:
    """The status of an admitted pod; `old` is the status that it has, whose foreign conditions stay."""
    generation = int(run.pod["metadata"].get("generation") or 0)
    told = conditions(old.get("conditions") or (), _wanted(run, now), stamp, generation=generation)
    status: Object = {
        "phase": run.phase,
        "observedGeneration": generation,
        "startTime": old.get("startTime") or stamp,
        "conditions": told,
        "containerStatuses": [_container(one, run, now, health) for one in run.mains],
    }
    if run.rejection is not None:
        status["reason"], status["message"] = run.rejection
    if run.inits:
        status["initContainerStatuses"] = [_container(one, run, now, health) for one in run.inits]
    return status


def rejected_status(pod: Object, *, reason: str, message: str, stamp: str) -> Object:
    """The status of a pod that was refused: no conditions but those that it had, no containers."""
    return {
        "phase": "Failed",
        "observedGeneration": int(pod["metadata"].get("generation") or 0),
        "reason": reason,
        "message": message,
        "startTime": (pod.get("status") or {}).get("startTime") or stamp,
    }


def conditions(
    old: Sequence[Object],
    wanted: Sequence[tuple[str, bool, str, str]],
    stamp: str,
    *,
    generation: int,
) -> list[Object]:
    """The conditions with the wanted ones (type, whether True, reason and message) in; a transition has its time."""
    found = {one["type"]: one for one in old}
    for kind, holds, reason, message in wanted:
        said = {"status": "True" if holds else "False", "reason": reason, "message": message}
        before = found.get(kind)
        same = before is not None and before.get("status") == said["status"]
        since = before.get("lastTransitionTime", stamp) if same and before else stamp
        given = {key: value for key, value in said.items() if value}
        found[kind] = {
            "type": kind,
            "observedGeneration": generation,
            "lastProbeTime": None,
            "lastTransitionTime": since,
            **given,
        }
    return list(found.values())


_NO_SANDBOX = ("PodSandboxNotReady", "pod sandbox is not ready")


def _wanted(run: PodRun, now: float) -> list[tuple[str, bool, str, str]]:
    started = any(one.program is not None or one.exit_code is not None for one in run.containers)
    sandbox = started and not run.done and now >= run.starts_at
    reason, message = "", ""
    unready = [one.name for one in run.mains if not one.ready(now)]
    completed = run.phase == "Succeeded"
    if completed:
        reason = "PodCompleted"
    elif run.phase == "Failed":
        reason = "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    ready = not reason
    missing = [one.name for one in run.inits if one.exit_code != 0]
    wanted = [
        ("PodReadyToStartContainers", sandbox, *(("", "") if sandbox else _NO_SANDBOX)),
        ("Ready", ready, reason, message),
        ("ContainersReady", ready, reason, message),
        ("PodScheduled", True, "", ""),
    ]
    if missing:
        text = f"containers with incomplete status: [{' '.join(missing)}]"
        wanted.insert(1, ("Initialized", False, "ContainersNotInitialized", text))
    else:
        wanted.insert(1, ("Initialized", True, "PodCompleted" if completed else "", ""))
    return wanted


def _container(one: ContainerRun, run: PodRun, now: float, health: ResourceHealth) -> Object:
    status: Object = {
        "name": one.name,
        "image": one.image,
        "imageID": f"simulated@{one.image}" if one.identity else "",
        "ready": one.ready(now),
        "restartCount": one.restarts,
        "started": one.program is not None,
        "resources": one.resources,
        "state": _state(one, run),
        "lastState": one.terminated() if _backs_off(one, run) else one.last or {},
    }
    if one.identity:
        uid = run.pod["metadata"]["uid"]
        status["containerID"] = f"simulated://{uid}/{one.name}/{one.identity}"
    if requests := one.resources.get("requests"):
        status["allocatedResources"] = requests
    if allocated := health(one.name):
        status["allocatedResourcesStatus"] = allocated
    return status


def _state(one: ContainerRun, run: PodRun) -> dict[str, Any]:
    if one.program is not None:
        return {"running": {"startedAt": one.started_stamp}}
    if one.exit_code is None and run.kill_at is not None and run.ended_at is not None:
        text = "The container could not be located when the pod was terminated"
        return {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": text}}
    if one.exit_code is None:
        waits = _earlier_is_missing(one, run) if one.init else not run.initialized
        return {"waiting": {"reason": "PodInitializing" if waits else "ContainerCreating"}}
    if _backs_off(one, run):
        metadata = run.pod["metadata"]
        pod = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        text = f"back-off {_duration(one.waits)} restarting failed container={one.name} pod={pod}"
        return {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
    return one.terminated()


def _backs_off(one: ContainerRun, run: PodRun) -> bool:
    return one.exit_code is not None and one.retry_at is not None and run.kill_at is None and one.waits > 0


def _duration(seconds: float) -> str:
    """As Go writes it: 10s, 1m20s."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes}m{left}s" if minutes else f"{left}s"


def _earlier_is_missing(one: ContainerRun, run: PodRun) -> bool:
    """Whether an init container comes before it that has not succeeded."""
    return next((other for other in run.inits if other.exit_code != 0), one) is not one
