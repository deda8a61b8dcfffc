"""The templates of repairs: administrators write them, and policies catch what goes wrong with a token."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import yaml

from tests.lab import manifests
from tests.lab.admission.world import MINE, REPAIR_POLICY, World, refused, refused_by
from tests.lab.api import ApiError, Object
from tests.lab.manifests import CONTROLLER, DRY_RUN, JOBS, REPAIR, REPAIR_STEPS, TEMPLATES, until_refused
from tests.lab.processes import wait_until

pytestmark = pytest.mark.usefixtures("repair_switch")

TOKEN = {"name": "token", "mountPath": "/token"}


def test_kustomize_applies_the_same_objects_as_the_files_do(world: World) -> None:
    def applied(flag: str) -> set[str]:
        folder = manifests.DEPLOY / "repair"
        told = world.lab.kubectl("apply", "--dry-run=server", "--validate=strict", flag, folder)
        return {line.split()[0] for line in told.splitlines()}

    assert "podtemplate/reset" in applied("-k")
    assert applied("-k") == applied("-f")


def test_without_its_template_no_job_is_admitted(world: World) -> None:
    job = world.job("reboot")
    world.admin.delete(f"{TEMPLATES}/reboot")
    try:
        message = until_refused(REPAIR_POLICY, partial(world.controller.create, JOBS + DRY_RUN, job))
        assert "no params found" in message
    finally:
        manifests.repair(world.lab)


def test_a_template_of_ones_own_is_allowed_by_the_lines_of_the_documentation(world: World) -> None:
    page = (manifests.DEPLOY.parent / "docs" / "repair-switch.md").read_text(encoding="utf-8")
    (kustomize,) = re.findall(r"```yaml\n(resources:.*?)```", page, flags=re.DOTALL)
    (by_hand,) = re.findall(r"```sh\nkubectl (patch .*?)```", page, flags=re.DOTALL)
    example = manifests.DEPLOY / "repair" / "examples" / "diagnostics.yaml"
    world.lab.kubectl("apply", "-f", example)
    job = world.job("diagnostics")
    ask = partial(world.controller.create, JOBS + DRY_RUN)
    try:
        until_refused("sickbay-repair-other-jobs", partial(ask, job))
        world.lab.kubectl(*shlex.split(by_hand))
        wait_until(partial(ask, job), 15, "a Job of the template to be admitted", ignoring=(ApiError,))
        refused_by(REPAIR_POLICY, partial(ask, world.job("diagnostics", step="Reboot")))
        job["spec"]["template"]["spec"]["containers"][0]["image"] = "example.com/evil"
        refused_by(REPAIR_POLICY, partial(ask, job))
        folder = world.lab.folder / "kustomize"
        shutil.copytree(manifests.DEPLOY / "repair", folder / "deploy" / "repair")
        shutil.copy(example, folder)
        (folder / "kustomization.yaml").write_text(kustomize)
        built = yaml.safe_load_all(world.lab.kubectl("kustomize", folder))
        bindings = {one["metadata"]["name"]: one for one in built if one["kind"].endswith("PolicyBinding")}
        selector = bindings["sickbay-repair-other-jobs"]["spec"]["matchResources"]["objectSelector"]
        assert selector["matchExpressions"][0]["values"] == [*REPAIR_STEPS, "diagnostics"]
        assert "sickbay-repair-diagnostics" in bindings
    finally:
        world.lab.kubectl("delete", "-f", example)
        manifests.repair(world.lab)


def test_an_administrators_change_of_a_template_holds_at_once_for_new_jobs(world: World) -> None:
    old = world.job()
    containers = world.admin.get(f"{TEMPLATES}/reset")["template"]["spec"]["containers"]
    containers[0]["image"] = "registry.example.com/sickbay:2"
    world.admin.patch(f"{TEMPLATES}/reset", {"template": {"spec": {"containers": containers}}})
    try:
        until_refused(REPAIR_POLICY, partial(world.controller.create, JOBS + DRY_RUN, old))
        world.controller.create(JOBS + DRY_RUN, world.job())
    finally:
        manifests.repair(world.lab)


@pytest.mark.parametrize("account", [CONTROLLER, REPAIR], ids=lambda account: account[1])
def test_nobody_but_an_administrator_writes_templates(world: World, account: tuple[str, str]) -> None:
    client = world.lab.client(world.lab.service_account_token(*account))
    template = world.admin.get(f"{TEMPLATES}/reset")
    new = template | {"metadata": {"name": "evil"}}
    assert 'cannot create resource "podtemplates"' in refused(lambda: client.create(TEMPLATES, new))
    path = f"{TEMPLATES}/reset"
    change: Object = {"template": {"spec": {"hostNetwork": True}}}
    assert 'cannot patch resource "podtemplates"' in refused(lambda: client.patch(path, change))
    assert 'cannot update resource "podtemplates"' in refused(lambda: client.request("PUT", path, template))
    assert 'cannot delete resource "podtemplates"' in refused(lambda: client.delete(path))


@pytest.mark.parametrize("slip", ["automount", "mount"])
def test_an_administrators_slip_with_a_token_is_caught_in_a_template_and_in_a_job(
    world: World, slip: str
) -> None:
    template = world.admin.get(f"{TEMPLATES}/reset")
    spec = template["template"]["spec"]
    if slip == "automount":
        del spec["automountServiceAccountToken"]
        said = "automountServiceAccountToken must be false"
    else:
        spec["containers"][0]["volumeMounts"].append(TOKEN)
        said = "a privileged container may not mount a token of the API server: repair"
    job = manifests.repair_job(template, step="Reset", node=MINE)
    new = template | {"metadata": {"name": "slip"}}
    asked: tuple[Callable[[], object], ...] = (
        partial(world.admin.request, "PUT", f"{TEMPLATES}/reset", template),
        partial(world.admin.create, TEMPLATES, new),
        partial(world.admin.create, JOBS, job),
    )
    for ask in asked:
        assert said in refused_by("sickbay-repair-tokens", ask)


def test_the_guard_of_tokens_is_for_the_namespace_of_repairs_alone(world: World, namespace: str) -> None:
    template = world.admin.get(f"{TEMPLATES}/reset")
    del template["template"]["spec"]["automountServiceAccountToken"]
    elsewhere = TEMPLATES.replace(REPAIR[0], namespace)
    world.admin.create(elsewhere, template | {"metadata": {"name": "free"}})
