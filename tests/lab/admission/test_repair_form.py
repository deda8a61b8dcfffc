"""The form of a repair's Job: what is the controller's to say, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.admission.world import REPAIR_POLICY, World, refused_by
from tests.lab.api import Object
from tests.lab.manifests import JOBS

pytestmark = pytest.mark.usefixtures("repair_switch")

Change = Callable[[Any], object]


def metadata(job: Object) -> tuple[Object, Object]:
    return job["metadata"], job["spec"]["template"]["metadata"]


def annotate(job: Object, **values: str) -> None:
    for where in metadata(job):
        where["annotations"].update({f"sickbay.dev/{key}": value for key, value in values.items()})


WRONG: dict[str, tuple[Change, str]] = {
    "no node": (lambda job: job["spec"]["template"]["spec"].pop("nodeName"), "nodeName must name the node"),
    "tried again": (lambda job: job["spec"].update(backoffLimit=3), "spec must have backoffLimit 0"),
    "two at once": (lambda job: job["spec"].update(parallelism=2), "parallelism 1"),
    "two in all": (lambda job: job["spec"].update(completions=2), "completions 1"),
    "indexed": (lambda job: job["spec"].update(completionMode="Indexed"), "nor indexed"),
    "suspended": (lambda job: job["spec"].update(suspend=True), "neither suspended"),
    "for ever": (lambda job: job["spec"].pop("activeDeadlineSeconds"), "activeDeadlineSeconds must be"),
    "too long": (
        lambda job: job["spec"].update(activeDeadlineSeconds=86401),
        "activeDeadlineSeconds must be",
    ),
    "kept": (lambda job: job["spec"].pop("ttlSecondsAfterFinished"), "ttlSecondsAfterFinished 604800"),
    "replaced too early": (
        lambda job: job["spec"].update(podReplacementPolicy="TerminatingOrFailed"),
        "podReplacementPolicy Failed",
    ),
    "its failures ignored": (
        lambda job: job["spec"].update(
            podFailurePolicy={
                "rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]
            }
        ),
        "spec.podFailurePolicy",
    ),
    "somebody else's": (
        lambda job: job["spec"].update(managedBy="example.com/evil"),
        "spec.managedBy",
    ),
    "kept by a finalizer": (
        lambda job: job["metadata"].update(finalizers=["example.com/forever"]),
        "metadata.finalizers",
    ),
    "its pods kept": (
        lambda job: job["spec"]["template"]["metadata"].update(finalizers=["example.com/forever"]),
        "metadata.finalizers",
    ),
    "any name": (lambda job: job["metadata"].update(name="reset-1-evil"), "metadata.name must be reset-1-"),
    "another attempt's name": (
        lambda job: job["metadata"].update(name=job["metadata"]["name"].replace("-1-", "-2-")),
        "metadata.name must be reset-1-",
    ),
    "one more label": (
        lambda job: job["spec"]["template"]["metadata"]["labels"].update(app="training"),
        "may not hold app",
    ),
    "one more annotation": (
        lambda job: [where["annotations"].update(evil="x") for where in metadata(job)],
        "may not hold evil",
    ),
    "two sessions": (
        lambda job: job["metadata"]["annotations"].update({"sickbay.dev/session": "another"}),
        "must be the same",
    ),
    "a pod without the label": (
        lambda job: job["spec"]["template"]["metadata"].update(labels={}),
        "label sickbay.dev/template must be reset",
    ),
    "another node": (lambda job: annotate(job, node="another"), "must equal spec.template.spec.nodeName"),
    "no session": (lambda job: annotate(job, session=""), "sickbay.dev/session must be"),
    "a flag for a session": (lambda job: annotate(job, session="--evil"), "sickbay.dev/session must be"),
    "another step": (lambda job: annotate(job, step="Reboot"), "sickbay.dev/step must be Reset"),
    "a word for an attempt": (lambda job: annotate(job, attempt=".*"), "sickbay.dev/attempt must be"),
    "a path for a boot ID": (lambda job: annotate(job, **{"boot-id": "../x"}), "must be IDs of letters"),
    "no node UID": (lambda job: annotate(job, **{"node-uid": ""}), "must be IDs of letters"),
    "a flag for a device": (lambda job: annotate(job, devices="GPU-1,-x"), "sickbay.dev/devices must be"),
    "another service": (lambda job: annotate(job, service="sshd"), "sickbay.dev/service must be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_job_in_another_form_is_refused(world: World, case: str) -> None:
    change, said = WRONG[case]
    job = world.job()
    change(job)
    assert said in refused_by(REPAIR_POLICY, lambda: world.controller.create(JOBS, job))


def test_a_selector_of_ones_own_is_refused(world: World) -> None:
    job = world.job()
    labels = {"sickbay.dev/template": "reset"}
    job["spec"] |= {"manualSelector": True, "selector": {"matchLabels": labels}}
    message = refused_by(REPAIR_POLICY, lambda: world.controller.create(JOBS, job))
    assert "selector of its own" in message


@pytest.mark.parametrize("label", ["verify", "", None])
def test_a_job_of_an_unknown_template_is_refused(world: World, label: str | None) -> None:
    job = world.job()
    for where in metadata(job):
        where["labels"] = {} if label is None else {"sickbay.dev/template": label}
    refused_by("sickbay-repair-other-jobs", lambda: world.controller.create(JOBS, job))


def test_one_templates_job_cannot_pass_as_anothers(world: World) -> None:
    job = world.job("reboot")
    for where in metadata(job):
        where["labels"] = {"sickbay.dev/template": "reset"}
    message = refused_by(REPAIR_POLICY, lambda: world.controller.create(JOBS, job))
    assert "must be that of PodTemplate reset" in message
