"""Repairs on lab nodes: the project's own PodTemplates with the simulated host in them, and who plays the host."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from simulation.machine import SimulatedDevice, load, update
from tests.lab import images, manifests, plugin_pods
from tests.lab.api import Object
from tests.lab.lab import Lab
from tests.lab.node import Node

OPERAND = "nvidia.com/gpu.deploy.device-plugin"
"""The label by which the device plugin is placed, as GPU Operator places its own."""

SHARED = plugin_pods.MACHINE.parent
_SIMULATED = {
    "--machine": plugin_pods.MACHINE,
    "--boot-id-path": SHARED / "boot_id",
    "--boot-request": SHARED / "boot-request",
    "--service-request": SHARED / "service-request",
    "--receipts": SHARED / "receipts",
}


def templates(server: str) -> list[Object]:
    """The PodTemplates of `deploy/repair` for lab nodes: their containers run this machine's Python, and `repair` acts
    on the simulated host. All else is as it is deployed."""
    documents = yaml.safe_load_all((manifests.DEPLOY / "repair" / "templates.yaml").read_text())
    found = [document for document in documents if document and document["kind"] == "PodTemplate"]
    for template in found:
        spec = template["template"]["spec"]
        python = images.python_spec(["python3"], server=server)
        (main,) = python["containers"]
        spec["hostNetwork"] = True
        spec["terminationGracePeriodSeconds"] = 1
        spec["initContainers"] = [
            _with_python(one, main, ["python3", "-m", "sickbay"]) for one in spec["initContainers"]
        ]
        spec["containers"] = [_simulated(one, main) for one in spec["containers"]]
        host = {
            "name": "simulation",
            "hostPath": {"path": str(SHARED), "type": "Directory"},
        }
        kept = [volume for volume in spec.get("volumes", []) if volume.get("hostPath", {}).get("path") != "/"]
        spec["volumes"] = [*kept, *python["volumes"], host]
    return found


def _with_python(container: Object, main: Object, command: list[str]) -> Object:
    # Another user may not be let into the folder that the project lies in; the image's own test has the right one.
    security = {
        **container.get("securityContext", {}),
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
    }
    return {
        **container,
        "image": main["image"],
        "imagePullPolicy": main["imagePullPolicy"],
        "command": command,
        "env": [*container.get("env", []), *main["env"]],
        "volumeMounts": [*container.get("volumeMounts", []), *main["volumeMounts"]],
        "securityContext": security,
    }


def _simulated(container: Object, main: Object) -> Object:
    program, *words = container["args"]
    assert program == "repair", container["args"]
    made = _with_python(container, main, ["python3", "-m", "simulation.repair"])
    own = [str(word) for pair in _SIMULATED.items() for word in pair]
    mounts = [mount for mount in made["volumeMounts"] if mount["mountPath"] != "/host"]
    return {
        **made,
        "args": [*words, *own],
        "volumeMounts": [*mounts, {"name": "simulation", "mountPath": str(SHARED)}],
    }


class Host:
    """Obeys what the repair programs ask of a node's host: boots it, restarts its kubelet; and counts.

    It has no thread, since only a lab's main thread may start a node: whoever waits for something lets it `obey`.
    """

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab, self.node = lab, node
        self.folder = plugin_pods.machine_path(node).parent
        self.boots = 0
        self.restarts = 0
        self.boot_heals = True
        self.comes_back = True

    def obey(self) -> None:
        """Do what is asked for, if anything is."""
        boot, service = self.folder / "boot-request", self.folder / "service-request"
        if boot.exists():
            boot.unlink()
            self.power_cycle()
        if service.exists():
            self.node.kill_kubelet()
            self.restarts += 1
            service.unlink()

    def receipts(self, step: str) -> list[dict[str, Any]]:
        """What the repair programs have left here in this boot."""
        files = sorted((self.folder / "receipts").glob(f"{step}-*.json"))
        return [msgspec.json.decode(file.read_bytes()) for file in files]

    def change(self, uuid: str, change: Callable[[SimulatedDevice], SimulatedDevice]) -> None:
        """Change a device of the machine."""
        update(
            self.folder / plugin_pods.MACHINE.name,
            lambda machine: msgspec.structs.replace(
                machine,
                devices=tuple(change(one) if one.uuid == uuid else one for one in machine.devices),
            ),
        )

    def uuid_at(self, address: str) -> str:
        """The device at a PCI address."""
        devices = load(self.folder / plugin_pods.MACHINE.name).devices
        return next(one.uuid for one in devices if one.pci_address.startswith(address))

    def power_cycle(self) -> None:
        """A boot: the kernel log and /run are new, and so are the devices where that helps. It ends what sleeps for
        ever, which here only a thaw does."""
        _set_frozen(_FREEZER.glob(f"*{self.lab.lab_id}*{self.node.name}/**/"), frozen=False)
        self.node.stop()
        shutil.rmtree(self.folder / "receipts", ignore_errors=True)
        (self.folder / "kmsg").write_text("")
        if self.boot_heals:
            self._heal()
        self.boots += 1
        if not self.comes_back:
            return
        self.node.boot()
        (self.folder / "boot_id").write_text(self.node.boot_id)
        self.node.wait_ready(self.lab.api)

    def _heal(self) -> None:
        for device in load(self.folder / plugin_pods.MACHINE.name).devices:
            self.change(
                device.uuid,
                lambda one: msgspec.structs.replace(
                    one, lost=False, reset_required=False, recovery_action=None
                ),
            )


_FREEZER = Path("/sys/fs/cgroup/freezer")


def freeze(pod_uid: str, *, frozen: bool) -> bool:
    """Stop every process of a pod so that not even SIGKILL ends it, as in uninterruptible sleep; or let it go on.

    The freezer of cgroup v1: a frozen task handles signals when it is thawed. Whether there was any group of the pod.
    """
    marks = (pod_uid, pod_uid.replace("-", "_"))
    groups = [path for path in _FREEZER.glob("**/") if any(mark in str(path) for mark in marks)]
    _set_frozen(groups, frozen=frozen)
    return bool(groups)


def _set_frozen(groups: Iterable[Path], *, frozen: bool) -> None:
    for group in groups:
        # A group may go while we look.
        with contextlib.suppress(FileNotFoundError, OSError):
            (group / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
