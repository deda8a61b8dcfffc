"""What a DELETE does to an object, decided on the object alone: mark it, leave it, or remove it.

From staging/src/k8s.io/apiserver/pkg/registry/rest/delete.go (BeforeDelete), registry/generic/registry/store.go
(updateForGracefulDeletionAndFinalizers) and pkg/registry/core/pod/strategy.go (CheckGracefulDelete).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from runtime.clock import parse_rfc3339
from simulation.cluster.errors import Cause, conflict, invalid
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.metadata import timestamp
from simulation.cluster.resources import ResourceType

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """What a DELETE asks for. None and empty: not said."""

    uid: str = ""
    resource_version: str = ""
    grace_seconds: int | None = None
    propagation: str = ""

    @classmethod
    def parse(cls, body: Any, query: dict[str, str]) -> DeleteOptions:
        """From a DeleteOptions object and the query, which the object outranks. Raises StoreError 400 or 422."""
        options = body if isinstance(body, dict) else {}
        preconditions = options.get("preconditions") or {}
        grace = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        propagation = options.get("propagationPolicy") or query.get("propagationPolicy", "")
        if options.get("orphanDependents") is not None:
            propagation = "Orphan" if options["orphanDependents"] else "Background"
        try:
            seconds = None if grace in (None, "") else int(grace)
        except (TypeError, ValueError):
            raise StoreError(400, "BadRequest", f"gracePeriodSeconds is not a number: {grace!r}") from None
        if propagation not in ("", "Orphan", "Background", "Foreground"):
            supported = '"Foreground", "Background", "Orphan", "nil"'
            message = f'Unsupported value: "{propagation}": supported values: {supported}'
            cause = Cause("FieldValueNotSupported", message, "propagationPolicy")
            raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
        return cls(
            uid=str(preconditions.get("uid") or ""),
            resource_version=str(preconditions.get("resourceVersion") or ""),
            grace_seconds=seconds,
            propagation=propagation,
        )


@dataclass(frozen=True, slots=True)
class Fate:
    """`marked`: the object as it must be written first, None for no write. `remove`: whether it goes after that."""

    marked: Object | None
    remove: bool


def check_preconditions(resource: ResourceType, document: Object, options: DeleteOptions) -> None:
    """Raises StoreError 409."""
    metadata = document["metadata"]
    # The kind, where everybody else names the resource.
    kind, group = resource.kind, resource.group
    if options.uid and options.uid != metadata["uid"]:
        why = (
            f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata['uid']}). "
            "The object might have been deleted and then recreated"
        )
        raise conflict(kind, group, metadata["name"], why)
    if options.resource_version and options.resource_version != metadata["resourceVersion"]:
        why = (
            f"the ResourceVersion in the precondition ({options.resource_version}) does not match the "
            f"ResourceVersion in record ({metadata['resourceVersion']}). The object might have been modified"
        )
        raise conflict(kind, group, metadata["name"], why)


def fate(resource: ResourceType, document: Object, options: DeleteOptions, now: datetime) -> Fate:
    """What becomes of an object. Raises StoreError 409 for a precondition that does not hold."""
    check_preconditions(resource, document, options)
    metadata = dict(document["metadata"])
    graceful = resource.id == "pods" and _grace(document, metadata, options, now)
    if graceful is None:
        return Fate(None, remove=False)
    finalizers = _finalizers(resource, metadata.get("finalizers", []), options.propagation)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    marked = {**document, "metadata": metadata}
    if graceful:
        return Fate(marked, remove=not finalizers and metadata["deletionGracePeriodSeconds"] == 0)
    if not finalizers:
        return Fate(None, remove=True)
    if "deletionTimestamp" not in metadata:
        metadata["deletionTimestamp"] = timestamp(now)
        if metadata.get("generation", 0) > 0:
            metadata["generation"] += 1
    metadata["deletionGracePeriodSeconds"] = 0
    return Fate(marked if marked != document else None, remove=False)


def _grace(pod: Object, metadata: Object, options: DeleteOptions, now: datetime) -> bool | None:
    """Write a pod's grace into its metadata. None: it is being deleted already, and no sooner for this."""
    if "deletionTimestamp" in metadata:
        current = metadata.get("deletionGracePeriodSeconds")
        if current is None:
            return False
        if options.grace_seconds is None or options.grace_seconds >= current:
            return None
        began = parse_rfc3339(metadata["deletionTimestamp"]) - timedelta(seconds=current)
        seconds = max(options.grace_seconds, 0)
        metadata["deletionTimestamp"] = timestamp(began + timedelta(seconds=seconds))
        metadata["deletionGracePeriodSeconds"] = seconds
        return True
    spec = pod.get("spec", {})
    asked = options.grace_seconds
    seconds = spec.get("terminationGracePeriodSeconds", 0) if asked is None else asked
    if not spec.get("nodeName") or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        seconds = 0
    seconds = 1 if seconds < 0 else seconds
    metadata["deletionTimestamp"] = timestamp(now + timedelta(seconds=seconds))
    metadata["deletionGracePeriodSeconds"] = seconds
    if metadata.get("generation", 0) > 0:
        metadata["generation"] += 1
    return True


def _finalizers(resource: ResourceType, current: list[str], propagation: str) -> list[str]:
    """With the garbage collector's: a policy sets and clears them, no policy leaves them."""
    if resource.id == "events":
        return list(current)
    if not propagation:
        if not resource.orphans or FOREGROUND in current or ORPHAN in current:
            return list(current)
        propagation = "Orphan"
    kept = [item for item in current if item not in (FOREGROUND, ORPHAN)]
    added = {"Orphan": [ORPHAN], "Foreground": [FOREGROUND]}.get(propagation, [])
    return [*kept, *added]


def ends_with_update(document: Object, old: Object) -> bool:
    """Whether an update that took the last finalizer removes the object (store.go, ShouldDeleteDuringUpdate)."""
    if document["metadata"].get("finalizers") or "deletionTimestamp" not in document["metadata"]:
        return False
    return not old["metadata"].get("deletionGracePeriodSeconds")
