"""The project's own manifests on a lab: applied, and waited for until the API server really enforces them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from remediation.repair_state import job_name
from remediation.steps.job import RepairJob, job_document
from tests.lab.api import Api, ApiError, Object
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
SICKBAY = "/apis/sickbay.dev/v1alpha1"
REPORTS = f"{SICKBAY}/acceleratorreports"
SESSIONS = f"{SICKBAY}/acceleratorremediations"
CONTROLS = f"{SICKBAY}/acceleratorcontrols"
COLLECTIONS = (REPORTS, SESSIONS, CONTROLS)
NODES = "/api/v1/nodes"
JOBS = "/apis/batch/v1/namespaces/sickbay-repair/jobs"
TEMPLATES = "/api/v1/namespaces/sickbay-repair/podtemplates"

AGENT = ("sickbay-agent", "sickbay-agent")
"""Namespace and name of the agent's ServiceAccount."""
CONTROLLER = ("sickbay-system", "sickbay-controller")
"""Namespace and name of the controller's ServiceAccount."""
REPAIR = ("sickbay-repair", "sickbay-repair")
"""Namespace and name of the ServiceAccount that a repair looks with before it acts."""
REPAIR_STEPS = {"reset": "Reset", "reboot": "Reboot", "restart-service": "RestartService"}
"""The PodTemplates of `deploy/repair` and the step that each is for."""

WORKLOADS = ("agent.yaml", "controller.yaml")
"""Their image is built by the tests that are about it."""

DRY_RUN = "?dryRun=All"
ENFORCED_WITHIN = 30.0
"""Seconds. The API server compiles a policy when its own watch delivers it, a moment after it was stored."""


def apply(lab: Lab) -> None:
    """Apply `deploy/crds` and `deploy/manifests` but for what runs pods.

    Afterwards every definition is served and every policy refuses. Applying twice changes nothing. Raises
    WaitTimeoutError, naming what is not enforced, and LabError.
    """
    lab.kubectl("apply", "-f", DEPLOY / "crds")
    for collection in COLLECTIONS:
        # Not found until the definition is established, then 429 (storage is (re)initializing), then served.
        wait_until(
            partial(lab.api.exists, collection), 30, f"{collection} to be served", ignoring=(ApiError,)
        )
    for file in sorted((DEPLOY / "manifests").glob("*.yaml")):
        if file.name not in WORKLOADS:
            lab.kubectl("apply", "-f", file)
    _wait_enforced(lab)


def repair(lab: Lab) -> None:
    """Apply `deploy/repair`, the repair switch, on a lab whose manifests are applied.

    Afterwards the right Job of each template would be admitted, and every policy refuses. Applying twice puts the
    templates back. Raises WaitTimeoutError, naming what is not enforced, and LabError.
    """
    lab.kubectl("apply", "-f", DEPLOY / "repair")
    controller = lab.client(lab.service_account_token(*CONTROLLER))
    for name, step in REPAIR_STEPS.items():
        template = lab.api.get(f"{TEMPLATES}/{name}")
        wrong = repair_job(template, step="Other", node="probe", session="probe")
        until_refused("sickbay-repair-jobs", partial(controller.create, JOBS + DRY_RUN, wrong))
        right = repair_job(template, step=step, node="probe", session="probe")
        admitted = partial(controller.create, JOBS + DRY_RUN, right)
        wait_until(admitted, ENFORCED_WITHIN, f"a Job of {name} to be admitted", ignoring=(ApiError,))
    # A Job without labels would be given those of its pod template.
    wrong["metadata"]["labels"] = wrong["spec"]["template"]["metadata"]["labels"] = {}
    until_refused("sickbay-repair-other-jobs", lambda: controller.create(JOBS + DRY_RUN, wrong))
    mounted: Object = {"template": {"spec": {"automountServiceAccountToken": True}}}
    slip = partial(lab.api.patch, f"{TEMPLATES}/reset{DRY_RUN}", mounted)
    until_refused("sickbay-repair-tokens", slip)
    _wait_reports_guarded(lab.api, controller)


def without_repair(lab: Lab) -> None:
    """Switch repairs off again, with everything that was in their namespace. Raises LabError."""
    lab.kubectl("delete", "-f", DEPLOY / "repair", "--ignore-not-found", "--wait=true", "--timeout=50s")


def repair_job(
    template: Object,
    *,
    step: str,
    node: str,
    session: str = "session",
    node_uid: str = "node-uid",
    boot_id: str = "boot-1",
    attempt: int = 1,
    devices: tuple[str, ...] = (),
    service: str = "",
) -> Object:
    """Return the Job that the controller makes of a PodTemplate, all of it given as dictionaries."""
    name = template["metadata"]["name"]
    job = RepairJob(
        name=job_name(name, session=session, rung="Rung", step=step, attempt=attempt),
        template=name,
        namespace=REPAIR[0],
        node_name=node,
        facts={
            "session": session,
            "step": step,
            "attempt": str(attempt),
            "node": node,
            "node-uid": node_uid,
            "boot-id": boot_id,
            "devices": ",".join(devices),
            "service": service,
        },
        deadline_seconds=600,
    )
    # Nothing is shared: a test may change one part and no other with it.
    alone: Object = json.loads(json.dumps(job_document(job, template["template"]["spec"])))
    return alone


def session(name: str, *, node: str, node_uid: str, **spec: object) -> Object:
    """Return a minimal AcceleratorRemediation in mode Approve as a dictionary; `spec` adds to its spec."""
    return {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorRemediation",
        "metadata": {"name": name, "labels": {"sickbay.dev/node-uid": node_uid}},
        "spec": {"nodeName": node, "nodeUID": node_uid, "bootID": "boot-1", "mode": "Approve", **spec},
    }


def _wait_enforced(lab: Lab) -> None:
    """Ask for what each policy refuses, as a dry run, until it is refused by that policy and not by RBAC."""
    agent = lab.client(lab.service_account_token(*AGENT))
    controller = lab.client(lab.service_account_token(*CONTROLLER))
    stranger = {"user": "nobody-who-asks"}
    report = {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {"name": "probe"},
    }
    held = session("probe", node="probe", node_uid="probe", hold=stranger)

    until_refused("sickbay-own-report", lambda: agent.create(REPORTS + DRY_RUN, report))
    until_refused("sickbay-session-users", lambda: lab.api.create(SESSIONS + DRY_RUN, held))
    pause = {"spec": {"pause": stranger}}
    until_refused("sickbay-control-users", lambda: lab.api.patch(f"{CONTROLS}/default{DRY_RUN}", pause))
    _wait_nodes_guarded(lab.api, controller)


def _wait_nodes_guarded(admin: Api, controller: Api) -> None:
    """The policy on Nodes is asked on update only: where there is no Node, one is made for the question."""
    existing = admin.items(NODES)
    name = existing[0]["metadata"]["name"] if existing else "sickbay-policy-probe"
    if not existing:
        admin.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    label = {"metadata": {"labels": {"example.com/probe": "yes"}}}
    try:
        until_refused("sickbay-controller-nodes", lambda: controller.patch(f"{NODES}/{name}{DRY_RUN}", label))
    finally:
        if not existing:
            admin.delete(f"{NODES}/{name}")


def _wait_reports_guarded(admin: Api, controller: Api) -> None:
    """The policy on reports is asked on update only, so a report is made for the question."""
    name = "sickbay-policy-probe"
    report = {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {"name": name},
    }
    admin.create(REPORTS, report)
    label = {"metadata": {"labels": {"example.com/probe": "yes"}}}
    ask = partial(controller.patch, f"{REPORTS}/{name}{DRY_RUN}", label)
    try:
        until_refused("sickbay-controller-reports", ask)
    finally:
        admin.delete(f"{REPORTS}/{name}")


def until_refused(policy: str, ask: Callable[[], object]) -> str:
    """Ask until this policy refuses, and return its message; other refusals (RBAC that lags) count as "not yet".

    Raises WaitTimeoutError after `ENFORCED_WITHIN` seconds.
    """

    def refused() -> str:
        try:
            ask()
        except ApiError as error:
            if f"ValidatingAdmissionPolicy '{policy}'" in str(error):
                return str(error)
            raise
        return ""

    return wait_until(refused, ENFORCED_WITHIN, f"policy {policy} to refuse", ignoring=(ApiError,))
