"""`python -m tests.lab`: a Kubernetes cluster of your own until Ctrl-C (this is `make lab`)."""

import argparse
import signal
import sys
from typing import NoReturn

from tests.lab import binaries
from tests.lab.images import BUSYBOX
from tests.lab.lab import Lab
from tests.lab.processes import INTERRUPTS, LabError, sigterm_as_ctrl_c

INSTRUCTIONS = """
Kubernetes {version} runs, nodes: {nodes}. In another terminal:

export KUBECONFIG={kubeconfig}

  {kubectl} get nodes -o wide
  {kubectl} run hello --image={image} --image-pull-policy=Never --restart=Never \\
      --overrides='{{"spec": {{"hostNetwork": true}}}}' -- sh -c 'echo hello from $HOSTNAME; sleep 60'
  {kubectl} logs hello

Logs and the API server's audit log are in {folder}. Ctrl-C ends it all and leaves nothing behind.
"""


def main(arguments: list[str]) -> int:
    """Run a lab until SIGINT or SIGTERM. Returns 0, or 1 when it cannot run here or does not come up."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="how many nodes (default 2)")
    count = parser.parse_args(arguments).nodes
    if count < 0:
        parser.error(f"--nodes {count}: expected 0 or more")
    if problems := binaries.missing():
        print("the lab cannot run here:", *problems, sep="\n  - ", file=sys.stderr)
        return 1
    sigterm_as_ctrl_c()
    try:
        print("starting...", file=sys.stderr, flush=True)
        with Lab(nodes=[f"n{number}" for number in range(1, count + 1)]) as lab:
            _welcome(lab)
            _wait_for_the_end(lab)
    except KeyboardInterrupt:
        print("ended, nothing is left behind", file=sys.stderr)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _welcome(lab: Lab) -> None:
    text = INSTRUCTIONS.format(
        version=binaries.KUBERNETES,
        nodes=", ".join(lab.nodes) or "none",
        kubeconfig=lab.kubeconfig,
        kubectl=binaries.kubernetes_folder() / "kubectl",
        image=BUSYBOX,
        folder=lab.folder,
    )
    print(text, flush=True)


def _wait_for_the_end(lab: Lab) -> NoReturn:
    """Raise KeyboardInterrupt on SIGINT or SIGTERM, LabError when a process of the lab ends by itself."""
    signals = {signal.SIGCHLD, *INTERRUPTS}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while True:
        for child in lab.processes.children.values():
            child.check()
        if signal.sigwait(signals) in INTERRUPTS:
            raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
