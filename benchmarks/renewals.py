"""The renewals of many nodes' reports: `python -m benchmarks.renewals KUBECONFIG REPORTS RATE`.

Creates the reports, says so in one line, then renews them in turn at RATE a second until it is ended.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from benchmarks import reports
from benchmarks.reports import REPORTS
from runtime.api_errors import Conflict
from runtime.kubernetes import Session


def main(kubeconfig: str, count: int, rate: float) -> None:
    """Create, then renew for ever."""
    session = Session.from_kubeconfig(Path(kubeconfig), user_agent="renewals")
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda number: _create(session, number), range(count)))
        print("ready", flush=True)
        begun = time.monotonic()
        pace = threading.Event()
        for sent in range(sys.maxsize):
            pool.submit(_renew, session, versions, sent % count, sent // count + 1)
            ahead = begun + sent / rate - time.monotonic()
            if ahead > 0:
                pace.wait(ahead)


def _create(session: Session, number: int) -> str:
    """The report, new or from before; its version."""
    try:
        answer = session.post(REPORTS, msgspec.json.encode(reports.new(number)))
    except Conflict:
        answer = session.get(f"{REPORTS}/{reports.name(number)}")
    return reports.version_of(answer.body)


def _renew(session: Session, versions: list[str], number: int, sequence: int) -> None:
    body = msgspec.json.encode(reports.update(number, sequence, versions[number]))
    answer = session.put(f"{REPORTS}/{reports.name(number)}/status", body)
    versions[number] = reports.version_of(answer.body)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
