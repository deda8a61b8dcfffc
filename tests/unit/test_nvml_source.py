"""The NVML source and its worker processes: what the agent sees when all is well, and when it is not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exporter.samples import WorkerError
from exporter.sources.nvml import STUCK_LIMIT, NvmlSource, Timing, restart_pause
from exporter.sources.worker_process import WorkerProcess
from health.vocabulary import SourceState
from simulation import control
from simulation.machine import h100_machine, load, save, update
from tests.lab.processes import wait_until

FAST = Timing(
    interval=0.02,
    inventory_interval=0.1,
    pause=0.01,
    longest_pause=0.05,
    unsupported_pause=0.05,
)
LIVE, STALE, FAILED, RELEASED, UNSUPPORTED = SourceState


class Watched:
    """A source, and all that it has said."""

    def __init__(self, command, timing=FAST):
        self.inventories = []
        self.samples = []
        self.states = []
        self.source = NvmlSource(
            on_inventory=self.inventories.append,
            on_sample=self.samples.append,
            on_state=lambda state, message: self.states.append((state, message)),
            command=command,
            timing=timing,
        )

    def await_state(self, state, since=0):
        """The message of the first such state after the first `since` states."""
        return wait_until(
            lambda: next(([text] for said, text in self.states[since:] if said is state), None),
            10,
            f"state {state}, in {self.states}",
            every=0.005,
        )[0]

    def await_sample(self, what="a sample", test=lambda sample: True):
        start = len(self.samples)
        return wait_until(
            lambda: next((sample for sample in self.samples[start:] if test(sample)), None),
            10,
            what,
            every=0.005,
        )

    def children(self):
        return worker_pids(os.getpid())


def worker_pids(parent):
    """Living and dead children of `parent` that the NVML source's thread has started."""
    pids = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    return pids


@pytest.fixture
def machine(tmp_path):
    path = tmp_path / "machine.json"
    save(path, h100_machine("node-a"))
    return path


@pytest.fixture
def watch():
    """Starts sources and closes them: each within a second and without a process left behind."""
    started = []
    before = worker_pids(os.getpid())

    def start(command, timing=FAST):
        watched = Watched(command, timing)
        started.append(watched)
        watched.source.start()
        return watched

    yield start
    for watched in started:
        begun = time.monotonic()
        assert watched.source.close()
        assert time.monotonic() - begun < 1.0
    assert worker_pids(os.getpid()) <= before


@pytest.fixture
def live(watch, machine):
    watched = watch(simulated(machine))
    watched.await_sample()
    return watched


def simulated(machine):
    return [sys.executable, "-m", "simulation.worker", "--machine", str(machine)]


def script(text):
    return [sys.executable, "-S", "-E", "-c", text]


def change(path, selector, key, value):
    update(path, lambda machine: control.set_value(machine, selector, key, str(value)))


def test_devices_are_told_once_and_samples_keep_coming(live, machine):
    devices = load(machine).devices
    first = live.await_sample()
    second = live.await_sample()
    assert [device.uuid for device in live.inventories[0].devices] == [device.uuid for device in devices]
    assert len(live.inventories) == 1
    assert live.states == [(LIVE, "")]
    assert [device.uuid for device in first.devices] == [device.uuid for device in devices]
    assert second.monotonic_seconds > first.monotonic_seconds
    assert second.devices[0].energy_joules > first.devices[0].energy_joules
    assert live.source.failure is None


def test_a_lost_device_is_seen_at_the_next_sample(live, machine):
    update(machine, lambda state: control.lose(state, "0000:3b:00.0"))
    sample = live.await_sample("a lost device", lambda sample: sample.devices[1].error == "GpuIsLost")
    assert sample.devices[0].error is None
    assert sample.devices[0].power_watts > 0
    assert live.states == [(LIVE, "")]
    assert len(live.inventories) == 1


def test_a_hung_worker_is_stale_then_killed_and_a_new_one_takes_over(watch, machine):
    live = watch(simulated(machine), Timing(interval=0.02, sample_deadline=0.15, patience=0.3, pause=0.01))
    live.await_sample()
    before = live.children()
    change(machine, "1", "hang_seconds", 600)
    assert live.await_state(STALE) == "no answer to Sample in 0.15 s"
    assert live.await_state(FAILED).startswith("the worker was killed: no answer to Sample in ")
    change(machine, "1", "hang_seconds", 0)
    live.await_state(LIVE, since=len(live.states))
    live.await_sample()
    assert live.source.restarts >= 1
    assert not before & live.children()
    assert len(live.inventories) == 1


def test_a_slow_answer_makes_it_stale_and_no_more(watch, machine):
    watched = watch(simulated(machine), Timing(interval=0.02, sample_deadline=0.2, patience=600))
    watched.await_sample()
    (pid,) = watched.children()
    os.kill(pid, signal.SIGSTOP)
    watched.await_state(STALE)
    os.kill(pid, signal.SIGCONT)
    watched.await_state(LIVE, since=2)
    assert watched.source.restarts == 0


def test_a_worker_that_is_killed_is_missed_at_once(watch, machine):
    watched = watch(simulated(machine), Timing(interval=60, pause=0.01))
    watched.await_sample()
    (pid,) = watched.children()
    os.kill(pid, signal.SIGKILL)
    assert watched.await_state(FAILED) == "the worker was ended by signal 9"
    watched.await_sample()
    assert watched.source.restarts == 1


def test_a_lost_device_keeps_its_identity_when_the_worker_is_restarted(live, machine):
    update(machine, lambda state: control.lose(state, "1"))
    live.await_sample("a lost device", lambda sample: sample.devices[1].error == "GpuIsLost")
    for pid in live.children():
        os.kill(pid, signal.SIGKILL)
    live.await_state(FAILED)
    sample = live.await_sample()
    assert sample.devices[1].uuid == load(machine).devices[1].uuid
    assert sample.devices[1].error == "GpuIsLost"
    assert len(live.inventories) == 1


def test_a_worker_that_talks_nonsense_is_replaced(watch, machine, tmp_path):
    text = (
        f"import os, sys; spoken = {str(tmp_path / 'spoken')!r}\n"
        f"if os.path.exists(spoken): os.execv({sys.executable!r}, {simulated(machine)!r})\n"
        "open(spoken, 'w').close(); print('nonsense', flush=True); sys.stdin.read()"
    )
    watched = watch(script(text))
    assert "the worker's reply is no reply: b'nonsense'" in watched.await_state(FAILED)
    assert watched.await_sample().devices[1].power_watts > 0
    assert watched.source.restarts == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('{"id":1,"body":{"type":"Inventory","devices":[{"uuid":3}]}}', "Expected `str`, got `int`"),
        ('{"id":1,"body":{"type":"Sorcery"}}', "Invalid value 'Sorcery'"),
        ('{"id":7,"body":{"type":"Inventory"}}', "the worker answers Acquire with Inventory"),
        ('{"id":1,"body":{"type":"Released"}}', "the worker answers Acquire with Released"),
        ('{"id":1,"body":{"type":"Released"}}\\n{', "the worker says more than it was asked: b'{"),
        ("\\xff\\x00", "the worker's reply is no reply"),
        ("", "the worker's reply is no reply: b''"),
    ],
)
def test_a_reply_that_does_not_fit_ends_the_worker(watch, reply, message):
    text = f"import sys; sys.stdin.readline(); print('{reply}', flush=True); sys.stdin.read()"
    assert message in watch(script(text), Timing(pause=60)).await_state(FAILED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('import sys; sys.stdin.readline(); sys.stdout.write(\'{"id":1,"bo\')', "has ended with exit code 0"),
        (
            "import sys; sys.stderr.write('no such thing\\n'); sys.exit(3)",
            "has ended with exit code 3: no such thing",
        ),
        ("import os, time; os.close(1); time.sleep(600)", "has closed its output"),
        ("import os; os.write(1, b'x' * 5_000_000)", "longer than 4194304 bytes"),
    ],
)
def test_a_worker_that_breaks_off_is_told_by_its_end(watch, text, message):
    assert message in watch(script(text), Timing(pause=60)).await_state(FAILED)


def test_a_worker_that_cannot_be_started_is_named(watch):
    message = watch(["/nowhere/worker"]).await_state(FAILED)
    assert message == "cannot start /nowhere/worker: No such file or directory"


def test_no_library_is_unsupported_and_looked_for_again(watch, monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    watched = watch([sys.executable, "-m", "exporter.worker"])
    message = watched.await_state(UNSUPPORTED)
    assert message.startswith("LibraryNotFound: nvmlInit: NVML Shared Library Not Found")
    assert "libnvidia-ml.so.1: cannot open shared object file" in message
    assert message.endswith("(looked for again every 0.05 s)")
    assert watched.source.failure.error is WorkerError.LIBRARY_NOT_FOUND
    wait_until(lambda: watched.source.restarts >= 2, 10, "another look", every=0.005)
    assert {state for state, _ in watched.states} == {UNSUPPORTED}


def test_a_driver_that_is_loaded_later_is_found(watch, machine):
    change(machine, "machine", "library_error", 9)
    watched = watch(simulated(machine))
    assert watched.await_state(FAILED) == "DriverNotLoaded: nvmlInit: Driver Not Loaded (NVML code 9)"
    assert watched.source.failure.error is WorkerError.DRIVER_NOT_LOADED
    change(machine, "machine", "library_error", 0)
    watched.await_sample()
    assert watched.source.failure is None


def test_released_devices_are_not_sampled_until_they_are_acquired(live):
    live.source.release()
    live.await_state(RELEASED)
    (pid,) = live.children()
    count = len(live.samples)
    live.source.acquire()
    live.await_state(LIVE, since=2)
    live.await_sample()
    assert live.samples[count].monotonic_seconds > live.samples[count - 1].monotonic_seconds
    assert [state for state, _ in live.states] == [LIVE, RELEASED, LIVE]
    assert live.children() == {pid}


def test_a_hung_worker_is_killed_to_release_the_devices(watch, machine):
    patient = Timing(interval=0.02, sample_deadline=0.2, patience=600)
    watched = watch(simulated(machine), patient)
    watched.await_sample()
    change(machine, "1", "hang_seconds", 600)
    watched.await_state(STALE)
    watched.source.release()
    watched.await_state(RELEASED)
    assert watched.children() == set()
    change(machine, "1", "hang_seconds", 0)
    watched.source.acquire()
    watched.await_sample()


def test_a_worker_that_dies_while_released_leaves_the_devices_released(live):
    live.source.release()
    live.await_state(RELEASED)
    (pid,) = live.children()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in live.children(), 10, "the end of the worker", every=0.005)
    live.await_state(RELEASED, since=3)
    live.source.acquire()
    live.await_sample()


def test_devices_are_released_while_no_worker_runs(watch):
    watched = watch(["/nowhere/worker"], Timing(pause=600, longest_pause=600))
    watched.await_state(FAILED)
    watched.source.release()
    assert watched.await_state(RELEASED) == ""
    watched.source.acquire()
    watched.await_state(FAILED, since=2)


def test_devices_that_a_stuck_worker_holds_are_not_called_released(watch, machine, monkeypatch):
    watched = watch(simulated(machine), Timing(interval=0.02, sample_deadline=0.15, patience=600))
    watched.await_sample()
    (pid,) = watched.children()
    really_reaped = WorkerProcess.reaped
    monkeypatch.setattr(WorkerProcess, "reaped", lambda self, timeout=0.0: False)
    os.kill(pid, signal.SIGSTOP)
    watched.await_state(STALE)
    watched.source.release()
    wait_until(
        lambda: (FAILED, f"killed workers still hold the devices: pid {pid}") in watched.states,
        10,
        "the stuck pid",
    )
    assert RELEASED not in {state for state, _ in watched.states}
    monkeypatch.setattr(WorkerProcess, "reaped", really_reaped)
    watched.await_state(RELEASED)


def test_workers_stuck_in_the_kernel_do_not_pile_up(watch, monkeypatch):
    really_reaped = WorkerProcess.reaped
    monkeypatch.setattr(WorkerProcess, "reaped", lambda self, timeout=0.0: False)
    watched = watch(script("import sys; sys.exit(1)"))
    wait_until(lambda: any("stuck in the kernel" in text for _, text in watched.states), 10, "the limit")
    assert watched.source.restarts == STUCK_LIMIT - 1
    monkeypatch.setattr(WorkerProcess, "reaped", really_reaped)
    wait_until(lambda: watched.source.restarts >= STUCK_LIMIT, 10, "a further worker")


def test_closing_does_not_wait_for_a_hung_worker(watch, machine):
    watched = watch(simulated(machine), Timing(interval=0.02, sample_deadline=600))
    watched.await_sample()
    change(machine, "0", "hang_seconds", 600)
    count = len(watched.samples)
    begun = time.monotonic()
    assert watched.source.close()
    assert time.monotonic() - begun < 1.0
    assert len(watched.samples) <= count + 1
    assert watched.children() == set()


def test_a_source_can_be_closed_before_it_starts_and_twice():
    watched = Watched(["/nowhere/worker"])
    assert watched.source.close()
    assert watched.source.close()
    watched.source.release()


def test_a_callback_that_fails_does_not_end_the_source(machine, caplog):
    seen = threading.Semaphore(0)

    def fail(_sample):
        seen.release()
        raise RuntimeError("out of luck")

    source = NvmlSource(
        on_inventory=lambda _: None,
        on_sample=fail,
        on_state=lambda *_: None,
        command=simulated(machine),
        timing=FAST,
    )
    source.start()
    try:
        assert seen.acquire(timeout=10)
        assert seen.acquire(timeout=10)
    finally:
        assert source.close()
    assert "out of luck" in caplog.text


def test_the_workers_log_is_ours(watch, caplog):
    noisy = "import sys; sys.stderr.write('first\\n' + 'y' * 9000 + '\\nlast \\xff'); sys.stderr.flush()"
    watched = watch(script(noisy), Timing(pause=60))
    watched.await_state(FAILED)
    lines = [
        record.getMessage().partition(": ")[2] for record in caplog.records if "nvml worker" in record.message
    ]
    assert lines[0] == "first"
    assert "last \xff" in lines[-1]
    assert max(len(line) for line in lines) == 4096


def test_a_worker_that_does_not_listen_ends_with_a_parent_that_is_killed(machine):
    program = (
        "import threading\n"
        "from exporter.sources.nvml import NvmlSource, Timing\n"
        "source = NvmlSource(on_inventory=lambda _: None, on_state=lambda *_: None,\n"
        "    on_sample=lambda _: print('sampled', flush=True),\n"
        f"    command={simulated(machine)!r}, timing=Timing(interval=600))\n"
        "source.start()\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert parent.stdout.readline() == b"sampled\n"
        (worker,) = worker_pids(parent.pid)
        os.kill(worker, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    try:
        wait_until(lambda: not running(worker), 10, f"the end of worker {worker}", every=0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_pauses_grow_up_to_a_limit():
    timing = Timing(pause=1, longest_pause=60, unsupported_pause=300)
    for attempt, longest in [(0, 1), (1, 1), (2, 2), (3, 4), (7, 60), (10**6, 60)]:
        pauses = {restart_pause(attempt, timing, unsupported=False) for _ in range(20)}
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(pauses) > 1
    assert 150 <= restart_pause(1, timing, unsupported=True) <= 300
