"""One ward for all tests of repairs; each test finds it healthy and leaves it so."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.lab import manifests, rbac_usage
from tests.lab.conftest import clean
from tests.lab.lab import Lab
from tests.lab.repair.hosts import OPERAND, Host, templates
from tests.lab.repair.ward import POLICY, Ward
from tests.lab.rig import Rig
from tests.lab.sickbay_pods import SickbayPods


@pytest.fixture(scope="package")
def ward(lab: Lab) -> Iterator[Ward]:
    manifests.apply(lab)
    manifests.repair(lab)
    nodes = tuple(lab.add_nodes("g1", "g2", status_frequency=1.0))
    begun = len(lab.audit_events())
    lab.apply(*templates(lab.server))
    rig = Rig(lab, policy=POLICY)
    rig.start_controller()
    pods = SickbayPods(lab, nodes, policy=POLICY, controller_port=rig.controller_port, operand=OPERAND)
    pods.deploy()
    hosts = {node.name: Host(lab, node) for node in nodes}
    try:
        yield Ward(pods, rig, hosts)
    finally:
        rig.stop()
        pods.remove()
        for node in nodes:
            lab.remove_node(node.name)
        clean(lab)
        manifests.without_repair(lab)
    refused = rbac_usage.refusals(lab.audit_events()[begun:])
    assert not refused, f"Sickbay asked for what it may not have: {refused[:3]}"


@pytest.fixture(autouse=True)
def healthy(ward: Ward) -> Iterator[None]:
    """Before each test both nodes are healthy, empty and open; afterwards they are made so."""
    yield
    host = ward.host
    host.boot_heals = host.comes_back = True
    host.change(ward.uuid, lambda one: msgspec.structs.replace(one, held_by="", reset_helps=True))
    ward.lab.apply(*templates(ward.lab.server))
    is_open = ward.status().get("phase", "Released") not in ("Released", "Cancelled")
    if is_open or ward.pods.faults("g1"):
        host.power_cycle()
    if is_open:
        ward.until(lambda status: status["phase"] in ("Released", "Cancelled"), "the session to end")
    clean(ward.lab)
    ward.wait(lambda: not any(map(ward.pods.faults, ward.pods.nodes)), 60, "no fault to be left")
    ward.pods.wait_offered()
    ward.wait(
        lambda: ward.pods.metric("sickbay_nodes", state="healthy") == len(ward.pods.nodes),
        60,
        "both nodes to be healthy",
    )
    host.boots = 0
