"""What the embedded API's store offers to those in its process: controllers, scheduler, kubelets, the fleet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Object = dict[str, Any]
"""A Kubernetes object as JSON. What the store hands out is a copy, or is treated as one: never changed in place."""


class StoreError(Exception):
    """A refusal, as the API would answer it."""

    def __init__(self, code: int, reason: str, message: str, *, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """One change, in the order of resourceVersions."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: str
    object: Object


class Store(Protocol):
    """Resources are named by plural and group as in RBAC: `pods`, `deployments.apps`,
    `acceleratorreports.sickbay.dev`. Every call is atomic; all raise StoreError with the API's code and reason."""

    def get(self, resource: str, name: str, *, namespace: str = "") -> Object:
        """Raises StoreError 404 NotFound."""
        ...

    def list(
        self, resource: str, *, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """In the order of namespace and name; an empty namespace means all."""
        ...

    def create(self, resource: str, body: Object, *, namespace: str = "") -> Object:
        """Honours `generateName`. Raises StoreError 409 AlreadyExists, 422 Invalid."""
        ...

    def update(self, resource: str, body: Object, *, subresource: str = "") -> Object:
        """Replace; a `metadata.resourceVersion` in the body is a precondition (409 Conflict)."""
        ...

    def patch(
        self, resource: str, name: str, patch: Object, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        """A JSON merge patch; `metadata.uid` and `metadata.resourceVersion` in it are preconditions."""
        ...

    def delete(
        self,
        resource: str,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        grace_seconds: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Graceful for a bound pod that runs (`deletionTimestamp` is set; whoever plays its kubelet deletes it with a
        grace of 0 in the end), held back by finalizers, at once for the rest."""
        ...

    def subscribe(self, listener: Callable[[StoreEvent], None]) -> None:
        """Hear every change from now on, in order, within the call that makes it: the listener only takes note."""
        ...
