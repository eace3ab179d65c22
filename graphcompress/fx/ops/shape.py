"""Operators that ask for sizes, and those that move, repeat, cut or join elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.functional import expand_to, reshape_to, unsqueeze_at
from graphcompress.fx.ops.table import operator
from graphcompress.fx.sizes import Item, Sizes, sizes_of_array
from graphcompress.fx.types import compute_type
from graphcompress.graph.match import fixed_size, operand


@operator("Shape")
def shape(builder: FxBuilder, node: ir.Node) -> Operand:
    """Sizes as Python numbers."""
    value = node.inputs[0]
    found = builder.sizes(value)
    if value is None or (value.shape is None and found is None):
        builder.refuse(node, "the rank of an operand is not known")
    rank = builder.rank(value, node)
    start, stop, _ = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)).indices(
        rank
    )
    if found is not None:
        return Sizes((len(found.items),) if start < stop and not found.scalar else ())
    return Sizes(tuple(builder.size(value, axis) for axis in range(start, stop)))


@operator("Size")
def size(builder: FxBuilder, node: ir.Node) -> Operand:
    """Number of elements."""
    value = node.inputs[0]
    count = builder.method("numel", builder.tensor(value))
    return Sizes((count,), scalar=True)


@operator("Reshape")
def reshape(builder: FxBuilder, node: ir.Node) -> Operand:
    """Other sizes for the same elements: 0 copies a size, -1 is what is left."""
    source = node.inputs[0]
    found = builder.sizes(source)
    target = builder.ints(node.inputs[1])
    if builder.sizes(node.inputs[1]) is None:
        copied = not node.attributes.get_int("allowzero", 0)
        listed = target if isinstance(target, fx.Node) else list(target)
        return builder.call(reshape_to, builder.tensor(source), listed, copied)
    if isinstance(target, fx.Node):
        return builder.call(torch.reshape, builder.tensor(source), target)
    if found is not None and len(target) <= 1:
        return Sizes(found.items, not target, found.dtype)
    if source is not None and not node.attributes.get_int("allowzero", 0):
        target = [
            builder.size(source, axis) if not isinstance(item, fx.Node) and item == 0 else item
            for axis, item in enumerate(target)
        ]
    return builder.call(torch.reshape, builder.tensor(source), tuple(target))


@operator("Flatten")
def flatten(builder: FxBuilder, node: ir.Node) -> Operand:
    """Two dimensions: the axes before ``axis`` and those from it on."""
    x = builder.tensor(node.inputs[0])
    rank = builder.rank(node.inputs[0], node)
    axis = node.attributes.get_int("axis", 1)
    axis += rank if axis < 0 else 0
    if axis == 0:
        return builder.call(torch.reshape, x, (1, -1))
    if axis == rank:
        return builder.call(torch.reshape, x, (-1, 1))
    right = builder.call(torch.flatten, x, axis)
    return right if axis == 1 else builder.call(torch.flatten, right, 0, axis - 1)


@operator("Transpose")
def transpose(builder: FxBuilder, node: ir.Node) -> Operand:
    """Axes in another order."""
    x = builder.tensor(node.inputs[0])
    rank = builder.rank(node.inputs[0], node)
    perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    return permuted(builder, x, perm)


def permuted(builder: FxBuilder, x: fx.Node, perm: Sequence[int]) -> fx.Node:
    """``x`` with its axes in the order ``perm``; a swap of two is written as such."""
    moved = [index for index, axis in enumerate(perm) if index != axis]
    if not moved:
        return x
    if len(moved) == 2:
        return builder.method("transpose", x, moved[0], moved[1])
    return builder.method("permute", x, *perm)


@operator("Unsqueeze")
def unsqueeze(builder: FxBuilder, node: ir.Node) -> Operand:
    """New axes of size 1."""
    found, axes = builder.sizes(node.inputs[0]), builder.ints(node.inputs[1])
    if found is not None and found.scalar and len(builder.known_ints(node.inputs[1]) or ()) == 1:
        return Sizes(found.items, False, found.dtype)
    x = builder.tensor(node.inputs[0])
    if isinstance(axes, fx.Node) or any(isinstance(axis, fx.Node) for axis in axes):
        return builder.call(unsqueeze_at, x, axes)
    rank = builder.rank(node.inputs[0], node) + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):  # type: ignore[arg-type]
        x = builder.method("unsqueeze", x, axis)
    return x


@operator("Squeeze")
def squeeze(builder: FxBuilder, node: ir.Node) -> Operand:
    """Axes of size 1 removed: the given ones, or all."""
    found = builder.sizes(node.inputs[0])
    if found is not None and (found.scalar or len(found.items) == 1):
        return Sizes(found.items, True, found.dtype)
    x, axes = builder.tensor(node.inputs[0]), operand(node, 1)
    if axes is None:
        return builder.method("squeeze", x)
    numbers = builder.ints(axes)
    return builder.method("squeeze", x, numbers if isinstance(numbers, fx.Node) else _plain(numbers))


def _plain(numbers: Sequence[Item]) -> object:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


@operator("Expand")
def expand(builder: FxBuilder, node: ir.Node) -> Operand:
    """Copies along axes of size 1, without memory of their own; both sides broadcast."""
    target = builder.ints(node.inputs[1])
    x = builder.tensor(node.inputs[0])
    if isinstance(target, fx.Node):
        return builder.call(expand_to, x, target)
    source = node.inputs[0]
    rank = builder.rank(source, node)
    lacking = max(rank - len(target), 0)
    sizes = [*([1] * lacking), *target]
    known = [1] * (len(sizes) - rank) + [fixed_size(source, axis) for axis in range(rank)]
    if any(_unclear(goal, mine) for goal, mine in zip(sizes, known, strict=True)):
        return builder.call(expand_to, x, tuple(sizes))
    wanted = [-1 if goal == 1 and mine != 1 else goal for goal, mine in zip(sizes, known, strict=True)]
    return builder.method("expand", x, *wanted)


def _unclear(goal: Item, mine: int | None) -> bool:
    """Whether it is not known which side of a broadcast is the larger one."""
    if isinstance(goal, fx.Node):
        return mine != 1
    return goal != 1 and mine is None


@operator("Tile")
def tile(builder: FxBuilder, node: ir.Node) -> Operand:
    """Repeats along every axis."""
    repeats = builder.ints(node.inputs[1])
    return builder.method(
        "repeat", builder.tensor(node.inputs[0]), repeats if isinstance(repeats, fx.Node) else tuple(repeats)
    )


@operator("Range")
def range_(builder: FxBuilder, node: ir.Node) -> Operand:
    """Numbers from a start to a limit in steps."""
    dtype = compute_type(node.outputs[0].dtype or ir.DataType.INT64)
    ends = [_number(builder, value) for value in node.inputs]
    if ends[0] == 0 and ends[2] == 1:
        return builder.call(torch.arange, ends[1], dtype=dtype, device=builder.device)
    return builder.call(torch.arange, *ends, dtype=dtype, device=builder.device)


def _number(builder: FxBuilder, value: ir.Value | None) -> Item | float:
    operand = builder.operand(value)
    if isinstance(operand, fx.Node) and builder.sizes(value) is None:
        return builder.method("item", operand)
    return operand


@operator("ConstantOfShape")
def constant_of_shape(builder: FxBuilder, node: ir.Node) -> Operand:
    """A tensor of one number."""
    given = node.attributes.get("value")
    array = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy().reshape(-1)
    target = builder.ints(node.inputs[0])
    if not isinstance(target, fx.Node) and len(target) == 1 and isinstance(target[0], int) and target[0] <= 8:
        small = sizes_of_array(np.full(target[0], array[0]))
        if small is not None:
            return small
    dtype = compute_type(node.outputs[0].dtype)
    wanted = target if isinstance(target, fx.Node) else tuple(target)
    return builder.call(torch.full, wanted, array[0].item(), dtype=dtype, device=builder.device)


@operator("EyeLike")
def eye_like(builder: FxBuilder, node: ir.Node) -> Operand:
    """Ones on a diagonal."""
    x = builder.tensor(node.inputs[0])
    ones = builder.call(torch.ones_like, x, dtype=compute_type(node.outputs[0].dtype))
    offset = node.attributes.get_int("k", 0)
    return builder.call(torch.tril, builder.call(torch.triu, ones, offset), offset)


@operator("Trilu")
def trilu(builder: FxBuilder, node: ir.Node) -> Operand:
    """The upper or the lower triangle of matrices."""
    value = operand(node, 1)
    offset = 0 if value is None else _number(builder, value)
    function = torch.triu if node.attributes.get_int("upper", 1) else torch.tril
    return builder.call(function, builder.tensor(node.inputs[0]), offset)


@operator("Constant")
def constant(builder: FxBuilder, node: ir.Node) -> Operand:
    """Numbers in the graph itself."""
    return builder.sizes(node.outputs[0]) or builder.tensor(node.outputs[0])
