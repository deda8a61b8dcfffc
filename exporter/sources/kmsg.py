"""The form of the kernel log: one record of /dev/kmsg, and lines of a file or FIFO in its place.

A record is `prefix,sequence,microseconds,flags[,more];text`, then lines that begin with a space
(Documentation/ABI/testing/dev-kmsg). The prefix is facility * 8 + level; control characters, backslashes
and everything beyond ASCII stand as `\\x0a`. Nothing here raises, whatever the bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE_LIMIT = 64 * 2**10
"""Bytes of the longest line of a file that is read; the kernel's own records have at most 8 KiB."""

_HEADER = re.compile(rb"(\d{1,10}),(\d{1,19}),(\d{1,19}),[^,;\n]{0,8}(?:,[^;\n]{0,1024})?;")
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_DRIVER_PREFIXES = (b"NVRM: ", b"nvidia-nvswitch")


@dataclass(frozen=True, slots=True)
class Record:
    """One kernel message. `microseconds` counts from boot; None is a line that does not say when it was written."""

    facility: int
    sequence: int
    microseconds: int | None
    message: str


def parse_record(raw: bytes) -> Record | None:
    """The record in these bytes, without its continuation lines; None if they are none."""
    header = _HEADER.match(raw)
    if header is None:
        return None
    text, _, _ = raw[header.end() :].partition(b"\n")
    return Record(
        facility=int(header[1]) >> 3,
        sequence=int(header[2]),
        microseconds=int(header[3]),
        message=_text(text),
    )


def sequence_of(raw: bytes) -> int | None:
    """A record's sequence number alone; None if these bytes are no record."""
    header = _HEADER.match(raw)
    return int(header[2]) if header else None


def bare_message(line: bytes) -> str | None:
    """A line that is the message of the driver itself, without a header; None for any other line."""
    return _text(line) if line.startswith(_DRIVER_PREFIXES) else None


def _text(raw: bytes) -> str:
    if b"\\x" in raw:
        raw = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), raw)
    return raw.decode("utf-8", "replace")


class Lines:
    """Cuts a stream of bytes into lines, however the reads split it. Holds at most one unfinished line."""

    __slots__ = ("_dropping", "_unfinished", "dropped")

    def __init__(self) -> None:
        self._unfinished = b""
        self._dropping = False
        self.dropped = 0
        """Lines that were longer than LINE_LIMIT."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, without their newlines; what is left waits for its end."""
        *lines, unfinished = (self._unfinished + chunk).split(b"\n")
        if lines and self._dropping:
            del lines[0]
            self._dropping = False
        self._unfinished = b"" if self._dropping else unfinished
        if len(self._unfinished) > LINE_LIMIT:
            self._unfinished = b""
            self._dropping = True
            self.dropped += 1
        if any(len(line) > LINE_LIMIT for line in lines):
            self.dropped += sum(len(line) > LINE_LIMIT for line in lines)
            lines = [line for line in lines if len(line) <= LINE_LIMIT]
        return lines
