"""Which pods a drain is about, and what stands in its way. Pure.

The order and the meaning of the filters are those of `kubectl drain --ignore-daemonsets`
(k8s.io/kubectl/pkg/drain/filters.go), with three differences:

- where only accelerator pods are meant, a finished one is none any more: the kubelet has its devices back; and
  in mode Wait finishing is what is waited for;
- a pod that is being deleted already needs nobody's leave to go;
- whether the DaemonSet of a pod still exists is not looked up: the garbage collector takes such pods away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from remediation.drain_policy import DrainMode, DrainPolicy, PodSelection
from remediation.pod import Pod

STUCK_AFTER = timedelta(seconds=60)
"""How long past the end of its grace a pod may still be there before it counts as stuck: after a GPU has fallen
off the bus its processes sit in uninterruptible sleep for ever."""


class Fate(StrEnum):
    """What a drain does about a pod."""

    EVICT = "Evict"
    SKIP = "Skip"
    BLOCKS = "Blocks"
    TERMINATING = "Terminating"
    STUCK = "Stuck"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A pod's fate, and why, in words that follow `pods`: `without a controller`."""

    pod: Pod
    fate: Fate
    reason: str


def judge(pod: Pod, policy: DrainPolicy, now: datetime, accelerators: Iterable[str]) -> Judgement:
    """What to do about one pod of the node. The first filter that stops it decides.

    `accelerators` are the names of extended resources that count as accelerators, as shell patterns.
    """
    only_accelerators = policy.pods is PodSelection.ACCELERATOR
    if only_accelerators and not pod.asks_for(accelerators):
        return Judgement(pod, Fate.SKIP, "without an accelerator")
    if pod.finished and (only_accelerators or policy.mode is DrainMode.WAIT):
        return Judgement(pod, Fate.SKIP, "that have finished")
    if pod.of_daemon_set and not pod.finished:
        return Judgement(pod, Fate.SKIP, "of a DaemonSet")
    if pod.is_mirror:
        return Judgement(pod, Fate.SKIP, "that are static")
    if pod.metadata.deletion_timestamp is not None:
        if now - pod.metadata.deletion_timestamp > STUCK_AFTER:
            return Judgement(pod, Fate.STUCK, "stuck in termination")
        return Judgement(pod, Fate.TERMINATING, "terminating")
    if reason := _needs_leave(pod, policy):
        return Judgement(pod, Fate.BLOCKS, reason)
    return Judgement(pod, Fate.EVICT, "running on" if policy.mode is DrainMode.WAIT else "to be evicted")


def _needs_leave(pod: Pod, policy: DrainPolicy) -> str:
    """What would be lost with the pod that the policy does not give up; empty for nothing."""
    if pod.finished or policy.mode is DrainMode.WAIT:
        return ""
    if pod.has_empty_dir and not policy.delete_empty_dir_data:
        return "with emptyDir data (deleteEmptyDirData is off)"
    if pod.controller is None and not policy.force:
        return "without a controller (force is off)"
    return ""
