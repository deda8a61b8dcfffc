"""What runs in the containers of a simulated node: the repair programs and the device plugin as real processes.

A container of the Sickbay image is the program that its `args` name, with the same flags: `repair check` is the very
same program with a kubeconfig in the place of a pod's token, and the repairs that act are `simulation.repair`, which is
the same program on a host of files. Every other container is what its pod's annotations say.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Mapping, Sequence

from simulation.cluster.interface import Object
from simulation.cluster.programs import SIGKILL_EXIT, Launch, Program
from simulation.demo.host_files import HostFiles
from simulation.demo.processes import Child, DemoError, Processes, exit_code, signal_to, when_ended

PLUGIN_CONTAINER = "nvidia-device-plugin"

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_ANNOTATION = re.compile(r"metadata\.annotations\['([^']+)'\]")


class ProcessProgram:
    """A container whose process is a real one."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def poll(self, now: float) -> int | None:
        return exit_code(self._child)

    def due(self) -> float | None:
        return None

    def terminate(self, now: float) -> None:
        signal_to(self._child, signal.SIGTERM)

    def kill(self) -> None:
        signal_to(self._child, signal.SIGKILL)


class EndedProgram:
    """A container whose process was killed as soon as it was there."""

    def poll(self, now: float) -> int | None:
        return SIGKILL_EXIT

    def due(self) -> float | None:
        return None

    def terminate(self, now: float) -> None:
        return

    def kill(self) -> None:
        return


class NodeContainers:
    """The containers of one node: `program` is the kubelet's hook."""

    def __init__(self, files: HostFiles, processes: Processes, *, kubeconfig: str) -> None:
        self._files = files
        self._processes = processes
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._plugin: tuple[str, Child] | None = None
        self._doomed = ""
        self._number = 0

    def program(self, launch: Launch) -> Program | None:
        """The program of a container that starts; None for what the annotations describe."""
        words = arguments_of(launch)
        if words[:2] == ["repair", "check"]:
            return self._started(launch, "sickbay", [*words, "--kubeconfig", self._kubeconfig])
        if words[:1] == ["repair"]:
            return self._started(launch, "simulation.repair", [*words[1:], *self._files.repair_flags])
        if launch.container == PLUGIN_CONTAINER:
            return self._start_plugin(launch)
        return None

    def crash_plugin(self) -> None:
        """Kill the plugin's process, now and whenever it starts in the same pod.

        That is a plugin which dies of what lies in its pod (a broken file in its emptyDir, its configuration as it
        was mounted), so that only another pod helps. Raises DemoError where none runs.
        """
        with self._lock:
            if self._plugin is None:
                raise DemoError(f"no device plugin runs on {self._files.name}")
            self._doomed, child = self._plugin
        signal_to(child, signal.SIGKILL)

    def _start_plugin(self, launch: Launch) -> Program:
        uid = str(launch.pod["metadata"]["uid"])
        with self._lock:
            if uid == self._doomed:
                return EndedProgram()
        program, child = self._process(launch, "simulation.plugin", self._files.plugin_flags)
        with self._lock:
            self._plugin = uid, child
        return program

    def _started(self, launch: Launch, module: str, words: Sequence[str]) -> Program:
        return self._process(launch, module, words)[0]

    def _process(self, launch: Launch, module: str, words: Sequence[str]) -> tuple[ProcessProgram, Child]:
        self._number += 1
        name = f"{launch.node}-{launch.container}-{self._number}"
        child = self._processes.start(name, module, words)
        when_ended(child, launch.wake)
        return ProcessProgram(child), child


def arguments_of(launch: Launch) -> list[str]:
    """The container's `args` with its variables in their places, as a kubelet fills them in."""
    spec = launch.pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    container = next(one for one in containers if one["name"] == launch.container)
    values = {one["name"]: _value(one, launch.pod) for one in container.get("env") or ()}
    return [_filled(word, values) for word in container.get("args") or ()]


def _value(variable: Object, pod: Object) -> str:
    path = str((variable.get("valueFrom") or {}).get("fieldRef", {}).get("fieldPath", ""))
    if found := _ANNOTATION.fullmatch(path):
        return str((pod["metadata"].get("annotations") or {}).get(found[1], ""))
    fields = {"metadata.uid": pod["metadata"]["uid"], "spec.nodeName": pod["spec"].get("nodeName", "")}
    return str(fields.get(path, variable.get("value", "")))


def _filled(word: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), word)
