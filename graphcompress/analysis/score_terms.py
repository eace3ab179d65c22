"""What attentions add to their scores: masks and biases, and which of them tie attentions together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.relations.rules import Relations
from graphcompress.analysis.relations.uses import Use

_MASK = 3
_MASKS = frozenset({"Add", "Sub", "Where", "Max", "Min"})
_SCALES = frozenset({"Mul", "Div", "Tanh", "Clip"})
_BETWEEN = _MASKS | _SCALES | {"Cast", "Identity", "Dropout", "Reshape"}


def score_terms(attention: Attention) -> list[Use]:
    """Where something else enters between the product of queries and keys and the Softmax."""
    node = attention.node
    if attention.scores is None:
        return [(node, _MASK)] if len(node.inputs) > _MASK and node.inputs[_MASK] is not None else []
    return _terms(node.inputs[0], attention.products[0], set()) or []


def _terms(value: ir.Value | None, product: ir.Node, seen: set[ir.Node]) -> list[Use] | None:
    """Operands beside the way from ``value`` back to the product; None when the way does not lead there."""
    node = None if value is None else value.producer()
    if node is product:
        return []
    if node is None or node.domain or node.op_type not in _BETWEEN or node in seen:
        return None
    seen.add(node)
    for index, operand in enumerate(node.inputs):
        found = _terms(operand, product, seen)
        if found is not None:
            beside = range(len(node.inputs)) if node.op_type != "Reshape" else ()
            return [*found, *((node, other) for other in beside if other != index)]
    return None


def tying_terms(relations: Relations, found: Sequence[Attention]) -> list[Use]:
    """Terms of the scores of attentions that cannot be cut one by one: heads are fixed, or tied to others'.

    Attentions that share the weight of the linear behind them are one, and stay so.
    """
    by_leaf: dict[int, list[Attention]] = defaultdict(list)
    tied: list[Attention] = []
    for attention in found:
        leaves = relations.head_leaves(attention.output, operator=attention.scores is None)
        free = [leaf for leaf in leaves if not relations.is_blocked(leaf)]
        (by_leaf[free[0]] if free else tied).append(attention)
    for several in by_leaf.values():
        if _distinct(several) > 1:
            tied.extend(several)
    return [use for attention in tied for use in score_terms(attention)]


def _distinct(several: Iterable[Attention]) -> int:
    return len({tuple(linear.weight for linear in attention.consumers) for attention in several})
