"""Resetting devices: only what nobody holds open, and what the reset loses besides is put back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from health.receipt import RepairResult
from remediation.repair.holders import PERSISTENCED
from remediation.repair.host import Holder, Host, HostError, Ran
from remediation.repair.order import Ended

HOLDERS_NAMED = 8
PERSISTENCE_UNIT = "nvidia-persistenced.service"
RESET_SECONDS = 180.0
"""How long the reset of one device may take."""

_DEVICE = "{device}"


class CommandError(ValueError):
    """A command line that cannot be used: says which and why."""


@dataclass(frozen=True, slots=True)
class Command:
    """A vendor tool's command line with `{device}` for the UUID."""

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Command:
        """Split as a shell would, but no shell runs it. Raises CommandError."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise CommandError(f"{text!r}: {error}") from error
        if not words or words[0].startswith("-") or not any(_DEVICE in word for word in words):
            raise CommandError(f"{text!r}: expected a program and its arguments, one of them with {_DEVICE}")
        return cls(words)

    def for_device(self, device: str) -> list[str]:
        """The argument list for one device."""
        return [word.replace(_DEVICE, device) for word in self.words]


RESET = Command.parse("nvidia-smi --gpu-reset -i {device}")
ANSWER = Command.parse("nvidia-smi --query-gpu=uuid --format=csv,noheader -i {device}")


@dataclass(frozen=True, slots=True)
class KeptMode:
    """A setting that a reset may lose: how it is read (`Enabled`, `Disabled`) and how it is switched on again."""

    name: str
    read: Command
    enable: Command


NVIDIA_MODES = tuple(
    KeptMode(
        name=name,
        read=Command.parse(f"nvidia-smi --query-gpu={key} --format=csv,noheader -i {{device}}"),
        enable=Command.parse(f"nvidia-smi -i {{device}} {flag} 1"),
    )
    for name, key, flag in (
        ("persistence mode", "persistence_mode", "-pm"),
        ("MIG mode", "mig.mode.current", "-mig"),
    )
)


@dataclass(frozen=True, slots=True)
class ResetSettings:
    """How a device is reset. Times are in seconds; an empty `persistence_unit` leaves that daemon alone."""

    command: Command = RESET
    answer: Command = ANSWER
    modes: tuple[KeptMode, ...] = NVIDIA_MODES
    persistence_unit: str = PERSISTENCE_UNIT
    reset_timeout: float = RESET_SECONDS
    look_timeout: float = 30.0


def reset(host: Host, devices: Sequence[str], settings: ResetSettings) -> Ended:
    """Reset one device after the other; the first that fails ends it. Raises HostError."""
    holders = host.holders(devices)
    if held := [holder for holder in holders if not _can_pause(host, holder, settings)]:
        return Ended(RepairResult.HELD, _named(held))
    before = [
        (device, mode)
        for device in devices
        for mode in settings.modes
        if _enabled(host, device, mode, settings)
    ]
    with _paused(host, settings, needed=bool(holders)) as notes:
        if held := list(host.holders(devices)):
            return Ended(RepairResult.HELD, _named(held))
        ended = _reset_each(host, devices, settings)
    notes += [note for device, mode in before if (note := _restore(host, device, mode, settings))]
    return Ended(ended.result, "; ".join([ended.message, *notes]))


def _reset_each(host: Host, devices: Sequence[str], settings: ResetSettings) -> Ended:
    done: list[str] = []
    for device in devices:
        so_far = f"; reset before it: {', '.join(done)}" if done else ""
        ran = host.run(settings.command.for_device(device), timeout=settings.reset_timeout)
        if not ran.ok:
            return Ended(RepairResult.FAILED, f"{device}: the reset failed, {ran}{so_far}")
        answer = host.run(settings.answer.for_device(device), timeout=settings.look_timeout)
        if not (answer.ok and device in answer.output):
            return Ended(RepairResult.FAILED, f"{device}: does not answer after the reset, {answer}{so_far}")
        done.append(device)
    return Ended(RepairResult.DONE, f"reset {', '.join(done)}")


@contextmanager
def _paused(host: Host, settings: ResetSettings, *, needed: bool) -> Iterator[list[str]]:
    """The persistence daemon stands still meanwhile, where it is needed. Yields what is to be said, also afterwards."""
    notes: list[str] = []
    if not needed:
        yield notes
        return
    unit = settings.persistence_unit
    try:
        stopped = host.order_unit("stop", unit, timeout=settings.look_timeout)
        if not stopped.ok:
            raise HostError(f"{unit} holds the device and does not stop, {stopped}")
        yield notes
    finally:
        started = _started(host, unit, settings)
        how = "runs again" if started.ok else f"does not start again, {started}"
        notes.append(f"{unit} was stopped for it and {how}")


def _started(host: Host, unit: str, settings: ResetSettings) -> Ran:
    try:
        return host.order_unit("start", unit, timeout=settings.look_timeout)
    except HostError as error:
        return Ran(None, str(error))


def _can_pause(host: Host, holder: Holder, settings: ResetSettings) -> bool:
    if holder.name != PERSISTENCED or not settings.persistence_unit:
        return False
    unit = host.unit(settings.persistence_unit)
    return unit.loaded and unit.active


def _enabled(host: Host, device: str, mode: KeptMode, settings: ResetSettings) -> bool:
    """Whether the mode is known to be on. A device that is ill may not say."""
    ran = host.run(mode.read.for_device(device), timeout=settings.look_timeout)
    return ran.ok and ran.output.strip() == "Enabled"


def _restore(host: Host, device: str, mode: KeptMode, settings: ResetSettings) -> str:
    """Switch a mode on again that was on before; what is to be said about it. It never makes a reset fail."""
    try:
        if _enabled(host, device, mode, settings):
            return ""
        ran = host.run(mode.enable.for_device(device), timeout=settings.look_timeout)
    except HostError as error:
        return f"{mode.name} of {device} is not known: {error}"
    return f"{mode.name} of {device} " + ("is on again" if ran.ok else f"is lost, {ran}")


def _named(holders: Sequence[Holder]) -> str:
    more = f" and {len(holders) - HOLDERS_NAMED} more" if len(holders) > HOLDERS_NAMED else ""
    return "; ".join(str(holder) for holder in holders[:HOLDERS_NAMED]) + more
