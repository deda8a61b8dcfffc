"""The embedded API for tests: objects in short form, a session, and polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from runtime.clock import Clock, ManualClock
from runtime.kubernetes import Session
from runtime.kubernetes_auth import Access
from simulation.cluster import crds
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.server import EmbeddedApi
from simulation.cluster.store import ClusterStore

REPORTS = "acceleratorreports.sickbay.dev"
SESSIONS = "acceleratorremediations.sickbay.dev"
OTHER_UID = "00000000-0000-4000-8000-000000000000"


def new_store(clock: Clock | None = None, **more: Any) -> ClusterStore:
    return ClusterStore(clock=clock or ManualClock(), custom=crds.load(), **more)


def report(name: str, **parts: Any) -> Object:
    return {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {"name": name},
        **parts,
    }


def remediation(name: str, **spec: Any) -> Object:
    given = {"nodeName": "n1", "nodeUID": "u1", "bootID": "b1", "mode": "Auto", **spec}
    return {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorRemediation",
        "metadata": {"name": name},
        "spec": given,
    }


def pod(name: str, *, node: str = "n1", labels: dict[str, str] | None = None, **metadata: Any) -> Object:
    spec: Object = {"containers": [{"name": "main", "image": "busybox:1"}]}
    if node:
        spec["nodeName"] = node
    return {"metadata": {"name": name, "labels": labels or {}, **metadata}, "spec": spec}


def running(store: ClusterStore, name: str, *, ready: bool = True, **more: Any) -> Object:
    """A pod of `default` that runs."""
    store.create("pods", pod(name, **more))
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"status": {"phase": "Running", "conditions": [condition]}}
    return store.patch("pods", name, status, namespace="default", subresource="status")


def budget(store: ClusterStore, name: str, *, app: str, **status: Any) -> Object:
    """A disruption budget of `default` whose status is as given."""
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}
    store.create("poddisruptionbudgets.policy", {"metadata": {"name": name}, "spec": spec})
    given = {"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 1, **status}
    patch = {"status": given}
    return store.patch("poddisruptionbudgets.policy", name, patch, namespace="default", subresource="status")


class _Credentials:
    source = "a test"

    def __init__(self, access: Access, user: str) -> None:
        self._access = access
        self._user = user

    def access(self) -> Access:
        return self._access

    def authorization(self) -> str | None:
        return f"Bearer {self._user}"

    def refresh(self) -> None:
        """The user's name does not expire."""


def session(api: EmbeddedApi, *, user: str = "tester", user_agent: str = "sickbay-test/1") -> Session:
    port = int(api.url.rpartition(":")[2])
    return Session(_Credentials(Access("127.0.0.1", port, "", None), user), user_agent=user_agent)


def refusal(call: Callable[[], object]) -> StoreError:
    """The StoreError that a call must raise."""
    with pytest.raises(StoreError) as caught:
        call()
    return caught.value


def eventually(holds: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    """Poll until something holds; fails with `what` after a deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.002)
