"""The NVML worker: a small process of its own, since a call to a broken device can block for ever.

`python -m exporter.worker` reads requests from standard input and answers on standard output, as
`exporter.samples` defines them; its log is standard error. It ends with its parent: at the end of standard
input, or by the kernel's parent death signal when a call keeps it from seeing that.
It imports pynvml, msgspec and the standard library alone, to stay small.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from typing import BinaryIO

import msgspec

from exporter.nvml import Nvml, NvmlUnavailableError
from exporter.samples import Body, Operation, Released, Reply, Request, WorkerError, WorkerFailure

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def answer(nvml: Nvml, request: Request) -> Body:
    """Do what is asked; whatever goes wrong is an answer too."""
    try:
        if request.operation is Operation.ACQUIRE:
            return nvml.acquire(request.known)
        if request.operation is Operation.RELEASE:
            nvml.release()
        if not nvml.held:
            return Released()
        return nvml.inventory() if request.operation is Operation.INVENTORY else nvml.sample()
    except NvmlUnavailableError as error:
        return WorkerFailure(error=error.error, message=str(error))
    except Exception as error:  # a surprise of the library must reach the parent as an answer
        traceback.print_exc()
        return WorkerFailure(error=WorkerError.UNKNOWN, message=f"{type(error).__name__}: {error}")


def serve(nvml: Nvml, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests, one a line, until their end. A line that is no request is logged and skipped."""
    decoder = msgspec.json.Decoder(Request)
    for line in requests:
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            sys.stderr.write(f"not a request: {line[:200]!r}: {error}\n")
            continue
        reply = Reply(id=request.id, body=answer(nvml, request))
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


def main() -> int:
    """Serve the parent. Exit code 0."""
    _end_with_parent()
    # A terminal's Ctrl-C reaches the whole process group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the library or anything else prints must not tear the protocol.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(Nvml(), sys.stdin.buffer, replies)
        replies.close()
    except BrokenPipeError:
        sys.stderr.write("the parent has gone\n")
    return 0


def _end_with_parent() -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}\n")
    if os.getppid() != parent:
        raise SystemExit("the parent has gone")


if __name__ == "__main__":
    sys.exit(main())
