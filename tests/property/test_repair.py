"""Repairs that crash anywhere and are run again as often as one likes: the deed is done once, in its boot, or never."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from health.receipt import Receipt, RepairResult, read_receipt, receipt_name
from remediation.repair.host import Holder, HostError, Ran, Unit
from remediation.repair.once import Deed, once
from remediation.repair.order import Exit, Order, Step
from remediation.repair.reboot import RebootSettings, reboot
from remediation.repair.receipts import ReceiptError, ReceiptFolder
from remediation.repair.reset import ResetSettings, reset
from remediation.repair.restart_service import RestartSettings, restart_service
from runtime.clock import ManualClock
from tests.unit.fake_host import BOOT, GPU, OTHER_GPU, PERSISTENCE, FakeHost, Patience, order

UNIT = "kubelet.service"


class CrashError(BaseException):
    """The program dies here, as by SIGKILL: no handler of its own runs any more."""


@dataclass
class Fate:
    """What happens at the n-th call of the host or the receipts, from 0 on: the program dies, or the call fails."""

    at: int
    how: type[BaseException]
    torn: bool = False
    """Whether a receipt's file is there already when it happens, with nothing in it."""
    calls: int = 0

    def meet(self) -> bool:
        """Whether it happens at this call. Who is dead gets nothing done any more, as little in a `finally`."""
        self.calls += 1
        return self.calls - 1 == self.at or (self.how is CrashError and self.calls > self.at)

    def before(self, name: str) -> None:
        if self.meet():
            raise self.how(name)


class FatefulReceipts:
    """A real folder, whose calls end as fate will: before or after they have done something, or in between."""

    def __init__(self, folder: Path, fate: Fate) -> None:
        self._real = ReceiptFolder(folder)
        self._folder = folder
        self._fate = fate

    def begin(self, receipt: Receipt) -> str:
        if self._fate.meet():
            if self._fate.torn:
                self._folder.mkdir(exist_ok=True)
                (self._folder / receipt_name(*receipt.identity)).touch()
            raise self._error()
        there = self._real.begin(receipt)
        if self._fate.meet():
            raise self._error()
        return there

    def finish(self, begun: Receipt, outcome: Receipt) -> None:
        if self._fate.meet():
            raise self._error()
        self._real.finish(begun, outcome)
        if self._fate.meet():
            raise self._error()

    def _error(self) -> BaseException:
        return ReceiptError("fate") if self._fate.how is HostError else self._fate.how("fate")


fates = st.builds(
    Fate, at=st.integers(0, 24), how=st.sampled_from([CrashError, HostError]), torn=st.booleans()
)
runs = st.tuples(
    st.sampled_from(Step), st.integers(1, 2), st.none() | fates, st.sampled_from(["", "", "", "boots first"])
)
hosts = st.builds(
    dict,
    held=st.sampled_from([(), (Holder(1, "nvidia-persistenced", GPU),), (Holder(2, "python", OTHER_GPU),)]),
    orderly_boots=st.booleans(),
    sysrq_boots=st.booleans(),
    answers=st.sampled_from([{}, {"nvidia-smi --gpu-reset": Ran(1, "no")}, {f"stop {PERSISTENCE}": Ran(0)}]),
    modes=st.sampled_from([set(), {GPU}]),
)


def deed_of(host: FakeHost, ordered: Order, clock: ManualClock) -> Deed:
    pause = Patience(clock)
    if ordered.step is Step.RESET:
        return lambda: reset(host, ordered.devices, ResetSettings())
    if ordered.step is Step.REBOOT:
        return lambda: reboot(host, ordered, RebootSettings(3, 2), clock=clock, pause=pause)
    return lambda: restart_service(host, UNIT, RestartSettings(), clock=clock, pause=pause)


def deeds(done: list[str], step: Step) -> list[str]:
    """What may happen once only. A reboot may be asked for and then forced: both are the one boot that it ends with."""
    words = {Step.RESET: "reset ", Step.REBOOT: "reboot ", Step.RESTART_SERVICE: f"restart {UNIT}"}
    return [deed for deed in done if deed.startswith(words[step])]


@settings(max_examples=60, deadline=None)
@given(world=hosts, sequence=st.lists(runs, min_size=1, max_size=8))
def test_whatever_crashes_a_repair_is_done_once_at_most_and_in_its_boot_only(
    world: dict, sequence: list
) -> None:
    host = FakeHost(**{**world, "held": list(world["held"]), "modes": set(world["modes"])})
    host.units = {UNIT: Unit(True, True, 1, 1), PERSISTENCE: Unit(True, True, 1, 1)}
    clock = ManualClock()
    by_identity: dict[tuple[Step, int], list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "receipts"
        for step, attempt, fate, event in sequence:
            if event:
                host.boot = f"{host.boot}+"
            ordered = order(step, attempt=attempt, devices=(GPU, OTHER_GPU))
            first = len(host.done)
            boot = host.boot
            code = run_once(host, folder, ordered, fate or Fate(10**6, CrashError), clock)
            happened = host.done[first:]
            if boot != BOOT:
                assert happened == [], "the expected boot was over"
                assert code in (None, Exit.DONE, Exit.FAILED)
            by_identity.setdefault((step, attempt), []).extend(deeds(happened, step))
            assert all(deed.endswith(f" in {BOOT}") for deed in deeds(happened, step))
            if any(holder.name == "python" for holder in host.held):
                assert not deeds(happened, Step.RESET), "somebody held it"
            check_receipt(folder, ordered, code, fate)
    for done in by_identity.values():
        assert len(done) == len(set(done)), "the same deed twice"


def run_once(host: FakeHost, folder: Path, ordered: Order, fate: Fate, clock: ManualClock) -> int | None:
    """The exit code; None where the program died."""
    host.before = fate.before
    try:
        receipts = FatefulReceipts(folder, fate)
        return once(host, receipts, ordered, deed_of(host, ordered, clock), clock=clock).code
    except CrashError:
        return None
    finally:
        host.before = lambda _name: None


def check_receipt(folder: Path, ordered: Order, code: int | None, fate: Fate | None) -> None:
    """What a program says it has ended with is what its receipt says, if nothing was in its way."""
    if code not in (Exit.HELD, Exit.FAILED) or (fate is not None and fate.calls > fate.at):
        return
    content = (folder / receipt_name(ordered.session, ordered.step, ordered.attempt)).read_bytes()
    expected = RepairResult.HELD if code == Exit.HELD else RepairResult.FAILED
    assert read_receipt(content).result == expected
