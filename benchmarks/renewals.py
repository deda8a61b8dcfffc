"""The renewals of many nodes' reports: `python -m benchmarks.renewals KUBECONFIG REPORTS RATE`.

Creates the reports, says so in one line, then renews them in turn at RATE a second until it is ended, and says from
time to time how many it has renewed: `renewed COUNT failed COUNT seconds SECONDS`.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks import reports
from benchmarks.reports import REPORTS
from runtime.api_errors import ApiError, Conflict
from runtime.kubernetes import Session


def main(kubeconfig: str, count: int, rate: float) -> None:
    """Create, then renew for ever."""
    session = Session.from_kubeconfig(Path(kubeconfig), user_agent="renewals")
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda number: _create(session, number), range(count)))
        print("ready", flush=True)
        fleet = Renewals(session, versions)
        begun = time.monotonic()
        pace = threading.Event()
        for sent in range(sys.maxsize):
            pool.submit(fleet.renew, sent % count, sent // count + 1)
            if sent % round(rate) == 0:
                print(fleet.line(time.monotonic() - begun), flush=True)
            ahead = begun + sent / rate - time.monotonic()
            if ahead > 0:
                pace.wait(ahead)


@dataclass(slots=True)
class Renewals:
    """What was renewed so far. `versions` are the reports' resourceVersions."""

    session: Session
    versions: list[str]
    renewed: int = 0
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self, number: int, sequence: int) -> None:
        """One renewal; what fails is counted, for the next one of this report needs no more than its version."""
        path = f"{REPORTS}/{reports.name(number)}"
        body = msgspec.json.encode(reports.update(number, sequence, self.versions[number]))
        try:
            self.versions[number] = reports.version_of(self.session.put(f"{path}/status", body).body)
        except ApiError:
            self.count(failed=1)
            self.versions[number] = reports.version_of(self.session.get(path).body)
        else:
            self.count(renewed=1)

    def count(self, *, renewed: int = 0, failed: int = 0) -> None:
        """From any thread."""
        with self.lock:
            self.renewed += renewed
            self.failed += failed

    def line(self, seconds: float) -> str:
        """The account."""
        return f"renewed {self.renewed} failed {self.failed} seconds {seconds:.1f}"


def _create(session: Session, number: int) -> str:
    """The report, new or from before; its version."""
    try:
        answer = session.post(REPORTS, msgspec.json.encode(reports.new(number)))
    except Conflict:
        answer = session.get(f"{REPORTS}/{reports.name(number)}")
    return reports.version_of(answer.body)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
