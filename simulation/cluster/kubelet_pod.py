"""One pod on a simulated kubelet: its containers start in order, run, are restarted, ended, and told of.

It is a state machine on the monotonic time that is passed in; it writes nothing. Facts: pkg/kubelet/kuberuntime
(order of containers, restarts), pkg/kubelet/kubelet_pods.go getPhase, and measured times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulation.cluster.interface import Object
from simulation.cluster.programs import SIGKILL_EXIT, Launch, Program, Programs, annotated, ready_seconds

FIRST_BACK_OFF_SECONDS = 10.0
LAST_BACK_OFF_SECONDS = 300.0
BACK_OFF_RESET_SECONDS = 600.0
"""A container that ended is started at once the first time, then after 10 s, doubled up to 5 min; 10 min of running
forget that (kubelet.go, MaxContainerBackOff; pkg/kubelet/kuberuntime doBackOff)."""

LOST_EXIT = 255
"""What the runtime says of a container that was running when the machine went down."""


@dataclass(slots=True)
class ContainerRun:
    """One container: at most one of running and ended; neither is waiting."""

    name: str
    init: bool
    image: str
    resources: Object
    program: Program | None = None
    started_at: float = 0.0
    started_stamp: str = ""
    ready_at: float = 0.0
    exit_code: int | None = None
    exit_reason: str = ""
    finished_stamp: str = ""
    restarts: int = 0
    last: Object | None = None
    retry_at: float | None = None
    back_off: float = 0.0
    waits: float = 0.0
    """Seconds of back-off before the restart that is planned."""
    identity: int = 0

    def start(self, program: Program, *, now: float, stamp: str, ready_after: float) -> None:
        """Start the process; an earlier run becomes the last state."""
        if self.exit_code is not None:
            self.last = self.terminated()
            self.restarts += 1
        self.program, self.exit_code, self.retry_at = program, None, None
        self.started_at, self.started_stamp, self.ready_at = now, stamp, now + ready_after
        self.identity += 1

    def end(self, exit_code: int, *, stamp: str, reason: str = "") -> None:
        """The process has ended."""
        self.program, self.exit_code, self.finished_stamp = None, exit_code, stamp
        self.exit_reason = reason or ("Completed" if exit_code == 0 else "Error")

    def plan_restart(self, now: float) -> None:
        """Set when it is started again."""
        if now - self.started_at >= BACK_OFF_RESET_SECONDS:
            self.back_off = 0.0
        self.retry_at, self.waits = now + self.back_off, self.back_off
        self.back_off = min(max(self.back_off * 2, FIRST_BACK_OFF_SECONDS), LAST_BACK_OFF_SECONDS)

    def ready(self, now: float) -> bool:
        """Whether it counts as ready: a running container after its time, an init container that succeeded."""
        if self.init:
            return self.exit_code == 0
        return self.program is not None and now >= self.ready_at

    def terminated(self) -> Object:
        """The state of an ended container."""
        return {
            "terminated": {
                "exitCode": self.exit_code,
                "reason": self.exit_reason,
                "startedAt": self.started_stamp,
                "finishedAt": self.finished_stamp,
            }
        }


class PodRun:
    """An admitted pod. `advance` moves it on; `phase`, the containers and `gone_at` say where it is."""

    def __init__(self, pod: Object, *, now: float, start_seconds: float) -> None:
        self.pod = pod
        self.start_seconds = start_seconds
        self.starts_at = now + start_seconds
        spec = pod["spec"]
        self.inits = [_container(one, init=True) for one in spec.get("initContainers") or ()]
        self.mains = [_container(one, init=False) for one in spec.get("containers") or ()]
        self.policy = str(spec.get("restartPolicy") or "Always")
        self.kill_at: float | None = None
        self.ended_at: float | None = None
        self.rejection: tuple[str, str] | None = None
        """Reason and message, once the kubelet has refused after a reboot what it had run before."""

    @property
    def containers(self) -> list[ContainerRun]:
        """All containers, in the order of their start."""
        return [*self.inits, *self.mains]

    @property
    def initialized(self) -> bool:
        """Whether every init container has succeeded."""
        return all(one.exit_code == 0 for one in self.inits)

    @property
    def phase(self) -> str:
        """The pod's phase."""
        if self.rejection is not None:
            return "Failed"
        if self.kill_at is not None and self.ended_at is not None:
            return "Succeeded" if all(one.exit_code == 0 for one in self.mains) else "Failed"
        if not self.initialized:
            failed = any(one.exit_code not in (None, 0) for one in self.inits)
            return "Failed" if failed and self.policy == "Never" else "Pending"
        if any(one.program is None and one.exit_code is None for one in self.mains):
            return "Pending"
        if any(one.program is not None or self._restarts(one) for one in self.mains):
            return "Running"
        return "Succeeded" if all(one.exit_code == 0 for one in self.mains) else "Failed"

    @property
    def done(self) -> bool:
        """Whether it has ended for good."""
        return self.phase in ("Succeeded", "Failed")

    def ready(self, now: float) -> bool:
        """Whether every container is ready. That somebody has asked it to end changes nothing, as long as it runs."""
        return self.initialized and all(one.ready(now) for one in self.mains)

    def advance(
        self, now: float, stamp: str, launch: Callable[[ContainerRun], Launch], run: Programs
    ) -> None:
        """Take what has ended and start what is due; `stamp` is the same moment as objects tell it."""
        for one in self.containers:
            code = one.program.poll(now) if one.program is not None else None
            if code is not None:
                one.end(code, stamp=stamp)
                if self.kill_at is None and self._restarts(one):
                    one.plan_restart(now)
        if self.kill_at is not None:
            self._end(now, stamp)
            return
        if now < self.starts_at or self.done:
            return
        for one in self._startable(now):
            program_of = launch(one)
            program = run(program_of) or annotated(program_of)
            one.start(program, now=now, stamp=stamp, ready_after=ready_seconds(self.pod, one.name))

    def terminate(self, now: float, grace: float) -> None:
        """SIGTERM to what runs, SIGKILL after the grace; a second call may only shorten it."""
        kill_at = now + grace
        if self.kill_at is None:
            for one in self.containers:
                if one.program is not None:
                    one.program.terminate(now)
        self.kill_at = kill_at if self.kill_at is None else min(self.kill_at, kill_at)

    def kill(self, stamp: str) -> None:
        """SIGKILL to all at once."""
        for one in self.containers:
            if one.program is not None:
                one.program.kill()
                one.end(SIGKILL_EXIT, stamp=stamp)

    def machine_restarted(self, now: float, stamp: str) -> None:
        """Everything that ran is lost; a pod that may restart begins anew, init containers included."""
        for one in self.containers:
            if one.program is not None:
                one.program.kill()
                one.end(LOST_EXIT, stamp=stamp, reason="Unknown")
            elif one.retry_at is not None and one.exit_code is None:
                one.retry_at = None
        if self.policy == "Never" or self.done or self.kill_at is not None:
            return
        self.starts_at = now + self.start_seconds
        for one in self.inits:
            one.retry_at, one.back_off = None, 0.0
            if one.exit_code is not None:
                one.last, one.exit_code = one.terminated(), None
                one.restarts += 1
        for one in self.mains:
            one.back_off = one.waits = 0.0
            if one.exit_code is not None and self._restarts(one):
                one.retry_at = now

    def due(self, now: float, stop_seconds: float) -> float | None:
        """When `advance` has something to do next, or the status changes by itself; None if only events bring it."""
        if self.ended_at is not None:
            return self.ended_at + stop_seconds
        if self.done and self.kill_at is None:
            return None
        times: list[float | None] = [
            max(one.retry_at, self.starts_at)
            for one in self.containers
            if one.program is None and one.retry_at is not None and self.kill_at is None
        ]
        times += [one.program.due() for one in self.containers if one.program is not None]
        times += [one.ready_at for one in self.mains if one.program is not None and one.ready_at > now]
        times += [self.kill_at, self.starts_at if now < self.starts_at else None]
        return min((time for time in times if time is not None), default=None)

    def _startable(self, now: float) -> list[ContainerRun]:
        for one in self.inits:
            if one.exit_code == 0:
                continue
            return [one] if _may_start(one, now) else []
        return [one for one in self.mains if _may_start(one, now)]

    def _restarts(self, one: ContainerRun) -> bool:
        if one.exit_code == 0 and (one.init or self.policy != "Always"):
            return False
        return self.policy != "Never"

    def _end(self, now: float, stamp: str) -> None:
        if self.kill_at is not None and now >= self.kill_at:
            self.kill(stamp)
        if self.ended_at is None and all(one.program is None for one in self.containers):
            self.ended_at = now


def _container(spec: Object, *, init: bool) -> ContainerRun:
    return ContainerRun(
        name=spec["name"],
        init=init,
        image=str(spec.get("image") or ""),
        resources=dict(spec.get("resources") or {}),
    )


def _may_start(one: ContainerRun, now: float) -> bool:
    if one.program is not None:
        return False
    if one.exit_code is None:
        return True
    return one.retry_at is not None and now >= one.retry_at
