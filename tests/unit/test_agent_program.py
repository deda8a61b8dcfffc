"""The agent as a program: its exit codes, its endpoint, its one look at everything, and what it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter import agent
from exporter.configuration import ENVIRONMENT_PREFIX, AgentConfiguration
from runtime.config import ConfigError, load
from runtime.quantities import Duration, ListenAddress
from simulation.machine import h100_machine, save, update
from tests.lab.processes import wait_until

PROJECT = Path(__file__).parents[2]
LOST = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.\n"
RUN = """
import sys, msgspec
from exporter.agent import run
from exporter.configuration import AgentConfiguration
from runtime import logs
from runtime.config import load
logs.configure(format="text")
flags = msgspec.json.decode(sys.argv[1])
sys.exit(run(load(AgentConfiguration, file=None, environ={}, flags=flags, prefix="X_").value))
"""


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Program:
    """A running agent process."""

    def __init__(self, folder, **flags):
        self.machine = folder / "machine.json"
        self.kernel_log = folder / "kmsg"
        self.state_file = folder / "state" / "agent.json"
        self.log = folder / "log"
        self.port = free_port()
        if not self.machine.exists():
            save(self.machine, h100_machine("n1"))
        self.kernel_log.touch()
        given = {
            "kernel_log": str(self.kernel_log),
            "state_file": str(self.state_file),
            "listen": f"127.0.0.1:{self.port}",
            "worker_command": [sys.executable, "-m", "simulation.worker", "--machine", str(self.machine)],
            "sample_interval": "500ms",
            **flags,
        }
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, json.dumps(given)], cwd=PROJECT, env=environment, stderr=log
            )

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def await_ready(self):
        wait_until(
            lambda: self.get("/readyz")[0] == 200,
            20,
            "readiness",
            ignoring=(OSError,),
            every=0.02,
            logs=[self.log],
        )

    def end(self, number=signal.SIGTERM):
        """The exit code, and how many seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(10), time.monotonic() - begun


@pytest.fixture
def program(tmp_path):
    started = []

    def start(**flags):
        started.append(Program(tmp_path, **flags))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_it_serves_metrics_and_ends_in_time_with_what_it_knew_in_the_state_file(program):
    running = program()
    running.await_ready()
    with running.kernel_log.open("a") as log:
        log.write(LOST)
    wait_until(lambda: 'kind="DeviceLost"' in running.get("/metrics")[1], 10, "the fault", every=0.02)
    families = {family.name for family in text_string_to_metric_families(running.get("/metrics")[1])}
    assert {"accelerator_power_watts", "sickbay_build", "process_resident_memory_bytes"} & families
    assert running.get("/healthz")[0] == 200
    code, seconds = running.end()
    assert (code, seconds < 3) == (agent.EXIT_OK, True)
    kept = json.loads(running.state_file.read_bytes())
    assert [fault["kind"] for fault in kept["faults"]] == ["DeviceLost"]
    assert "no cluster" in running.log.read_text()


def test_losing_access_to_all_devices_ends_it_with_its_own_exit_code(program):
    running = program()
    running.await_ready()
    update(running.machine, lambda machine: msgspec.structs.replace(machine, library_error=999))
    assert running.process.wait(30) == agent.EXIT_DEVICE_ACCESS_LOST
    kept = json.loads(running.state_file.read_bytes())
    assert kept["faults"] == []
    assert "lost its access to the devices" in running.log.read_text()


def test_a_kubeconfig_that_is_missing_is_said_and_everything_else_works(program, tmp_path):
    running = program(kubeconfig=str(tmp_path / "missing"))
    wait_until(
        lambda: "accelerator_power_watts{" in running.get("/metrics")[1],
        20,
        "metrics",
        ignoring=(OSError,),
        every=0.02,
    )
    status, why = running.get("/readyz")
    assert status == 503
    assert str(tmp_path / "missing") in why
    assert "No such file" in running.log.read_text()
    assert running.end(signal.SIGINT)[0] == agent.EXIT_OK


def configured(tmp_path, **changes):
    machine = tmp_path / "machine.json"
    save(machine, h100_machine("n1"))
    return AgentConfiguration(
        **{
            "node": "n1",
            "kernel_log": tmp_path / "kmsg",
            "state_file": tmp_path / "agent.json",
            "worker_command": (sys.executable, "-m", "simulation.worker", "--machine", str(machine)),
            **changes,
        }
    )


def test_one_look_prints_metrics_and_leaves_no_trace(tmp_path, capfdbinary):
    (tmp_path / "kmsg").write_text(LOST)
    assert agent.print_once(configured(tmp_path), metrics=True, report=False) == agent.EXIT_OK
    page = capfdbinary.readouterr().out.decode()
    samples = [found for family in text_string_to_metric_families(page) for found in family.samples]
    assert {found.labels["device"] for found in samples if found.name == "accelerator_info"} == set(
        "01234567"
    )
    assert [found.labels["severity"] for found in samples if found.name == "accelerator_fault_active"] == [
        "Fatal"
    ]
    assert not (tmp_path / "agent.json").exists()


def test_one_look_prints_the_report_as_json(tmp_path, capfdbinary):
    (tmp_path / "kmsg").write_text(LOST)
    assert agent.print_once(configured(tmp_path), metrics=False, report=True) == agent.EXIT_OK
    report = json.loads(capfdbinary.readouterr().out)
    assert (report["kind"], report["metadata"]["name"]) == ("AcceleratorReport", "n1")
    assert [device.get("health") for device in report["status"]["devices"]].count("Failed") == 1
    assert report["status"]["faults"][0]["code"] == "xid:79"


def test_one_look_without_a_library_and_without_a_kernel_log_says_so(tmp_path, capfdbinary):
    bare = configured(tmp_path, worker_command=AgentConfiguration().worker_command)
    assert agent.print_once(bare, metrics=True, report=False) == agent.EXIT_OK
    page = capfdbinary.readouterr().out.decode()
    assert 'sickbay_source_state{source="nvml",state="Unsupported"} 1.0' in page
    assert 'sickbay_source_state{source="kernel-log",state="Failed"} 1.0' in page
    assert "accelerator_info{" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"boot_id": Path("/nonexistent/boot_id")},
            "boot ID /nonexistent/boot_id: No such file or directory",
        ),
        ({"boot_id": Path("/dev/null")}, "expected one line with at most 64 characters, got ''"),
        (
            {"xid_overrides": Path("/nonexistent/xids.tsv")},
            "xidOverrides /nonexistent/xids.tsv: No such file",
        ),
        ({"xid_overrides": Path("/dev/null")}, "/dev/null: line 1: missing column xid"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_ends_the_program(tmp_path, caplog, changes, words):
    configuration = configured(tmp_path, **changes)
    assert agent.run(configuration) == agent.EXIT_CONFIGURATION
    assert agent.print_once(configuration, metrics=True, report=False) == agent.EXIT_CONFIGURATION
    assert words in caplog.text


def test_an_address_that_is_taken_is_named_and_ends_the_program(tmp_path, caplog):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = ListenAddress(f"127.0.0.1:{taken.getsockname()[1]}")
        assert agent.run(configured(tmp_path, listen=address)) == agent.EXIT_CONFIGURATION
    assert f"cannot listen on {address}: the address is in use" in caplog.text


def loaded(**flags):
    return load(AgentConfiguration, file=None, environ={}, flags=flags, prefix=ENVIRONMENT_PREFIX).value


def test_the_defaults_are_those_of_a_pod_on_a_node():
    configuration = loaded()
    assert configuration.kernel_log == Path("/dev/kmsg")
    assert configuration.boot_id == Path("/proc/sys/kernel/random/boot_id")
    assert configuration.worker_command[1:] == ("-m", "exporter.worker")
    assert configuration.renew_interval == 30
    assert configuration.report


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"kernel_log_since": "7"}, "needs drill"),
        ({"kernel_log_since": "-1", "drill": True}, "a sequence number from 0 in kernelLogSince, not -1"),
        ({"worker_command": []}, "a program in workerCommand"),
        ({"sample_interval": "1ms"}, "a sampleInterval from 500ms to 5m, not 1ms"),
        ({"renew_interval": "2m"}, "a renewInterval from 1s to 45s, not 2m"),
        ({"renew_interval": "30"}, 'write "30s" if seconds were meant'),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(flags, words):
    with pytest.raises(ConfigError) as error:
        loaded(**flags)
    assert words in str(error.value)


def test_a_drill_may_pass_older_lines_over():
    configuration = loaded(drill="true", kernel_log_since="7")
    assert (configuration.drill, configuration.kernel_log_since) == (True, 7)
    assert configuration.sample_interval == Duration(5)
