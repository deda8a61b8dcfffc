"""`python -m simulation.cluster [--port P]`: an embedded Kubernetes API that serves until Ctrl-C."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import threading

from runtime.clock import SystemClock
from simulation.cluster.admin import PATH
from simulation.cluster.server import EmbeddedApi


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 1 where the port cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.cluster", description="An embedded Kubernetes API."
    )
    parser.add_argument("--port", type=int, default=8001, help="port on 127.0.0.1; 0 for any that is free")
    options = parser.parse_args(arguments)
    # Every agent of a large fleet holds a connection.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    api = EmbeddedApi(clock=SystemClock(), port=options.port)
    try:
        api.start()
    except (OSError, OverflowError) as error:
        sys.stderr.write(f"port {options.port} cannot be had: {error}\n")
        return 1
    sys.stdout.write(
        f"serving on {api.url} until Ctrl-C\n"
        f"  kubectl --server {api.url} get nodes\n"
        f"  kubectl --server {api.url} create --validate=false -f FILE\n"
        f"  curl {api.url}{PATH}\n"
    )
    sys.stdout.flush()
    stopping.wait()
    api.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
