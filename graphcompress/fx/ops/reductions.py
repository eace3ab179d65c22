"""Sums, means, extremes and norms over axes."""

from __future__ import annotations

import operator as op
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.functional import product
from graphcompress.fx.ops.table import operator
from graphcompress.fx.sizes import Item
from graphcompress.graph.match import operand

_PLAIN: dict[str, Callable[..., Any]] = {
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


@operator(*_PLAIN, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceProd", "ReduceSumSquare")
def reduce(builder: FxBuilder, node: ir.Node) -> Operand:
    """One number for all entries along some axes, or along all."""
    axes, keep = _axes(builder, node), bool(node.attributes.get_int("keepdims", 1))
    x = builder.tensor(node.inputs[0])
    if isinstance(axes, tuple) and not axes:
        return _each(builder, node.op_type, x)
    if node.op_type == "ReduceProd":
        return builder.call(product, x, axes, keep)
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype == ir.DataType.BOOL:
        return builder.call(torch.any if node.op_type == "ReduceMax" else torch.all, x, axes, keepdim=keep)
    before, function, after = _STEPS.get(node.op_type, (None, _PLAIN.get(node.op_type), None))
    x = x if before is None else before(builder, x)
    made = builder.call(function or torch.sum, x, axes, keepdim=keep)
    made = made if after is None else builder.call(after, made)
    return _integer_again(builder, node, made)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(builder: FxBuilder, node: ir.Node) -> Operand:
    """One number for all positions: everything behind the batch and the channels."""
    positions = tuple(range(2, builder.rank(node.inputs[0], node)))
    function = torch.mean if node.op_type == "GlobalAveragePool" else torch.amax
    return builder.call(function, builder.tensor(node.inputs[0]), positions, keepdim=True)


_STEPS: dict[str, tuple[Any, Callable[..., Any] | None, Callable[..., Any] | None]] = {
    "ReduceL1": (lambda builder, x: builder.call(torch.abs, x), torch.sum, None),
    "ReduceL2": (lambda builder, x: builder.call(op.mul, x, x), torch.sum, torch.sqrt),
    "ReduceLogSum": (None, torch.sum, torch.log),
    "ReduceSumSquare": (lambda builder, x: builder.call(op.mul, x, x), torch.sum, None),
}


def _integer_again(builder: FxBuilder, node: ir.Node, made: fx.Node) -> fx.Node:
    """PyTorch sums int32 in int64."""
    dtype = node.outputs[0].dtype
    if dtype not in (ir.DataType.INT32, ir.DataType.UINT8, ir.DataType.INT8):
        return made
    return builder.method("to", made, torch.int32 if dtype == ir.DataType.INT32 else torch.int8)


def _each(builder: FxBuilder, op_type: str, x: fx.Node) -> fx.Node:
    """A reduction over no axis: what it does to a single entry."""
    if op_type == "ReduceSumSquare":
        return builder.call(op.mul, x, x)
    if op_type in ("ReduceL1", "ReduceL2"):
        return builder.call(torch.abs, x)
    return builder.call(torch.log, x) if op_type == "ReduceLogSum" else x


def _axes(builder: FxBuilder, node: ir.Node) -> tuple[Any, ...] | fx.Node:
    """The axes: an input since opset 18 (13 for ReduceSum), an attribute before."""
    rank = builder.rank(node.inputs[0], node)
    value = operand(node, 1)
    given: Sequence[Item]
    if value is None:
        given = node.attributes.get_ints("axes", ())
    else:
        numbers = builder.ints(value)
        if isinstance(numbers, fx.Node):
            return numbers
        given = tuple(numbers)
    if not given:
        return () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(given)


@operator("ArgMax", "ArgMin")
def arg_extreme(builder: FxBuilder, node: ir.Node) -> Operand:
    """Index of the first (or last) largest or smallest entry along an axis."""
    x, axis = builder.tensor(node.inputs[0]), node.attributes.get_int("axis", 0)
    keep = bool(node.attributes.get_int("keepdims", 1))
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    if not node.attributes.get_int("select_last_index", 0):
        return builder.call(function, x, dim=axis, keepdim=keep)
    found = builder.call(function, builder.call(torch.flip, x, [axis]), dim=axis, keepdim=keep)
    last = builder.call(op.sub, builder.method("size", x, axis), 1)
    return builder.call(op.sub, last, found)
