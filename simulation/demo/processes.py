"""Child processes of the demo: none of them outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

# A small program between us and the child, rather than a preexec_fn: that would fork beside threads and gRPC.
# The death signal (prctl 1, <linux/prctl.h>) outlives the exec. Who starts a child may have died before it is set.
_DIE_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

_LOG_LINES = 12


class DemoError(Exception):
    """The demo cannot go on; the text is for a person."""


class CannotBeginError(DemoError):
    """It cannot even begin, for a flag or for what is missing here."""


@dataclass(slots=True)
class Child:
    """A started process and its log."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.popen.poll() is not None

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError as error:
            lines = [str(error)]
        return "\n".join([f"the last lines of {self.name}'s log:", *lines[-_LOG_LINES:]])


@dataclass(slots=True)
class Processes:
    """All children. `start` may be called from any thread that lives as long as the child should."""

    folder: Path
    children: list[Child] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Run `python -m MODULE ARGUMENTS`, as `start_program` runs programs."""
        return self.start_program(name, [sys.executable, "-m", module, *arguments])

    def start_program(self, name: str, program: Sequence[str]) -> Child:
        """Run a program; what it writes goes to `NAME.log`.

        It is killed when the calling thread ends. A Ctrl-C of the terminal does not reach it: we end it in order.
        Raises DemoError.
        """
        log = self.folder / f"{name}.log"
        with self._lock, log.open("ab") as output:
            try:
                popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _DIE_WITH_US, str(os.getpid()), *program],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=PROJECT,
                    env=_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"{name} cannot be started: {error}") from error
            child = Child(name, log, popen)
            self.children = [one for one in self.children if not one.ended]
            self.children.append(child)
        return child

    def stop(self, grace: float = 3.0) -> None:
        """SIGTERM to all, after `grace` seconds SIGKILL; returns when none is left."""
        with self._lock:
            children, self.children = self.children, []
        for child in children:
            child.popen.terminate()
        for child in children:
            stop(child, grace)


def stop(child: Child, grace: float = 3.0) -> None:
    """SIGTERM, after `grace` seconds SIGKILL."""
    child.popen.terminate()
    try:
        child.popen.wait(grace)
    except subprocess.TimeoutExpired:
        child.popen.kill()
        child.popen.wait()


def kill(child: Child) -> None:
    """SIGKILL, and wait until it is gone."""
    child.popen.kill()
    child.popen.wait()


def when_ended(child: Child, tell: Callable[[], None]) -> None:
    """Have this called when the process has ended."""

    def wait() -> None:
        child.popen.wait()
        tell()

    threading.Thread(target=wait, name=f"wait-{child.name}", daemon=True).start()


def exit_code(child: Child) -> int | None:
    """As a container runtime tells it: 128 and the signal's number for who was killed by one."""
    code = child.popen.poll()
    return code if code is None or code >= 0 else 128 - code


def signal_to(child: Child, number: signal.Signals) -> None:
    """Send a signal, if it still runs."""
    if not child.ended:
        child.popen.send_signal(number)


def _environment() -> dict[str, str]:
    """Ours, without what would configure the children past their flags."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SICKBAY_", "KUBERNETES_"))
    }
    path = os.pathsep.join(filter(None, (str(PROJECT), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
