"""The project's own manifests on a lab: applied, and waited for until the API server really enforces them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

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

AGENT = ("sickbay-agent", "sickbay-agent")
"""Namespace and name of the agent's ServiceAccount."""
CONTROLLER = ("sickbay-system", "sickbay-controller")
"""Namespace and name of the controller's ServiceAccount."""

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
