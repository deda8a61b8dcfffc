"""The simulated fleet: its faults come as often as published, and its nodes do what real ones do."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from exporter.cadence import Write
from health.report import AcceleratorReport
from health.vocabulary import DeviceAccess, DeviceHealth, FaultKind, Phase
from remediation.repair.order import Exit
from runtime.api_errors import NotFound
from runtime.clock import ManualClock, SystemClock, rfc3339
from simulation.cluster import crds
from simulation.cluster.kubelet_node import Timings
from simulation.cluster.programs import Launch, Program
from simulation.cluster.server import EmbeddedApi
from simulation.cluster.store import ClusterStore
from simulation.fleet import Fleet, Profile
from simulation.fleet_agent import REPORTS
from simulation.fleet_faults import Schedule, storm
from simulation.fleet_live import LiveFleet
from simulation.fleet_programs import NodePrograms
from simulation.fleet_rates import COLUMNS, Effect, Rates, RatesError, builtin, parse
from simulation.fleet_run import COARSE, Simulation, main
from simulation.fleet_workloads import Load
from simulation.store_session import StoreSession
from tests.unit.embedded_rig import eventually, session

_IDLE = Load(training=0, inference=0)
_QUIET = builtin().multiplied(0)
_SLOW = Timings(status=60.0, lease=60.0)
_CALM = Profile(gpus=4, load=_IDLE, timings=_SLOW, node_grace=200.0)
"""Kubelets that say little, so that hours pass quickly; what they say is the same."""


class Rig:
    """A fleet alone, without a controller."""

    def __init__(
        self, size: int = 2, *, seed: int = 0, rates: Rates = _QUIET, profile: Profile = _CALM
    ) -> None:
        self.clock = ManualClock()
        self.store = ClusterStore(clock=self.clock, custom=crds.load())
        self.fleet = Fleet(self.store, size=size, seed=seed, clock=self.clock, rates=rates, profile=profile)
        self.advance(profile.start_spread + 1)

    def advance(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while True:
            self.fleet.step(self.clock.monotonic())
            due = self.fleet.next_due()
            if due > end:
                break
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
        self.clock.advance(end - self.clock.monotonic())
        self.fleet.step(self.clock.monotonic())

    @property
    def first(self) -> str:
        return self.fleet.nodes[0].name

    def report(self, name: str = "") -> AcceleratorReport:
        return msgspec.convert(self.store.get(REPORTS, name or self.first), AcceleratorReport)

    def kinds(self, name: str = "") -> list[str]:
        return [fault.kind for fault in self.report(name).status.faults]

    def told(self) -> list[tuple[Any, ...]]:
        """What all reports say, but for the nodes' UIDs and sequence, which nobody can foretell."""
        return [
            (
                name,
                status.boot_id,
                [(device.uuid, device.health) for device in status.devices],
                [(*fault.identity, fault.first_seen, fault.count) for fault in status.faults],
            )
            for name, status in ((node.name, self.report(node.name).status) for node in self.fleet.nodes)
        ]


def _ran(seed: int) -> Rig:
    rig = Rig(4, seed=seed, rates=builtin().multiplied(20_000))
    rig.advance(3600)
    return rig


def test_the_same_seed_gives_the_same_faults_and_reports_and_another_seed_others() -> None:
    first, second, other = _ran(7), _ran(7), _ran(8)
    assert first.fleet.struck.total() > 3
    assert first.fleet.struck == second.fleet.struck
    assert first.told() == second.told()
    assert first.told() != other.told()


def test_over_a_long_time_each_cause_strikes_as_often_as_its_rate_says() -> None:
    rates = builtin().multiplied(10)
    hours = 20_000.0
    schedule = Schedule(rates, nodes=100, gpus=8, seed=3, start=0.0)
    counts = Counter(strike.cause.name for strike in schedule.due(hours * 3600))
    for cause in rates:
        expected = rates.per_gpu_hour(cause) * 800 * hours
        assert expected > 50
        assert abs(counts[cause.name] - expected) < 4 * math.sqrt(expected), cause.name


def test_strikes_are_spread_over_all_nodes_and_gpus() -> None:
    schedule = Schedule(builtin().multiplied(1000), nodes=10, gpus=4, seed=1, start=0.0)
    places = {(strike.node, strike.gpu) for strike in schedule.due(3600.0 * 2000)}
    assert places == {(node, gpu) for node in range(10) for gpu in range(4)}


def test_a_cause_that_is_added_moves_no_other_one() -> None:
    def times(rates: Rates) -> list[float]:
        schedule = Schedule(rates, nodes=10, gpus=8, seed=1, start=0.0)
        return [one.at for one in schedule.due(3600.0 * 1e5) if one.cause.name == "gpu-lost"]

    alone, among = times(builtin().only("gpu-lost")), times(builtin())
    assert alone
    assert alone == among


def test_every_published_rate_names_its_source() -> None:
    assert all(len(cause.source) > 20 for cause in builtin())
    assert {cause.effect for cause in builtin()} == set(Effect)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("effect", "Devise", "'Devise' is not one of Device"),
        ("reset", "1.5", "column reset: '1.5' is not a number from 0 to 1"),
        ("events", "many", "column events: 'many'"),
        ("gpu_hours", "0", "column gpu_hours: '0'; expected more than 0"),
        ("source", "", "column source: empty"),
        ("xid", "nan", "column xid: 'nan'"),
    ],
)
def test_a_table_that_cannot_be_read_names_line_and_column(column: str, value: str, told: str) -> None:
    good = dict(zip(COLUMNS, ["a", "Device", "48", "1", "1", "100", "0.5", "0.5", "somewhere"], strict=True))
    row = "\t".join({**good, column: value}.values())
    with pytest.raises(RatesError, match=r"rates\.tsv: line 2") as caught:
        parse("\t".join(COLUMNS) + "\n" + row, file="rates.tsv")
    assert told in str(caught.value)


def test_a_storm_strikes_its_share_of_the_nodes_once_each_within_its_time() -> None:
    struck = storm(1, nodes=200, fraction=0.25, within=60.0)
    assert len({node for _, node in struck}) == len(struck) == 50
    assert all(0 <= after <= 60 for after, _ in struck)
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        storm(1, nodes=200, fraction=1.5, within=60.0)


def test_nodes_are_there_with_their_gpus_and_boot_ids_and_healthy_reports() -> None:
    rig = Rig(3)
    rig.advance(10)
    for node in rig.fleet.nodes:
        found = rig.store.get("nodes", node.name)
        status = rig.report(node.name).status
        assert found["status"]["allocatable"]["nvidia.com/gpu"] == "4"
        assert status.boot_id == found["status"]["nodeInfo"]["bootID"]
        assert status.node_uid == found["metadata"]["uid"]
        assert [device.health for device in status.devices] == [DeviceHealth.HEALTHY] * 4
        assert status.faults == ()


def test_a_report_is_renewed_every_half_minute_with_jitter_and_a_growing_sequence() -> None:
    rig = Rig(1)
    seen = {}
    for _ in range(400):
        rig.advance(1)
        status = rig.report().status
        seen[status.sequence] = status.renew_time
    times = [time for time in seen.values() if time is not None]
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    assert all(27 <= gap <= 30 for gap in gaps[1:])
    assert len(set(gaps)) > 5
    assert list(seen) == list(range(min(seen), max(seen) + 1))


def test_a_fatal_fault_is_reported_at_once() -> None:
    rig = Rig()
    rig.fleet.inject(rig.first, "xid:79", gpu=2)
    rig.fleet.step(rig.clock.monotonic())
    status = rig.report().status
    assert [fault.kind for fault in status.faults] == [FaultKind.DEVICE_LOST]
    assert status.faults[0].device_uuid == status.devices[2].uuid
    assert status.faults[0].code == "xid:79"
    assert status.renew_time == rig.clock.wall()
    assert status.devices[2].health is DeviceHealth.FAILED


def test_an_application_fault_breaks_nothing_and_clears_by_quiet() -> None:
    rig = Rig()
    rig.fleet.inject(rig.first, "application")
    rig.advance(10)
    assert rig.kinds() == [FaultKind.APPLICATION_FAULT]
    assert rig.fleet.nodes[0].machine.broken == {}
    rig.advance(700)
    assert rig.kinds() == []


def test_the_devices_are_let_go_of_when_asked_and_taken_back_when_the_time_is_over() -> None:
    rig = Rig()
    until = rig.clock.wall() + timedelta(seconds=120)
    release = {"session": "s1", "until": rfc3339(until)}
    rig.store.patch(REPORTS, rig.first, {"spec": {"deviceRelease": release}})
    rig.advance(31)
    assert rig.report().status.device_access is DeviceAccess.RELEASED
    assert rig.fleet.reports_written()[Write.REPAIR] == 1
    rig.advance(100)
    assert rig.report().status.device_access is DeviceAccess.HELD
    assert rig.fleet.reports_written()[Write.REPAIR] == 2


def test_a_reboot_changes_the_boot_id_and_ends_what_it_heals() -> None:
    always = dataclasses.replace(builtin()["gpu-lost"], reboot=1.0)
    rig = Rig(rates=Rates((always,), factor=0))
    before = rig.report().status.boot_id
    rig.fleet.inject(rig.first, 79)
    rig.advance(5)
    assert rig.kinds() == [FaultKind.DEVICE_LOST]
    rig.fleet.nodes[0].go_down(300.0)
    rig.advance(400)
    assert rig.report().status.boot_id not in ("", before)
    assert rig.report().status.boot_id == rig.store.get("nodes", rig.first)["status"]["nodeInfo"]["bootID"]
    assert rig.kinds() == []


def test_a_lost_device_that_a_reboot_does_not_heal_is_not_found_any_more() -> None:
    never = dataclasses.replace(builtin()["gpu-lost"], reboot=0.0)
    rig = Rig(rates=Rates((never,), factor=0))
    rig.fleet.inject(rig.first, 79)
    rig.advance(5)
    rig.fleet.nodes[0].go_down(300.0)
    rig.advance(500)
    assert len(rig.report().status.devices) == 3
    assert rig.store.get("nodes", rig.first)["status"]["allocatable"]["nvidia.com/gpu"] == "3"


def test_a_host_that_is_lost_for_good_falls_silent_and_is_not_ready() -> None:
    gone = dataclasses.replace(builtin()["host-lost"], reboot=0.0)
    rig = Rig(rates=Rates((gone,), factor=0))
    rig.advance(60)
    rig.fleet.inject(rig.first, "host-lost")
    rig.advance(1)
    sequence = rig.report().status.sequence
    rig.advance(3600)
    ready = [
        one for one in rig.store.get("nodes", rig.first)["status"]["conditions"] if one["type"] == "Ready"
    ]
    assert ready[0]["status"] == "Unknown"
    assert rig.report().status.sequence == sequence


def test_a_plugin_that_hangs_is_a_fault_and_one_that_ends_is_started_again() -> None:
    rig = Rig()
    rig.fleet.inject(rig.first, "plugin-crashed")
    rig.advance(30)
    assert rig.kinds() == []
    rig.fleet.inject(rig.first, "plugin-hung")
    rig.advance(15)
    assert rig.kinds() == [FaultKind.PLUGIN_HUNG]


def test_a_report_says_nothing_that_its_definition_does_not_know() -> None:
    rig = Rig()
    rig.fleet.inject(rig.first, 48)
    rig.fleet.inject(rig.first, "plugin-hung", gpu=1)
    rig.advance(20)
    assert len(rig.kinds()) >= 2
    session = StoreSession(rig.store, user_agent="test/1")
    path = f"/apis/sickbay.dev/v1alpha1/acceleratorreports/{rig.first}"
    body = session.get(path).body
    answer = session.put(f"{path}/status", body, query={"fieldValidation": "Strict"})
    assert "warning" not in answer.headers
    told = msgspec.json.decode(body)["status"]
    assert msgspec.json.decode(answer.body)["status"] == told


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    rig = Rig()
    with pytest.raises(KeyError, match="there are 31, 48, 79, 95, 119"):
        rig.fleet.inject(rig.first, "xid:7")
    with pytest.raises(KeyError, match="hbm-uncorrectable"):
        rig.fleet.inject(rig.first, "gpu-lots")
    with pytest.raises(KeyError, match="no node of this fleet"):
        rig.fleet.inject("n1", "gpu-lost")
    with pytest.raises(IndexError, match="0 to 3, not 4"):
        rig.fleet.inject(rig.first, "gpu-lost", gpu=4)
    with pytest.raises(ValueError, match="at least one node"):
        Fleet(rig.store, size=0, clock=rig.clock)


def _always_helped() -> Rates:
    causes = tuple(dataclasses.replace(cause, reset=1.0, reboot=1.0) for cause in builtin())
    return Rates(causes, factor=0)


def test_the_controller_resets_a_broken_gpu_and_gives_the_node_back() -> None:
    run = Simulation.begin(nodes=2, seed=1, rates=_always_helped(), profile=_CALM)
    run.advance(60)
    name = run.fleet.nodes[0].name
    run.fleet.inject(name, 48)
    run.advance(5)
    assert run.monitor.cordoned_by_us == [name]
    run.advance(1800)
    assert run.monitor.outcomes() == {Phase.RELEASED: 1}
    assert run.monitor.deeds == {"Reset": 1}
    assert run.monitor.cordoned_by_us == []
    assert run.fleet.nodes[0].machine.broken == {}
    assert run.monitor.wrong == []


def test_a_repair_that_nobody_wants_any_more_is_not_allowed_by_its_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The simulated host is no kinder than the real one: a Job that comes late does nothing."""
    looks: list[tuple[NodePrograms, Launch]] = []
    real = NodePrograms.__call__

    def noted(self: NodePrograms, launch: Launch) -> Program | None:
        if launch.init:
            looks.append((self, launch))
        return real(self, launch)

    monkeypatch.setattr(NodePrograms, "__call__", noted)
    run = Simulation.begin(nodes=2, seed=1, rates=_always_helped(), profile=_CALM)
    run.fleet.inject(run.fleet.nodes[0].name, 48)
    run.advance(1800)
    assert run.monitor.deeds == {"Reset": 1}, "the look of then allowed it"
    ((programs, launch),) = looks
    late = programs(launch)
    assert late is not None
    assert late.poll(run.clock.monotonic()) == Exit.NOT_ALLOWED


def test_the_controller_reboots_a_node_whose_gpu_is_lost() -> None:
    run = Simulation.begin(nodes=2, seed=1, rates=_always_helped(), profile=_CALM)
    run.advance(60)
    node = run.fleet.nodes[0]
    run.fleet.inject(node.name, 79)
    run.advance(2400)
    assert run.monitor.deeds == {"Reboot": 1}
    assert node.boots == 1
    assert run.monitor.outcomes() == {Phase.RELEASED: 1}
    assert run.monitor.wrong == []


def test_gangs_are_drained_before_their_node_is_repaired_and_run_again() -> None:
    load = Load(training=0.7, inference=0.2, gang_nodes=2, job_hours=50.0, replicas=2)
    profile = dataclasses.replace(_CALM, load=load)
    run = Simulation.begin(nodes=6, seed=1, rates=_always_helped(), profile=profile)
    run.advance(120)
    busy = next(pod for pod in run.store.list("pods") if pod["metadata"]["name"].startswith("train-1"))
    assert "jobset.sigs.k8s.io/jobset-name" in busy["metadata"]["labels"]
    run.fleet.inject(busy["spec"]["nodeName"], 95)
    run.advance(1800)
    assert run.monitor.deeds == {"Reset": 1}
    assert run.monitor.outcomes() == {Phase.RELEASED: 1}
    assert run.monitor.wrong == []
    training = [pod for pod in run.store.list("pods") if pod["metadata"]["name"].startswith("train-")]
    assert sum(pod["status"]["phase"] == "Running" for pod in training) == 4


def test_a_storm_fences_no_more_nodes_than_the_budget_has() -> None:
    run = Simulation.begin(nodes=10, seed=2, rates=_always_helped(), profile=_CALM)
    run.advance(60)
    assert run.fleet.storm(1.0, 30.0) == 10
    run.advance(300)
    assert run.monitor.most_fenced == 3
    assert run.monitor.wrong == []
    assert run.monitor.most_disrupted <= 1


def test_a_persons_cordon_is_left_alone() -> None:
    run = Simulation.begin(nodes=4, seed=1, rates=_always_helped(), profile=_CALM)
    run.advance(60)
    name = run.fleet.nodes[0].name
    run.monitor.cordon(name)
    run.fleet.inject(name, 48)
    run.advance(3600)
    assert run.store.get("nodes", name)["spec"]["unschedulable"] is True
    assert run.monitor.cordoned_by_us == []
    assert run.monitor.wrong == []


def test_another_controller_takes_over_in_the_middle_of_a_repair() -> None:
    run = Simulation.begin(nodes=2, seed=1, rates=_always_helped(), profile=_CALM)
    run.advance(60)
    run.fleet.inject(run.fleet.nodes[0].name, 79)
    run.advance(30)
    before = run.controller.engine.epoch
    assert run.fail_over() > before
    run.advance(2400)
    assert run.fleet.nodes[0].boots == 1
    assert run.monitor.outcomes() == {Phase.RELEASED: 1}
    assert run.monitor.wrong == []


def test_what_the_monitor_sees_of_a_reset_that_nobody_fenced_is_wrong() -> None:
    run = Simulation.begin(nodes=2, seed=1, rates=_QUIET, profile=_CALM)
    run.monitor.deed(run.fleet.nodes[0].name, "Reset", False)
    run.monitor.people.add(run.fleet.nodes[1].name)
    run.store.patch("nodes", run.fleet.nodes[1].name, {"spec": {"unschedulable": True}})
    run.store.patch("nodes", run.fleet.nodes[1].name, {"spec": {"unschedulable": None}})
    assert len(run.monitor.wrong) == 2
    assert run.monitor.unneeded == {"Reset": 1}


def _settled(run: Simulation) -> list[str]:
    """The outcomes of sessions that are neither over nor held."""
    over = (Phase.RELEASED, Phase.CANCELLED, f"{Phase.HELD}:")
    return [outcome for outcome in run.monitor.outcomes() if not outcome.startswith(over)]


def _returning(factor: float) -> Rates:
    """The rates as they are, but that every host comes back: one that does not uses up its budget for ever."""
    causes = tuple(
        dataclasses.replace(cause, reboot=1.0) if cause.effect is Effect.HOST_LOST else cause
        for cause in builtin()
    )
    return Rates(causes, factor=factor)


def test_after_hours_of_faults_every_cordon_is_lifted_or_held() -> None:
    run = Simulation.begin(nodes=8, seed=5, rates=_returning(4000), profile=_CALM)
    run.advance(2 * 3600)
    assert run.fleet.struck.total() >= 5
    run.fleet.calm()
    run.advance(3 * 3600)
    assert run.monitor.wrong == []
    assert run.monitor.unsettled() == []
    assert _settled(run) == []


@pytest.mark.deep
def test_a_day_of_fifty_nodes_ends_with_every_cordon_lifted_or_held() -> None:
    run = Simulation.begin(nodes=50, seed=11, rates=_returning(100), profile=COARSE)
    run.advance(24 * 3600)
    assert run.fleet.struck.total() > 5
    run.fleet.calm()
    run.advance(4 * 3600)
    assert run.monitor.wrong == []
    assert run.monitor.unsettled() == []
    assert _settled(run) == []
    assert run.fleet.workloads.completed > 10


def test_a_live_fleet_reports_over_http_what_is_injected_while_it_runs() -> None:
    clock = SystemClock()
    profile = dataclasses.replace(_CALM, start_spread=0.0)
    with EmbeddedApi(clock=clock) as api:
        fleet = Fleet(api.store, size=2, clock=clock, rates=_QUIET, profile=profile)
        with LiveFleet(fleet, api.store, clock) as live:
            client = session(api)
            path = f"/apis/sickbay.dev/v1alpha1/acceleratorreports/{fleet.nodes[1].name}"

            def reported() -> list[str]:
                try:
                    report = msgspec.json.decode(client.get(path).body, type=AcceleratorReport)
                except NotFound:
                    return ["no report"]
                return [fault.kind for fault in report.status.faults]

            eventually(lambda: reported() == [], "a healthy report")
            live.call(lambda fleet: fleet.inject("nobody", 79))
            live.call(lambda fleet: fleet.inject(fleet.nodes[1].name, 79))
            eventually(lambda: reported() == [FaultKind.DEVICE_LOST], "the fault in the report")
        assert live.stop()


def test_the_command_prints_what_came_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "2", "--hours", "0.1", "--seed", "3", "--multiply", "10"]) == 0
    told = capsys.readouterr().out
    assert "2 nodes with 8 GPUs, 0.1 h" in told
    assert "gpu-lost" in told
    assert [line.split()[-1] for line in told.splitlines() if "wrong actions" in line] == ["0"]


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["--speed", "fast"], ["--storm", "2"]])
def test_arguments_that_cannot_be_meant_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
