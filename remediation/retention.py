"""Which closed sessions have been kept long enough. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from remediation.objects import AcceleratorRemediation

KEEP = timedelta(days=30)
KEEP_PER_NODE = 20


def outlived(sessions: Iterable[AcceleratorRemediation], now: datetime) -> list[AcceleratorRemediation]:
    """Closed sessions older than 30 days, and those beyond the newest 20 of a node."""
    of_node: dict[str, list[tuple[datetime, AcceleratorRemediation]]] = defaultdict(list)
    for session in sessions:
        closed = session.current.closed_time
        if session.current.phase.closed and closed is not None:
            of_node[session.spec.node_name].append((closed, session))
    gone: list[AcceleratorRemediation] = []
    for kept in of_node.values():
        kept.sort(key=lambda item: item[0], reverse=True)
        gone.extend(
            session
            for place, (closed, session) in enumerate(kept)
            if place >= KEEP_PER_NODE or now - closed > KEEP
        )
    return gone
