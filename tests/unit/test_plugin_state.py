"""Plugin probe and pod resources in the node's state: report, metrics, restarts, and what is not said."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from exporter.events import AllocationFailed, CaughtUp, Met, Probed, SourceSaid
from exporter.holdings import Holding, Holdings
from exporter.memory import Memory
from exporter.metrics import Snapshot, publish_histogram, registry
from exporter.plugin_state import PLUGIN, POD_RESOURCES
from exporter.report_wire import status_patch
from exporter.reporting import report_status
from exporter.sources.plugin import Plugin, PluginState
from exporter.state import NVML
from health.vocabulary import DeviceHealth, SourceState
from tests.unit.agent_samples import NOW, UUIDS, full_sample, inventory, later, sample, xid
from tests.unit.test_fold import LIVE_LOG, Folding

GPU = "nvidia.com/gpu"
SERVING = Plugin(GPU, "nvidia-gpu.sock", PluginState.SERVING, present=True)
DEAD = replace(SERVING, state=PluginState.DEAD)
LOST = replace(SERVING, state=PluginState.SOCKET_LOST, present=False)
UNNAMED = Plugin("", "other.sock", PluginState.DEAD, present=True)
NEVER = Plugin(GPU, "nvidia-gpu.sock", PluginState.UNKNOWN, present=False)
ALL = Holdings(healthy={GPU: frozenset(UUIDS[:2])})
NOTHING = Holdings()
SOURCES_LIVE = (
    SourceSaid(PLUGIN, SourceState.LIVE, ""),
    SourceSaid(POD_RESOURCES, SourceState.LIVE, ""),
    SourceSaid(NVML, SourceState.LIVE, ""),
    LIVE_LOG,
)


class Node(Folding):
    """A node with two devices that are sampled all the time, and live sources."""

    def __init__(self, memory=None, at=0.0):
        super().__init__(memory, at=at)
        self.take(*SOURCES_LIVE, inventory(0, 1), CaughtUp())

    def lasts(self, seconds, *events):
        """These events, and then nothing new for so long."""
        self.take(*events)
        for _ in range(int(seconds * 2)):
            looked = sample(full_sample(0), full_sample(1), at=1000 + self.seconds)
            self.fold.take(looked, now=later(self.seconds), monotonic=1000 + self.seconds)
            self.wait(0.5)
        return self

    def restart(self):
        """The next process, with the state file of this one as it is on the disk."""
        written = msgspec.json.encode(self.fold.memory("uid"))
        return Node(msgspec.json.decode(written, type=Memory), at=self.seconds)

    def status(self):
        samples = {device.uuid: device for device in (full_sample(0), full_sample(1))}
        return report_status(
            self.fold.state, now=later(self.seconds), samples=samples, node_uid="uid", agent_version="1"
        )

    def page(self):
        shown = Snapshot(self.fold.state, monotonic=1000 + self.seconds, interval=5.0, version="1")
        _, body = registry(lambda: shown, publish_histogram()).render("text/plain")
        return body.decode().splitlines()


def test_a_dead_plugin_is_a_fault_in_report_and_metrics_and_the_devices_are_well():
    node = Node().lasts(7, Probed((DEAD,)), NOTHING)
    status = node.status()
    (fault,) = status.faults
    assert (fault.kind, fault.code, fault.device_uuid) == ("PluginDead", "plugin:nvidia.com/gpu", "")
    assert {device.health for device in status.devices} == {DeviceHealth.HEALTHY}
    assert (
        'accelerator_fault_active{device="",kind="PluginDead",severity="Degraded",uuid=""} 1.0' in node.page()
    )
    assert node.lasts(7, Probed((SERVING,)), ALL).kinds == []


def test_a_device_that_is_not_offered_is_well_itself():
    node = Node().lasts(20, Probed((SERVING,)), Holdings(healthy={GPU: frozenset(UUIDS[:1])}))
    (fault,) = node.status().faults
    assert (fault.kind, fault.device_uuid) == ("DeviceNotOffered", UUIDS[1])
    assert [device.health for device in node.status().devices] == [DeviceHealth.HEALTHY] * 2


def test_a_device_with_a_fatal_xid_that_is_offered_is_told_beside_it():
    node = Node().lasts(7, Probed((SERVING,)), ALL, xid(79))
    assert node.kinds == ["DeviceLost", "DeviceOfferedThoughBad"]
    (offered,) = [fault for fault in node.status().faults if fault.kind == "DeviceOfferedThoughBad"]
    assert (offered.device_uuid, offered.drill) == (UUIDS[1], False)


def test_a_drill_on_a_device_that_is_offered_stays_a_drill():
    node = Node().lasts(7, Probed((SERVING,)), ALL, xid(79, drill=True))
    assert {fault.drill for fault in node.status().faults} == {True}
    assert len(node.status().faults) == 2


def test_an_allocation_that_fails_makes_a_lost_socket_a_wedge_and_an_older_one_does_not():
    node = Node().lasts(7, Probed((LOST,)), ALL)
    before = AllocationFailed(GPU, "ns/old", later(node.seconds - 60))
    assert node.lasts(7, before).kinds == ["PluginSocketLost"]
    assert node.lasts(7, AllocationFailed(GPU, "ns/new")).kinds == ["PluginWedged"]


def test_names_of_resources_that_pods_make_up_are_remembered_within_a_bound():
    node = Node().take(*(AllocationFailed(f"example.com/{number}", "ns/pod") for number in range(1000)))
    assert len(node.fold.state.kubelet.failed) == 64


def test_a_restart_keeps_the_fault_until_it_is_seen_to_be_over():
    node = Node().lasts(7, Probed((DEAD,)), NOTHING)
    (before,) = node.status().faults
    restarted = node.restart()
    assert restarted.kinds == ["PluginDead"]
    gone = restarted.lasts(60, Probed((NEVER,)), NOTHING)
    assert [fault.first_seen for fault in gone.status().faults] == [before.first_seen]
    assert restarted.restart().lasts(7, Probed((SERVING,)), ALL).kinds == []


def test_the_fault_is_taken_up_from_the_own_report_where_there_is_no_file():
    before = Node().lasts(7, Probed((DEAD,)), NOTHING)
    fresh = Node(at=before.seconds)
    fresh.lasts(60, Met(before.status()), Probed((NEVER,)), NOTHING)
    (fault,) = fresh.status().faults
    assert (fault.kind, fault.first_seen, fault.count) == (
        "PluginDead",
        before.status().faults[0].first_seen,
        1,
    )


def test_quiet_alone_ends_no_fault_while_the_probe_does_not_work():
    node = Node().lasts(7, Probed((DEAD,)), NOTHING)
    node.lasts(3600, SourceSaid(PLUGIN, SourceState.FAILED, "gone"))
    assert node.kinds == ["PluginDead"]
    assert node.status().plugin is None


def test_a_fault_that_lasts_longer_than_the_dwell_of_others_stays():
    node = Node().lasts(3600, Probed((DEAD,)), NOTHING)
    (fault,) = node.status().faults
    assert (fault.count, (later(node.seconds) - fault.last_seen).total_seconds() <= 31) == (1, True)


def test_a_state_in_which_nothing_changes_stays_the_same_object():
    node = Node().lasts(7, Probed((SERVING,)), ALL)
    before = node.fold.state
    for _ in range(10):
        node.wait(0.1)
    assert node.fold.state is before


def test_the_report_names_the_plugins_whose_resource_is_known():
    node = Node().take(Probed((SERVING, UNNAMED)), ALL)
    written = msgspec.json.decode(status_patch(node.status()))["status"]
    assert written["plugin"] == {
        "resources": [{"name": GPU, "state": "Serving", "socket": "nvidia-gpu.sock"}]
    }


def test_a_node_without_plugins_says_nothing_of_them():
    node = Node().lasts(60, Probed((NEVER,)), NOTHING)
    assert (node.status().plugin, node.kinds) == (None, [])


def test_holdings_are_metrics_and_two_shares_of_a_device_in_one_container_are_one_series():
    shared = tuple(
        Holding(GPU, f"{UUIDS[1]}::{part}", "ns", "pod", container) for part, container in enumerate("aab")
    )
    healthy = frozenset(f"{UUIDS[1]}::{part}" for part in (0, 1, 3))
    page = Node().take(Probed((SERVING,)), Holdings(shared, {GPU: healthy})).page()
    info = sorted(line for line in page if line.startswith("accelerator_allocation_info{"))
    labels = f'partition="",resource="{GPU}",uuid="{UUIDS[1]}"'
    assert info == [
        f'accelerator_allocation_info{{device="1",{labels},workload_container="{container}",'
        'workload_namespace="ns",workload_pod="pod"} 1.0'
        for container in "ab"
    ]
    for state, count in {"allocatable": 3, "allocated": 3, "free": 1, "unhealthy": 1}.items():
        assert f'accelerator_devices{{resource="{GPU}",state="{state}"}} {count}.0' in page
    states = [line for line in page if line.startswith("accelerator_plugin_state{")]
    assert len(states) == len(PluginState)
    assert [line for line in states if line.endswith(" 1.0")] == [
        f'accelerator_plugin_state{{resource="{GPU}",socket="nvidia-gpu.sock",state="Serving"}} 1.0'
    ]


def test_what_the_kubelet_said_before_it_stopped_answering_is_not_shown():
    held = Holdings((Holding(GPU, UUIDS[0], "ns", "pod", "c"),), ALL.healthy)
    node = Node().take(Probed((SERVING,)), held)
    node.take(
        SourceSaid(POD_RESOURCES, SourceState.FAILED, "gone"), SourceSaid(PLUGIN, SourceState.FAILED, "")
    )
    series = ("accelerator_allocation_info{", "accelerator_devices{", "accelerator_plugin_state{")
    assert [line for line in node.page() if line.startswith(series)] == []


def test_one_look_waits_for_what_the_probe_and_the_kubelet_see():
    node = Folding().take(*SOURCES_LIVE, inventory(0), sample(full_sample(0)), CaughtUp())
    assert not node.fold.observed
    assert not node.take(Probed(())).fold.observed
    assert node.take(ALL).fold.observed


def test_times_are_those_of_the_beginning():
    node = Node().lasts(7, Probed((DEAD,)), NOTHING)
    (fault,) = node.status().faults
    assert (fault.first_seen - NOW).total_seconds() < 0.1
