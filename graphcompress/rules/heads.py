"""Batched products over flattened axes [batch·heads, s, d] become products over [batch, heads, s, d]."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import only_reader, producer, rank_of, scalar, shape_of
from graphcompress.graph.sizes import same_shape
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule

Build = Callable[[], ir.Value]


def unflattened(rw: Rewriter, node: ir.Node) -> str | None:
    """Flatten leading axes, multiply, scale or transpose, unflatten: the same without both Reshapes.

    Found from the Reshape that unflattens, upwards; nothing is built unless every operand is flattened alike.
    """
    flat, out = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if flat is None or out is None or len(out) <= len(flat):
        return None
    lead = list(out)[: len(out) - len(flat) + 1]
    if not same_shape(out[len(lead) :], flat[1:]):
        return None
    build = _lift(rw, node, node.inputs[0], lead)
    # A pair with nothing between it has a rule of its own, and would be counted as a product of heads here.
    if build is None or producer(node.inputs[0], "Reshape"):
        return None
    rw.replace(node.outputs[0], build(), take_name=True)
    return "Reshape pair around a product or Transpose of heads"


def _lift(rw: Rewriter, before: ir.Node, value: ir.Value | None, lead: list[Dim]) -> Build | None:
    """How to compute ``value`` with its first axis split into ``lead``, or None."""
    node = producer(value, "Reshape", "Transpose", "Mul", "Div", "MatMul")
    if node is None or shape_of(value) is None:
        return None
    if node.op_type != "Reshape" and only_reader(value) is None:
        return None  # a result that others read too would be computed twice
    return _LIFTS[node.op_type](rw, before, node, lead)


def _lift_reshape(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    data, flat = node.inputs[0], node.outputs[0].shape
    if data is None or data.shape is None or flat is None:
        return None
    return (lambda: data) if same_shape(data.shape, [*lead, *flat[1:]]) else None


def _lift_transpose(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    perm = node.attributes.get_ints("perm")
    inner = _lift(rw, before, node.inputs[0], lead)
    if inner is None or not perm or perm[0] != 0:
        return None
    moved = [*range(len(lead)), *(len(lead) + axis - 1 for axis in perm[1:])]
    return lambda: rw.at(before, _name(node)).op("Transpose", inner(), name="", perm=moved)


def _lift_scaled(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    data, factor = node.inputs
    inner = None if scalar(factor) is None else _lift(rw, before, data, lead)
    if inner is None:
        return None
    return lambda: rw.at(before, _name(node)).op(node.op_type, inner(), factor, name="")


def _lift_product(rw: Rewriter, before: ir.Node, node: ir.Node, lead: list[Dim]) -> Build | None:
    left, right = (_lift(rw, before, value, lead) for value in node.inputs)
    if left is None or right is None or rank_of(node.inputs[0]) != rank_of(node.inputs[1]):
        return None
    return lambda: rw.at(before, _name(node)).op("MatMul", left(), right(), name="")


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
