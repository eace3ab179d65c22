"""Entries of stored tables that no position can reach, of tokens no more than were promised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.data.agreed_lengths import AgreedLengths
from graphcompress.files.declared import Dim
from graphcompress.graph.match import (
    axis_of,
    fixed_shape,
    integers_of,
    is_standard,
    operand,
    producer,
    scalar,
    shape_of,
)
from graphcompress.graph.model import Model, is_weight
from graphcompress.passes.simplify.buckets import drop_buckets
from graphcompress.passes.simplify.needed.axes import MixedError, Place, places_behind
from graphcompress.ranges.bounds import Bounds
from graphcompress.ranges.interval import UNIT, Interval
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.sizes import size_read

_SAME_NUMBER = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape")


def drop_unreached(rw: Rewriter) -> int:
    """Cut the ends of constants that are read by positions, behind the last one that is read; how many.

    Tables of positions, masks of causality and lists of positions are read from the front, up to the length
    of the input: by a Gather, or by Slices one behind another. Distances of ALiBi are read up to the end,
    buckets of distances wherever they are. What else reads a constant reads all of it.
    """
    bounds = PositionBounds(rw.model)
    cut = drop_buckets(rw, bounds, lambda table: _end(table, 0, bounds)) + _drop_fronts(rw, bounds)
    for value in list(rw.model.graph.initializers.values()):
        shape, tensor = fixed_shape(value), value.const_value
        if shape is None or tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        ends = {axis: end for axis in range(len(shape)) if (end := _end(value, axis, bounds)) < shape[axis]}
        if not ends:
            continue
        told = " and ".join(f"{end:,} of {shape[axis]:,}" for axis, end in ends.items())
        rw.touch(value.name or "", f"{told} entries are left, which are all that an input can reach")
        if is_weight(value):
            kept = {axis: np.arange(end) for axis, end in ends.items()}
            rw.model.kept.setdefault(value.name or "", {}).update(kept)
        left = tuple(slice(ends.get(axis)) for axis in range(len(shape)))
        rw.overwrite(value, np.ascontiguousarray(tensor.numpy()[left]))
        cut += 1
    if cut:
        rw.clean()
    return cut


class PositionBounds(Bounds):
    """Intervals of values where inputs have at most so many tokens as was promised.

    A mask among the inputs holds 0 and 1, position numbers among them are those of that many tokens.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._lengths = AgreedLengths.of(model)

    def _compute(self, value: ir.Value) -> Interval | None:
        interval = self._promised(value) or super()._compute(value)
        largest = None if self._lengths is None or interval is None else largest_element(value)
        high = None if largest is None or self._lengths is None else self._lengths.highest(largest)
        # Past and new tokens are no more together than each of them may be alone.
        return interval if interval is None or high is None else interval.below(high)

    def _promised(self, value: ir.Value) -> Interval | None:
        lengths, node = self._lengths, value.producer()
        if lengths is None or value.dtype is None or not value.dtype.is_integer():
            return None
        if node is None:
            return None if value.const_value is not None else _of_input(value, lengths.most)
        if is_standard(node, "CumSum"):
            return self._added_up(node, lengths)
        size = size_expression(value)
        low, high = (None, None) if size is None else (lengths.lowest(size), lengths.highest(size))
        return None if low is None or high is None else Interval(float(low), float(high))

    def _added_up(self, node: ir.Node, lengths: AgreedLengths) -> Interval | None:
        """Of running sums: from the least to the most that so many numbers can be."""
        each, shape, axis = self.of(node.inputs[0]), shape_of(node.inputs[0]), scalar(node.inputs[1])
        count = None if shape is None or axis is None else lengths.highest(shape[int(axis)])
        if each is None or count is None:
            return None
        return Interval(min(each.low, each.low * count, 0.0), max(each.high, each.high * count, 0.0))


def _of_input(value: ir.Value, most: int) -> Interval | None:
    name = (value.name or "").lower()
    if "mask" in name:
        return UNIT
    return Interval(0.0, most - 1.0) if "position" in name else None


def size_expression(value: ir.Value | None) -> Dim | None:
    """The size, or sum of sizes, that an integer of one element holds."""
    number = scalar(value)
    if number is not None:
        return int(number)
    read = size_read(value)
    if read is not None:
        return read
    node = producer(value, *_SAME_NUMBER)
    if node is not None:
        return size_expression(node.inputs[0])
    node = producer(value, "Add", "Sub")
    left, right = (None, None) if node is None else map(size_expression, node.inputs)
    if node is None or left is None or right is None:
        return None
    return left + right if node.op_type == "Add" else left - right


def largest_element(value: ir.Value | None) -> Dim | None:
    """A size, or sum of sizes, that no element of an integer value is above."""
    size = size_expression(value)
    if size is not None:
        return size
    counted = producer(value, "Range")
    if counted is not None:
        limit, step = size_expression(counted.inputs[1]), scalar(counted.inputs[2])
        return None if limit is None or step is None or step < 1 else limit - 1
    same = producer(value, *_SAME_NUMBER, "Expand", "Gather", "Slice")
    if same is not None:
        return largest_element(same.inputs[0])
    total = producer(value, "Add")
    left, right = (None, None) if total is None else map(largest_element, total.inputs)
    return None if left is None or right is None else left + right


def _drop_fronts(rw: Rewriter, bounds: Bounds) -> int:
    """Cut the front of constants that Slices read up to the end, as those of ALiBi are; of how many."""
    cut = 0
    for value in list(rw.model.graph.initializers.values()):
        shape, tensor, uses = fixed_shape(value), value.const_value, tuple(value.uses())
        if shape is None or tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        found = {_unread_front(use.node, use.idx, shape, bounds) for use in uses}
        if len(found) != 1 or (first := found.pop()) is None:
            continue
        axis, gone = first
        told = f"{shape[axis] - gone:,} of {shape[axis]:,} entries are left, counted from the end"
        rw.touch(value.name or "", f"{told}, which are all that an input can reach")
        if is_weight(value):
            rw.model.kept.setdefault(value.name or "", {})[axis] = np.arange(gone, shape[axis])
        for node in dict.fromkeys(use.node for use in uses):
            at = rw.at(node)
            start = at.op("Sub", node.inputs[1], at.constant(np.array([gone]), "gone"), name="start")
            rw.set_input(node, 1, start)
        rw.overwrite(value, np.ascontiguousarray(np.delete(tensor.numpy(), np.s_[:gone], axis)))
        cut += 1
    return cut


def _unread_front(node: ir.Node, index: int, shape: Sequence[int], bounds: Bounds) -> tuple[int, int] | None:
    """The axis that a Slice reads up to its end, and how many entries before that none is read of."""
    axes, ends, steps = (integers_of(operand(node, place)) for place in (3, 2, 4))
    if index or not is_standard(node, "Slice") or axes is None or ends is None or len(axes) != 1:
        return None
    axis, start = axes[0] % len(shape), bounds.of(operand(node, 1))
    if start is None or start.low < 1 or ends[0] < shape[axis] or (operand(node, 4) and steps != [1]):
        return None
    return (axis, int(start.low)) if start.low < shape[axis] else None


def _end(value: ir.Value, axis: int, bounds: Bounds) -> int:
    """How many entries of ``axis`` are read at most, counted from the front: all of them where in doubt."""
    size = (value.shape or ())[axis]
    if not isinstance(size, int) or value.is_graph_output() or not value.uses():
        return size if isinstance(size, int) else 0
    return max(min(_read_by(use.node, use.idx, axis, bounds) or size, size) for use in value.uses())


def _read_by(node: ir.Node, index: int, axis: int, bounds: Bounds) -> int | None:
    """How many entries of ``axis`` of an operand ``node`` reads, from the front; None: perhaps all."""
    if index or not is_standard(node, "Gather", "Slice", *_SAME_NUMBER, "Transpose"):
        return None
    rank = len((node.inputs[0].shape if node.inputs[0] else None) or ())
    if node.op_type == "Gather" and axis_of(node, rank, 0) == axis:
        return _after(bounds.of(node.inputs[1]))
    ends = _slice_ends(node, rank, bounds) if node.op_type == "Slice" else {}
    if ends is None or axis in ends:
        return None if ends is None else ends[axis]
    return _read_behind(node, axis, bounds, sliced=bool(ends))


def _read_behind(node: ir.Node, axis: int, bounds: Bounds, *, sliced: bool) -> int | None:
    """How many entries are read of the axis of the result that ``axis`` becomes."""
    out = node.outputs[0]
    if sliced:
        return _end_of(out, axis, bounds)
    for own in range(len(out.shape or ())):
        try:
            place = places_behind(node, Place(own)).get(0)
        except MixedError:
            continue
        if place == Place(axis):
            return _end_of(out, own, bounds)
    return None


def _end_of(value: ir.Value, axis: int, bounds: Bounds) -> int | None:
    return None if value.is_graph_output() or not value.uses() else _end(value, axis, bounds)


def _after(interval: Interval | None) -> int | None:
    """The number of entries up to the last of these indices; negative ones count from the end."""
    return None if interval is None or interval.low < 0 else int(interval.high) + 1


def _slice_ends(node: ir.Node, rank: int, bounds: Bounds) -> dict[int, int | None] | None:
    """Axis → how many entries a Slice reads at most, from the front (None: perhaps all); None: not known."""
    axes = integers_of(operand(node, 3)) if operand(node, 3) is not None else list(range(rank))
    if axes is None:
        return None
    found: dict[int, int | None] = {}
    for place, axis in enumerate(axes):
        start, stop = (bounds.of(_entry(operand(node, index), place, len(axes))) for index in (1, 2))
        steps = integers_of(operand(node, 4))
        forward = operand(node, 4) is None or (steps is not None and steps[place] > 0)
        front = forward and start is not None and start.low >= 0 and stop is not None and stop.low >= 0
        found[axis % rank] = int(stop.high) if front and stop is not None else None
    return found


def _entry(value: ir.Value | None, place: int, count: int) -> ir.Value | None:
    """What makes entry ``place`` of a vector of bounds; the vector itself where it cannot be told apart."""
    parts = producer(value, "Concat")
    if parts is not None and len(parts.inputs) == count:
        return parts.inputs[place]
    return value
