"""The controller on pods: a notice on any, an end to those that a controller replaces, evictions for the rest."""

from collections.abc import Iterator

import pytest

from tests.lab.admission.world import MINE, World, refused_by
from tests.lab.api import ApiError, Object
from tests.lab.manifests import until_refused
from tests.lab.processes import wait_until

POLICY = "sickbay-controller-pods"
NOTICE = "sickbay.dev/drain-notice"
REFUSED = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Pod was rejected"}
FOREIGN = {"apiVersion": "example.com/v1", "kind": "Training", "name": "x", "uid": "x", "controller": True}
EVICTED = REFUSED | {"reason": "Evicted"}


class Pods:
    """Makes pods that are bound to a node without a kubelet, so that nothing else happens to them."""

    def __init__(self, world: World, namespace: str) -> None:
        self._admin = world.admin
        self._workloads = f"/apis/apps/v1/namespaces/{namespace}"
        self.path = f"/api/v1/namespaces/{namespace}/pods"

    def bare(self, name: str = "probe", *, owner: Object | None = None, status: Object | None = None) -> str:
        """A pod that nobody replaces; its path."""
        metadata = {
            "name": name,
            "labels": {"app": "training"},
            "annotations": {"example.com/note": "kept"},
            "ownerReferences": [owner] if owner else [],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": _SPEC}
        self._admin.create(self.path, pod)
        return self._as(f"{self.path}/{name}", status)

    def replaced(self, kind: str, status: Object | None = None) -> str:
        """A pod that a controller of this kind has made; its path."""
        self.workload(kind, "workload", replicas=1)
        made = wait_until(lambda: self._of(kind), 15, f"a pod of the {kind}", ignoring=(ApiError,))
        return self._as(f"{self.path}/{made['metadata']['name']}", status)

    def workload(self, kind: str, name: str, *, replicas: int) -> Object:
        """A DaemonSet or ReplicaSet, and how it is referred to without being a controller."""
        labels = {"app": name}
        spec: Object = {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _SPEC},
        }
        if kind == "ReplicaSet":
            spec["replicas"] = replicas
        elif not replicas:
            spec["template"]["spec"] = _SPEC | {"nodeName": "", "nodeSelector": {"example.com/none": "here"}}
        document = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        made = self._admin.create(f"{self._workloads}/{kind.lower()}s", document)
        uid = made["metadata"]["uid"]
        return {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": False}

    def _of(self, kind: str) -> Object | None:
        return next(
            (
                pod
                for pod in self._admin.items(self.path)
                if pod["spec"].get("nodeName") == MINE
                and any(owner["kind"] == kind for owner in pod["metadata"].get("ownerReferences", ()))
            ),
            None,
        )

    def _as(self, path: str, status: Object | None) -> str:
        if status:
            self._admin.patch(f"{path}/status", {"status": status})
        return path


_SPEC: Object = {
    "nodeName": MINE,
    "containers": [{"name": "main", "image": "example.com/none"}],
    "tolerations": [{"operator": "Exists"}],
}


@pytest.fixture
def pods(world: World, namespace: str) -> Iterator[Pods]:
    made = Pods(world, namespace)
    first = made.bare("first")
    until_refused(POLICY, lambda: world.controller.delete(f"{first}?dryRun=All"))
    yield made
    for kind in ("daemonsets", "replicasets"):
        world.admin.delete(f"/apis/apps/v1/namespaces/{namespace}/{kind}")
    now = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    world.admin.delete(made.path, now)


def going(world: World, path: str) -> bool:
    """Whether a pod is gone or on its way out, which without a kubelet takes for ever."""
    return not world.admin.exists(path) or "deletionTimestamp" in world.admin.get(path)["metadata"]


def evict(path: str) -> Object:
    namespace, name = path.split("/")[4], path.rsplit("/", 1)[1]
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }


def test_the_controller_tells_a_pod_and_changes_nothing_else_of_it(world: World, pods: Pods) -> None:
    path = pods.bare()
    told = world.controller.patch(path, {"metadata": {"annotations": {NOTICE: "2026-01-01T00:00:00Z"}}})
    assert told["metadata"]["annotations"] == {
        NOTICE: "2026-01-01T00:00:00Z",
        "example.com/note": "kept",
    }
    world.controller.patch(path, {"metadata": {"annotations": {NOTICE: None}}})


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"metadata": {"annotations": {"example.com/note": "changed"}}}, "annotation example.com/note"),
        ({"metadata": {"annotations": {"example.com/note": None}}}, "annotation example.com/note"),
        ({"metadata": {"annotations": {"sickbay.dev/other": "x", NOTICE: "x"}}}, "sickbay.dev/other"),
        ({"metadata": {"labels": {"app": "none"}}}, "labels, owners or finalizers"),
        ({"metadata": {"labels": {NOTICE: "x"}}}, "labels, owners or finalizers"),
        ({"metadata": {"finalizers": ["example.com/forever"]}}, "labels, owners or finalizers"),
        ({"metadata": {"ownerReferences": [FOREIGN]}}, "labels, owners or finalizers"),
        ({"spec": {"activeDeadlineSeconds": 1}}, "may not change the spec"),
    ],
)
def test_every_other_change_is_refused(world: World, pods: Pods, patch: Object, said: str) -> None:
    path = pods.bare()
    assert said in refused_by(POLICY, lambda: world.controller.patch(path, patch))


@pytest.mark.parametrize(
    ("kind", "status"), [("", None), ("", REFUSED), ("ReplicaSet", None), ("ReplicaSet", EVICTED)]
)
def test_a_pod_that_only_an_eviction_may_end_is_not_deleted(
    world: World, pods: Pods, kind: str, status: Object | None
) -> None:
    path = pods.replaced(kind, status) if kind else pods.bare(status=status)
    assert "all others it evicts" in refused_by(POLICY, lambda: world.controller.delete(path))


@pytest.mark.parametrize(("kind", "status"), [("DaemonSet", None), ("ReplicaSet", REFUSED)])
def test_an_owner_that_is_no_controller_does_not_count(
    world: World, pods: Pods, kind: str, status: Object | None
) -> None:
    path = pods.bare(owner=pods.workload(kind, "idle", replicas=0), status=status)
    assert "all others it evicts" in refused_by(POLICY, lambda: world.controller.delete(path))


@pytest.mark.parametrize(("kind", "status"), [("DaemonSet", None), ("ReplicaSet", REFUSED)])
def test_a_device_plugins_pod_and_one_that_the_kubelet_refused_are_deleted(
    world: World, pods: Pods, kind: str, status: Object | None
) -> None:
    path = pods.replaced(kind, status)
    world.controller.delete(path)
    assert going(world, path)


@pytest.mark.parametrize("status", [None, {"phase": "Running"}, {"phase": "Succeeded"}])
def test_every_pod_may_be_evicted(world: World, pods: Pods, status: Object | None) -> None:
    for path in (pods.bare(status=status), pods.replaced("ReplicaSet", status)):
        world.controller.create(f"{path}/eviction", evict(path))
        assert going(world, path)


def test_the_policy_binds_the_controller_and_nobody_else(world: World, pods: Pods) -> None:
    path = pods.bare()
    world.admin.patch(path, {"metadata": {"labels": {"app": "other"}}})
    now = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    world.admin.delete(path, now)
    assert not world.admin.exists(path)
