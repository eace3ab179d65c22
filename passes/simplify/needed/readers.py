"""Nodes that read some positions of a value alone: the first token, a slice, the last one of each row."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import (
    axis_of,
    fixed_size,
    integers_of,
    is_standard,
    operand,
    producer,
    rank_of,
    scalar,
    shape_of,
    slice_ranges,
)
from graphcompress.graph.sizes import same_dim, size_of
from graphcompress.passes.simplify.needed.rows import Computed, Demand, Fixed, PerRow, Window
from graphcompress.rules.sizes import size_read


@dataclass(frozen=True)
class Reader:
    """A node that reads a part of a value.

    Attributes:
        node: reads it by its first input.
        demand: what it reads.
    """

    node: ir.Node
    demand: Demand

    @property
    def data(self) -> ir.Value:
        """What it reads from."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.node.op_type} {self.node.name!r} reads nothing")
        return value


def reader_of(node: ir.Node) -> Reader | None:
    """``node`` as a reader of fewer positions than its first operand has, or None."""
    data = operand(node, 0)
    if data is None or not is_standard(node, *_KINDS) or data.producer() is None or is_constant(data):
        return None
    demand = _KINDS[node.op_type](node, data)
    if demand is None:
        return None
    sizes = data.shape or ir.Shape(())
    size, left = sizes[demand.axis], demand.narrowed(sizes)[demand.axis]
    return None if isinstance(size, int) and isinstance(left, int) and left >= size else Reader(node, demand)


def _gather(node: ir.Node, data: ir.Value) -> Demand | None:
    rank, index = rank_of(data), operand(node, 1)
    many = rank_of(index)
    if not rank or index is None or many is None or many > 1:
        return None
    axis = axis_of(node, rank, 0)
    fixed = integers_of(index)
    if fixed is not None:
        return Demand(Fixed(tuple(dict.fromkeys(fixed))), axis) if fixed else None
    if many == 1 and (flattened := _row_of_flattened(data, index, axis)) is not None:
        return flattened
    return Demand(Computed(index), axis) if many == 0 or fixed_size(index, 0) is not None else None


def _slice(node: ir.Node, data: ir.Value) -> Demand | None:
    ranges = slice_ranges(node)
    if ranges is None or len(ranges) != 1:
        return None
    ((axis, (start, stop, step)),) = ranges.items()
    if step < 1:
        return None
    size = fixed_size(data, axis)
    # Of an axis that may be shorter a Slice takes what there is; to look up a position beyond it is an error.
    is_there = start in (0, -1) if size is None else -size <= start < size
    if is_there and ((stop is None and start == -1) or (stop is not None and stop == start + 1 != 0)):
        return Demand(Fixed((start,)), axis)
    # What is left of an axis without its ends is most of it.
    bounded = stop is not None and 0 <= start < stop
    return Demand(Window(start, stop or 0, step), axis) if bounded else None


def _gather_nd(node: ir.Node, data: ir.Value) -> Demand | None:
    """The entries [row, index[row]]: the rows are counted, or those of ``batch_dims``."""
    index, shape = operand(node, 1), shape_of(data)
    if shape is None or len(shape) < 2 or rank_of(index) != 2:
        return None
    if node.attributes.get_int("batch_dims", 0) == 1:
        column = producer(index, "Unsqueeze")
        single = operand(column, 0) if integers_of(operand(column, 1)) in ([1], [-1]) else None
        return Demand(PerRow(single), 1, 0) if single is not None else None
    pair = producer(index, "Concat")
    columns = [operand(producer(value, "Unsqueeze"), 0) for value in pair.inputs] if pair else []
    if len(columns) != 2 or columns[1] is None or rank_of(columns[1]) != 1:
        return None
    return Demand(PerRow(columns[1]), 1, 0) if _counts(columns[0], shape[0]) else None


def _row_of_flattened(data: ir.Value, index: ir.Value, axis: int) -> Demand | None:
    """Rows ``position + length · row`` of [batch · length, ..]: one position for each row.

    A position that may be negative, or beyond the length, may be one of another row.
    """
    total = producer(index, "Add")
    flat = producer(data, "Flatten", "Reshape")
    before, after = shape_of(operand(flat, 0)), shape_of(data)
    if total is None or before is None or after is None or len(before) < 2 or axis != 0:
        return None
    batch, length = before[0], before[1]
    if size_of(batch) * size_of(length) != size_of(after[0]):
        return None
    for position, offset in (tuple(total.inputs), tuple(total.inputs)[::-1]):
        product = producer(offset, "Mul")
        for count, stride in () if product is None else (tuple(product.inputs), tuple(product.inputs)[::-1]):
            wide = size_read(stride)
            if _counts(count, batch) and wide is not None and same_dim(wide, length):
                inside = position is not None and rank_of(position) == 1 and _is_inside(position, length)
                return Demand(PerRow(position), 0, 0, batch) if inside and position is not None else None
    return None


def _is_inside(position: ir.Value, length: Dim) -> bool:
    """Whether ``position`` is from 0 to less than ``length``: one of an axis so long, or a rest by it."""
    while node := producer(position, "Cast", "Squeeze", "Reshape", "Flatten"):
        position = node.inputs[0]  # type: ignore[assignment]
    if (found := producer(position, "ArgMax", "ArgMin")) is not None:
        shape = shape_of(found.inputs[0])
        return shape is not None and same_dim(shape[axis_of(found, len(shape), 0)], length)
    rest = producer(position, "Mod")
    wide = None if rest is None or rest.attributes.get_int("fmod", 0) == 1 else size_read(operand(rest, 1))
    return wide is not None and same_dim(wide, length)


def _counts(value: ir.Value | None, size: Dim) -> bool:
    """Whether ``value`` is 0, 1, 2, … for each of ``size`` rows."""
    node = producer(value, "Range")
    shape = shape_of(value)
    if node is None or shape is None or len(shape) != 1 or not same_dim(shape[0], size):
        return False
    return scalar(node.inputs[0]) == 0 and scalar(node.inputs[2]) == 1


_KINDS = {"Gather": _gather, "GatherND": _gather_nd, "Slice": _slice}
"""Operator → what it reads of its first operand."""
