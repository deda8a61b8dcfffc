"""Cordon and uncordon, with the ownership record in the same atomic patch.

A node that a person cordoned first is left to that person: no record is written, so it is never uncordoned
by us. Every patch carries the node's resourceVersion, so what a person did meanwhile is never overwritten; and
a node that is not as the decision saw it (a hold, an opt-out, somebody's taint) is decided about anew.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from remediation.fleet import FIELD_MANAGER, SESSION_KEY, Node
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import Conflict, NotFound


class NodeApi(Protocol):
    """What these steps need of the Kubernetes API."""

    def get_node(self, name: str) -> Node:
        """A live read. Raises NotFound and the other API errors."""

    def patch_node(self, name: str, patch: bytes) -> Node:
        """A JSON merge patch. Raises Conflict, NotFound and the other API errors."""

    def remove_taint(self, node: Node, key: str) -> Node:
        """Remove the taints of this key from the node as it was read. Raises Conflict, NotFound and the others."""


def cordon(api: NodeApi, node: Node, *, session: str) -> Outcome:
    """Make the node unschedulable for this session, or find that it is already.

    Starts from the node as it is known, since every millisecond counts; if that is out of date, a live read
    decides. Where only the resourceVersion was (a kubelet writes its status often), it is tried once more.
    """
    try:
        if _owned(node, session):
            return Outcome(Result.DONE, "was cordoned by this session already", node)
        if not node.spec.unschedulable and (patched := _cordoned(api, node, session)):
            return Outcome(Result.DONE, "cordoned", patched)
        current = api.get_node(node.name)
        if current.metadata.uid != node.metadata.uid:
            return Outcome(Result.CHANGED, "another node has the name now", current)
        if _owned(current, session):
            return Outcome(Result.DONE, "was cordoned by this session already", current)
        if current.spec.unschedulable:
            return Outcome(Result.ALREADY_CORDONED, "somebody had cordoned the node before", current)
        if current.like(node) and (patched := _cordoned(api, current, session)):
            return Outcome(Result.DONE, "cordoned", patched)
        return Outcome(Result.CHANGED, "the node changed while it was cordoned", current)
    except NotFound:
        return Outcome(Result.CHANGED, "the node is gone")


def uncordon(api: NodeApi, node: Node, *, session: str) -> Outcome:
    """Take back this session's own cordon, and nothing else.

    Where a person was seen to have uncordoned the node, only the record goes: if the node is cordoned again by
    now, that cordon is the person's.
    """
    lifted = not node.spec.unschedulable
    try:
        current = api.get_node(node.name)
        if current.metadata.uid != node.metadata.uid:
            return Outcome(Result.CHANGED, "another node has the name now", current)
        if current.owner_session != session:
            if lifted and current.spec.unschedulable:
                return Outcome(Result.CHANGED, "the node is cordoned after all", current)
            return Outcome(Result.NOT_OURS, "there is no cordon of this session to lift", current)
        if lifted and node.owner_session == session:
            patch = _patch(current, {"annotations": {SESSION_KEY: None}})
            return Outcome(Result.DONE, "the record is removed", api.patch_node(node.name, patch))
        if not current.like(node):
            return Outcome(Result.CHANGED, "the node changed before it was uncordoned", current)
        if current.cordoned_by not in ("", FIELD_MANAGER):
            # Uncordoned and cordoned again while nobody of us looked: the record is ours, the cordon is not.
            patch = _patch(current, {"annotations": {SESSION_KEY: None}})
            message = f"the cordon is by {current.cordoned_by}, so it stays, and only the record is removed"
            return Outcome(Result.NOT_OURS, message, api.patch_node(node.name, patch))
        patch = _patch(current, {"annotations": {SESSION_KEY: None}}, {"unschedulable": None})
        return Outcome(Result.DONE, "uncordoned", api.patch_node(node.name, patch))
    except Conflict:
        return Outcome(Result.CHANGED, "the node changed while it was uncordoned")
    except NotFound:
        return Outcome(Result.CHANGED, "the node is gone")


def lift_taint(api: NodeApi, node: Node, key: str) -> Outcome:
    """Take away the taints of this key, whatever their effect, and leave all others as they are."""
    try:
        current = api.get_node(node.name)
        if current.metadata.uid != node.metadata.uid or not current.like(node):
            return Outcome(Result.CHANGED, "the node changed before its taint was lifted", current)
        return Outcome(Result.DONE, f"the taint {key} is lifted", api.remove_taint(current, key))
    except Conflict:
        return Outcome(Result.CHANGED, "the node changed while its taint was lifted")
    except NotFound:
        return Outcome(Result.CHANGED, "the node is gone")


def _owned(node: Node, session: str) -> bool:
    return node.owner_session == session and node.spec.unschedulable


def _cordoned(api: NodeApi, node: Node, session: str) -> Node | None:
    """The node with the cordon on it; None where it is not at this resourceVersion any more."""
    patch = _patch(node, {"annotations": {SESSION_KEY: session}}, {"unschedulable": True})
    try:
        return api.patch_node(node.name, patch)
    except Conflict:
        return None


def _patch(node: Node, metadata: dict[str, object], spec: dict[str, object] | None = None) -> bytes:
    preconditions = {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}
    document: dict[str, object] = {"metadata": {**preconditions, **metadata}}
    if spec is not None:
        document["spec"] = spec
    return msgspec.json.encode(document)
