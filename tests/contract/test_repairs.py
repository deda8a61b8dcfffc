"""What repairs are made of: an administrator's PodTemplate, a Job of a deterministic name, and the Job's pod."""

from __future__ import annotations

import pytest

from runtime.api_errors import Conflict, Invalid, NotFound
from tests.contract.objects import pod
from tests.contract.world import Object, Told, World, refused

JOB_LABEL = "batch.kubernetes.io/job-name"


def job(name: str, **spec: object) -> Object:
    """As the controller makes it."""
    marks = {"annotations": {"sickbay.dev/step": "Reset"}, "labels": {"sickbay.dev/template": "reset"}}
    inner = {**pod("x", node="contract-none")["spec"], "restartPolicy": "Never"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, **marks},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": 3600,
            "activeDeadlineSeconds": 600,
            "template": {"metadata": marks, "spec": inner},
            **spec,
        },
    }


def test_a_job_is_made_of_a_template_once(world: World) -> None:
    templates, jobs = world.collection("podtemplates"), world.collection("jobs", group="/apis/batch/v1")
    name = world.fresh("reset")
    inner = {**pod("x")["spec"], "restartPolicy": "Never"}
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": name},
        "template": {"spec": inner},
    }
    with refused(Told(NotFound, 404, "NotFound")):
        world.get(f"{templates}/{name}")
    world.create(templates, template)
    found = world.get(f"{templates}/{name}")["template"]["spec"]
    assert found["containers"][0]["image"] == inner["containers"][0]["image"]
    made = world.create(jobs, job(name))
    assert made["spec"]["template"]["spec"]["nodeName"] == "contract-none"
    assert made["spec"]["template"]["metadata"]["annotations"] == {"sickbay.dev/step": "Reset"}
    assert (made["spec"]["backoffLimit"], made["metadata"]["generation"]) == (0, 1)
    with refused(Told(Conflict, 409, "AlreadyExists")):
        world.create(jobs, job(name))


def test_the_pods_of_a_job_are_found_by_its_label(world: World) -> None:
    jobs = world.collection("jobs", group="/apis/batch/v1")
    name = world.fresh("job")
    world.create(jobs, job(name))
    assert not world.get(f"{jobs}/{name}")["status"].get("conditions")
    # What its controller would make: it stands still.
    world.create(world.pods, pod(f"{name}-a1b2c", node="contract-none", labels={JOB_LABEL: name}))
    world.create(world.pods, pod(f"{name}-other", labels={JOB_LABEL: "another"}))
    assert world.names(world.pods, labelSelector=f"{JOB_LABEL}={name}") == [f"{name}-a1b2c"]


def test_a_job_whose_pods_would_be_restarted_in_place_for_ever_is_invalid(world: World) -> None:
    body = job(world.fresh("job"))
    body["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(Invalid) as caught:
        world.create(world.collection("jobs", group="/apis/batch/v1"), body)
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
