"""A repair, once: nothing in another boot, nothing where a receipt is, and a receipt before and after the deed."""

from __future__ import annotations

from collections.abc import Callable

from health.receipt import RepairResult
from remediation.repair.host import Host, HostError
from remediation.repair.order import Ended, Exit, Order, Outcome
from remediation.repair.receipts import ReceiptError, Receipts
from runtime.clock import Clock

_CODES = {RepairResult.DONE: Exit.DONE, RepairResult.HELD: Exit.HELD, RepairResult.FAILED: Exit.FAILED}

Deed = Callable[[], Ended]
"""Does it, and says how it ended. A HostError is a failure like others; any other exception leaves `Begun`, for what
has been done by then is not known."""


def once(host: Host, receipts: Receipts, order: Order, deed: Deed, *, clock: Clock) -> Outcome:
    """Run the deed if it is to be run, at most once for (session, step, attempt) and in the expected boot only.

    Raises RefusedError, before anything is read or written, where the host is not ours to repair.
    """
    try:
        if other := in_another_boot(host, order):
            return Outcome(Exit.DONE, f"nothing to do: {other}")
        begun = order.receipt(RepairResult.BEGUN, time=clock.wall())
        if present := receipts.begin(begun):
            return Outcome(Exit.DONE, f"nothing to do: the receipt {present}")
    except (HostError, ReceiptError) as error:
        return Outcome(Exit.FAILED, f"nothing was done: {error}")
    try:
        ended = deed()
    except HostError as error:
        ended = Ended(RepairResult.FAILED, str(error))
    try:
        if other := in_another_boot(host, order):
            # Receipts are of a boot. That there is a new one is what the caller looks at.
            return Outcome(Exit.DONE, f"{ended.message}; {other}")
        receipts.finish(begun, order.receipt(ended.result, time=clock.wall(), message=ended.message))
    except (HostError, ReceiptError) as error:
        return Outcome(Exit.FAILED, f"{ended.result}: {ended.message}; but no receipt of it: {error}")
    return Outcome(_CODES[ended.result], f"{ended.result}: {ended.message}")


def in_another_boot(host: Host, order: Order) -> str:
    """What is to be said where the host is not in the expected boot any more; empty where it is. Raises HostError."""
    present = host.boot_id()
    return "" if present == order.boot_id else f"the host is in boot {present}, not in {order.boot_id}"
