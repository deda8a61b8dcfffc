"""Child processes that cannot outlive us, and the one helper that waits for things."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
LOG_TAIL_LINES = 15
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something of the lab did not do what it was asked; the text says what and shows the logs."""


class WaitTimeoutError(LabError, AssertionError):
    """A condition did not come true in time."""


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log under a heading, for an error's text."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"--- {log}: {error.strerror}"
    return "\n".join([f"--- last lines of {log}", *text.splitlines()[-lines:]])


def wait_until(
    condition: Callable[[], T | None],
    deadline: float,
    what: str,
    *,
    logs: Iterable[Path] = (),
    ignoring: tuple[type[Exception], ...] = (),
    every: float = 0.05,
) -> T:
    """Poll `condition` until it is truthy and return its value.

    `deadline` and `every` are seconds from now. Exceptions of the types in `ignoring` count as "not yet".
    Raises WaitTimeoutError, which names `what`, the last value or exception, and the ends of `logs`.
    """
    end = time.monotonic() + deadline
    last = ""
    while True:
        try:
            value = condition()
            if value:
                return value
            last = f"last value: {value!r}"
        except ignoring as error:
            last = f"last error: {type(error).__name__}: {error}"
        if time.monotonic() >= end:
            break
        time.sleep(every)
    raise WaitTimeoutError("\n".join([f"waited {deadline:g} s for {what}; {last}", *map(log_tail, logs)]))


def start_time(pid: int) -> int | None:
    """Return when `pid` started, in clock ticks since boot (proc(5), stat field 22); None for no process.

    A zombie counts as no process: it holds nothing and cannot be killed.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def children_of(pid: int) -> list[int]:
    """Return the direct children of `pid`, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append((int(fields[19]), int(stat.parent.name)))
    return [child for _, child in sorted(found)]


def _die_with_parent(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        # The parent may have died before prctl: then nobody would ever send the signal.
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


@dataclass(slots=True)
class Child:
    """A started process and its log."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def check(self) -> None:
        """Raise LabError with the end of the log if the process has ended."""
        if not self.alive():
            raise LabError(f"{self.name} ended with status {self.popen.returncode}\n{log_tail(self.log)}")

    def kill(self) -> None:
        """SIGKILL and reap."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, grace: float = 10) -> int:
        """SIGTERM, after `grace` seconds SIGKILL; return the exit status."""
        self.popen.terminate()
        try:
            return self.popen.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.popen.returncode


@dataclass(slots=True)
class Processes:
    """Starts long-lived children of one lab; each has `NAME.log` in `folder` and a line in `folder/pids`."""

    folder: Path
    children: dict[str, Child] = field(default_factory=dict)

    def start(
        self,
        name: str,
        argv: Iterable[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: Path | None = None,
    ) -> Child:
        """Start a child that is killed when this process ends, however it ends.

        Standard error goes to `NAME.log`, standard output too unless `stdout` names a file. The kernel ties
        the death signal to the forking thread, so only the main thread may start one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LabError(f"{name}: long-lived children are started from the main thread only")
        running = self.children.get(name)
        if running is not None and running.alive():
            raise LabError(f"{name} is already running (pid {running.pid})")
        log = self.folder / f"{name}.log"
        # An interrupt between the fork and the record would leave a child that nobody knows of.
        with signals_held(), log.open("ab") as errors, (stdout or log).open("ab") as output:
            popen = subprocess.Popen(
                [str(argument) for argument in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                # Its own session: a Ctrl-C of the terminal is for us, we end the children in our order.
                start_new_session=True,
                # After the fork it takes no lock of ours, which is what makes it safe beside threads.
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509
            )
            child = Child(name, log, popen)
            self.children[name] = child
            with (self.folder / "pids").open("a") as record:
                record.write(f"{popen.pid} {start_time(popen.pid) or 0}\n")
        return child

    def kill_all(self) -> None:
        """SIGKILL every child at once, then reap them all."""
        for child in self.children.values():
            child.popen.kill()
        for child in self.children.values():
            child.popen.wait()
        self.children.clear()


def run(
    argv: Iterable[str | Path],
    *,
    input_text: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a short helper (kubectl) to its end; it too dies with us. Raises LabError after `timeout` s."""
    words = [str(argument) for argument in argv]
    try:
        return subprocess.run(
            words,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            capture_output=True,
            text=True,
            env=dict(env) if env is not None else None,
            timeout=timeout,
            check=False,
            preexec_fn=_die_with_parent(os.getpid()),
        )
    except subprocess.TimeoutExpired as expired:
        raise LabError(f"no end after {timeout:g} s: {' '.join(words)}\n{expired.stderr!r}") from expired


def sigterm_as_ctrl_c() -> None:
    """Let SIGTERM raise KeyboardInterrupt, so that `finally` and fixtures run (by default they do not)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: what runs inside is not interrupted half-way, they arrive afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
