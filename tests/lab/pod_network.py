"""Addresses for the pods of one node, so that its pods need not share the host's network.

Debian's `ptp` and `host-local` CNI plugins give each pod a veth pair. Its end on the host has the address of the API
server's Service, at which `tests.lab.forward` listens. Both ends go with the pod, however it ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import images
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until


@contextmanager
def pod_network(lab: Lab, node: Node) -> Iterator[None]:
    """Give new pods of the node addresses, while it lasts. One node of a lab at a time."""
    gateway = str(lab.services[1])
    port = lab.server.rpartition(":")[2]
    forwarder = lab.processes.start(
        "forward", [sys.executable, "-m", "tests.lab.forward", gateway, port], cwd=images.PROJECT
    )

    def listens() -> bool:
        forwarder.check()
        return "forwarding" in forwarder.log.read_text()

    wait_until(listens, 10, f"a listener at {gateway}:443", logs=[forwarder.log])
    folder = node.folder / "cni"
    configuration = folder / "00-pods.conflist"
    subnet = lab.pod_addresses.supernet()
    ipam = {
        "type": "host-local",
        # The gateway has to lie in the subnet, though not in the range that is given away.
        "ranges": [[{"subnet": str(subnet), "rangeStart": str(lab.pod_addresses[1]), "gateway": gateway}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "addresses"),
    }
    plugins = [{"type": "ptp", "ipam": ipam}]
    configuration.write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}))
    try:
        yield
    finally:
        configuration.unlink(missing_ok=True)
        forwarder.stop()
