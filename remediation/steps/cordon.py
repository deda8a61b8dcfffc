"""Cordon and uncordon, with the ownership record in the same atomic patch.

A node that a person cordoned first is left to that person: no record is written, so it is never uncordoned
by us. Every patch carries the node's resourceVersion, so what a person did meanwhile is never overwritten.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from remediation.fleet import SESSION_KEY, Node
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import Conflict, NotFound


class NodeApi(Protocol):
    """What these steps need of the Kubernetes API."""

    def get_node(self, name: str) -> Node:
        """A live read. Raises NotFound and the other API errors."""

    def patch_node(self, name: str, patch: bytes) -> Node:
        """A JSON merge patch. Raises Conflict, NotFound and the other API errors."""


def cordon(api: NodeApi, node: Node, *, session: str) -> Outcome:
    """Make the node unschedulable for this session, or find that it is already.

    Starts from the node as it is known; if that is out of date the patch conflicts, and a live read decides.
    """
    for known in (node, None):
        try:
            current = known or api.get_node(node.name)
            if current.metadata.uid != node.metadata.uid:
                return Outcome(Result.CHANGED, "another node has the name now", current)
            if current.owner_session == session:
                return Outcome(Result.DONE, "was cordoned by this session already", current)
            if current.spec.unschedulable:
                return Outcome(Result.ALREADY_CORDONED, "somebody had cordoned the node before", current)
            patched = api.patch_node(node.name, _patch(current, session=session, unschedulable=True))
            return Outcome(Result.DONE, "cordoned", patched)
        except Conflict:
            continue
        except NotFound:
            return Outcome(Result.CHANGED, "the node is gone")
    return Outcome(Result.CHANGED, "the node changed while it was cordoned")


def uncordon(api: NodeApi, node: Node, *, session: str) -> Outcome:
    """Take back this session's own cordon, and nothing else.

    Where a person has uncordoned already, only the record is removed.
    """
    try:
        current = api.get_node(node.name)
        if current.metadata.uid != node.metadata.uid:
            return Outcome(Result.CHANGED, "another node has the name now", current)
        if current.owner_session != session:
            return Outcome(Result.NOT_OURS, "the cordon is not this session's, so it stays", current)
        patched = api.patch_node(node.name, _patch(current, session=None, unschedulable=None))
        return Outcome(Result.DONE, "uncordoned", patched)
    except Conflict:
        return Outcome(Result.CHANGED, "the node changed while it was uncordoned")
    except NotFound:
        return Outcome(Result.CHANGED, "the node is gone")


def _patch(node: Node, *, session: str | None, unschedulable: bool | None) -> bytes:
    return msgspec.json.encode(
        {
            "metadata": {
                "uid": node.metadata.uid,
                "resourceVersion": node.metadata.resource_version,
                "annotations": {SESSION_KEY: session},
            },
            "spec": {"unschedulable": unschedulable},
        }
    )
