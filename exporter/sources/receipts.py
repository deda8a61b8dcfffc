"""The receipts source: what repairs have left on this host, read from their folder on a thread of its own.

A folder that is not there is normal: no repair has been done since the boot. A receipt is a regular file that is
named as `health.receipt.receipt_name` says of its content, so that there is one of each repair; it is read whole
or not at all. Everything else in the folder is left aside, and said once in the log.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from health.receipt import (
    RECEIPT_DEVICES_LIMIT,
    RECEIPT_FILE_LIMIT,
    RECEIPT_FOLDER,
    RECEIPT_MESSAGE_LIMIT,
    RECEIPTS_LIMIT,
    Receipt,
    read_receipt,
    receipt_name,
)
from health.vocabulary import SourceState

RECEIPTS = "receipts"

INTERVAL_SECONDS = 1.0

# The API server refuses a report as a whole for one value out of bounds (deploy/crds/acceleratorreports.yaml).
_BOOT_ID_LIMIT = 64
_ATTEMPT_LIMIT = 2**31 - 1
_SESSION = re.compile(r"[A-Za-z0-9.-]{1,253}")
_UUID = re.compile(r"[A-Za-z0-9./:_-]{1,80}")
_WORD = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")

_UNREAD = (0, 0, 0, 0)

_Identity = tuple[int, int, int, int]
"""inode, size, times of content and of the inode in nanoseconds: a file that was written anew has another one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a file was found to be: a receipt, or why it is left aside."""

    identity: _Identity
    receipt: Receipt | None = None
    why: str = ""


class _NoReceiptError(Exception):
    """Why a file is left aside, for people."""


class ReceiptsSource:
    """Reads the folder once a second. Callbacks run on its thread and get immutable values.

    `on_receipts` gets the newest receipts of this boot, the newest first, when they have changed; `on_state` each
    change of the state or of its reason: Live also where there is no folder, Failed where it cannot be read.
    """

    def __init__(
        self,
        *,
        on_receipts: Callable[[tuple[Receipt, ...]], None],
        on_state: Callable[[SourceState, str], None],
        boot_id: str,
        folder: Path = Path(RECEIPT_FOLDER),
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._on_receipts = on_receipts
        self._on_state = on_state
        self._boot_id = boot_id
        self._folder = folder
        self._interval = interval
        self._seen: dict[str, _Seen] = {}
        self._said: tuple[SourceState, str] | None = None
        self._shown: tuple[Receipt, ...] = ()
        self._closing = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def wait_looked(self, timeout: float) -> bool:
        """Wait until the folder was read once and told; False if that takes longer than `timeout` seconds."""
        return self._looked.wait(timeout)

    def close(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a callback holds it longer than `timeout` seconds."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._look()
            except Exception as error:
                log.exception("reading the receipts failed")
                self._say(SourceState.FAILED, f"{self._folder}: {type(error).__name__}: {error}")
            self._looked.set()
            self._closing.wait(self._interval)

    def _look(self) -> None:
        try:
            with _opened(self._folder) as folder:
                names = os.listdir(folder)  # noqa: PTH208 - a folder that is open cannot be another meanwhile
                seen = {name: self._file(folder, name) for name in names}
        except FileNotFoundError:
            seen = {}
        except OSError as error:
            self._say(SourceState.FAILED, f"{self._folder}: {error.strerror}")
            return
        self._seen = {name: file for name, file in seen.items() if file is not None}
        self._say(SourceState.LIVE, "")
        found = [file.receipt for file in self._seen.values() if file.receipt is not None]
        found.sort(key=lambda receipt: (receipt.time, receipt.identity), reverse=True)
        shown = tuple(found[:RECEIPTS_LIMIT])
        if shown != self._shown:
            self._shown = shown
            self._call(self._on_receipts, shown)

    def _file(self, folder: int, name: str) -> _Seen | None:
        """What this file is, read only if it was not seen as it is; None for one that is gone or being written."""
        if name.startswith("."):
            return None
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        known = self._seen.get(name)
        if known is not None and known.identity == _identity(found):
            return known
        try:
            return _Seen(_identity(found), self._receipt(folder, name, found))
        except FileNotFoundError:
            return None
        except _NoReceiptError as error:
            aside = _Seen(_identity(found), why=str(error))
        except OSError as error:
            aside = _Seen(_UNREAD, why=error.strerror or type(error).__name__)  # to be tried again
        if known is None or known.why != aside.why:
            printable = os.fsencode(name).decode("ascii", "backslashreplace")
            log.warning(
                "a file in the folder of receipts is left aside",
                extra={"file": f"{self._folder}/{printable}", "why": aside.why},
            )
        return aside

    def _receipt(self, folder: int, name: str, found: os.stat_result) -> Receipt:
        """Raises _NoReceiptError, and OSError if it cannot be read."""
        if not stat.S_ISREG(found.st_mode):
            raise _NoReceiptError("not a regular file")
        # It may be another file by now: neither a link nor a FIFO that nobody writes to must hold this thread.
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder
        )
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _NoReceiptError("not a regular file")
            document = file.read(RECEIPT_FILE_LIMIT + 1)
        if len(document) > RECEIPT_FILE_LIMIT:
            raise _NoReceiptError(f"larger than {RECEIPT_FILE_LIMIT} bytes")
        return _checked(document, name, self._boot_id)

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._call(self._on_state, state, message)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("a callback of the receipts source failed")


def _checked(document: bytes, name: str, boot_id: str) -> Receipt:
    """The receipt, its message cut to what a report may hold. Raises _NoReceiptError."""
    try:
        receipt = read_receipt(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _NoReceiptError(f"no receipt: {error}") from error
    if receipt.boot_id != boot_id:
        raise _NoReceiptError(f"of boot {receipt.boot_id[:_BOOT_ID_LIMIT]!r}, not of this one")
    if why := "; ".join(_out_of_bounds(receipt)):
        raise _NoReceiptError(why)
    if name != (expected := receipt_name(*receipt.identity)):
        raise _NoReceiptError(f"its content belongs into {expected}")
    return msgspec.structs.replace(receipt, message=receipt.message[:RECEIPT_MESSAGE_LIMIT])


def _out_of_bounds(receipt: Receipt) -> Iterator[str]:
    if not _SESSION.fullmatch(receipt.session):
        yield "session: expected an object's name, of at most 253 characters"
    if not 1 <= len(receipt.boot_id) <= _BOOT_ID_LIMIT:
        yield f"bootID: expected 1 to {_BOOT_ID_LIMIT} characters"
    if not _WORD.fullmatch(receipt.step):
        yield "step: expected a word such as Reset"
    if not _WORD.fullmatch(receipt.result):
        yield "result: expected a word such as Done"
    if not 0 <= receipt.attempt <= _ATTEMPT_LIMIT:
        yield f"attempt: expected 0 to {_ATTEMPT_LIMIT}"
    if len(receipt.devices) > RECEIPT_DEVICES_LIMIT:
        yield f"devices: expected at most {RECEIPT_DEVICES_LIMIT}"
    if not all(_UUID.fullmatch(uuid) for uuid in receipt.devices):
        yield "devices: expected UUIDs of at most 80 characters"


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _identity(found: os.stat_result) -> _Identity:
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
