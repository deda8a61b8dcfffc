"""Before a node is given back: figures against a baseline, new nodes proven, services restarted, diagnoses made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.lab import images, manifests, plugin_pods
from tests.lab.api import Object
from tests.lab.repair.hosts import OPERAND
from tests.lab.repair.ward import G1, UNCONTAINED, Ward, steps_of

pytestmark = pytest.mark.timeout(400)

TAINT = "sickbay.dev/unverified"
_OTHERS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/sickbay-repair-other-jobs"
FIGURES = """
verification:
  template: bandwidth
  deadline: 1m
  unverified: true
  baselines:
  - {model: H100, minimum: {busBandwidthGBs: 380}}
"""

Allow = Callable[[str, str], None]


@pytest.fixture
def allow(ward: Ward) -> Iterator[Allow]:
    """Lets an administrator allow a template of their own, as docs/repair-switch.md says: its name, and what its
    container runs. The ward's policy and the list of templates are put back afterwards."""
    before = ward.lab.api.get(_OTHERS)["spec"]

    def allowed(name: str, script: str) -> None:
        main = images.container("main", ["sh", "-c", script])
        spec = images.pod_spec(
            [main],
            restartPolicy="Never",
            automountServiceAccountToken=False,
            serviceAccountName="sickbay-repair",
            tolerations=[{"operator": "Exists"}],
        )
        template: Object = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": name, "namespace": "sickbay-repair"},
            "template": {"spec": spec},
        }
        ward.lab.apply(template, _binding(name))
        listed = ward.lab.api.get(_OTHERS)["spec"]
        names = listed["matchResources"]["objectSelector"]["matchExpressions"][0]["values"]
        if name not in names:
            names.append(name)
            ward.lab.api.patch(_OTHERS, {"spec": listed})
        _until_allowed(ward, name)

    yield allowed
    ward.lab.api.patch(_OTHERS, {"spec": before})
    ward.obey_policy()


def _binding(name: str) -> Object:
    """The example's binding, for this name."""
    text = (manifests.DEPLOY / "repair" / "examples" / "diagnostics.yaml").read_text()
    binding = next(one for one in yaml.safe_load_all(text) if one["kind"] != "PodTemplate")
    return dict(yaml.safe_load(yaml.safe_dump(binding).replace("diagnostics", name)))


def _until_allowed(ward: Ward, name: str) -> None:
    """Admission policies hold a moment after they are written."""
    template = ward.lab.api.get(f"{manifests.TEMPLATES}/{name}")
    controller = ward.lab.client(ward.lab.service_account_token(*manifests.CONTROLLER))
    job = manifests.repair_job(template, step="Verify", node="g1", session="probe")

    def admitted() -> bool:
        controller.create(manifests.JOBS + manifests.DRY_RUN, job)
        return True

    ward.wait_for_api(admitted, f"a Job of {name} to be admitted")


def _figures(bandwidth: float) -> str:
    return f"echo '{json.dumps({'busBandwidthGBs': bandwidth})}' > /dev/termination-log"


def test_a_repaired_node_is_given_back_when_its_figures_are_as_good_as_the_baseline(
    ward: Ward, allow: Allow
) -> None:
    allow("bandwidth", _figures(391.5))
    ward.obey_policy(more=FIGURES)
    ward.kernel_says(UNCONTAINED)
    status = ward.ends("Released", "Healthy")
    assert status["repair"]["verified"] and len(ward.ran("bandwidth")) == 1
    assert steps_of(status)[-3:] == ["Verify", "RemoveFailedPods", "Uncordon"]
    ward.is_whole()


def test_a_node_whose_figures_are_bad_is_held_with_the_figure(ward: Ward, allow: Allow) -> None:
    allow("bandwidth", _figures(201))
    ward.obey_policy(more=FIGURES)
    ward.kernel_says(UNCONTAINED)
    status = ward.ends("Held", "VerificationFailed")
    assert "busBandwidthGBs is 201, and must be at least 380" in status["message"]
    ward.gives_everything_back()
    # The part is mended, and a person says so: the same proof again, by a Job of its own.
    allow("bandwidth", _figures(388))
    ward.lab.kubectl("annotate", "node", "g1", "sickbay.dev/hold=alice")
    ward.ends("Held", "HeldByUser")
    ward.lab.kubectl("annotate", "node", "g1", "sickbay.dev/hold-")
    ward.ends("Released", "Healthy")
    assert len(ward.ran("bandwidth")) == 2 and ward.resets == 1


def test_a_new_node_keeps_its_operators_taint_until_it_is_proven(ward: Ward, allow: Allow) -> None:
    allow("bandwidth", _figures(390))
    ward.lab.kubectl("taint", "node", "g1", f"{TAINT}=:NoSchedule", "example.com/other=x:PreferNoSchedule")
    ward.obey_policy(more=FIGURES)
    status = ward.ends("Released", "Healthy")
    assert steps_of(status) == ["Verify", "LiftTaint"]
    taints = ward.lab.api.get(G1)["spec"].get("taints", [])
    assert [(one["key"], one.get("value"), one["effect"]) for one in taints] == [
        ("example.com/other", "x", "PreferNoSchedule")
    ]
    ward.lab.kubectl("taint", "node", "g1", "example.com/other-")


def test_a_diagnosis_is_made_and_what_it_does_not_mend_goes_on_to_the_next_rung(
    ward: Ward, allow: Allow
) -> None:
    allow("diagnostics", "echo all tests passed > /dev/termination-log")
    rule = """
rules:
- name: diagnose-first
  mode: Auto
  plan: [RunDiagnostics, ResetDevice]
"""
    ward.obey_policy(more=f"{rule}verification: {{}}\n", instead=True)
    ward.kernel_says(UNCONTAINED)
    status = ward.ends("Released", "Healthy", 180)
    assert status["repair"]["done"] == ["Reset", "RunJob"]
    assert (len(ward.ran("diagnostics")), ward.resets) == (1, 1)
    said = [entry["message"] for entry in status["journal"] if entry["step"] == "RunJob"]
    assert any("all tests passed" in message for message in said)


def test_a_wedged_device_plugin_is_healed_by_a_new_kubelet(ward: Ward) -> None:
    """Two plugins on one socket, of which the one that the kubelet knows leaves: all devices are listed, and nobody
    serves them. The Job that restarts the kubelet is run by that very kubelet."""
    before = ward.host.restarts
    folder = ward.host.node.kubelet_dir / "device-plugins"
    command = [sys.executable, "-m", "simulation.plugin", "--machine"]
    second = ward.lab.processes.start(
        "plugin-2",
        [*command, plugin_pods.machine_path(ward.host.node), "--socket-dir", folder],
        cwd=images.PROJECT,
    )
    try:
        ward.wait(
            lambda: "device plugin already connected" in second.log.read_text(), 20, "a refusal of the second"
        )
        _place_plugin(ward, "false")
        ward.until(lambda status: status["phase"] == "Repairing", "the plugin to be found wedged")
        status = ward.ends("Released", "Healthy", 180)
    finally:
        second.stop()
        _place_plugin(ward, "true")
    assert "RestartService" in steps_of(status) and status["repair"]["done"] == ["RestartService"]
    assert ward.host.restarts == before + 1
    assert [receipt["result"] for receipt in ward.host.receipts("restartservice")] == ["Done"]
    assert len(ward.ran("restart-service")) == 1


def _place_plugin(ward: Ward, value: str) -> None:
    """An administrator says whether the DaemonSet's plugin is to be on the node."""
    ward.lab.api.patch(G1, {"metadata": {"labels": {OPERAND: value}}})
