"""The calls of repairs to the Kubernetes API as they are sent, and what is made of the answers."""

import json
from typing import Any

import msgspec
import pytest

from health.report import AcceleratorReport, DeviceRelease
from remediation.cluster import REPORTS, Cluster, FencedError
from remediation.pod_api import KubernetesPods
from remediation.repair_api import KubernetesRepairs
from remediation.steps.job import JobView, RepairJob, job_document
from runtime.api_errors import ApiError, Conflict, Forbidden, Invalid, NotFound, Unavailable
from runtime.clock import ManualClock
from tests.api_server import Recorded, Reply, ScriptedApi, status_object
from tests.unit.builders import NOON, report

NAMESPACE = "sickbay-repair"
JOB = RepairJob(
    name="reset-1-0123456789",
    template="reset",
    namespace=NAMESPACE,
    node_name="n1",
    facts={"session": "n1-0123456789", "step": "Reset", "attempt": "1", "devices": "GPU-0", "service": ""},
    deadline_seconds=600,
)
POD_SPEC = {
    "restartPolicy": "Never",
    "automountServiceAccountToken": False,
    "hostPID": True,
    "initContainers": [{"name": "check", "image": "sickbay"}],
    "containers": [{"name": "reset", "image": "sickbay", "unknownField": {"kept": [1, None]}}],
}
TEMPLATE = {
    "kind": "PodTemplate",
    "metadata": {"name": "reset"},
    "template": {"metadata": {}, "spec": POD_SPEC},
}
TEMPLATE_PATH = f"/api/v1/namespaces/{NAMESPACE}/podtemplates/reset"
JOBS_PATH = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"


def repairs_of(api: ScriptedApi, *, leads: bool = True) -> KubernetesRepairs:
    session = api.session()
    cluster = Cluster(session, may_write=lambda: leads)
    pods = KubernetesPods(session, clock=ManualClock(wall=NOON), may_write=lambda: leads)
    return KubernetesRepairs(session, cluster, pods, may_write=lambda: leads)


@pytest.fixture
def repairs(api: ScriptedApi) -> KubernetesRepairs:
    return repairs_of(api)


def sent(api: ScriptedApi) -> list[tuple[str, str]]:
    return [(request.method, request.path) for request in api.requests]


# The creation of a Job.


def test_a_job_is_made_of_the_template_as_it_is_now(api: ScriptedApi, repairs: KubernetesRepairs) -> None:
    api.answer("GET", TEMPLATE)
    api.answer("POST", {"kind": "Job"}, status=201)
    repairs.create_job(JOB)
    assert sent(api) == [("GET", TEMPLATE_PATH), ("POST", JOBS_PATH)]
    document = json.loads(api.requests[1].body)
    assert document == json.loads(json.dumps(job_document(JOB, POD_SPEC)))
    assert document["spec"]["template"]["spec"] == {**POD_SPEC, "nodeName": "n1"}
    annotations = document["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {f"sickbay.dev/{key}": value for key, value in JOB.facts.items()}
    assert "serviceAccount" not in json.dumps(document), "nothing is added"


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (409, "AlreadyExists", Conflict),
        (403, "Forbidden", Forbidden),
        (422, "Invalid", Invalid),
        (500, "InternalError", Unavailable),
    ],
)
def test_a_refusal_of_the_job_is_what_the_step_is_told(
    api: ScriptedApi, repairs: KubernetesRepairs, code: int, reason: str, error: type[ApiError]
) -> None:
    api.answer("GET", TEMPLATE)
    api.refuse("POST", code, reason, "no")
    with pytest.raises(error) as caught:
        repairs.create_job(JOB)
    assert not isinstance(caught.value, Conflict) or caught.value.already_exists
    assert len(api.requests) == 2, "and it is not sent again"


def test_without_its_template_no_job_is_asked_for(api: ScriptedApi, repairs: KubernetesRepairs) -> None:
    api.refuse("GET", 404, "NotFound", 'podtemplates "reset" not found')
    with pytest.raises(NotFound, match="podtemplates"):
        repairs.create_job(JOB)
    assert sent(api) == [("GET", TEMPLATE_PATH)]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>a proxy</html>",
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        {"kind": "PodTemplate"},
        {"template": {}},
        {"template": {"spec": None}},
        {"template": {"spec": ["containers"]}},
    ],
)
def test_what_is_no_template_makes_no_job(api: ScriptedApi, repairs: KubernetesRepairs, answer: Any) -> None:
    api.answer("GET", answer)
    with pytest.raises(Unavailable, match=r"podtemplates/reset.*not a PodTemplate"):
        repairs.create_job(JOB)
    assert [method for method, _ in sent(api)] == ["GET"]


def test_who_does_not_lead_creates_no_job(api: ScriptedApi) -> None:
    api.answer("GET", TEMPLATE)
    with pytest.raises(FencedError):
        repairs_of(api, leads=False).create_job(JOB)
    assert [method for method, _ in sent(api)] == ["GET"]


# The agent's release.


def test_a_release_is_asked_of_this_very_version_of_the_report(
    api: ScriptedApi, repairs: KubernetesRepairs
) -> None:
    api.answer("PATCH", msgspec.to_builtins(report("n1", version=7)))
    repairs.order_release(report("n1", version=7), DeviceRelease(session="s", until=NOON))
    (request,) = api.requests
    assert (request.method, request.path) == ("PATCH", f"{REPORTS}/n1")
    assert request.headers["content-type"] == "application/merge-patch+json"
    assert json.loads(request.body) == {
        "metadata": {"uid": "report-n1", "resourceVersion": "7"},
        "spec": {"deviceRelease": {"session": "s", "until": "2026-01-01T12:00:00Z"}},
    }


def test_a_release_is_taken_back_by_a_null(api: ScriptedApi, repairs: KubernetesRepairs) -> None:
    api.answer("PATCH", {})
    repairs.order_release(report("n1"), None)
    assert json.loads(api.requests[0].body)["spec"] == {"deviceRelease": None}


def test_a_report_that_has_changed_is_a_conflict(api: ScriptedApi, repairs: KubernetesRepairs) -> None:
    api.refuse("PATCH", 409, "Conflict", "the object has been modified")
    with pytest.raises(Conflict):
        repairs.order_release(report("n1"), None)


def test_who_does_not_lead_asks_for_no_release(api: ScriptedApi) -> None:
    with pytest.raises(FencedError):
        repairs_of(api, leads=False).order_release(report("n1"), None)
    assert api.requests == []


def test_the_order_that_is_read_back_is_the_one_that_was_sent(
    api: ScriptedApi, repairs: KubernetesRepairs
) -> None:
    until = NOON.replace(microsecond=123456)
    api.answer("PATCH", {})
    repairs.order_release(report("n1"), DeviceRelease(session="s", until=until))
    spec = json.loads(api.requests[0].body)["spec"]
    read = msgspec.json.decode(json.dumps({"metadata": {"name": "n1"}, "spec": spec}), type=AcceleratorReport)
    assert read.spec.device_release == DeviceRelease(session="s", until=until)


# A Job and its pod.


def terminated(code: int, message: str = "", name: str = "main") -> dict[str, Any]:
    return {"name": name, "state": {"terminated": {"exitCode": code, "message": message, "reason": "x"}}}


def waiting(reason: str, message: str = "", name: str = "main") -> dict[str, Any]:
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}}


RUNNING = {"name": "main", "state": {"running": {"startedAt": "2026-01-01T12:00:00Z"}}}
COMPLETE = [{"type": "Complete", "status": "True", "reason": "CompletionsReached"}]
TOO_LATE = [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]
FAILED = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]


def answering(api: ScriptedApi, conditions: list[dict[str, Any]] | None, *pods: dict[str, Any]) -> None:
    """The Job with these conditions, and its pods with these statuses."""

    def route(request: Recorded) -> Reply:
        if request.path == f"{JOBS_PATH}/{JOB.name}":
            document: Any = {
                "kind": "Job",
                "status": {} if conditions is None else {"conditions": conditions},
            }
        else:
            assert request.path == PODS_PATH
            items = [
                {"metadata": {"name": f"p{number}"}, "status": status} for number, status in enumerate(pods)
            ]
            document = {"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items}
        return Reply(json.dumps(document).encode())

    api.route = route


def view(api: ScriptedApi, conditions: list[dict[str, Any]] | None, *pods: dict[str, Any]) -> JobView:
    answering(api, conditions, *pods)
    return repairs_of(api).job(NAMESPACE, JOB.name)


def test_a_jobs_pods_are_asked_for_by_the_label_of_the_job(api: ScriptedApi) -> None:
    view(api, None, {"phase": "Pending"})
    assert sent(api) == [("GET", f"{JOBS_PATH}/{JOB.name}"), ("GET", PODS_PATH)]
    assert api.requests[1].query["labelSelector"] == f"batch.kubernetes.io/job-name={JOB.name}"


def test_a_pod_that_is_only_starting_has_no_trouble(api: ScriptedApi) -> None:
    starting = {
        "phase": "Pending",
        "initContainerStatuses": [waiting("ContainerCreating")],
        "containerStatuses": [waiting("PodInitializing")],
    }
    assert view(api, None, starting) == JobView()
    assert view(api, [], {}) == JobView()


@pytest.mark.parametrize("where", ["initContainerStatuses", "containerStatuses"])
def test_an_image_that_cannot_be_pulled_is_the_trouble(api: ScriptedApi, where: str) -> None:
    pod = {
        "phase": "Pending",
        "containerStatuses": [waiting("PodInitializing")],
        where: [waiting("ErrImagePull", "sickbay:typo:\n not found")],
    }
    assert view(api, None, pod) == JobView(trouble="ErrImagePull: sickbay:typo: not found")


def test_a_refusing_init_container_tells_why(api: ScriptedApi) -> None:
    pod = {
        "phase": "Failed",
        "initContainerStatuses": [terminated(4, "not allowed any more: alice holds the session", "check")],
        "containerStatuses": [waiting("PodInitializing")],
    }
    found = view(api, FAILED, pod)
    assert (found.ended, found.exit_code, found.message) == (
        True,
        4,
        "not allowed any more: alice holds the session",
    )


def test_an_init_container_that_let_it_go_on_says_nothing_about_the_repair(api: ScriptedApi) -> None:
    checked = [terminated(0, "Reset may go on", "check")]
    running = {"phase": "Running", "initContainerStatuses": checked, "containerStatuses": [RUNNING]}
    assert view(api, None, running) == JobView()
    done = {
        "phase": "Succeeded",
        "initContainerStatuses": checked,
        "containerStatuses": [terminated(0, '{"busbw": 480}')],
    }
    assert view(api, COMPLETE, done) == JobView(ended=True, exit_code=0, message='{"busbw": 480}')


def test_a_container_that_failed_is_told_with_its_code_and_message(api: ScriptedApi) -> None:
    pod = {
        "phase": "Failed",
        "initContainerStatuses": [terminated(0, "", "check")],
        "containerStatuses": [terminated(7, "it broke")],
    }
    assert view(api, FAILED, pod) == JobView(ended=True, exit_code=7, message="it broke")


def test_a_job_that_ran_out_of_time_has_no_pod_any_more_and_says_so(api: ScriptedApi) -> None:
    assert view(api, TOO_LATE) == JobView(ended=True, trouble="DeadlineExceeded")


def test_a_job_whose_pod_nobody_makes_has_trouble(api: ScriptedApi) -> None:
    assert view(api, None) == JobView(trouble="it has no pod")


@pytest.mark.parametrize("type_", ["Suspended", "FailureTarget", "SuccessCriteriaMet"])
def test_a_job_whose_pods_still_end_has_not_ended(api: ScriptedApi, type_: str) -> None:
    conditions = [{"type": type_, "status": "True", "reason": "x"}, {"type": "Failed", "status": "False"}]
    assert not view(api, conditions, {"phase": "Running", "containerStatuses": [RUNNING]}).ended


def test_a_pod_that_its_kubelet_refused_tells_why(api: ScriptedApi) -> None:
    refused = {
        "phase": "Failed",
        "reason": "UnexpectedAdmissionError",
        "message": "Allocate failed due to no healthy devices present",
    }
    found = view(api, FAILED, refused)
    assert found.ended and found.exit_code is None
    assert found.trouble.startswith("UnexpectedAdmissionError")
    assert "no healthy devices present" in found.trouble


def test_a_message_is_cut_and_nothing_of_it_is_interpreted(api: ScriptedApi) -> None:
    pod = {"phase": "Failed", "containerStatuses": [terminated(1, "\u202e" * 9000)]}
    assert len(view(api, FAILED, pod).message) == 4096


def test_a_job_that_is_gone_is_not_found(api: ScriptedApi, repairs: KubernetesRepairs) -> None:
    api.refuse("GET", 404, "NotFound", "gone")
    with pytest.raises(NotFound):
        repairs.job(NAMESPACE, JOB.name)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"", b"\xff", b"[]", b'{"status": 7}', b'{"status":{"conditions":7}}']
)
def test_what_is_no_job_is_trouble_of_the_api(
    api: ScriptedApi, repairs: KubernetesRepairs, answer: bytes
) -> None:
    api.answer("GET", answer)
    with pytest.raises(Unavailable, match=r"jobs/reset-1-0123456789.*not a Job"):
        repairs.job(NAMESPACE, JOB.name)


@pytest.mark.parametrize(
    "pods", [b"<html>", b"[]", b'{"items": 7}', b'{"items":[{"status":{"containerStatuses":[{"state":7}]}}]}']
)
def test_what_is_no_list_of_pods_is_trouble_of_the_api(api: ScriptedApi, pods: bytes) -> None:
    api.route = lambda request: Reply(b"{}" if "/jobs/" in request.path else pods)
    with pytest.raises(Unavailable):
        repairs_of(api).job(NAMESPACE, JOB.name)


def test_pods_that_may_not_be_listed_are_said_so(api: ScriptedApi) -> None:
    no = json.dumps(status_object(403, "Forbidden", "pods is forbidden")).encode()
    api.route = lambda request: Reply(b"{}") if "/jobs/" in request.path else Reply(no, 403)
    with pytest.raises(Forbidden, match="pods is forbidden"):
        repairs_of(api).job(NAMESPACE, JOB.name)


def test_reads_of_nodes_reports_and_pods_are_the_clusters_own(
    api: ScriptedApi, repairs: KubernetesRepairs
) -> None:
    api.refuse("GET", 404, "NotFound", "gone")
    with pytest.raises(NotFound):
        repairs.get_node("n1")
    assert repairs.report("n1") is None
    assert sent(api) == [("GET", "/api/v1/nodes/n1"), ("GET", f"{REPORTS}/n1")]
