"""`pods/eviction`: what a disruption budget says, decided on the objects alone.

From pkg/registry/core/pod/storage/eviction.go. The order matters and is kept: the budget is charged before the pod's
UID is looked at, a pod that is not running needs no budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulation.cluster.errors import forbidden, too_many_requests
from simulation.cluster.interface import Object, StoreError

CAUSE = "DisruptionBudget"
_MOST_DISRUPTED = 2000
_REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."
_TWO_BUDGETS = (
    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
)


@dataclass(frozen=True, slots=True)
class Charge:
    """What an eviction does before the pod is deleted. `status`: the budget's new status, None for none to write.

    `pin`: the deletion holds for the version of the pod that was judged; a conflict is then a 429 of `budget`.
    """

    status: Object | None = None
    budget: str = ""
    pin: bool = False


def needs_no_budget(pod: Object) -> bool:
    """Whether evicting a pod disrupts nothing: it has ended, has not begun, or is going already."""
    phase = pod.get("status", {}).get("phase")
    return phase in ("Succeeded", "Failed", "Pending") or "deletionTimestamp" in pod["metadata"]


def pinned_without_budget(pod: Object) -> bool:
    """Whether a pod that needs no budget may come to need one: then the deletion holds for this version alone."""
    ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return not ended and "deletionTimestamp" not in pod["metadata"]


def charge(pod: Object, budgets: Sequence[Object], *, now: str) -> Charge:
    """What the budgets that select a running pod say. Raises StoreError 429, 403, 500."""
    if len(budgets) > 1:
        raise StoreError(500, "", _TWO_BUDGETS)
    if not budgets:
        return Charge()
    (budget,) = budgets
    name, status = budget["metadata"]["name"], budget.get("status") or {}
    healthy, wanted = status.get("currentHealthy", 0), status.get("desiredHealthy", 0)
    if not _ready(pod):
        always = budget.get("spec", {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow"
        if always or (healthy >= wanted > 0):
            return Charge(budget=name, pin=True)
    allowed, disrupted = status.get("disruptionsAllowed", 0), status.get("disruptedPods") or {}
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 0):
        raise stale(name)
    if allowed < 0:
        raise forbidden("poddisruptionbudget", "policy", name, "pdb disruptions allowed is negative")
    if len(disrupted) > _MOST_DISRUPTED:
        why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
        raise forbidden("poddisruptionbudget", "policy", name, why)
    if allowed == 0:
        message = f"The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently"
        raise too_many_requests(_REFUSED, retry_after=0, causes=[{"reason": CAUSE, "message": message}])
    charged = {
        **status,
        "disruptionsAllowed": allowed - 1,
        "disruptedPods": {**disrupted, pod["metadata"]["name"]: now},
    }
    if allowed == 1:
        charged["conditions"] = _exhausted(status.get("conditions") or [], budget, now)
    return Charge(status=charged, budget=name)


def stale(budget: str) -> StoreError:
    """429 with a Retry-After: the budget's status is not of its present self, or the pod has changed meanwhile."""
    message = f"The disruption budget {budget} is still being processed by the server."
    return too_many_requests(_REFUSED, retry_after=10, causes=[{"reason": CAUSE, "message": message}])


def disruption_target(conditions: Sequence[Object], *, now: str) -> list[Object]:
    """A pod's conditions with the one that says why it goes."""
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    return with_condition(conditions, condition, now=now)


def with_condition(conditions: Sequence[Object], condition: Object, *, now: str) -> list[Object]:
    """The conditions with one of them set; its transition time moves when its status does."""
    kept: list[Object] = []
    old: Object = {}
    for item in conditions:
        if item.get("type") == condition["type"]:
            old = item
        kept.append(condition if item is old else item)
    moved = now if old.get("status") != condition["status"] else old.get("lastTransitionTime", now)
    written = {**condition, "lastTransitionTime": moved}
    return [written if item is condition else item for item in (kept if old else [*kept, condition])]


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def _exhausted(conditions: Sequence[Object], budget: Object, now: str) -> list[Object]:
    condition = {
        "type": "DisruptionAllowed",
        "status": "False",
        "reason": "InsufficientPods",
        "observedGeneration": budget["metadata"].get("generation", 0),
        "message": "",
    }
    return with_condition(conditions, condition, now=now)
