"""Who asked for what, and what was answered: the latest requests, in memory."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime

KEPT = 4_000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One request. `code` is 0 where the client got no answer; `fault` is the kind of the fault that struck it."""

    time: datetime
    user: str
    user_agent: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    uri: str
    content_type: str
    body: bytes
    code: int
    fault: str = ""

    @property
    def mutates(self) -> bool:
        """Whether the request could have changed something."""
        return self.verb in ("create", "update", "patch", "delete", "deletecollection")


class Audit:
    """A ring of entries; safe to read from any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[AuditEntry] = deque(maxlen=kept)
        self._lock = threading.Lock()
        self.total = 0
        """How many requests there have been."""

    def add(self, entry: AuditEntry) -> None:
        with self._lock:
            self._entries.append(entry)
            self.total += 1

    def entries(self) -> list[AuditEntry]:
        """The latest requests, oldest first."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
