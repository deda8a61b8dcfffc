"""Addresses for the pods of one node, so that its pods need not share the host's network.

Debian's `ptp` and `host-local` CNI plugins give each pod a veth pair, whose end on the host is 10.0.0.1: the address
of the API server's Service, at which `tests.lab.forward` listens. Both go with the pod.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import images
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until

SUBNET = "10.0.0.0/24"
GATEWAY = "10.0.0.1"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@contextmanager
def pod_network(lab: Lab, node: Node) -> Iterator[None]:
    """Give new pods of the node addresses, while it lasts. One lab of a machine at a time."""
    port = lab.server.rpartition(":")[2]
    forwarder = lab.processes.start(
        "forward", [sys.executable, "-m", "tests.lab.forward", port], cwd=images.PROJECT
    )
    wait_until(
        lambda: "forwarding" in forwarder.log.read_text(),
        10,
        f"a listener at {GATEWAY}:443, which another lab may have",
        logs=[forwarder.log],
    )
    folder = node.folder / "cni"
    configuration = folder / "00-pods.conflist"
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": SUBNET, "rangeStart": "10.0.0.100", "gateway": GATEWAY}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "addresses"),
    }
    plugins = [{"type": "ptp", "ipam": ipam}]
    configuration.write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}))
    before = FORWARDING.read_text()
    try:
        yield
    finally:
        configuration.unlink(missing_ok=True)
        forwarder.stop()
        FORWARDING.write_text(before)
