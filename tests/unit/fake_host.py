"""A host in memory that remembers what was done to it, and orders and settings for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remediation.repair.host import Holder, HostError, Ran, Unit, UnitVerb
from remediation.repair.order import Order, Step
from runtime.clock import ManualClock

BOOT = "boot-1"
GPU = "GPU-aaaaaaaa"
OTHER_GPU = "GPU-bbbbbbbb"
PERSISTENCE = "nvidia-persistenced.service"


def order(
    step: Step = Step.RESET, *, attempt: int = 1, boot: str = BOOT, devices: tuple[str, ...] = (GPU,)
) -> Order:
    return Order("n1-0123456789", step, attempt, boot, devices if step is Step.RESET else ())


@dataclass
class FakeHost:
    """`done` are the deeds in their order. `before` is called with the name of every method before it acts."""

    boot: str = BOOT
    held: list[Holder] = field(default_factory=list)
    units: dict[str, Unit] = field(default_factory=dict)
    answers: dict[str, Ran] = field(default_factory=dict)
    """By the first words of a command line; the longest that fits counts."""
    orderly_boots: bool = True
    sysrq_boots: bool = True
    before: Callable[[str], None] = lambda _name: None
    done: list[str] = field(default_factory=list)
    modes: set[str] = field(default_factory=set)
    """Devices with persistence mode."""

    def boot_id(self) -> str:
        self.before("boot_id")
        return self.boot

    def holders(self, devices: Sequence[str]) -> tuple[Holder, ...]:
        self.before("holders")
        return tuple(holder for holder in self.held if holder.device in devices)

    def run(self, argv: Sequence[str], *, timeout: float) -> Ran:
        assert timeout > 0
        line = " ".join(argv)
        self.before(line)
        if scripted := [ran for words, ran in sorted(self.answers.items()) if line.startswith(words)]:
            return scripted[-1]
        device = argv[argv.index("-i") + 1]
        if "--gpu-reset" in argv:
            self.done.append(f"reset {device} in {self.boot}")
            self.modes.discard(device)
        if "-pm" in argv:
            self.modes.add(device)
        if "persistence_mode" in line:
            return Ran(0, "Enabled\n" if device in self.modes else "Disabled\n")
        return Ran(0, f"{device}\n")

    def unit(self, name: str) -> Unit:
        self.before("unit")
        return self.units.get(name, Unit(loaded=False))

    def order_unit(self, verb: UnitVerb, name: str, *, timeout: float) -> Ran:
        self.before(f"{verb} {name}")
        self.done.append(f"{verb} {name} in {self.boot}")
        if scripted := self.answers.get(f"{verb} {name}"):
            return scripted
        unit = self.units[name]
        if verb == "stop":
            self.held = [holder for holder in self.held if holder.name != "nvidia-persistenced"]
            self.units[name] = Unit(loaded=True)
        else:
            self.units[name] = Unit(True, True, unit.main_pid + 1, unit.active_since + 1)
        return Ran(0)

    def reboot_orderly(self) -> Ran:
        self.before("reboot_orderly")
        self.done.append(f"reboot in {self.boot}")
        if scripted := self.answers.get("systemctl reboot"):
            return scripted
        if self.orderly_boots:
            self.boot = f"{self.boot}+"
        return Ran(0)

    def reboot_by_sysrq(self) -> None:
        self.before("reboot_by_sysrq")
        self.done.append(f"sysrq in {self.boot}")
        if self.sysrq_boots:
            self.boot = f"{self.boot}+"


class Patience:
    """A pause that lets the clock pass, and remembers how long it was."""

    def __init__(self, clock: ManualClock) -> None:
        self.waited = 0.0
        self._clock = clock

    def __call__(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        self.waited += seconds
        self._clock.advance(seconds)


def raises(method: str) -> Callable[[str], None]:
    """For `before`: this method does not work."""

    def before(name: str) -> None:
        if name.startswith(method):
            raise HostError(f"{method} does not answer")

    return before
