"""What selects what: label selectors, node affinity, taints and tolerations, as Kubernetes decides them. Pure.

Sources: apimachinery's labels package, component-helpers' nodeaffinity, core/v1 toleration.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulation.cluster.interface import Object

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
NOT_READY_TAINT = "node.kubernetes.io/not-ready"
UNREACHABLE_TAINT = "node.kubernetes.io/unreachable"

Labels = Mapping[str, str]


def selects(selector: Mapping[str, Any] | None, labels: Labels) -> bool:
    """Whether a LabelSelector selects labels: none selects nothing, an empty one everything."""
    if selector is None:
        return False
    wanted: Labels = selector.get("matchLabels") or {}
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    return all(requirement_holds(one, labels) for one in selector.get("matchExpressions") or ())


def requirement_holds(requirement: Mapping[str, Any], labels: Labels) -> bool:
    """Whether one requirement holds: In, NotIn, Exists, DoesNotExist, Gt or Lt. An unknown operator never does."""
    value = labels.get(str(requirement.get("key")))
    values: Sequence[str] = requirement.get("values") or ()
    match requirement.get("operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compares(operator, value, values)
        case _:
            return False


def node_selected(pod_spec: Mapping[str, Any], node: Object) -> bool:
    """Whether a pod's nodeSelector and required node affinity allow the node."""
    labels: Labels = node["metadata"].get("labels") or {}
    wanted: Labels = pod_spec.get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    terms = affinity_terms(pod_spec)
    return terms is None or any(_term_holds(term, node["metadata"]["name"], labels) for term in terms)


def affinity_terms(pod_spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The terms of the required node affinity, of which one must hold; None where there is no such affinity."""
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return None if required is None else required.get("nodeSelectorTerms") or ()


def named_nodes(pod_spec: Mapping[str, Any]) -> frozenset[str] | None:
    """The only nodes that can be meant, where every term names them by metadata.name; None where any can."""
    terms = affinity_terms(pod_spec)
    if not terms:
        return None
    names: set[str] = set()
    for term in terms:
        fields = [one for one in term.get("matchFields") or () if one.get("key") == "metadata.name"]
        if not fields or fields[0].get("operator") != "In":
            return None
        names.update(fields[0].get("values") or ())
    return frozenset(names)


def tolerates(tolerations: Sequence[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """Whether one of the tolerations puts up with the taint."""
    return any(toleration_matches(one, taint) for one in tolerations)


def toleration_matches(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Whether a toleration is about the taint; without key it is about all, without effect about all effects."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(
    tolerations: Sequence[Mapping[str, Any]], taints: Sequence[Mapping[str, Any]], *effects: str
) -> Mapping[str, Any] | None:
    """The first taint with one of these effects that nothing tolerates."""
    return next(
        (taint for taint in taints if taint.get("effect") in effects and not tolerates(tolerations, taint)),
        None,
    )


def _term_holds(term: Mapping[str, Any], name: str, labels: Labels) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(requirement_holds(one, labels) for one in expressions) and all(
        requirement_holds(one, {"metadata.name": name}) for one in fields
    )


def _compares(operator: str, value: str | None, values: Sequence[str]) -> bool:
    try:
        number, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound
