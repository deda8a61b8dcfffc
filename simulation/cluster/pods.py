"""The two subresources of Pods that are verbs: binding and eviction."""

from __future__ import annotations

from typing import Any

import msgspec

from simulation.cluster import evictions
from simulation.cluster.deletion import DeleteOptions, check_preconditions
from simulation.cluster.errors import SlowConflictError, bad_request, conflict
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.matching import selects
from simulation.cluster.metadata import timestamp
from simulation.cluster.records import Writer
from simulation.cluster.store import ClusterStore

_RETRIED_SECONDS = 10.0
"""How long the real server tries again, whatever the conflict is (EvictionsRetry: 20 steps of 500 ms)."""


def bind(store: ClusterStore, namespace: str, name: str, body: Object, *, writer: Writer) -> None:
    """Assign a pod to a node (pkg/registry/core/pod/storage/storage.go, assignPod).

    Raises StoreError 404, 409 for a pod that has a node or is being deleted, 400 for another name, 500 for no target.
    """
    if (body.get("metadata") or {}).get("name") != name:
        raise bad_request("name in URL does not match name in Binding object")
    store.check_namespace(store.resource("pods"), namespace, name)
    target = (body.get("target") or {}).get("name")
    if not target:
        raise StoreError(500, "", "target.name: Required value")
    now = timestamp(store.now(writer))

    def assigned(pod: Object) -> Object:
        meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
        given = body.get("metadata") or {}
        if given.get("uid") not in (None, "", meta["uid"]):
            why = (
                f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {meta['uid']}"
            )
            raise conflict("pods/binding", "", name, why)
        if "deletionTimestamp" in meta:
            raise conflict(
                "pods/binding", "", name, f"pod {name} is being deleted, cannot be assigned to a host"
            )
        if spec.get("nodeName"):
            why = f'pod {name} is already assigned to node "{spec["nodeName"]}"'
            raise conflict("pods/binding", "", name, why)
        condition = {"type": "PodScheduled", "status": "True"}
        conditions = evictions.with_condition(status.get("conditions") or [], condition, now=now)
        annotations = {**(meta.get("annotations") or {}), **(given.get("annotations") or {})}
        return {
            **pod,
            "metadata": {**meta, "annotations": annotations},
            "spec": {**spec, "nodeName": target},
            "status": {**status, "conditions": conditions},
        }

    store.modify(store.resource("pods"), namespace, name, assigned, subresource="binding", writer=writer)


def evict(store: ClusterStore, namespace: str, name: str, body: Object, *, writer: Writer) -> None:
    """Evict a pod as far as its budgets let it. Raises StoreError as the real server answers."""
    if (body.get("metadata") or {}).get("name") != name:
        raise bad_request("name in URL does not match name in Eviction object")
    options = DeleteOptions.parse(body.get("deleteOptions"), {})
    store.check_namespace(store.resource("pods"), namespace, name)
    pods, budgets = store.resource("pods"), store.resource("poddisruptionbudgets.policy")
    with store.atomically():
        pod = _object(store.read(pods, namespace, name))
        now = timestamp(store.now(writer))
        if evictions.needs_no_budget(pod):
            pinned = evictions.pinned_without_budget(pod)
            try:
                _delete(store, pod, _pinned(options, pod) if pinned else options, writer)
            except StoreError as error:
                if error.code == 409 and not options.resource_version:
                    raise SlowConflictError(error, _RETRIED_SECONDS) from error
                raise
            return
        decided = evictions.charge(pod, _budgets_of(store, pod), now=now)
        if decided.status is not None:
            store.modify(
                budgets,
                namespace,
                decided.budget,
                lambda old: {**old, "status": decided.status},
                subresource="status",
                writer=writer,
            )
        try:
            _delete(store, pod, _pinned(options, pod) if decided.pin else options, writer)
        except StoreError as error:
            if error.code == 409 and decided.pin and not options.resource_version:
                raise evictions.stale(decided.budget) from error
            raise


def _delete(store: ClusterStore, pod: Object, options: DeleteOptions, writer: Writer) -> None:
    """Say on the pod why it goes, then delete it."""
    pods, meta = store.resource("pods"), pod["metadata"]
    check_preconditions(pods, pod, options)
    now = timestamp(store.now(writer))

    def told(old: Object) -> Object:
        status = old.get("status", {})
        conditions = evictions.disruption_target(status.get("conditions") or [], now=now)
        return {**old, "status": {**status, "conditions": conditions}}

    store.modify(pods, meta["namespace"], meta["name"], told, subresource="status", writer=writer)
    # The condition has moved the pod's version; that of the request has been asked above.
    options = DeleteOptions(options.uid, "", options.grace_seconds, options.propagation)
    store.remove(pods, meta["namespace"], meta["name"], options, writer=writer)


def _pinned(options: DeleteOptions, pod: Object) -> DeleteOptions:
    version = options.resource_version or pod["metadata"]["resourceVersion"]
    return DeleteOptions(options.uid, version, options.grace_seconds, options.propagation)


def _budgets_of(store: ClusterStore, pod: Object) -> list[Object]:
    labels = pod["metadata"].get("labels") or {}
    found = store.list("poddisruptionbudgets.policy", namespace=pod["metadata"]["namespace"])
    return [budget for budget in found if selects(budget.get("spec", {}).get("selector"), labels)]


def _object(data: bytes) -> Object:
    decoded: Any = msgspec.json.decode(data)
    return dict(decoded)
