"""Which metrics an expression reads, and which labels it has at each point: what PromQL itself never checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import promql_parser as promql

TARGET_LABELS = frozenset({"cluster", "instance", "job", "namespace", "node", "pod"})
"""What the scraper adds to every series."""

Known = Mapping[str, frozenset[str]]
"""The labels of each series name."""


@dataclass
class Reading:
    """What is wrong with one expression, the label values that it asks for, and the labels of what comes out."""

    known: Known
    wrong: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(metric, label, value) of each matcher but negative and open-ended ones."""
    result: frozenset[str] = frozenset()

    def labels(self, node: promql.Expr) -> frozenset[str]:
        """The labels that the node's series may have; what is wrong below it is noted."""
        match node:
            case promql.VectorSelector():
                return self._selected(node)
            case promql.MatrixSelector():
                return self._selected(node.vector_selector)
            case promql.AggregateExpr():
                return self._aggregated(node)
            case promql.BinaryExpr():
                return self._combined(node)
            case promql.Call():
                return self._called(node)
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                return self.labels(node.expr)
            case _:
                return frozenset()

    def _selected(self, selector: promql.VectorSelector) -> frozenset[str]:
        matchers = list(selector.matchers.matchers)
        name = selector.name or next((one.value for one in matchers if one.name == "__name__"), "")
        labels = self.known.get(name)
        if labels is None:
            self.wrong.append(f"no metric {name}")
            return TARGET_LABELS
        self._check(f"{name} has no label", (one.name for one in matchers), labels)
        for one in matchers:
            if one.op in (promql.MatchOp.Equal, promql.MatchOp.Re):
                self.asked += [(name, one.name, value) for value in one.value.split("|")]
        return labels

    def _aggregated(self, node: promql.AggregateExpr) -> frozenset[str]:
        below = self.labels(node.expr)
        if node.modifier is None:
            return below if str(node.op) in ("topk", "bottomk") else frozenset()
        named = frozenset(node.modifier.labels)
        self._check(f"{node.op} over a label that is not there:", named, below)
        return named if node.modifier.type == promql.AggModifierType.By else below - named

    def _combined(self, node: promql.BinaryExpr) -> frozenset[str]:
        left, right = self.labels(node.lhs), self.labels(node.rhs)
        modifier = node.modifier
        matching = modifier.matching if modifier is not None else None
        for side in (left, right):
            if matching is not None and side:
                self._check(f"{node.op} matches by a label that is not there:", matching.labels, side)
        if str(node.op) == "or":
            return left | right
        if str(node.op) in ("and", "unless"):
            return left
        if modifier is not None and modifier.card == promql.VectorMatchCardinality.OneToMany:
            return right
        return left or right

    def _called(self, node: promql.Call) -> frozenset[str]:
        labels = frozenset().union(*(self.labels(one) for one in node.args))
        if node.func.name in ("absent", "absent_over_time"):
            return frozenset(label for _, label, _ in self.asked)
        if node.func.name == "histogram_quantile":
            self._check("histogram_quantile without label", ["le"], labels)
            return labels - {"le"}
        if node.func.name == "label_replace":
            return labels | {node.args[1].val}
        return labels

    def _check(
        self, what: str, names: Iterator[str] | frozenset[str] | list[str], have: frozenset[str]
    ) -> None:
        self.wrong += [f"{what} {name}" for name in names if name not in have]


def read(expr: str, known: Known) -> Reading:
    """Parse an expression and look at it. Raises ValueError where it is none."""
    reading = Reading(known)
    reading.result = reading.labels(promql.parse(expr))
    return reading
