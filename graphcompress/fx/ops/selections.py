"""Operators that pick elements by index or by order."""

from __future__ import annotations

import operator as op

import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.functional import gather_nd, one_hot, pad, quantise, round_to, scatter_nd, take
from graphcompress.fx.ops.table import operator, single_call
from graphcompress.fx.sizes import Sizes
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import operand


@operator("Gather")
def gather(builder: FxBuilder, node: ir.Node) -> Operand:
    """Slices picked by index; a table of two dimensions is an embedding."""
    data, indices = node.inputs
    axis = node.attributes.get_int("axis", 0)
    sizes, numbers = builder.sizes(data), builder.sizes(indices)
    if sizes is not None and numbers is not None and numbers.known is not None:
        return Sizes(tuple(sizes.items[index] for index in numbers.known), numbers.scalar, sizes.dtype)
    if numbers is not None and numbers.scalar and not isinstance(numbers.items[0], fx.Node):
        return builder.method("select", builder.tensor(data), axis, numbers.items[0])
    table, index = builder.tensor(data), builder.tensor(indices)
    rank = builder.rank(data, node)
    if rank == 2 and axis == 0 and is_constant(data) and not builder.has_negatives(indices):
        return _embedding(builder, node, table, index)
    if builder.rank(indices, node) == 1 and builder.has_negatives(indices) is False:
        return builder.call(torch.index_select, table, axis, index)
    return builder.call(take, table, index, axis)


def _embedding(builder: FxBuilder, node: ir.Node, table: fx.Node, index: fx.Node) -> fx.Node:
    """Rows of a table; those of a table in low precision are picked before they are rounded."""
    if table.target is round_to:
        return builder.call(round_to, builder.call(functional.embedding, index, table.args[0]), table.args[1])
    if table.target is quantise:
        return _quantised_rows(builder, node, table, index)
    return builder.call(functional.embedding, index, table)


def _quantised_rows(builder: FxBuilder, node: ir.Node, table: fx.Node, index: fx.Node) -> fx.Node:
    weight, scale, zero, lower, upper, *channel = table.args
    shape = builder.stored.shape(scale)
    rows = builder.call(functional.embedding, index, weight)
    if not channel or shape.numel() == 1:
        return builder.call(quantise, rows, scale, zero, lower, upper)
    if len(shape) == 1 and channel == [1]:
        last = builder.rank(node.outputs[0], node) - 1
        return builder.call(quantise, rows, scale, zero, lower, upper, last)
    if zero == 0 and shape.numel() == shape[0]:
        steps = builder.call(functional.embedding, index, builder.method("reshape", scale, -1, 1))
        return builder.call(quantise, rows, steps, 0, lower, upper)
    return builder.call(functional.embedding, index, table)


@operator("GatherElements")
def gather_elements(builder: FxBuilder, node: ir.Node) -> Operand:
    """Elements picked along an axis, an index for each."""
    data, indices = builder.tensor(node.inputs[0]), builder.tensor(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    if builder.has_negatives(node.inputs[1]) is not False:
        size = builder.method("size", data, axis)
        indices = builder.call(op.mod, indices, size)
    return builder.call(torch.gather, data, axis, builder.method("long", indices))


single_call("GatherND", gather_nd, batch_dims=0)


@operator("ScatterND")
def scatter_by_tuples(builder: FxBuilder, node: ir.Node) -> Operand:
    """A copy of a tensor with slices replaced, or added to, at tuples of indices."""
    reduction = node.attributes.get_string("reduction", "none")
    return builder.call(scatter_nd, *map(builder.tensor, node.inputs), REDUCTIONS[reduction])


@operator("ScatterElements")
def scatter_elements(builder: FxBuilder, node: ir.Node) -> Operand:
    """A copy of a tensor with elements replaced, or combined, at given indices."""
    data, indices, updates = map(builder.tensor, node.inputs)
    axis, reduction = node.attributes.get_int("axis", 0), node.attributes.get_string("reduction", "none")
    size = builder.method("size", data, axis)
    indices = builder.call(op.mod, indices, size)
    if reduction == "none":
        return builder.call(torch.scatter, data, axis, indices, updates)
    return builder.call(torch.scatter_reduce, data, axis, indices, updates, reduce=REDUCTIONS[reduction])


REDUCTIONS = {"none": "", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""Reductions of ONNX by the names of PyTorch."""


@operator("OneHot")
def one_hot_(builder: FxBuilder, node: ir.Node) -> Operand:
    """Rows of one value with another at an index."""
    indices, depth, values = node.inputs
    number = builder.operand(depth)
    if isinstance(number, fx.Node) and builder.sizes(depth) is None:
        number = builder.method("item", number)
    axis = node.attributes.get_int("axis", -1)
    return builder.call(one_hot, builder.tensor(indices), number, builder.tensor(values), axis)


@operator("NonZero")
def non_zero(builder: FxBuilder, node: ir.Node) -> Operand:
    """Indices of what is not 0, [rank, count]."""
    return builder.method("t", builder.call(torch.nonzero, builder.tensor(node.inputs[0])))


@operator("TopK")
def top_k(builder: FxBuilder, node: ir.Node) -> tuple[Operand | None, ...]:
    """The k largest or smallest entries along an axis, and where they were."""
    counts = builder.ints(node.inputs[1])
    if isinstance(counts, fx.Node):
        builder.refuse(node, "its k is computed at run time")
    # Of equal entries ONNX takes the first, which a stable sort gives and torch.topk does not promise.
    axis, largest = node.attributes.get_int("axis", -1), bool(node.attributes.get_int("largest", 1))
    parts = builder.call(
        torch.sort, builder.tensor(node.inputs[0]), dim=axis, descending=largest, stable=True
    )
    values, places = (builder.item(parts, index) for index in (0, 1))
    return tuple(builder.method("narrow", part, axis, 0, counts[0]) for part in (values, places))


@operator("CumSum")
def cumulative_sum(builder: FxBuilder, node: ir.Node) -> Operand:
    """Running sums along an axis; exclusive of the entry itself, or from the end, on request."""
    axes = builder.ints(node.inputs[1])
    if isinstance(axes, fx.Node):
        builder.refuse(node, "the rank of its axis is not known")
    axis = axes[0]
    x = builder.tensor(node.inputs[0])
    backwards = bool(node.attributes.get_int("reverse", 0))
    made = builder.call(torch.flip, x, [axis]) if backwards else x
    made = builder.call(torch.cumsum, made, axis)
    if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32:
        made = builder.method("to", made, torch.int32)
    made = builder.call(torch.flip, made, [axis]) if backwards else made
    return builder.call(op.sub, made, x) if node.attributes.get_int("exclusive", 0) else made


@operator("Pad")
def pad_(builder: FxBuilder, node: ir.Node) -> Operand:
    """Entries added around a tensor, or taken away."""
    mode = node.attributes.get_string("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        builder.refuse(node, f"the mode {mode!r}")
    value, axes = operand(node, 2), operand(node, 3)
    fill: object = 0 if value is None else builder.operand(value)
    chosen = None if axes is None else builder.ints(axes)
    widths = builder.ints(node.inputs[1])
    extra = () if chosen is None else (chosen if isinstance(chosen, fx.Node) else tuple(chosen),)
    listed = widths if isinstance(widths, fx.Node) else tuple(widths)
    return builder.call(pad, builder.tensor(node.inputs[0]), listed, mode, fill, *extra)
