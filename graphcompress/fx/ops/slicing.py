"""Operators that cut tensors apart and put them together: Concat, Split, Slice."""

from __future__ import annotations

import math
import operator as op
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.functional import slice_at_run_time, take_backwards
from graphcompress.fx.ops.table import operator
from graphcompress.fx.sizes import Item, Sizes
from graphcompress.graph.match import operand


@operator("Concat")
def concat(builder: FxBuilder, node: ir.Node) -> Operand:
    """Tensors joined along an axis; sizes joined to a list."""
    found = [builder.sizes(value) for value in node.inputs]
    if all(item is not None and not item.scalar for item in found):
        items = tuple(number for item in found if item is not None for number in item.items)
        return Sizes(items, dtype=node.outputs[0].dtype or ir.DataType.INT64)
    parts = [builder.tensor(value) for value in node.inputs]
    return builder.call(torch.cat, parts, dim=node.attributes.get_int("axis"))


@operator("Split")
def split(builder: FxBuilder, node: ir.Node) -> tuple[Operand | None, ...]:
    """A tensor cut along an axis, into given sizes or equal parts."""
    x, value = builder.tensor(node.inputs[0]), operand(node, 1)
    axis, count = node.attributes.get_int("axis", 0), len(node.outputs)
    if value is not None:
        given = builder.ints(value)
        lengths = given if isinstance(given, fx.Node) else list(given)
        parts = builder.call(torch.split, x, lengths, dim=axis)
    else:
        whole = None if node.inputs[0] is None else builder.size(node.inputs[0], axis)
        if isinstance(whole, int):
            each: object = math.ceil(whole / count)
        else:
            each = builder.call(op.floordiv, builder.call(op.add, whole, count - 1), count)
        parts = builder.call(torch.split, x, each, dim=axis)
    return tuple(builder.call(op.getitem, parts, index) for index in range(count))


@operator("Slice")
def slice_(builder: FxBuilder, node: ir.Node) -> Operand:
    """Parts of axes, from a start to an end in steps."""
    source = node.inputs[0]
    starts, ends = builder.ints(node.inputs[1]), builder.ints(node.inputs[2])
    axes = builder.known_ints(operand(node, 3))
    steps = builder.known_ints(operand(node, 4))
    if isinstance(starts, fx.Node) or isinstance(ends, fx.Node):
        builder.refuse(node, "the number of its axes is not known")
    if (operand(node, 3) is not None and axes is None) or (operand(node, 4) is not None and steps is None):
        return _sliced_at_run_time(builder, node, starts, ends)
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    found = builder.sizes(source)
    if found is not None and not any(isinstance(item, fx.Node) for item in (*starts, *ends)):
        return Sizes(found.items[slice(_bound(starts[0]), _bound(ends[0]), steps[0])], dtype=found.dtype)
    return _sliced(builder, node, list(zip(axes, starts, ends, steps, strict=True)))


def _bound(item: Item) -> int | None:
    return None if isinstance(item, fx.Node) or abs(item) >= _END else item


_END = np.iinfo(np.int32).max


def _sliced(builder: FxBuilder, node: ir.Node, cuts: list[tuple[int, Item, Item, int]]) -> fx.Node:
    x = builder.tensor(node.inputs[0])
    rank = builder.rank(node.inputs[0], node)
    index: list[object] = [slice(None)] * rank
    for axis, start, end, step in cuts:
        if step < 0:
            x = builder.call(take_backwards, x, axis, start, end, step)
            continue
        index[axis % rank] = slice(
            None if start == 0 else start,
            None if not isinstance(end, fx.Node) and end >= _END else end,
            None if step == 1 else step,
        )
    while index and index[-1] == slice(None):
        index.pop()
    return builder.call(op.getitem, x, tuple(index)) if index else x


def _sliced_at_run_time(
    builder: FxBuilder, node: ir.Node, starts: Sequence[Item], ends: Sequence[Item]
) -> fx.Node:
    """Axes or steps are inputs of the model."""
    axes, steps = operand(node, 3), operand(node, 4)
    given = [
        list(starts),
        list(ends),
        list(range(len(starts))) if axes is None else builder.ints(axes),
        [1] * len(starts) if steps is None else builder.ints(steps),
    ]
    return builder.call(slice_at_run_time, builder.tensor(node.inputs[0]), *given)
