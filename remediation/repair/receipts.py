"""The receipts folder on the host: what makes a repair happen once.

A receipt's file is made before the deed, by name and exclusively: whoever makes it may act, and nobody else ever
does. It is replaced by the outcome. Whatever has the name, readable or not, ours or not, counts as a receipt.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Protocol

import msgspec

from health.receipt import Receipt, RepairResult, read_receipt, receipt_name

KEPT = 64
"""Receipts kept in a folder; the oldest go first, and never the one that was just made."""

_NAME = re.compile(r"(reset|reboot|restartservice)-[0-9]{1,9}-[0-9a-f]{16}\.json")
_READ_LIMIT = 64 * 1024


class ReceiptError(Exception):
    """The folder or a receipt cannot be written: one line that names it."""


class Receipts(Protocol):
    """Where receipts are kept."""

    def begin(self, receipt: Receipt) -> str:
        """Claim its identity. Empty: claimed, and safe on the disk. Else what is there already, for people.

        Raises ReceiptError; the identity may be claimed by then.
        """

    def finish(self, begun: Receipt, outcome: Receipt) -> None:
        """Replace what `begin` wrote. Raises ReceiptError, also where it is not there any more as it was written."""


class ReceiptFolder:
    """Receipts as files of one folder, which is made with the first of them."""

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        self._path = path
        self._kept = kept

    def begin(self, receipt: Receipt) -> str:
        target = self._target(receipt)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if other := self._other_attempt(receipt):
                return other
            _write_new(target, msgspec.json.encode(receipt))
            _sync_folder(self._path)
        except FileExistsError:
            return f"{target.name} {_told(target)}"
        except OSError as error:
            raise ReceiptError(f"{error.filename or target}: {error.strerror or error}") from error
        # What is too much is no reason to leave a node unrepaired.
        with contextlib.suppress(OSError):
            self._prune(keep=target.name)
        return ""

    def finish(self, begun: Receipt, outcome: Receipt) -> None:
        target = self._target(begun)
        temporary = self._path / f".{target.name}.new"
        try:
            if _read(target) != msgspec.json.encode(begun):
                raise ReceiptError(f"{target}: is not what was written before the deed, and is left as it is")
            temporary.unlink(missing_ok=True)
            _write_new(temporary, msgspec.json.encode(outcome))
            temporary.replace(target)
            _sync_folder(self._path)
        except OSError as error:
            raise ReceiptError(f"{error.filename or target}: {error.strerror or error}") from error

    def _other_attempt(self, receipt: Receipt) -> str:
        """Another attempt of the same session and step that speaks against this one: a later one, since whoever is
        late with this has been given up, or an earlier one that is not over."""
        own = self._target(receipt).name
        step, _, digest = own.removesuffix(".json").split("-")
        for path in sorted(self._path.glob(f"{step}-*-{digest}.json")):
            attempt = int(path.name.split("-")[1]) if _NAME.fullmatch(path.name) else receipt.attempt
            if attempt > receipt.attempt:
                return f"{path.name} exists, which is of a later attempt"
            if attempt < receipt.attempt and _is_begun(path):
                return f"{path.name} says that an earlier attempt is not over"
        return ""

    def _target(self, receipt: Receipt) -> Path:
        return self._path / receipt_name(*receipt.identity)

    def _prune(self, *, keep: str) -> None:
        """Remove the oldest of our files above the limit. What is not named like ours, or is no file, stays."""
        ages: list[tuple[int, Path]] = []
        for path in self._path.iterdir():
            if not _NAME.fullmatch(path.name) or path.name == keep:
                continue
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    ages.append((found.st_mtime_ns, path))
        for _, path in sorted(ages)[: max(0, len(ages) + 1 - self._kept)]:
            path.unlink(missing_ok=True)


def _is_begun(path: Path) -> bool:
    try:
        return read_receipt(_read(path)).result == RepairResult.BEGUN
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _told(path: Path) -> str:
    """What a receipt that is there says, for people."""
    try:
        receipt = read_receipt(_read(path))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return "exists, and is no receipt that can be read"
    return f"exists ({receipt.result}{': ' if receipt.message else ''}{receipt.message})"


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(_READ_LIMIT)


def _write_new(path: Path, content: bytes) -> None:
    """Raises FileExistsError; also for a link, whatever it leads to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
