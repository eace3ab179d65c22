"""Shape arithmetic, and operators that only move or repeat elements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.reshape import reshape_target
from graphcompress.expressions import is_constant
from graphcompress.rewrite import Rewriter
from graphcompress.rules.base import (
    Rule,
    constant,
    only_use,
    producer,
    replaceable,
    same_shape,
    tolerates,
)

LARGEST_TABLE = 64
"""Elements of an integer value that shape inference knows and that becomes a stored constant."""


def known_value(rw: Rewriter, node: ir.Node) -> str | None:
    """A value that shape inference computed becomes a constant: Shape, Gather, Concat … of fixed sizes."""
    value = node.outputs[0]
    tensor = value.const_value
    if len(node.outputs) != 1 or tensor is None or value.is_graph_output() or tensor.size > LARGEST_TABLE:
        return None
    if not value.uses() or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return None
    rw.replace(value, rw.constant(tensor.numpy(), f"{value.name}.folded"))
    return "shape arithmetic on fixed sizes"


def constant_target(rw: Rewriter, node: ir.Node) -> str | None:
    """The computed target of a Reshape becomes a constant of copies (0) and at most one inferred size (-1)."""
    data, target = node.inputs
    if data is None or target is None or is_constant(target):
        return None
    out = node.outputs[0]
    if data.shape is None or out.shape is None:
        return None
    sizes = reshape_target(list(data.shape), list(out.shape))
    if sizes is None:
        return None
    _reshape(rw, node, data, sizes)
    return "Reshape target computed at run time"


def no_op_reshape(rw: Rewriter, node: ir.Node) -> str | None:
    """A Reshape, Expand or Slice to the shape that its input has is removed."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or not same_shape(data.shape, out.shape) or not replaceable(out, data):
        return None
    if node.op_type == "Slice" and not _steps_forward(node):
        return None
    rw.replace(out, data)
    return f"no-op {node.op_type}"


def reshape_of_reshape(rw: Rewriter, node: ir.Node) -> str | None:
    """Two Reshapes, the first read by nothing else, become one."""
    first = producer(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if first is None or only_use(first.outputs[0]) is not node:
        return None
    data, out = first.inputs[0], node.outputs[0]
    if data is None or data.shape is None or out.shape is None:
        return None
    sizes = reshape_target(list(data.shape), list(out.shape))
    if sizes is None:
        return None
    _reshape(rw, node, data, sizes)
    return f"{first.op_type} before Reshape"


def unflattened_transpose(rw: Rewriter, node: ir.Node) -> str | None:
    """Flatten the leading axes, transpose the others, unflatten: one Transpose, as torch exports K of attention."""
    transpose = producer(node.inputs[0], "Transpose")
    flatten = producer(transpose.inputs[0], "Reshape") if transpose else None
    if transpose is None or flatten is None or flatten.inputs[0] is None:
        return None
    data, flat, out = flatten.inputs[0], flatten.outputs[0], node.outputs[0]
    perm = transpose.attributes.get_ints("perm")
    if data.shape is None or flat.shape is None or out.shape is None or not perm or perm[0] != 0:
        return None
    lead = len(data.shape) - len(flat.shape) + 1
    moved = [*range(lead), *(lead + axis - 1 for axis in perm[1:])]
    if lead < 2 or len(out.shape) != len(data.shape) or not same_shape(data.shape[lead:], flat.shape[1:]):
        return None
    if not same_shape([data.shape[axis] for axis in moved], out.shape):
        return None
    rw.supersede(out, rw.node("Transpose", data, before=node, name=f"{out.name}.transposed", perm=moved))
    return "Reshape pair around a Transpose"


def transpose_chain(rw: Rewriter, node: ir.Node) -> str | None:
    """A Transpose that moves nothing is removed; a Transpose of a Transpose becomes one."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None:
        return None
    perm = node.attributes.get_ints("perm") or tuple(reversed(range(len(data.shape))))
    if list(perm) == sorted(perm) and replaceable(out, data):
        rw.replace(out, data)
        return "no-op Transpose"
    inner = producer(data, "Transpose")
    if inner is None or inner.inputs[0] is None:
        return None
    first = inner.attributes.get_ints("perm") or tuple(reversed(range(len(data.shape))))
    both = [first[axis] for axis in perm]
    rw.set_input(node, 0, inner.inputs[0])
    rw.set_attribute(node, "perm", both)
    return "Transpose of a Transpose"


def expand_before_broadcast(rw: Rewriter, node: ir.Node) -> str | None:
    """An Expand is removed when every reader broadcasts by itself."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or not replaceable(out, data) or not tolerates(out, data.shape):
        return None
    rw.replace(out, data)
    return "Expand before broadcasting"


def unsqueeze_of_unsqueeze(rw: Rewriter, node: ir.Node) -> str | None:
    """Two Unsqueezes become one."""
    inner = producer(node.inputs[0], "Unsqueeze")
    out = node.outputs[0]
    if inner is None or inner.inputs[0] is None or out.shape is None or inner.outputs[0].shape is None:
        return None
    first, second = constant(inner.inputs[1]), constant(node.inputs[1])
    if first is None or second is None:
        return None
    middle, rank = len(inner.outputs[0].shape), len(out.shape)
    added = {int(axis) % rank for axis in second.reshape(-1)}
    kept = [axis for axis in range(rank) if axis not in added]
    axes = sorted(added | {kept[int(axis) % middle] for axis in first.reshape(-1)})
    rw.set_input(node, 0, inner.inputs[0])
    rw.set_input(node, 1, rw.constant(np.array(axes, np.int64), f"{out.name}.axes"))
    return "Unsqueeze of an Unsqueeze"


def cast_of_same_type(rw: Rewriter, node: ir.Node) -> str | None:
    """A Cast to the type that its input has is removed."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.dtype is None or not replaceable(out, data):
        return None
    if int(data.dtype) != node.attributes.get_int("to", 0):
        return None
    rw.replace(out, data)
    return "no-op Cast"


def _reshape(rw: Rewriter, node: ir.Node, data: ir.Value, sizes: list[int]) -> None:
    rw.set_input(node, 0, data)
    rw.set_input(node, 1, rw.constant(np.array(sizes, np.int64), f"{node.outputs[0].name}.shape"))
    rw.set_attribute(node, "allowzero", None)  # a 0 copies


def _steps_forward(node: ir.Node) -> bool:
    """Whether a Slice that keeps the shape also keeps the order: it does unless a step is negative."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    if steps is None:
        return True
    array = constant(steps)
    return array is not None and bool((array > 0).all())


RULES: dict[str, tuple[Rule, ...]] = {
    "Reshape": (no_op_reshape, unflattened_transpose, constant_target, reshape_of_reshape),
    "Transpose": (transpose_chain,),
    "Expand": (no_op_reshape, expand_before_broadcast),
    "Slice": (known_value, no_op_reshape),
    "Unsqueeze": (known_value, unsqueeze_of_unsqueeze),
    "Cast": (known_value, cast_of_same_type),
} | {
    op: (known_value,) for op in ("Shape", "Size", "Gather", "Concat", "Squeeze", "Mul", "Add", "Sub", "Div")
}
"""Operator → rules, tried in this order."""
