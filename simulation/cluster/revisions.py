"""ControllerRevisions of a DaemonSet: one for each template that it has had, the newest with the highest number.

Source: pkg/controller/history and daemon/update.go. A template that comes back takes its old revision up again.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from simulation.cluster.interface import Object, Store
from simulation.cluster.view import REVISIONS, View, key_of, terminating, uid_of
from simulation.cluster.workloads import owner_reference, template_hash

HASH = "controller-revision-hash"
GENERATION = "deprecated.daemonset.template.generation"
KEPT = 10
"""Old revisions that are kept (revisionHistoryLimit)."""


class Revisions:
    """The history of DaemonSets."""

    def __init__(self, store: Store, view: View) -> None:
        self._store = store
        self._view = view

    def current(self, daemon_set: Object) -> Object:
        """The revision of the template as it is, made or renumbered where needed. Raises StoreError."""
        known = self._view.controlled(REVISIONS, uid_of(daemon_set))
        digest = template_hash(daemon_set["spec"]["template"])
        newest = max((int(one.get("revision", 0)) for one in known), default=0)
        same = next((one for one in known if one["metadata"]["labels"].get(HASH) == digest), None)
        if same is None:
            return self._create(daemon_set, digest, newest + 1)
        if int(same.get("revision", 0)) == newest:
            return same
        namespace, name = key_of(same)
        return self._store.patch(REVISIONS, name, {"revision": newest + 1}, namespace=namespace)

    def clean(self, daemon_set: Object, used: Set[str]) -> None:
        """Delete the oldest revisions that no pod has, beyond the limit."""
        limit = daemon_set["spec"].get("revisionHistoryLimit")
        kept = KEPT if limit is None else int(limit)
        digest = template_hash(daemon_set["spec"]["template"])
        known = [one for one in self._view.controlled(REVISIONS, uid_of(daemon_set)) if not terminating(one)]
        idle = [one for one in known if one["metadata"]["labels"].get(HASH) not in {*used, digest}]
        for one in sorted(idle, key=lambda one: int(one.get("revision", 0)))[: max(0, len(idle) - kept)]:
            namespace, name = key_of(one)
            self._store.delete(REVISIONS, name, namespace=namespace, uid=uid_of(one))

    def _create(self, daemon_set: Object, digest: str, number: int) -> Object:
        metadata = daemon_set["metadata"]
        template: dict[str, Any] = daemon_set["spec"]["template"]
        labels = {**((template.get("metadata") or {}).get("labels") or {}), HASH: digest}
        body: Object = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": f"{metadata['name']}-{digest}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": {GENERATION: metadata.get("annotations", {}).get(GENERATION, "1")},
                "ownerReferences": [owner_reference(daemon_set, api_version="apps/v1", kind="DaemonSet")],
            },
            "data": {"spec": {"template": {**template, "$patch": "replace"}}},
            "revision": number,
        }
        return self._store.create(REVISIONS, body, namespace=metadata["namespace"])
