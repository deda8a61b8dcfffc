"""Running a program that may never end: a process in D state cannot be killed, so it is not waited for either."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

from remediation.repair.host import Ran

OUTPUT_KEPT = 8192
"""Bytes of a program's output that are kept, the last ones."""

_LOOK_SECONDS = 0.1
_KILLED_SECONDS = 1.0
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "SYSTEMD_PAGER": "",
}


def run_bounded(argv: Sequence[str], *, timeout: float) -> Ran:
    """Run `argv` with a plain environment and no input; standard output and error are one.

    After `timeout` seconds its process group is killed, and left to itself if that does not help.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        return Ran(None, f"{argv[0]}: {error.strerror or error}")
    output = _read(process, deadline=time.monotonic() + timeout)
    code = process.poll()
    if code is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_SECONDS)
        output += f"\nstopped after {timeout:g} s".encode()
    return Ran(code, output.decode("utf-8", "replace"))


def _read(process: subprocess.Popen[bytes], *, deadline: float) -> bytes:
    """The last of the output, until the program has ended or the deadline is there.

    Its end is what counts, not that of the pipe, which a daemon that it has started may keep open.
    """
    assert process.stdout is not None
    kept = b""
    with process.stdout as pipe, selectors.DefaultSelector() as selector:
        os.set_blocking(pipe.fileno(), False)
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ended = process.poll() is not None
            readable = bool(selector.select(0 if ended else min(left, _LOOK_SECONDS)))
            chunk = os.read(pipe.fileno(), 65536) if readable else b""
            kept = (kept + chunk)[-OUTPUT_KEPT:]
            if readable and not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                break
            if ended and not chunk:
                break
    return kept
