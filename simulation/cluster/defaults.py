"""What the API server fills into built-in kinds: defaults of their types, and of the admission plugins that are on.

From pkg/apis/{core,apps,batch}/v1/defaults.go and plugin/pkg/admission/{defaulttolerationseconds,priority,
serviceaccount}. Of the pod template only what a scheduler, a kubelet, a drain or a person reads is filled in; the
token volume of a ServiceAccount is not.
"""

from __future__ import annotations

from typing import Any

from simulation.cluster.interface import Object

_UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_PRIORITIES = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}


def filled(resource_id: str, body: Object, *, uid: str) -> Object:
    """A new object with its defaults; `body` is not changed."""
    if resource_id == "podtemplates":
        return _templated(body)
    filler = _FILLERS.get(resource_id)
    if filler is None:
        return body
    spec = filler(body, dict(body.get("spec") or {}), uid)
    metadata = body["metadata"]
    if resource_id == "jobs.batch" and not metadata.get("labels"):
        metadata = {**metadata, "labels": dict(spec["template"]["metadata"].get("labels") or {})}
    return {**body, "metadata": metadata, "spec": spec}


def zeroed(resource_id: str, document: Object) -> Object:
    """With the empty values that Go writes where a client has written nothing: of conditions their times, of a Node
    what its kubelet has yet to say."""
    if resource_id == "nodes":
        document = _without_empty(document)
    times, zeros = _CONDITION_TIMES.get(resource_id, ()), _ZEROS.get(resource_id, {})
    if not isinstance(document.get("status"), dict):
        return document
    status = document["status"]
    if zeros.keys() - status.keys():
        status = {**zeros, **status}
    if any(key not in item for item in status.get("conditions") or () for key in times):
        conditions = [{**dict.fromkeys(times), **item} for item in status["conditions"]]
        status = {**status, "conditions": conditions}
    return {**document, "status": status} if status is not document["status"] else document


def _without_empty(node: Object) -> Object:
    """Go leaves out what is empty: a Node that is not unschedulable does not say so."""
    spec: Object = node.get("spec") or {}
    if "spec" not in node:
        return {**node, "spec": spec}
    if spec.get("unschedulable") is not False and spec.get("taints") != []:
        return node
    return {**node, "spec": {key: value for key, value in spec.items() if value not in (False, [])}}


def _node(_body: Object, spec: Object, _uid: str) -> Object:
    """Not ready until the node lifecycle controller takes the taint away (plugin/pkg/admission/nodetaint)."""
    taint = {"key": _UNREACHABLE[0], "effect": "NoSchedule"}
    given = spec.get("taints") or []
    return spec if taint in given else {**spec, "taints": [*given, taint]}


def _pod(body: Object, spec: Object, _uid: str) -> Object:
    spec = _pod_spec(spec)
    spec["tolerations"] = _tolerations(spec.get("tolerations", []))
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("enableServiceLinks", True)
    spec["priority"] = _PRIORITIES.get(spec.get("priorityClassName", ""), spec.get("priority", 0))
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    return spec


def _pod_spec(spec: Object) -> Object:
    filled_in = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        **spec,
    }
    for place in ("containers", "initContainers"):
        if place in filled_in:
            filled_in[place] = [_container(item) for item in filled_in[place]]
    return filled_in


def _container(container: Object) -> Object:
    image = str(container.get("image", ""))
    latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    resources = dict(container.get("resources") or {})
    if resources.get("limits"):
        resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}
    return {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "Always" if latest else "IfNotPresent",
        **container,
        "resources": resources,
    }


def _tolerations(given: list[Object]) -> list[Object]:
    added = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for key in _UNREACHABLE
        if not any(
            item.get("key") in (key, None, "") and item.get("effect") in ("NoExecute", None, "")
            for item in given
        )
    ]
    return [*given, *added]


def quality(pod: Object) -> str:
    """A pod's QoS class (pkg/apis/core/v1/helper/qos): of CPU and memory alone."""
    spec = pod.get("spec", {})
    containers = [*spec.get("containers", []), *spec.get("initContainers", [])]
    found = [_amounts(container.get("resources") or {}) for container in containers]
    if all(not requests and not limits for requests, limits in found):
        return "BestEffort"
    whole = all(set(limits) == {"cpu", "memory"} and requests == limits for requests, limits in found)
    return "Guaranteed" if whole else "Burstable"


def _amounts(resources: Object) -> tuple[Object, Object]:
    def of(place: str) -> Object:
        given: Object = resources.get(place) or {}
        return {
            key: value for key, value in given.items() if key in ("cpu", "memory") and value not in ("0", 0)
        }

    return of("requests"), of("limits")


def _templated(spec: Object) -> Object:
    template = dict(spec.get("template") or {})
    template["metadata"] = template.get("metadata") or {}
    template["spec"] = _pod_spec(template.get("spec") or {})
    return {**spec, "template": template}


def _deployment(_body: Object, spec: Object, _uid: str) -> Object:
    strategy = {"type": "RollingUpdate", **(spec.get("strategy") or {})}
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        strategy["rollingUpdate"] = {"maxUnavailable": "25%", "maxSurge": "25%", **rolling}
    more = {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}
    return _templated({**more, **spec, "strategy": strategy})


def _replica_set(_body: Object, spec: Object, _uid: str) -> Object:
    return _templated({"replicas": 1, **spec})


def _stateful_set(_body: Object, spec: Object, _uid: str) -> Object:
    return _templated(
        {"replicas": 1, "podManagementPolicy": "OrderedReady", "revisionHistoryLimit": 10, **spec}
    )


def _daemon_set(_body: Object, spec: Object, _uid: str) -> Object:
    strategy = {"type": "RollingUpdate", **(spec.get("updateStrategy") or {})}
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        strategy["rollingUpdate"] = {"maxUnavailable": 1, "maxSurge": 0, **rolling}
    return _templated({"revisionHistoryLimit": 10, **spec, "updateStrategy": strategy})


def _job(body: Object, spec: Object, uid: str) -> Object:
    name = body["metadata"].get("name", "")
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    more: dict[str, Any] = {
        "parallelism": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "manualSelector": False,
        "podReplacementPolicy": "TerminatingOrFailed",
    }
    spec = _templated({**more, **spec})
    if spec.get("manualSelector"):
        return spec
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    template = spec["template"]
    metadata = {**template["metadata"], "labels": {**(template["metadata"].get("labels") or {}), **labels}}
    spec["template"] = {**template, "metadata": metadata}
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    return spec


def _namespace(_body: Object, spec: Object, _uid: str) -> Object:
    return {"finalizers": ["kubernetes"], **spec}


_CONDITION_TIMES = {
    "nodes": ("lastHeartbeatTime", "lastTransitionTime"),
    "pods": ("lastProbeTime", "lastTransitionTime"),
    "deployments.apps": ("lastUpdateTime", "lastTransitionTime"),
    "jobs.batch": ("lastProbeTime", "lastTransitionTime"),
    "poddisruptionbudgets.policy": ("lastTransitionTime",),
}
_NO_INFO = dict.fromkeys(
    (
        "machineID",
        "systemUUID",
        "bootID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
        "operatingSystem",
        "architecture",
    ),
    "",
)
_ZEROS: dict[str, Object] = {
    "nodes": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": _NO_INFO},
    "replicasets.apps": {"replicas": 0},
    "daemonsets.apps": {
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    },
    "statefulsets.apps": {"replicas": 0, "availableReplicas": 0},
    "poddisruptionbudgets.policy": {
        "disruptionsAllowed": 0,
        "currentHealthy": 0,
        "desiredHealthy": 0,
        "expectedPods": 0,
    },
}
_FILLERS = {
    "nodes": _node,
    "pods": _pod,
    "deployments.apps": _deployment,
    "replicasets.apps": _replica_set,
    "statefulsets.apps": _stateful_set,
    "daemonsets.apps": _daemon_set,
    "jobs.batch": _job,
    "namespaces": _namespace,
}
