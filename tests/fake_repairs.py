"""The API that repairs need, in memory: Jobs that a test ends, and a release of the devices that a test answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from health.report import AcceleratorReport, DeviceRelease
from remediation.fleet import Node
from remediation.pod import Pod
from remediation.steps.job import JobView, RepairJob
from runtime.api_errors import Conflict, NotFound


class Objects(Protocol):
    """Where nodes and reports are; a `Cluster` is one."""

    def get_node(self, name: str) -> Node: ...

    def patch_node(self, name: str, patch: bytes) -> Node: ...

    def report(self, node_name: str) -> AcceleratorReport | None: ...


class Pods(Protocol):
    """Where pods are."""

    def pods_on(self, node_name: str) -> tuple[Pod, ...]: ...


@dataclass
class FakeRepairs:
    """`executor.RepairApi`. `templates` are the PodTemplates that an administrator has made."""

    objects: Objects
    pods: Pods
    templates: set[str] = field(default_factory=lambda: {"reset", "reboot", "restart-service", "diagnostics"})
    jobs: dict[str, RepairJob] = field(default_factory=dict)
    views: dict[str, JobView] = field(default_factory=dict)
    releases: list[DeviceRelease | None] = field(default_factory=list)
    on_job: Callable[[RepairJob], None] = lambda job: None
    on_release: Callable[[AcceleratorReport, DeviceRelease | None], None] = lambda report, release: None

    def get_node(self, name: str) -> Node:
        return self.objects.get_node(name)

    def patch_node(self, name: str, patch: bytes) -> Node:
        return self.objects.patch_node(name, patch)

    def report(self, node_name: str) -> AcceleratorReport | None:
        return self.objects.report(node_name)

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        return self.pods.pods_on(node_name)

    def order_release(self, report: AcceleratorReport, release: DeviceRelease | None) -> None:
        self.releases.append(release)
        self.on_release(report, release)

    def create_job(self, job: RepairJob) -> None:
        if job.template not in self.templates:
            raise NotFound(f'podtemplates "{job.template}" not found', status=404, reason="NotFound")
        if job.name in self.jobs:
            raise Conflict(f'jobs "{job.name}" already exists', status=409, reason="AlreadyExists")
        self.jobs[job.name] = job
        self.views[job.name] = JobView()
        self.on_job(job)

    def job(self, namespace: str, name: str) -> JobView:
        if name not in self.views:
            raise NotFound(f'jobs "{name}" not found', status=404, reason="NotFound")
        return self.views[name]
