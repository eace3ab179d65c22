"""Constant expressions: a weight may be a stored tensor or a small graph over stored tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.runtime import session_of

_NOT_FOLDABLE = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
)


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is the same in every run: an initializer, or computed from such by standard operators.

    An initializer that is also a graph input can be overridden by the caller, so it is not constant.
    """
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.is_graph_input():
            return False
        if value.const_value is not None:
            continue
        node = value.producer()
        if node is None or node.domain or node.op_type in _NOT_FOLDABLE:
            return False
        if any(
            attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attr in node.attributes.values()
        ):
            return False
        pending.extend(node.inputs)
    return True


def expression_nodes(value: ir.Value) -> list[ir.Node]:
    """Nodes that compute the constant ``value``, in the order of execution (empty for a stored tensor)."""
    ordered: dict[ir.Node, None] = {}

    def visit(item: ir.Value | None) -> None:
        node = None if item is None else item.producer()
        if node is None or node in ordered:
            return
        for operand in node.inputs:
            visit(operand)
        ordered[node] = None

    visit(value)
    return list(ordered)


def leaves(value: ir.Value) -> list[ir.Value]:
    """Stored tensors that the constant ``value`` is computed from (itself, when it is stored)."""
    if value.const_value is not None:
        return [value]
    found = [
        v
        for node in expression_nodes(value)
        for v in node.inputs
        if v is not None and v.const_value is not None
    ]
    return list(dict.fromkeys(found))


def evaluate(value: ir.Value) -> np.ndarray:
    """The array that the constant ``value`` stands for; an expression is computed by ONNX Runtime."""
    if value.const_value is not None:
        return value.const_value.numpy()
    nodes = expression_nodes(value)
    stored = leaves(value)
    opsets = value.producer().graph.opset_imports  # type: ignore[union-attr]
    return _compute(nodes, stored, value, opsets[""])


def _compute(
    nodes: Sequence[ir.Node], stored: Sequence[ir.Value], result: ir.Value, opset: int
) -> np.ndarray:
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "expression",
        [onnx.helper.make_tensor_value_info(v.name, int(v.dtype), list(v.shape)) for v in stored],
        [onnx.helper.make_empty_tensor_value_info(result.name)],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    session = session_of(proto.SerializeToString())
    return session.run(None, {v.name: v.const_value.numpy() for v in stored})[0]
