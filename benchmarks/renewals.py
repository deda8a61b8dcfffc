"""The renewals of many nodes' reports: `python -m benchmarks.renewals KUBECONFIG REPORTS RATE`.

Creates the reports, says so in one line, then renews them in turn at RATE a second until it is ended.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from health.vocabulary import GROUP_VERSION
from runtime.api_errors import Conflict
from runtime.clock import rfc3339
from runtime.kubernetes import Session

REPORTS = f"/apis/{GROUP_VERSION}/acceleratorreports"


def main(kubeconfig: str, count: int, rate: float) -> None:
    """Create, then renew for ever."""
    session = Session.from_kubeconfig(Path(kubeconfig), user_agent="renewals")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _create(session, number), range(count)))
        print("ready", flush=True)
        begun = time.monotonic()
        pace = threading.Event()
        for sent in range(sys.maxsize):
            pool.submit(_renew, session, sent % count, sent // count + 1)
            ahead = begun + sent / rate - time.monotonic()
            if ahead > 0:
                pace.wait(ahead)


def _create(session: Session, number: int) -> None:
    document = {
        "apiVersion": GROUP_VERSION,
        "kind": "AcceleratorReport",
        "metadata": {"name": _name(number)},
    }
    try:
        session.post(REPORTS, msgspec.json.encode(document))
    except Conflict:
        return


def _renew(session: Session, number: int, sequence: int) -> None:
    status = {"nodeUID": _name(number), "sequence": sequence, "renewTime": rfc3339(datetime.now(UTC))}
    session.merge_patch(f"{REPORTS}/{_name(number)}/status", msgspec.json.encode({"status": status}))


def _name(number: int) -> str:
    return f"simulated-{number:05}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
