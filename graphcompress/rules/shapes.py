"""Operators that only move or repeat elements, and the shapes that they are given."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.broadcasting import tolerates
from graphcompress.graph.match import (
    array_of,
    integers_of,
    only_reader,
    operand,
    producer,
    rank_of,
    shape_of,
    slice_ranges,
)
from graphcompress.graph.sizes import reshape_target, same_dim, same_shape
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule, replaceable
from graphcompress.rules.sizes import known_value, quotient_of_size, size_of_input


def constant_target(rw: Rewriter, node: ir.Node) -> str | None:
    """The computed target of a Reshape becomes a constant: copies (0) and at most one inferred size (-1)."""
    data, target = node.inputs
    sizes = None if rw.is_constant(target) else _target(data, node.outputs[0])
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
    """Two of Reshape, Flatten, Squeeze and Unsqueeze, the first read by nothing else, become one Reshape."""
    first = producer(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if first is None or only_reader(first.outputs[0]) is None:
        return None
    data, out = first.inputs[0], node.outputs[0]
    sizes = _target(data, out)
    if sizes is None:
        return None
    if node.op_type == "Reshape":
        _reshape(rw, node, data, sizes)
    else:
        rw.replace(out, rw.at(node).op("Reshape", data, sizes, name="reshaped"), take_name=True)
    return f"{first.op_type} before {node.op_type}"


def no_op_pad(rw: Rewriter, node: ir.Node) -> str | None:
    """A Pad by nothing is removed."""
    data, out = node.inputs[0], node.outputs[0]
    pads = array_of(node.inputs[1])
    if data is None or pads is None or pads.any() or not replaceable(out, data):
        return None
    rw.replace(out, data)
    return "no-op Pad"


def slice_of_slice(rw: Rewriter, node: ir.Node) -> str | None:
    """Two Slices along different axes, with constant bounds, become one."""
    inner = producer(node.inputs[0], "Slice")
    first, second = inner and slice_ranges(inner), slice_ranges(node)
    if inner is None or not first or not second or first.keys() & second.keys():
        return None
    # An open end is written as the largest number below, which is the end of forward steps alone.
    if any(step < 1 for _, _, step in (*first.values(), *second.values())):
        return None
    both = sorted({**first, **second}.items())
    columns = (
        [start for _, (start, _, _) in both],
        [np.iinfo(np.int64).max if stop is None else stop for _, (_, stop, _) in both],
        [axis for axis, _ in both],
        [step for _, (_, _, step) in both],
    )
    rw.set_input(node, 0, inner.inputs[0])
    for index, (name, numbers) in enumerate(zip(_SLICE_INPUTS, columns, strict=True), start=1):
        rw.set_input(node, index, rw.at(node).constant(numbers, name))
    return "Slice of a Slice"


def transpose_chain(rw: Rewriter, node: ir.Node) -> str | None:
    """A Transpose that moves nothing is removed; a Transpose of a Transpose becomes one."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None:
        return None
    turned = tuple(reversed(range(len(data.shape))))
    perm = node.attributes.get_ints("perm") or turned
    if list(perm) == sorted(perm) and replaceable(out, data):
        rw.replace(out, data)
        return "no-op Transpose"
    inner = producer(data, "Transpose")
    if inner is None:
        return None
    first = inner.attributes.get_ints("perm") or turned
    # Whatever else reads the first one: this node reads past it.
    both = [first[axis] for axis in perm]
    rw.set_input(node, 0, inner.inputs[0])
    rw.set_attribute(node, "perm", both)
    return "Transpose of a Transpose"


def expand_before_broadcast(rw: Rewriter, node: ir.Node) -> str | None:
    """An Expand is removed when every reader broadcasts by itself."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or not replaceable(out, data) or not tolerates({out: data.shape}):
        return None
    rw.replace(out, data)
    return "Expand before broadcasting"


def constant_expand(rw: Rewriter, node: ir.Node) -> str | None:
    """The computed target of an Expand becomes a constant: 1 keeps a size, a number widens one."""
    data, target = node.inputs
    shape, wanted = shape_of(data), node.outputs[0].shape
    if rw.is_constant(target) or shape is None or wanted is None or len(wanted) < len(shape):
        return None
    known = [*([1] * (len(wanted) - len(shape))), *shape]
    sizes = [1 if same_dim(a, b) else b for a, b in zip(known, wanted, strict=True)]
    # A Reshape can infer one size (-1), an Expand none: with a size that varies the target stays computed.
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) < len(sizes):
        return None
    rw.set_input(node, 1, rw.at(node).constant(fixed, "shape"))
    return "Expand target computed at run time"


def unsqueeze_of_unsqueeze(rw: Rewriter, node: ir.Node) -> str | None:
    """Two Unsqueezes become one."""
    inner = producer(node.inputs[0], "Unsqueeze")
    middle, rank = rank_of(node.inputs[0]), rank_of(node.outputs[0])
    first, second = integers_of(operand(inner, 1)), integers_of(node.inputs[1])
    if inner is None or middle is None or rank is None or first is None or second is None:
        return None
    added = {axis % rank for axis in second}
    kept = [axis for axis in range(rank) if axis not in added]
    axes = sorted(added | {kept[axis % middle] for axis in first})
    rw.set_input(node, 0, inner.inputs[0])
    rw.set_input(node, 1, rw.at(node).constant(axes, "axes"))
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


def cast_of_cast(rw: Rewriter, node: ir.Node) -> str | None:
    """A Cast after a Cast that loses nothing becomes one."""
    inner = producer(node.inputs[0], "Cast")
    data = operand(inner, 0)
    if inner is None or data is None or data.dtype is None:
        return None
    if ir.DataType(inner.attributes.get_int("to", 0)) not in _LOSSLESS.get(data.dtype, ()):
        return None
    rw.set_input(node, 0, data)
    return "Cast before a Cast"


def _target(data: ir.Value | None, out: ir.Value) -> list[int] | None:
    """What a Reshape of ``data`` to the shape of ``out`` is given."""
    old, new = shape_of(data), out.shape
    return None if old is None or new is None else reshape_target(list(old), list(new))


def _reshape(rw: Rewriter, node: ir.Node, data: ir.Value | None, sizes: list[int]) -> None:
    rw.set_input(node, 0, data)
    rw.set_input(node, 1, rw.at(node).constant(sizes, "shape"))
    rw.set_attribute(node, "allowzero", None)  # a 0 copies


def _steps_forward(node: ir.Node) -> bool:
    """Whether a Slice that keeps the shape also keeps the order: it does unless a step is negative."""
    steps = operand(node, "steps")
    return steps is None or min(integers_of(steps) or [0]) > 0


_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
_LOSSLESS = {
    ir.DataType.BOOL: (*_INTEGERS, ir.DataType.FLOAT),
    ir.DataType.INT32: (ir.DataType.INT64,),
    ir.DataType.FLOAT16: (ir.DataType.FLOAT,),
}
"""Type → the types that hold every number of it."""

_SLICE_INPUTS = ("starts", "ends", "axes", "steps")

_MOVES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("Shape", "Gather"), (known_value, size_of_input)),
    "Reshape": (no_op_reshape, constant_target, reshape_of_reshape),
    "Transpose": (transpose_chain,),
    "Expand": (no_op_reshape, expand_before_broadcast, constant_expand),
    "Pad": (no_op_pad,),
    "Div": (known_value, quotient_of_size),
    "Slice": (known_value, no_op_reshape, slice_of_slice),
    "Unsqueeze": (known_value, unsqueeze_of_unsqueeze, no_op_reshape, reshape_of_reshape),
    "Squeeze": (known_value, no_op_reshape, reshape_of_reshape),
    "Cast": (known_value, cast_of_same_type, cast_of_cast),
}
_ARITHMETIC = ("Size", "Concat", "Mul", "Add", "Sub")

RULES: dict[str, tuple[Rule, ...]] = {**dict.fromkeys(_ARITHMETIC, (known_value,)), **_MOVES}
"""Operator → rules, tried in this order."""
