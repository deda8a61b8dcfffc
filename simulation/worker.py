"""The NVML worker on a simulated machine: `python -m simulation.worker --machine PATH`.

It is the worker of the agent, unchanged, on the real pynvml; only the library below pynvml is simulated.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from exporter import worker
from simulation.machine import MACHINE_VARIABLE, MachineError
from simulation.nvml import MachineFile, SimulatedLibrary, install


def main(arguments: list[str] | None = None) -> int:
    """Serve the parent. Exit codes: 0 the parent has ended it, 2 no usable machine."""
    parser = argparse.ArgumentParser(prog="python -m simulation.worker", description=__doc__)
    parser.add_argument(
        "--machine",
        metavar="PATH",
        default=os.environ.get(MACHINE_VARIABLE),
        help=f"the machine's file, as `python -m simulation.machine` makes it (default: ${MACHINE_VARIABLE})",
    )
    path = parser.parse_args(arguments).machine
    if not path:
        parser.error(f"no machine: give --machine PATH or set {MACHINE_VARIABLE}")
    try:
        machine = MachineFile(Path(path))
    except MachineError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    install(SimulatedLibrary(machine))
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
