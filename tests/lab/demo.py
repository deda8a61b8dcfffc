"""The product at work on the lab: a GPU falls off the bus, its node is fenced, rebooted and given back.

`python -m tests.lab.demo [--exit]`, which is `make demo` and `sickbay demo`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.lab import binaries, manifests
from tests.lab.lab import Lab
from tests.lab.processes import LabError, sigterm_as_ctrl_c, wait_until
from tests.lab.rig import XID_79, Rig

PARTS = "two nodes with 8 simulated H100s each, an agent on each, a controller, all under their own accounts"


class Story:
    """Tells what happens, with the seconds since the fault."""

    def __init__(self, console: Console, rig: Rig) -> None:
        self._console = console
        self._rig = rig
        self._begun = time.monotonic()

    def begin(self) -> None:
        """The clock starts."""
        self._begun = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(f"[dim]{time.monotonic() - self._begun:6.2f} s[/]  {text}", highlight=False)

    def wards(self) -> None:
        """What Kubernetes sees: nodes and sessions."""
        table = Table("node", "Kubernetes says", "cordoned by", "faults", "session", box=None, pad_edge=False)
        for name in self._rig.agents:
            node = self._rig.node(name)
            faults = self._rig.report(name)["status"].get("faults", [])
            sessions = [
                f"{s['status'].get('phase')} ({s['status'].get('reason')})" for s in self._rig.sessions(name)
            ]
            table.add_row(
                name,
                "SchedulingDisabled" if node["spec"].get("unschedulable") else "schedulable",
                node["metadata"].get("annotations", {}).get("sickbay.dev/session", "-"),
                ", ".join(f"{fault['kind']} {fault.get('code', '')}" for fault in faults) or "none",
                ", ".join(sessions) or "-",
            )
        self._console.print(table)


def tell(rig: Rig, console: Console) -> None:
    """One fatal fault, from the kernel line to the node's return."""
    story = Story(console, rig)
    story.wards()
    line = XID_79.format(address="0000:3b:00")
    console.print(f"\nThe kernel log of n1 says:\n  [bold]{line}[/]\n", highlight=False)
    story.begin()
    rig.lose_gpu("n1")
    wait_until(
        lambda: rig.node("n1")["spec"].get("unschedulable"), 20, "the fence", every=0.002, logs=rig.logs
    )
    story.say("[bold red]n1 is cordoned[/]: the next job lands elsewhere")
    session = wait_until(lambda: held(rig), 20, "the session to be held", logs=rig.logs)
    for entry in session["status"]["journal"]:
        story.say(
            f"journal: {entry['step']} {entry['event']} {entry.get('result', '')} {entry.get('message', '')}"
        )
    story.say(f"the session waits: {session['status']['message']}")
    story.wards()
    console.print("\nThe node is rebooted (rehearsed: a power cut and a new boot ID)\n")
    rig.agents["n1"].child.stop()
    rig.agents["n1"].kernel_log.write_text("")
    rig.lab.nodes["n1"].reboot(rig.lab.api)
    rig.start_agent(rig.lab.nodes["n1"])
    story.say("n1 is up again, its agent reports from the new boot")
    wait_until(lambda: not rig.node("n1")["spec"].get("unschedulable"), 60, "the return", logs=rig.logs)
    story.say("[bold green]n1 is schedulable again[/], after its healthy dwell")
    story.wards()


def held(rig: Rig) -> dict[str, dict[str, list[dict[str, str]]]] | None:
    """The session of n1, once it is held."""
    found = [one for one in rig.sessions("n1") if one.get("status", {}).get("phase") == "Held"]
    return found[0] if found else None


def main(arguments: list[str]) -> int:
    """Tell the story, then stay for exploring. Exit codes: 0, or 1 when the lab cannot run or the story fails."""
    parser = argparse.ArgumentParser(prog="sickbay demo", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="end when the story is told")
    flags = parser.parse_args(arguments)
    if problems := binaries.missing():
        print("the demo needs the lab, which cannot run here:", *problems, sep="\n  - ", file=sys.stderr)
        return 1
    sigterm_as_ctrl_c()
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        console.print(f"Starting a real Kubernetes {binaries.KUBERNETES}: {PARTS}...")
        with Lab(nodes=("n1", "n2")) as lab:
            manifests.apply(lab)
            rig = Rig(lab)
            for node in lab.nodes.values():
                rig.start_agent(node)
            rig.start_controller()
            rig.wait_watching()
            tell(rig, console)
            if sys.stdout.isatty() and not flags.exit:
                _explore(lab, rig, console)
    except KeyboardInterrupt:
        console.print("ended, nothing is left behind")
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _explore(lab: Lab, rig: Rig, console: Console) -> None:
    kubectl = binaries.kubernetes_folder() / "kubectl"
    agent = rig.agents["n2"]
    console.print(
        f"\nIt stays up until Ctrl-C. In another terminal:\n\n"
        f"export KUBECONFIG={lab.kubeconfig}\n"
        f"  {kubectl} get acrem\n"
        f"  {kubectl} get acr n2 -o yaml\n"
        f"  curl -s http://127.0.0.1:{agent.port}/metrics | grep accelerator_xid\n"
        f"  curl -s http://127.0.0.1:{rig.controller_port}/metrics | grep sickbay_\n"
        f"  echo '{XID_79.format(address='0000:3b:00')}' >> {agent.kernel_log}   # the next fault, on n2\n",
        highlight=False,
    )
    signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
