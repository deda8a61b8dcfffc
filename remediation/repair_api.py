"""The calls of repairs to the Kubernetes API: Jobs of an administrator's PodTemplates, and the agent's release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from health.report import AcceleratorReport, DeviceRelease
from remediation.cluster import REPORTS, Cluster, FencedError
from remediation.pod_api import KubernetesPods
from remediation.steps.job import JobView, RepairJob, job_document
from runtime.api_errors import Unavailable
from runtime.kubernetes import Session

_JOB_LABEL = "batch.kubernetes.io/job-name"


class _Terminated(msgspec.Struct, frozen=True, rename="camel"):
    exit_code: int = 0
    message: str = ""
    reason: str = ""


class _Waiting(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, frozen=True):
    terminated: _Terminated | None = None
    waiting: _Waiting | None = None


class _Container(msgspec.Struct, frozen=True):
    name: str = ""
    state: _State = _State()


class _PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    reason: str = ""
    message: str = ""
    init_container_statuses: tuple[_Container, ...] = ()
    container_statuses: tuple[_Container, ...] = ()


class _Pod(msgspec.Struct, frozen=True):
    status: _PodStatus = _PodStatus()


class _PodList(msgspec.Struct, frozen=True):
    items: tuple[_Pod, ...] = ()


class _Condition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""


class _JobStatus(msgspec.Struct, frozen=True):
    conditions: tuple[_Condition, ...] = ()


class _Job(msgspec.Struct, frozen=True):
    status: _JobStatus = _JobStatus()


class _PodTemplateSpec(msgspec.Struct, frozen=True):
    spec: dict[str, Any]


class _PodTemplate(msgspec.Struct, frozen=True):
    template: _PodTemplateSpec


class KubernetesRepairs:
    """`steps.release.ReleaseApi` and `steps.job.JobApi`. `may_write` is asked before every mutation is sent."""

    def __init__(
        self, session: Session, cluster: Cluster, pods: KubernetesPods, *, may_write: Callable[[], bool]
    ) -> None:
        self._session = session
        self._may_write = may_write
        self.get_node = cluster.get_node
        self.patch_node = cluster.patch_node
        self.report = cluster.report
        self.pods_on = pods.pods_on

    def order_release(self, report: AcceleratorReport, release: DeviceRelease | None) -> None:
        """Write `spec.deviceRelease` of this very version of the report. Raises Conflict."""
        self._guard()
        metadata = {"uid": report.metadata.uid, "resourceVersion": report.metadata.resource_version}
        document = {"metadata": metadata, "spec": {"deviceRelease": release}}
        self._session.merge_patch(f"{REPORTS}/{report.metadata.name}", msgspec.json.encode(document))

    def create_job(self, job: RepairJob) -> None:
        """Create it of its PodTemplate as that is now. Raises NotFound, Forbidden, and Conflict where it exists."""
        path = f"/api/v1/namespaces/{job.namespace}/podtemplates/{job.template}"
        template = _read(self._session.get(path).body, _PodTemplate, path)
        self._guard()
        body = msgspec.json.encode(job_document(job, template.template.spec))
        self._session.post(f"/apis/batch/v1/namespaces/{job.namespace}/jobs", body)

    def job(self, namespace: str, name: str) -> JobView:
        """The Job, and its pod's containers. Raises NotFound."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{quote(name)}"
        job = _read(self._session.get(path).body, _Job, path)
        ends = [one for one in job.status.conditions if one.type in _ENDS and one.status == "True"]
        path = f"/api/v1/namespaces/{namespace}/pods"
        page = next(self._session.list_pages(path, query={"labelSelector": f"{_JOB_LABEL}={name}"}))
        pods = _read(page.body, _PodList, path).items
        if not pods:
            why = next((one.reason for one in ends if one.reason), "it has no pod")
            return JobView(ended=bool(ends), trouble=why)
        return _view(pods[-1].status, ended=bool(ends))

    def _guard(self) -> None:
        if not self._may_write():
            raise FencedError("the lease is not proven, so nothing is written", reason="Fenced")


_ENDS = ("Complete", "Failed")


def _view(status: _PodStatus, *, ended: bool) -> JobView:
    """What a pod's status says: how its last container ended, and what keeps it from running."""
    containers = (*status.init_container_statuses, *status.container_statuses)
    last = next((one.state.terminated for one in reversed(containers) if one.state.terminated), None)
    waits = next(
        (
            one.state.waiting
            for one in containers
            if one.state.waiting and one.state.waiting.reason not in _NORMAL
        ),
        None,
    )
    told = (waits.reason, waits.message) if waits is not None else (status.reason, status.message)
    trouble = ": ".join(part for part in told if part)
    # An init container that ended well says nothing about the repair.
    mains = [one.state.terminated for one in status.container_statuses if one.state.terminated]
    tells = last is not None and (bool(mains) or last.exit_code != 0)
    return JobView(
        ended=ended,
        exit_code=last.exit_code if last is not None and tells else None,
        message=last.message[:_MESSAGE] if last is not None and tells else "",
        trouble=" ".join(trouble.split())[:_MESSAGE],
    )


_NORMAL = frozenset({"", "PodInitializing", "ContainerCreating"})
_MESSAGE = 4096
"""Bytes; the kubelet keeps no more of a termination message."""


_Read = TypeVar("_Read", bound=msgspec.Struct)


def _read(body: bytes, shape: type[_Read], path: str) -> _Read:
    """Raises Unavailable for what is no such object, as a proxy in between may send."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"not a {shape.__name__.strip('_')}: {error}", request=f"GET {path}") from error
