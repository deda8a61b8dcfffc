"""The agent whole, in this process: a simulated machine, a kernel log in a file, and an API server on loopback."""

import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from exporter.memory import Keeper, load
from exporter.metrics import registry
from exporter.node_agent import NodeAgent, Settings
from health import xids
from health.receipt import Receipt, RepairResult, receipt_name
from simulation import control
from simulation.machine import h100_machine, save, update
from simulation.machine import load as load_machine
from tests.lab.processes import wait_until
from tests.unit.report_server import ReportServer, refusal

BOOT = "22222222-2222-2222-2222-222222222222"
LOST = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.\n"
HUNG = "NVRM: Xid (PCI:0000:3b:00): 109, pid=7062, name=python, CTX SWITCH TIMEOUT.\n"
CONTAINED = "NVRM: Xid (PCI:0000:3b:00): 94, pid=7062, Contained: CE User Channel (0x9). RST: No, D-RST: No\n"
INDEX_OF_3B = 1


class Rig:
    """One node: its machine, kernel log and state file stay over restarts of its agent."""

    def __init__(self, folder, server):
        self.server = server
        self.machine = folder / "machine.json"
        self.kernel_log = folder / "kmsg"
        self.state_file = folder / "agent.json"
        self.receipts = folder / "receipts"
        self.agent = None
        self._stop = threading.Event()
        self._thread = None
        save(self.machine, h100_machine("n1"))
        self.kernel_log.touch()

    @property
    def uuid(self):
        return load_machine(self.machine).devices[INDEX_OF_3B].uuid

    def start(self, *, boot_id=BOOT, **settings):
        worker = (sys.executable, "-m", "simulation.worker", "--machine", str(self.machine))
        self.agent = NodeAgent(
            Settings(
                **{
                    "kernel_log": self.kernel_log,
                    "worker_command": worker,
                    "sample_interval": 0.1,
                    "renew_interval": 0.2,
                    "receipts": self.receipts,
                    **settings,
                }
            ),
            boot_id=boot_id,
            catalogue=xids.builtin(),
            memory=load(self.state_file, boot_id=boot_id, node_uid="uid-1"),
            keeper=Keeper(self.state_file),
        )
        if self.server is not None:
            self.agent.publish_to(self.server.api.session(), node="n1", node_uid="uid-1")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.agent.start()
        self._thread.start()
        return self.agent

    def _run(self):
        while not self._stop.is_set():
            self.agent.step(0.05)

    def stop(self):
        if self.agent is None:
            return
        self._stop.set()
        self._thread.join(5)
        begun = time.monotonic()
        self.agent.stop()
        assert time.monotonic() - begun < 3
        self.agent = None

    def crash(self):
        """As after SIGKILL: nothing more is written. The threads are ended, since they are of this process."""
        self.agent._keeper.offer = lambda memory: None
        self.stop()

    def say(self, text):
        with self.kernel_log.open("a") as log:
            log.write(text)

    def settle(self):
        """Wait until devices are sampled and reported."""
        wait_until(
            lambda: (
                [device.get("health") for device in self.server.status.get("devices", [])] == ["Healthy"] * 8
            ),
            10,
            "eight healthy devices in the report",
            every=0.005,
        )

    def page(self):
        _, body = registry(self.agent.snapshot, self.agent.published).render("text/plain")
        return body.decode()

    def xids(self, code):
        """The counter's value as it is scraped."""
        start = f'accelerator_xid_errors_total{{device="{INDEX_OF_3B}",uuid="{self.uuid}",xid="{code}"}} '
        return next(
            float(line.removeprefix(start)) for line in self.page().splitlines() if line.startswith(start)
        )

    def fault(self, kind):
        return next((found for found in self.server.status.get("faults", []) if found["kind"] == kind), None)


@pytest.fixture
def server(api):
    return ReportServer(api)


@pytest.fixture
def rig(tmp_path, server):
    node = Rig(tmp_path, server)
    yield node
    node.stop()


def test_an_xid_line_is_a_fault_in_the_cluster_within_a_tenth_of_a_second(rig, server):
    rig.start()
    rig.settle()
    begun = time.monotonic()
    rig.say(LOST)
    fault = server.await_fault("DeviceLost")
    assert server.times[-1] - begun < 0.1
    assert (fault["severity"], fault["code"], fault["deviceUUID"]) == ("Fatal", "xid:79", rig.uuid)
    assert fault["evidence"]["excerpt"] + "\n" == LOST
    assert server.status["devices"][INDEX_OF_3B]["health"] == "Failed"
    assert rig.xids(79) == 1


def test_a_fault_of_the_time_before_the_agent_is_reported_with_the_lines_own_time(rig, server):
    monotonic = time.monotonic()
    rig.say(f"3,77,{int((monotonic - 100) * 1e6)},-;{LOST}")
    rig.start()
    fault = server.await_fault("DeviceLost", deadline=10)
    age = datetime.now(UTC) - datetime.fromisoformat(fault["firstSeen"])
    assert timedelta(seconds=99) < age < timedelta(seconds=120)
    assert fault["evidence"]["sequence"] == 77


def test_the_first_report_waits_for_the_devices_and_is_one_write(rig, server):
    rig.start(renew_interval=30)
    rig.settle()
    assert len(server.patches) <= 3
    assert len(server.patches[0]["devices"]) in (0, 8)


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_a_restart_keeps_faults_and_counts_nothing_twice(rig, server, end):
    rig.start()
    rig.settle()
    rig.say(LOST + CONTAINED + CONTAINED)
    before = server.await_fault("ContainedMemory")
    server.await_fault("DeviceLost")
    wait_until(lambda: len(_kept_faults(rig)) == 2, 5, "the state file", every=0.005)
    first_sequence = server.status["sequence"]
    getattr(rig, end)()
    rig.start()
    wait_until(lambda: server.status["sequence"] > first_sequence + 3, 10, "further renewals", every=0.005)
    wait_until(lambda: rig.agent.snapshot().figures.kernel_lines["known"] == 3, 5, "the replay", every=0.005)
    assert rig.xids(94) == 2
    assert rig.xids(79) == 1
    after = rig.fault("ContainedMemory")
    assert (after["firstSeen"], after.get("count", 1)) == (before["firstSeen"], 2)
    assert rig.fault("DeviceLost").get("count", 1) == 1
    rig.say(CONTAINED)
    wait_until(lambda: rig.xids(94) == 3, 5, "a new line to be counted", every=0.005)


def _kept_faults(rig):
    memory = load(rig.state_file, boot_id=BOOT, node_uid="uid-1")
    return memory.faults if memory else ()


def test_without_a_state_file_the_own_report_keeps_the_faults_and_no_line_counts_twice(rig, server):
    rig.start()
    rig.settle()
    rig.say(LOST + CONTAINED)
    before = server.await_fault("ContainedMemory")
    rig.stop()
    rig.state_file.unlink()
    rig.kernel_log.write_text(CONTAINED)
    sequence = server.status["sequence"]
    rig.start()
    wait_until(lambda: server.status["sequence"] > sequence + 3, 10, "further renewals", every=0.005)
    assert rig.fault("DeviceLost")["deviceUUID"] == rig.uuid
    after = rig.fault("ContainedMemory")
    assert (after["firstSeen"], after.get("count", 1)) == (before["firstSeen"], 1)


def _receipt(rig, result=RepairResult.DONE, boot_id=BOOT):
    rig.receipts.mkdir(exist_ok=True)
    receipt = Receipt("session", "Reset", 1, boot_id, result.value, datetime.now(UTC), (rig.uuid,))
    path = rig.receipts / receipt_name(*receipt.identity)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(msgspec.json.encode(receipt))
    temporary.replace(path)


def test_a_reset_is_told_at_once_and_ends_the_fault(rig, server):
    rig.start(renew_interval=30)
    rig.settle()
    rig.say(HUNG)
    server.await_fault("EngineHung")
    for result in (RepairResult.BEGUN, RepairResult.DONE):
        _receipt(rig, result)
        begun = time.monotonic()
        wait_until(
            lambda wanted=result: [one["result"] for one in server.status.get("receipts", [])] == [wanted],
            5,
            f"the receipt that says {result}",
            every=0.005,
        )
        assert time.monotonic() - begun < 1.5
    assert server.status["faults"] == []
    assert server.status["devices"][INDEX_OF_3B]["health"] == "Healthy"
    rig.say(HUNG)
    assert server.await_fault("EngineHung").get("count", 1) == 1


@pytest.mark.parametrize("kept", [True, False], ids=["with its state file", "without its state file"])
def test_a_restart_after_a_reset_does_not_raise_again_what_the_kernel_log_still_tells(rig, server, kept):
    rig.say(f"3,7,{int((time.monotonic() - 60) * 1e6)},-;{HUNG}")
    rig.start()
    server.await_fault("EngineHung")
    _receipt(rig)
    wait_until(lambda: server.status["faults"] == [], 5, "the fault to end", every=0.005)
    rig.stop()
    if not kept:
        rig.state_file.unlink()
    before = len(server.patches)
    sequence = server.status["sequence"]
    rig.start()
    wait_until(lambda: server.status["sequence"] > sequence + 3, 10, "further renewals", every=0.005)
    assert [patch["faults"] for patch in server.patches[before:] if patch.get("faults")] == []
    assert rig.xids(109) == 1


def test_that_the_devices_are_let_go_of_and_taken_again_is_told_at_once(rig, server):
    rig.start(renew_interval=1)
    rig.settle()
    for until, access in ((datetime.now(UTC) + timedelta(minutes=1), "Released"), (None, "Held")):
        order = {"deviceRelease": {"session": "s", "until": until.isoformat()}} if until else {}
        server.stored = {**server.stored, "spec": order}
        wait_until(lambda wanted=access: server.status["deviceAccess"] == wanted, 5, access, every=0.005)
        wait_until(
            lambda wanted=access: (wanted == "Held") == bool(rig.agent.snapshot().state.sample),
            10,
            "samples that come, or do not",
        )
    # The server has a write before the agent has counted it.
    wait_until(
        lambda: rig.agent.snapshot().figures.report_writes.get("repair", 0) >= 2, 5, "two writes of that kind"
    )


def test_a_new_boot_clears_the_fault_and_is_said(rig, server):
    rig.start()
    rig.settle()
    rig.say(LOST)
    server.await_fault("DeviceLost")
    rig.stop()
    rig.kernel_log.write_text("")
    rig.start(boot_id="another-boot")
    wait_until(lambda: server.status["bootID"] == "another-boot", 10, "the new boot", every=0.005)
    assert server.status["faults"] == []


def test_malformed_lines_take_nothing_with_them(rig, server):
    rig.start()
    rig.settle()
    with rig.kernel_log.open("ab") as log:
        log.write(b"\xff\xfeNVRM: \x00\n3,12,NVRM\nNVRM: Xid (PCI:0000:3b\n" + b"NVRM" * 50_000 + b"\n")
        log.write(b"12,5,1,-;NVRM: Xid (PCI:0000:3b:00): 48, spoofed\n" + LOST.encode())
    server.await_fault("DeviceLost")
    lines = rig.agent.snapshot().figures.kernel_lines
    assert (lines["malformed"], lines["spoofed"], lines["xid"]) == (4, 1, 1)
    assert rig.fault("UncorrectableMemory") is None
    assert rig.agent.healthy() == (True, "ok")


def test_while_the_api_server_is_down_a_fault_waits_and_then_comes_at_once(rig, server):
    rig.start()
    rig.settle()
    server.always = refusal(503, "ServiceUnavailable")
    rig.say(LOST)
    wait_until(lambda: rig.xids(79) == 1, 5, "the line to be counted", every=0.005)
    server.always = None
    server.await_fault("DeviceLost", deadline=2)


def test_a_device_that_falls_off_is_reported_by_nvml_alone_and_its_series_vanish(rig, server):
    rig.start()
    rig.settle()
    update(rig.machine, lambda machine: control.lose(machine, str(INDEX_OF_3B)))
    fault = server.await_fault("DeviceLost", deadline=10)
    assert fault["evidence"]["source"] == "nvml"
    assert f'accelerator_power_watts{{device="{INDEX_OF_3B}"' not in rig.page()
    assert 'accelerator_power_watts{device="0"' in rig.page()


def test_a_lost_device_is_still_known_after_the_agent_was_restarted(rig, server):
    rig.start()
    rig.settle()
    uuid = rig.uuid
    update(rig.machine, lambda machine: control.lose(machine, str(INDEX_OF_3B)))
    server.await_fault("DeviceLost", deadline=10)
    rig.stop()
    sequence = server.status["sequence"]
    rig.start()
    wait_until(lambda: server.status["sequence"] > sequence + 3, 10, "further renewals", every=0.005)
    assert [device["uuid"] for device in server.status["devices"]][INDEX_OF_3B] == uuid
    assert server.status["devices"][INDEX_OF_3B]["health"] == "Failed"


def test_the_controller_has_the_devices_released_and_the_agent_takes_them_again_by_itself(rig, server):
    rig.start()
    rig.settle()
    until = datetime.now(UTC) + timedelta(seconds=1.5)
    server.stored["spec"] = {"deviceRelease": {"session": "n1-abc", "until": until.isoformat()}}
    wait_until(lambda: server.status["deviceAccess"] == "Released", 5, "the release", every=0.005)
    source = next(source for source in server.status["sources"] if source["name"] == "nvml")
    assert (source["state"], source["message"]) == ("Released", "session n1-abc")
    assert "accelerator_power_watts{" not in rig.page()
    wait_until(lambda: server.status["deviceAccess"] == "Held", 10, "the devices to be held", every=0.005)
    assert datetime.now(UTC) >= until
    rig.settle()


def test_an_agent_that_is_restarted_during_a_release_does_not_take_the_devices(rig, server):
    rig.start()
    rig.settle()
    server.stored["spec"] = {"maintenance": {"reason": "driver upgrade", "since": "2026-01-01T00:00:00Z"}}
    wait_until(lambda: server.status["deviceAccess"] == "Released", 5, "the release", every=0.005)
    rig.stop()
    server.always = refusal(503, "ServiceUnavailable")
    agent = rig.start()
    wait_until(
        lambda: agent.status().device_access == "Released", 5, "the release after the restart", every=0.005
    )
    assert agent.snapshot().figures.worker_restarts == 0
    assert agent.snapshot().state.sampled_at is None
    server.always = None
    del server.stored["spec"]
    wait_until(lambda: server.status["deviceAccess"] == "Held", 10, "the devices to be held", every=0.005)


def test_a_drill_is_asked_for_in_the_spec_and_its_faults_say_so(rig, server):
    spoofed = f"12,{{}},1,-;{LOST}"
    rig.start()
    rig.settle()
    rig.say(spoofed.format(5))
    wait_until(lambda: rig.agent.snapshot().figures.kernel_lines["spoofed"] == 1, 5, "the spoof", every=0.005)
    until = datetime.now(UTC) + timedelta(minutes=5)
    server.stored["spec"] = {"drill": {"user": "ada", "until": until.isoformat()}}
    wait_until(lambda: server.status["drill"], 5, "the drill", every=0.005)
    assert rig.fault("DeviceLost") is None
    rig.say(spoofed.format(6))
    assert server.await_fault("DeviceLost")["drill"]


def test_without_a_library_the_kernel_log_still_works(rig, server):
    rig.start(worker_command=(sys.executable, "-m", "exporter.worker"))
    nvml = wait_until(
        lambda: next(
            (
                source
                for source in server.status.get("sources", [])
                if source["name"] == "nvml" and source["state"] == "Unsupported"
            ),
            None,
        ),
        10,
        "NVML to be unsupported",
        every=0.005,
    )
    assert "libnvidia-ml.so.1" in nvml["message"]
    wait_until(lambda: rig.agent.ready()[0], 5, "readiness", every=0.005)
    rig.say(LOST)
    fault = server.await_fault("DeviceLost")
    assert (fault["severity"], fault.get("deviceUUID", "")) == ("Degraded", "")
    assert 'accelerator_xid_errors_total{device="0000:3b:00.0",uuid="",xid="79"} 1.0' in rig.page()


def test_without_a_kernel_log_the_devices_are_still_watched(rig, server):
    rig.kernel_log.unlink()
    rig.start()
    rig.settle()
    source = next(source for source in server.status["sources"] if source["name"] == "kernel-log")
    assert source["state"] == "Failed"
    assert "No such file" in source["message"]
    assert rig.agent.healthy() == (True, "ok")


def test_without_a_cluster_everything_else_works(tmp_path):
    node = Rig(tmp_path, None)
    agent = node.start()
    try:
        wait_until(lambda: agent.snapshot().state.sample, 10, "everything to be observed", every=0.005)
        assert agent.ready() == (True, "ok")
        node.say(LOST)
        wait_until(lambda: agent.status().faults, 5, "the fault", every=0.005)
        assert node.xids(79) == 1
    finally:
        node.stop()


def test_it_is_ready_when_the_devices_are_known_and_the_report_is_written(rig, server):
    server.always = refusal(503, "ServiceUnavailable")
    agent = rig.start()
    wait_until(lambda: agent.snapshot().state.sample, 10, "everything to be observed", every=0.005)
    assert agent.ready() == (False, "the report has not been written yet")
    server.always = None
    wait_until(lambda: agent.ready()[0], 15, "readiness", every=0.005)


def test_a_worker_that_cannot_start_is_no_fault_and_not_ready(rig, server):
    agent = rig.start(worker_command=("/nonexistent/worker",))
    wait_until(lambda: server.status.get("sources"), 10, "a report", every=0.005)
    ready, why = agent.ready()
    assert not ready
    assert "cannot start /nonexistent/worker" in why
    assert server.status["faults"] == []
    assert agent.healthy() == (True, "ok")


def test_a_storm_of_lines_is_folded_and_written_a_few_times(rig, server):
    rig.start(renew_interval=30)
    rig.settle()
    before = len(server.patches)
    rig.say((LOST + CONTAINED) * 5000)
    wait_until(lambda: rig.xids(94) == 5000, 20, "all lines to be counted", every=0.02)
    assert rig.xids(79) == 5000
    server.await_fault("DeviceLost")
    assert len(server.patches) - before <= 6
    assert server.status["faults"][0]["kind"] == "DeviceLost"
