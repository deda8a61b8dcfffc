"""`sickbay repair check|reset|reboot|restart-service`: flags, and what each of them runs."""

from __future__ import annotations

import argparse
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from health.receipt import RECEIPT_FOLDER
from remediation.repair.host import Host, RefusedError
from remediation.repair.once import Deed, once
from remediation.repair.order import Exit, Order, Outcome, Step
from remediation.repair.reboot import ORDERLY_SECONDS, SYSRQ_SECONDS, Pause, RebootSettings, reboot
from remediation.repair.receipts import ReceiptFolder, Receipts
from remediation.repair.reset import (
    ANSWER,
    NVIDIA_MODES,
    PERSISTENCE_UNIT,
    RESET,
    RESET_SECONDS,
    Command,
    CommandError,
    ResetSettings,
    reset,
)
from remediation.repair.restart_service import RESTART_SECONDS, UNITS, RestartSettings, restart_service
from runtime.clock import Clock, SystemClock

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEVICES_LIMIT = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}", re.ASCII)
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@\\-]{0,250}\.service", re.ASCII)

_STEPS = {"reset": Step.RESET, "reboot": Step.REBOOT, "restart-service": Step.RESTART_SERVICE}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The four programs as commands of `parser`; `flags.repair` is which."""
    commands = parser.add_subparsers(dest="repair", required=True, metavar="PROGRAM")
    _check_flags(commands.add_parser("check", help="whether the session still allows it (init container)"))
    add_acting(commands, host_flags=_host_flags)


def add_acting(commands: Commands, *, host_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """The three programs that act. `host_flags` adds the flags that say where the host is."""
    for name, add_flags in (
        ("reset", _reset_flags),
        ("reboot", _reboot_flags),
        ("restart-service", _restart_flags),
    ):
        program = commands.add_parser(name, help=f"write a receipt, {name}, write the outcome; once")
        _order_flags(program)
        add_flags(program)
        host_flags(program)


def run(flags: argparse.Namespace) -> Outcome:
    """Run the program on the real host. Raises KubeconfigError (check)."""
    pause = threading.Event().wait
    if flags.repair == "check":
        return _check(flags, pause=pause)
    from remediation.repair.real_host import RealHost

    host = RealHost(flags.host_root, driver_root=flags.driver_root)
    receipts = ReceiptFolder(flags.host_root / RECEIPT_FOLDER.lstrip("/"))
    with outliving_sigterm():
        return perform(flags, host, receipts, clock=SystemClock(), pause=pause)


@contextmanager
def outliving_sigterm() -> Iterator[None]:
    """What has begun is ended, and its outcome written, also where the pod is deleted meanwhile."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def perform(
    flags: argparse.Namespace, host: Host, receipts: Receipts, *, clock: Clock, pause: Pause
) -> Outcome:
    """Run one of the programs that act, on any host."""
    order = Order(
        session=flags.session,
        step=_STEPS[flags.repair],
        attempt=flags.attempt,
        boot_id=flags.boot_id,
        devices=getattr(flags, "devices", ()),
    )
    try:
        return once(host, receipts, order, _deed(flags, host, order, clock=clock, pause=pause), clock=clock)
    except RefusedError as error:
        return Outcome(Exit.REFUSED, f"refused, not in a repair container: {error}")


def _deed(flags: argparse.Namespace, host: Host, order: Order, *, clock: Clock, pause: Pause) -> Deed:
    if order.step is Step.RESET:
        resetting = ResetSettings(
            command=flags.reset_command,
            answer=flags.answer_command,
            modes=NVIDIA_MODES if flags.keep_modes else (),
            persistence_unit=flags.persistence_unit,
            reset_timeout=flags.reset_timeout,
        )
        return lambda: reset(host, order.devices, resetting)
    if order.step is Step.REBOOT:
        rebooting = RebootSettings(orderly=flags.orderly_timeout, sysrq=flags.sysrq_timeout)
        return lambda: reboot(host, order, rebooting, clock=clock, pause=pause)
    unit = flags.unit or UNITS[flags.service]
    restarting = RestartSettings(restart_timeout=flags.restart_timeout)
    return lambda: restart_service(host, unit, restarting, clock=clock, pause=pause)


def _check(flags: argparse.Namespace, *, pause: Pause) -> Outcome:
    from remediation.repair.check import Asked, check
    from runtime.kubernetes import session_from
    from runtime.version import VERSION

    asked = Asked(
        session=flags.session,
        step=flags.step,
        node=flags.node,
        node_uid=flags.node_uid,
        boot_id=flags.boot_id,
        attempt=flags.attempt,
    )
    with_token = session_from(flags.kubeconfig, user_agent=f"sickbay-repair/{VERSION}")
    return check(with_token, asked, clock=SystemClock(), pause=pause)


def _check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", required=True, type=_name, metavar="NAME")
    parser.add_argument("--step", required=True, type=_name, metavar="STEP", help="such as Reset")
    parser.add_argument(
        "--attempt",
        type=_attempt,
        default=0,
        metavar="N",
        help="of this step; without it any attempt may go on",
    )
    parser.add_argument("--node", required=True, type=_name, metavar="NAME")
    parser.add_argument("--node-uid", required=True, type=_name, metavar="UID")
    parser.add_argument("--boot-id", required=True, type=_name, metavar="ID", help="the boot it is meant for")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: the pod's ServiceAccount")


def _order_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", required=True, type=_name, metavar="NAME")
    parser.add_argument("--attempt", required=True, type=_attempt, metavar="N")
    parser.add_argument("--boot-id", required=True, type=_name, metavar="ID", help="the boot it is meant for")


def _host_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host-root", type=Path, default=Path("/host"), metavar="PATH", help="default: %(default)s"
    )
    parser.add_argument(
        "--driver-root",
        default="",
        metavar="PATH",
        help="of the host: where vendor tools are; default: /run/nvidia/driver if nvidia-smi is there, else /",
    )


def _reset_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", required=True, type=_devices, metavar="UUID[,UUID]")
    parser.add_argument(
        "--reset-command", type=_command, default=RESET, metavar="COMMAND", help=f"default: {_escaped(RESET)}"
    )
    parser.add_argument(
        "--answer-command",
        type=_command,
        default=ANSWER,
        metavar="COMMAND",
        help=f"prints the UUID of a device that works; default: {_escaped(ANSWER)}",
    )
    parser.add_argument(
        "--keep-modes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="switch persistence and MIG mode on again if they were on, with nvidia-smi",
    )
    parser.add_argument(
        "--persistence-unit",
        type=_unit_or_none,
        default=PERSISTENCE_UNIT,
        metavar="UNIT",
        help="stopped for the reset where it holds the device; empty: leave it alone; default: %(default)s",
    )
    parser.add_argument(
        "--reset-timeout",
        type=_seconds,
        default=RESET_SECONDS,
        metavar="SECONDS",
        help="a device; default: %(default)g",
    )


def _reboot_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--orderly-timeout",
        type=_seconds,
        default=ORDERLY_SECONDS,
        metavar="SECONDS",
        help="until an orderly reboot counts as hung, and sysrq-b is next; default: %(default)g",
    )
    parser.add_argument(
        "--sysrq-timeout",
        type=_seconds,
        default=SYSRQ_SECONDS,
        metavar="SECONDS",
        help="until sysrq-b counts as failed; default: %(default)g",
    )


def _restart_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--service", required=True, choices=sorted(UNITS))
    parser.add_argument(
        "--unit", type=_unit, metavar="UNIT", help="the service's systemd unit, where it is not the usual one"
    )
    parser.add_argument(
        "--restart-timeout",
        type=_seconds,
        default=RESTART_SECONDS,
        metavar="SECONDS",
        help="default: %(default)g",
    )


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        _refuse(f"expected a name of letters, digits and ._:-, got {text!r}")
    return text


def _attempt(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        _refuse(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _devices(text: str) -> tuple[str, ...]:
    devices = tuple(dict.fromkeys(_name(word) for word in text.split(",")))
    if len(devices) > DEVICES_LIMIT:
        _refuse(f"expected at most {DEVICES_LIMIT} devices, got {len(devices)}")
    return devices


def _unit(text: str) -> str:
    if not _UNIT.fullmatch(text):
        _refuse(f"expected a systemd unit such as kubelet.service, got {text!r}")
    return text


def _unit_or_none(text: str) -> str:
    return _unit(text) if text else ""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86400:
        _refuse(f"expected seconds, above 0 and at most 86400, got {text!r}")
    return seconds


def _command(text: str) -> Command:
    try:
        return Command.parse(text)
    except CommandError as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    raise argparse.ArgumentTypeError(why)


def _escaped(command: Command) -> str:
    return " ".join(command.words).replace("%", "%%")
