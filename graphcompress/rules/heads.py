"""Batched products over flattened axes [batch·heads, s, d] become products over [batch, heads, s, d]."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphcompress.analysis.arguments import scalar
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Dim, Rule, only_use, producer, same_shape

Build = Callable[[], ir.Value]


def unflattened(rw: Rewriter, node: ir.Node) -> str | None:
    """Flatten leading axes, multiply, scale or transpose, unflatten: the same without both Reshapes.

    Found from the Reshape that unflattens, upwards; nothing is built unless every operand is flattened alike.
    """
    flat, out = node.inputs[0], node.outputs[0]
    if flat is None or flat.shape is None or out.shape is None or len(out.shape) <= len(flat.shape):
        return None
    lead = list(out.shape)[: len(out.shape) - len(flat.shape) + 1]
    if not same_shape(list(out.shape)[len(lead) :], list(flat.shape)[1:]):
        return None
    build = _lift(rw, node, flat, lead)
    if build is None or producer(flat, "Reshape") is not None:
        return None
    rw.supersede(out, build())
    return "Reshape pair around a product or Transpose of heads"


def _lift(rw: Rewriter, before: ir.Node, value: ir.Value, lead: list[Dim]) -> Build | None:
    """How to compute ``value`` with its first axis split into ``lead``, or None."""
    node = producer(value, "Reshape", "Transpose", "Mul", "Div", "MatMul")
    if node is None or value.shape is None or (node.op_type != "Reshape" and only_use(value) is None):
        return None  # a result that others read too would be computed twice
    return _LIFTS[node.op_type](rw, before, node, lead)


def _lift_reshape(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    data, flat = node.inputs[0], node.outputs[0].shape
    if data is None or data.shape is None or flat is None:
        return None
    shape = list(data.shape)
    if not same_shape(shape[: len(lead)], lead) or not same_shape(shape[len(lead) :], list(flat)[1:]):
        return None
    return lambda: data


def _lift_transpose(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    perm = node.attributes.get_ints("perm")
    inner = None if node.inputs[0] is None else _lift(rw, before, node.inputs[0], lead)
    if inner is None or not perm or perm[0] != 0:
        return None
    moved = [*range(len(lead)), *(len(lead) + axis - 1 for axis in perm[1:])]
    return lambda: rw.node("Transpose", inner(), before=before, name=_name(node), perm=moved)


def _lift_scaled(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    data, factor = node.inputs
    inner = None if data is None or scalar(factor) is None else _lift(rw, before, data, lead)
    if inner is None:
        return None
    return lambda: rw.node(node.op_type, inner(), factor, before=before, name=_name(node))


def _lift_product(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    left, right = (None if value is None else _lift(rw, before, value, lead) for value in node.inputs)
    ranks = {len(value.shape) for value in node.inputs if value is not None and value.shape is not None}
    if left is None or right is None or len(ranks) != 1:
        return None
    return lambda: rw.node("MatMul", left(), right(), before=before, name=_name(node))


def _name(node: ir.Node) -> str:
    return f"{node.outputs[0].name}.heads"


_LIFTS = {
    "Reshape": _lift_reshape,
    "Transpose": _lift_transpose,
    "Mul": _lift_scaled,
    "Div": _lift_scaled,
    "MatMul": _lift_product,
}

RULES: dict[str, tuple[Rule, ...]] = {"Reshape": (unflattened,)}
"""Operator → rules, tried in this order."""
