"""Constant expressions: a weight may be a stored tensor or a small graph over stored tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.files.runtime import session_of

_NOT_FOLDABLE = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_NATIVE = frozenset(
    {"FLOAT", "FLOAT16", "DOUBLE", "BOOL"}
    | {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
)
"""Data types that NumPy has, too."""


class Constants:
    """Which values are the same in every run; remembered, so valid until the graph is edited.

    Such a value is stored, or computed from stored ones by standard operators. An initializer that is also a
    graph input can be overridden by the caller, so it is not constant. A value of variable size depends on
    the inputs: that ends the search early in all that is computed per sample.
    """

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def __call__(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is constant; an absent operand is."""
        if value is None:
            return True
        pending = [value]
        while pending:
            if pending[-1] in self._known:
                pending.pop()
                continue
            verdict, unknown = self.decide(pending[-1])
            if verdict is None:
                pending.append(unknown)
            else:
                self._known[pending.pop()] = verdict
        return self._known[value]

    def decide(self, value: ir.Value) -> tuple[bool | None, ir.Value]:
        """The verdict on ``value``, or None and an operand that it depends on."""
        if value.is_graph_input():
            return False, value
        if value.const_value is not None:
            return True, value
        node = value.producer()
        if (
            node is None
            or not _is_foldable(node)
            or (value.shape is not None and not value.shape.is_static())
        ):
            return False, value
        for operand in node.inputs:
            if operand is not None and not self._known.get(operand, False):
                return (False if operand in self._known else None), operand
        return True, value


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is the same in every run; for many values, ask one :class:`Constants`."""
    return Constants()(value)


def _is_foldable(node: ir.Node) -> bool:
    holds_graph = any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()
    )
    return not node.domain and node.op_type not in _NOT_FOLDABLE and not holds_graph


def expression_nodes(value: ir.Value) -> list[ir.Node]:
    """Nodes that compute the constant ``value``, in the order of execution (empty for a stored tensor)."""
    ordered: dict[ir.Node, None] = {}
    pending = [(_computed_by(value), False)]
    while pending:
        node, operands_done = pending.pop()
        if node is None or node in ordered:
            continue
        if operands_done:
            ordered[node] = None
            continue
        pending.append((node, True))
        pending.extend((_computed_by(operand), False) for operand in reversed(node.inputs))
    return list(ordered)


def _computed_by(value: ir.Value | None) -> ir.Node | None:
    """The node that makes ``value``; None for a stored tensor."""
    return None if value is None or value.const_value is not None else value.producer()


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


def evaluate(value: ir.Value, replaced: Mapping[ir.Value, np.ndarray] | None = None) -> np.ndarray:
    """The array that the constant ``value`` stands for; an expression is computed by ONNX Runtime.

    ``replaced`` gives other arrays, of the same type and shape, for some of its leaves.
    """
    if value.const_value is not None:
        return (
            value.const_value.numpy() if replaced is None else replaced.get(value, value.const_value.numpy())
        )
    arrays = {leaf: leaf.const_value.numpy() for leaf in leaves(value) if leaf.const_value is not None}
    return _compute(value, {**arrays, **(replaced or {})})


def _compute(value: ir.Value, stored: Mapping[ir.Value, np.ndarray]) -> np.ndarray:
    """Run the nodes behind ``value``; formats that NumPy has not go in as tensors and come out as float32."""
    nodes = [ir.to_proto(node) for node in expression_nodes(value)]
    foreign = {leaf for leaf in stored if leaf.dtype is not None and leaf.dtype.name not in _NATIVE}
    result = value.name or ""
    if value.dtype is not None and value.dtype.name not in _NATIVE:
        nodes.append(onnx.helper.make_node("Cast", [result], ["as_float"], to=onnx.TensorProto.FLOAT))
        result = "as_float"
    graph = onnx.helper.make_graph(
        nodes,
        "expression",
        [_info(leaf, array) for leaf, array in stored.items() if leaf not in foreign],
        [onnx.helper.make_empty_tensor_value_info(result)],
        [ir.to_proto(_named(leaf, array)) for leaf, array in stored.items() if leaf in foreign],
    )
    node = value.producer()
    opset = node.graph.opset_imports[""] if node is not None and node.graph is not None else 18
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    session = session_of(proto.SerializeToString())
    feed = {leaf.name: array for leaf, array in stored.items() if leaf not in foreign}
    computed: np.ndarray = session.run(None, feed)[0]
    return computed


def _info(leaf: ir.Value, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(leaf.name or "", kind, array.shape)


def _named(leaf: ir.Value, array: np.ndarray) -> ir.TensorProtocol:
    return ir.tensor(array, dtype=leaf.dtype, name=leaf.name)
