"""Operators that only move or repeat elements, and the shapes that they are given."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.arguments import slice_ranges
from graphcompress.analysis.reshape import reshape_target
from graphcompress.graph.expressions import is_constant
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import (
    Rule,
    constant,
    only_use,
    producer,
    replaceable,
    same_dim,
    same_shape,
    tolerates,
)
from graphcompress.rules.sizes import known_value, quotient_of_size, size_of_input


def constant_target(rw: Rewriter, node: ir.Node) -> str | None:
    """The computed target of a Reshape becomes a constant: copies (0) and at most one inferred size (-1)."""
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
    """Two of Reshape, Flatten, Squeeze and Unsqueeze, the first read by nothing else, become one Reshape."""
    first = producer(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if first is None or only_use(first.outputs[0]) is not node:
        return None
    data, out = first.inputs[0], node.outputs[0]
    if data is None or data.shape is None or out.shape is None:
        return None
    sizes = reshape_target(list(data.shape), list(out.shape))
    if sizes is None:
        return None
    if node.op_type == "Reshape":
        _reshape(rw, node, data, sizes)
    else:
        target = rw.constant(np.array(sizes, np.int64), f"{out.name}.shape")
        rw.supersede(out, rw.node("Reshape", data, target, before=node, name=f"{out.name}.reshaped"))
    return f"{first.op_type} before {node.op_type}"


def no_op_pad(rw: Rewriter, node: ir.Node) -> str | None:
    """A Pad by nothing is removed."""
    data, out = node.inputs[0], node.outputs[0]
    pads = constant(node.inputs[1])
    if data is None or pads is None or pads.any() or not replaceable(out, data):
        return None
    rw.replace(out, data)
    return "no-op Pad"


def slice_of_slice(rw: Rewriter, node: ir.Node) -> str | None:
    """Two Slices along different axes, with constant bounds, become one."""
    inner = producer(node.inputs[0], "Slice")
    first, second = None if inner is None else slice_ranges(inner), slice_ranges(node)
    if inner is None or inner.inputs[0] is None or not first or not second or first.keys() & second.keys():
        return None
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
        table = rw.constant(np.array(numbers, np.int64), f"{node.outputs[0].name}.{name}")
        rw.set_input(node, index, table)
    return "Slice of a Slice"


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


def constant_expand(rw: Rewriter, node: ir.Node) -> str | None:
    """The computed target of an Expand becomes a constant: 1 keeps a size, a number widens one."""
    data, target = node.inputs
    out = node.outputs[0]
    if data is None or target is None or is_constant(target) or data.shape is None or out.shape is None:
        return None
    lacking = len(out.shape) - len(data.shape)
    known = [*([1] * lacking), *data.shape]
    sizes = [1 if same_dim(a, b) else b for a, b in zip(known, out.shape, strict=True)]
    if lacking < 0 or not all(isinstance(size, int) for size in sizes):
        return None
    table = np.array([int(size) for size in sizes if isinstance(size, int)], np.int64)
    rw.set_input(node, 1, rw.constant(table, f"{out.name}.shape"))
    return "Expand target computed at run time"


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


def cast_of_cast(rw: Rewriter, node: ir.Node) -> str | None:
    """A Cast after a Cast that loses nothing becomes one."""
    inner = producer(node.inputs[0], "Cast")
    if inner is None or inner.inputs[0] is None or inner.inputs[0].dtype is None:
        return None
    narrow, wide = inner.inputs[0].dtype, ir.DataType(inner.attributes.get_int("to", 0))
    if wide not in _LOSSLESS.get(narrow, ()):
        return None
    rw.set_input(node, 0, inner.inputs[0])
    return "Cast before a Cast"


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
