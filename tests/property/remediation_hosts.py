"""The hosts below the nodes of the small cluster: Jobs run on them, with the rules of the real repair programs.

The look of the init container and the "once" of the privileged one are the programs' own; what they do to a host
is said here, and is as bad as a test wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from health.receipt import Receipt, RepairResult
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS
from remediation.fleet import Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation
from remediation.repair.check import Asked, refusal
from remediation.repair.once import once
from remediation.repair.order import Ended, Exit, Order, Step
from tests.unit.fake_cluster import JOB_PODS, JOBS, TEMPLATES, Document

if TYPE_CHECKING:
    from tests.property.remediation_world import World

TEMPLATE_NAMES = ("reset", "reboot", "restart-service", "diagnostics", "verify")
LATE = 100.0
"""Seconds after which whoever is late does it after all."""

RESETS = ("helps", "helps not", "is held", "fails", "dies")
REBOOTS = ("helps", "helps not", "kubelet late", "agent late", "both late", "never back", "fails", "dies")
RELEASES = ("at once", "late", "never")
FIGURES = ("good", "bad", "none")


@dataclass
class Host:
    """A machine: the boot it is in, what repairs left on it, and what will come of the next ones.

    `image`: whether the image can be pulled; `twice`: whether the kubelet starts the pod once more when it has
    ended; `slow`: whether the containers of a pod start one look after the other.
    """

    boot: str
    receipts: dict[tuple[str, str, int], Receipt] = field(default_factory=dict)
    reset: str = "helps"
    reboot: str = "helps"
    release: str = "at once"
    figures: str = "good"
    image: bool = True
    twice: bool = False
    slow: bool = False

    def boot_id(self) -> str:
        return self.boot

    def boots(self, boot: str) -> None:
        """It starts anew, without what was left in its memory."""
        self.boot = boot
        self.receipts = {}

    def begin(self, receipt: Receipt) -> str:
        if receipt.identity in self.receipts:
            return "exists"
        self.receipts[receipt.identity] = receipt
        return ""

    def finish(self, begun: Receipt, outcome: Receipt) -> None:
        assert self.receipts[begun.identity] == begun
        self.receipts[outcome.identity] = outcome

    def heal(self) -> None:
        """Whatever is tried from now on works."""
        self.reset = self.reboot = "helps"
        self.release, self.figures = "at once", "good"
        self.image, self.twice, self.slow = True, False, False


@dataclass(frozen=True)
class Deed:
    """What a repair program has really done to a host."""

    step: str
    session: str
    rung: str
    attempt: int
    boot: str
    node_uid: str


class KilledError(Exception):
    """A program dies between its receipt and its end."""


class Jobs:
    """The Jobs of the repair namespace, and the kubelets that run their pods. `world.let_pass` gives them time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.deeds: list[Deed] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._begun: dict[str, str] = {}
        """Jobs by name whose pod has passed its init container: with this UID of the Job."""

    def publish(self) -> None:
        """An administrator makes the PodTemplates."""
        for name in TEMPLATE_NAMES:
            if name not in self._world.api.objects[TEMPLATES]:
                template = {"spec": {"containers": [{"name": "repair", "image": "sickbay"}]}}
                self._world.api.create(
                    TEMPLATES, {"kind": "PodTemplate", "metadata": {"name": name}, "template": template}
                )

    def withdraw(self, name: str) -> None:
        """An administrator takes a PodTemplate away."""
        if name in self._world.api.objects[TEMPLATES]:
            self._world.api.remove(TEMPLATES, name)

    def delete(self, number: int) -> None:
        """Somebody deletes a Job, and its pod with it."""
        names = sorted(self._world.api.objects[JOBS])
        if names:
            name = names[number % len(names)]
            self._world.api.remove(JOBS, name)
            self._world.api.objects[JOB_PODS].pop(name, None)
            self._begun.pop(name, None)

    def work(self) -> None:
        """What is due happens, and each kubelet goes on with the pods of its Jobs."""
        now = self._world.clock.monotonic()
        due = [act for moment, act in self._later if moment <= now]
        self._later = [(moment, act) for moment, act in self._later if moment > now]
        for act in due:
            act()
        for name in sorted(self._world.api.objects[JOBS]):
            job = self._world.api.objects[JOBS].get(name)
            if job is not None and not job.get("status", {}).get("conditions"):
                self._go_on(name, job)

    def heal(self) -> None:
        """Nothing that was under way comes to anything any more."""
        self._later.clear()

    # The kubelet and the controller of Jobs.

    def _go_on(self, name: str, job: Document) -> None:
        facts = _facts(job)
        node_name = job["spec"]["template"]["spec"]["nodeName"]
        agent = self._world.agents.get(node_name)
        born = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        deadline = job["spec"]["activeDeadlineSeconds"]
        if (self._world.clock.wall() - born).total_seconds() >= deadline:
            self._end(name, "Failed", pod=None, reason="DeadlineExceeded")
            return
        if agent is None or not self._world.is_ready(node_name):
            self._pod(name, {"phase": "Pending"})
            return
        host = agent.host
        if not host.image:
            waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
            waits = {"phase": "Pending", "containerStatuses": [_container({"waiting": waiting})]}
            self._pod(name, waits)
            return
        if self._begun.get(name) != job["metadata"]["uid"]:
            if why := self._refused(facts):
                state = {"terminated": {"exitCode": int(Exit.NOT_ALLOWED), "message": why}}
                ended = {"phase": "Failed", "initContainerStatuses": [_container(state)]}
                self._end(name, "Failed", pod=ended)
                self._world.monitor.repairs.refused(facts)
                return
            self._begun[name] = job["metadata"]["uid"]
            if host.slow:
                self._pod(name, {"phase": "Pending"})
                return
        self._run(name, job["metadata"]["labels"]["sickbay.dev/template"], facts, node_name)

    def _run(self, name: str, template: str, facts: dict[str, str], node_name: str) -> None:
        host = self._world.agents[node_name].host
        again = 2 if host.twice else 1
        code, message = self._program(template, facts, node_name)
        for _ in range(again - 1):
            before = len(self.deeds)
            if not self._refused(facts):
                self._program(template, facts, node_name)
            assert len(self.deeds) == before, "a second start of the pod did something"
        state = {"terminated": {"exitCode": code, "message": message}}
        pod = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [_container(state)]}
        self._end(name, "Failed" if code else "Complete", pod=pod)

    def _end(self, name: str, type_: str, *, pod: Document | None, reason: str = "") -> None:
        if pod is None:
            self._world.api.objects[JOB_PODS].pop(name, None)
        else:
            self._pod(name, pod)
        condition = {"type": type_, "status": "True", "reason": reason}
        if name in self._world.api.objects[JOBS]:
            self._world.api.edit(JOBS, name, lambda job: job.update(status={"conditions": [condition]}))

    def _pod(self, name: str, status: Document) -> None:
        labels = {"batch.kubernetes.io/job-name": name}
        self._world.api.objects[JOB_PODS][name] = {
            "metadata": {"name": name, "labels": labels},
            "status": status,
        }

    # The programs.

    def _refused(self, facts: dict[str, str]) -> str:
        """What the init container says that it reads, without a way for the API to fail."""
        objects = self._world.api.objects
        try:
            return refusal(
                _read(objects[REMEDIATIONS].get(facts["session"]), AcceleratorRemediation),
                _read(objects[NODES].get(facts["node"]), Node),
                _read(objects[CONTROLS].get("default"), AcceleratorControl) or AcceleratorControl(),
                Asked(
                    facts["session"],
                    facts["step"],
                    facts["node"],
                    facts["node-uid"],
                    facts["boot-id"],
                    int(facts["attempt"]),
                ),
            )
        except msgspec.MsgspecError as error:
            return f"an object cannot be read: {error}"

    def _program(self, template: str, facts: dict[str, str], node_name: str) -> tuple[int, str]:
        """Exit code and termination message of the container."""
        host = self._world.agents[node_name].host
        if template in ("diagnostics", "verify"):
            return _JUDGED[host.figures]
        step = Step(facts["step"])
        devices = tuple(filter(None, facts["devices"].split(",")))
        order = Order(facts["session"], step, int(facts["attempt"]), facts["boot-id"], devices)
        deed = {
            Step.RESET: lambda: self._reset(facts, node_name, devices),
            Step.REBOOT: lambda: self._reboot(facts, node_name),
            Step.RESTART_SERVICE: lambda: self._restart_service(facts, node_name),
        }[step]
        try:
            outcome = once(host, host, order, deed, clock=self._world.clock)  # type: ignore[arg-type]
        except KilledError:
            return 137, "killed"
        return int(outcome.code), outcome.message

    def _reset(self, facts: dict[str, str], node_name: str, devices: tuple[str, ...]) -> Ended:
        agent = self._world.agents[node_name]
        host = agent.host
        if host.reset == "is held":
            return Ended(RepairResult.HELD, "python (process 7) has /dev/nvidia0 open")
        if not agent.released:
            return Ended(RepairResult.HELD, "sickbay-agent has /dev/nvidia0 open")
        if operands := self._world.pods.operands_on(node_name):
            return Ended(RepairResult.HELD, f"{operands[0].name} has /dev/nvidia0 open")
        if host.reset == "fails":
            return Ended(RepairResult.FAILED, "exit code 15: GPU could not be reset")
        self._did(facts, host)
        if host.reset == "helps not":
            agent.again(devices, self._world.clock.wall())
        if host.reset == "dies":
            raise KilledError
        return Ended(RepairResult.DONE, "reset")

    def _reboot(self, facts: dict[str, str], node_name: str) -> Ended:
        world, agent = self._world, self._world.agents[node_name]
        host, how = agent.host, agent.host.reboot
        if how == "fails":
            return Ended(RepairResult.FAILED, "no orderly reboot within 120 s, and sysrq did not either")
        if how == "dies":
            raise KilledError
        self._did(facts, host)
        late = {
            "kubelet late": (False, True),
            "agent late": (True, False),
            "both late": (False, False),
            "never back": (False, False),
        }
        faults = dict(agent.faults)
        kubelet, talks = late.get(how, (True, True))
        world.reboot(node_name, kubelet=kubelet, agent=talks)
        if not kubelet:
            world.ready(node_name, yes=False)
        if not talks:
            agent.down = True
        if how in late and how != "never back":
            boot = host.boot
            self._at(LATE, lambda: world.come_back(node_name, boot))
        if how == "helps not":
            agent.faults = faults
            world.tell(node_name)
        return Ended(RepairResult.DONE, "the host has booted")

    def _restart_service(self, facts: dict[str, str], node_name: str) -> Ended:
        agent = self._world.agents[node_name]
        host = agent.host
        if host.reset == "fails":
            return Ended(RepairResult.FAILED, "kubelet.service does not start")
        self._did(facts, host)
        if host.reset == "helps":
            agent.faults = {key: found for key, found in agent.faults.items() if found.clears_on != "Dwell"}
        return Ended(RepairResult.DONE, "restarted")

    def _did(self, facts: dict[str, str], host: Host) -> None:
        session = self._world.api.objects[REMEDIATIONS].get(facts["session"], {})
        rung = session.get("status", {}).get("rung", "")
        deed = Deed(
            facts["step"], facts["session"], rung, int(facts["attempt"]), host.boot, facts["node-uid"]
        )
        self.deeds.append(deed)
        self._world.monitor.repaired(deed, looked=not host.slow)

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((self._world.clock.monotonic() + seconds, act))


_JUDGED = {"good": (0, '{"busbw": 400}'), "bad": (1, "busbw is low"), "none": (0, "")}


def _facts(job: Document) -> dict[str, str]:
    annotations: dict[str, Any] = job["spec"]["template"]["metadata"]["annotations"]
    return {key.removeprefix("sickbay.dev/"): value for key, value in annotations.items()}


def _container(state: Document) -> Document:
    return {"name": "repair", "state": state}


def _read(found: Document | None, struct: Any) -> Any:
    return None if found is None else msgspec.json.decode(msgspec.json.encode(found), type=struct)
