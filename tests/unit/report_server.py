"""An API server that keeps one AcceleratorReport, and refuses as a test tells it to."""

import json
import time
from dataclasses import dataclass, field

from tests.api_server import Reply, ScriptedApi, status_object
from tests.lab.processes import wait_until

PATH = "/apis/sickbay.dev/v1alpha1/acceleratorreports"


def merged(target, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def refusal(code, reason, message="", headers=None, **details):
    return Reply(json.dumps(status_object(code, reason, message, **details)).encode(), code, headers or {})


@dataclass
class ReportServer:
    """`refusals` are given out first, one a request; `deaf` holds every answer back so many seconds."""

    api: ScriptedApi
    name: str = "n1"
    stored: dict | None = None
    refusals: list = field(default_factory=list)
    always: Reply | None = None
    patches: list = field(default_factory=list)
    """The statuses that were written, by a patch or by a PUT."""
    methods: list = field(default_factory=list)
    """How each of them was written."""
    posts: list = field(default_factory=list)
    times: list = field(default_factory=list)
    version: int = 100

    def __post_init__(self):
        self.api.route = self.answer

    def answer(self, request):
        arrived = time.monotonic()
        if self.refusals or self.always:
            return self.refusals.pop(0) if self.refusals else self.always
        body = json.loads(request.body) if request.body else None
        if request.method == "POST" and request.path == PATH:
            self.posts.append(body)
            if self.stored is not None:
                return refusal(409, "AlreadyExists")
            self.stored = {**body, "metadata": {**body["metadata"], "uid": "report-uid"}}
            self.changed()
            return self.object(201)
        if self.stored is None:
            return refusal(404, "NotFound")
        if request.method in ("PATCH", "PUT") and request.path == f"{PATH}/{self.name}/status":
            if request.method == "PATCH":
                assert request.headers["content-type"] == "application/merge-patch+json"
                status = merged(self.stored.get("status"), body["status"])
            elif body["metadata"]["resourceVersion"] != self.stored["metadata"].get("resourceVersion"):
                return refusal(409, "Conflict")
            else:
                status = body["status"]
            self.stored = {**self.stored, "status": status}
            self.changed()
            self.times.append(arrived)
            self.patches.append(body["status"])
            self.methods.append(request.method)
            return self.object(200)
        assert (request.method, request.path) == ("GET", f"{PATH}/{self.name}")
        return self.object(200)

    def changed(self):
        """Give what is stored a new resourceVersion, as every write does."""
        self.version += 1
        self.stored = {
            **self.stored,
            "metadata": {**self.stored["metadata"], "resourceVersion": str(self.version)},
        }

    def object(self, status):
        return Reply(json.dumps(self.stored).encode(), status)

    @property
    def status(self):
        return (self.stored or {}).get("status", {})

    def await_patches(self, count, deadline=5):
        wait_until(
            lambda: len(self.patches) >= count,
            deadline,
            f"{count} writes, {len(self.patches)} came",
            every=0.002,
        )
        return self.patches[:count]

    def await_fault(self, kind, deadline=5):
        return wait_until(
            lambda: next((fault for fault in self.status.get("faults", []) if fault["kind"] == kind), None),
            deadline,
            f"fault {kind} in {self.status.get('faults')}",
            every=0.001,
        )
