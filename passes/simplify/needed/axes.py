"""From which axis of an operand an axis of the result comes, where the operator treats its entries alike.

An operator treats the entries of an axis alike when each of them is computed from the same entry of its
operands: then some of the entries can be computed without the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.broadcasting import BROADCASTING, ELEMENTWISE
from graphcompress.graph.match import axis_of, integers_of, operand, rank_of, shape_of, slice_ranges
from graphcompress.graph.sizes import ONE, Size, same_dim, size_of


@dataclass(frozen=True)
class Place:
    """An axis of a value; ``outer`` is the size of what was merged into it from the left, if it was."""

    axis: int
    outer: Dim | None = None


class MixedError(Exception):
    """The operator does not treat the entries of the axis alike; the message says why."""


def places_behind(node: ir.Node, place: Place) -> dict[int, Place]:
    """Index of an operand → the place in it that ``place`` of the result comes from.

    Operands that are not named are the same for all entries.

    Raises:
        MixedError: an entry is computed from others, too.
    """
    rank = rank_of(node.outputs[0])
    family = None if node.domain else _FAMILIES.get(node.op_type)
    if family is None or rank is None:
        raise MixedError(f"{node.op_type} may mix them")
    return family(node, place, rank)


def _of_first(node: ir.Node, place: Place, _: int) -> dict[int, Place]:
    """An operator that works on every element of its first operand by itself."""
    return {0: place}


def _broadcasting(node: ir.Node, place: Place, rank: int, *, last: int = 0) -> dict[int, Place]:
    """Operands are aligned from the right; ``last`` axes of each are not compared."""
    found = {}
    size = (node.outputs[0].shape or ())[place.axis]
    for index, value in enumerate(node.inputs):
        shape = shape_of(value)
        if shape is None:
            raise MixedError(f"a shape before {node.op_type} is not known")
        axis = place.axis - rank + len(shape)
        if axis < 0 or shape[axis] == 1:
            continue
        if not same_dim(shape[axis], size):
            raise MixedError(f"{node.op_type} may broadcast them")
        found[index] = Place(axis, place.outer)
    return found


def _matmul(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    """Rows of the left operand, or matrices of both; columns are of the right one."""
    ranks = [rank_of(value) for value in node.inputs]
    if None in ranks or min(filter(None, ranks), default=0) < 2:
        raise MixedError("a MatMul multiplies a vector")
    if place.axis == rank - 1:
        raise MixedError("they are columns of a product")
    if place.axis == rank - 2:
        return {0: Place((ranks[0] or 0) - 2, place.outer)}
    return _broadcasting(node, place, rank)


def _along(attribute: str, default: int) -> Family:
    """An operator that mixes one axis alone, such as Softmax."""

    def family(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
        if place.axis == node.attributes.get_int(attribute, default) % rank:
            raise MixedError(f"{node.op_type} runs over them")
        return {0: place}

    return family


def _normalisation(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    if place.axis >= axis_of(node, rank, -1):
        raise MixedError(f"{node.op_type} runs over them")
    return {0: place}


def _reduction(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    before = rank_of(node.inputs[0])
    axes = node.attributes.get_ints("axes", None) or integers_of(operand(node, 1))
    if before is None or axes is None:
        raise MixedError(f"{node.op_type} runs over axes that are not known")
    return {0: _without(node, place, before, axes)}


def _index_of_largest(node: ir.Node, place: Place, _: int) -> dict[int, Place]:
    before = rank_of(node.inputs[0]) or 0
    return {0: _without(node, place, before, [node.attributes.get_int("axis", 0)])}


def _without(node: ir.Node, place: Place, rank: int, axes: Sequence[int]) -> Place:
    """``place`` before the ``axes`` of ``rank`` were reduced."""
    gone = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in gone]
    axis = place.axis if node.attributes.get_int("keepdims", 1) else kept[place.axis]
    if axis in gone:
        raise MixedError(f"{node.op_type} runs over them")
    return Place(axis, place.outer)


def _transpose(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    perm = node.attributes.get_ints("perm", None) or range(rank)[::-1]
    return {0: Place(perm[place.axis], place.outer)}


def _reshape(node: ir.Node, place: Place, _: int) -> dict[int, Place]:
    """An axis before which equally much stands on both sides; it may be merged with what stands there."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        raise MixedError(f"a shape before {node.op_type} is not known")
    if node.op_type == "Squeeze" and operand(node, 1) is None:
        raise MixedError("Squeeze has no axes")
    size = size_of(after[place.axis])
    left = _product(after[: place.axis])
    if place.outer is not None:
        inner = size.over(size_of(place.outer))
        if inner is None:
            raise MixedError(f"{node.op_type} splits them")
        size, left = inner, left * size_of(place.outer)
    for axis, dim in enumerate(before):
        stands = _product(before[:axis])
        if stands == left and size_of(dim) == size:
            return {0: Place(axis)}
        merged = left.over(stands)
        if merged is not None and merged != ONE and size_of(dim) == merged * size:
            return {0: Place(axis, merged.dim())}
    raise MixedError(f"{node.op_type} splits or merges them")


def _expand(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    shape, size = shape_of(node.inputs[0]), (node.outputs[0].shape or ())[place.axis]
    if shape is None or integers_of(node.inputs[1]) is None:
        raise MixedError("an Expand has a computed target")
    axis = place.axis - rank + len(shape)
    if axis < 0 or shape[axis] == 1:
        raise MixedError("an Expand repeats them")
    if not same_dim(shape[axis], size):
        raise MixedError("an Expand may repeat them")
    return {0: Place(axis, place.outer)}


def _concat(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    if place.axis == axis_of(node, rank, 0):
        raise MixedError("a Concat puts them together")
    return dict.fromkeys(range(len(node.inputs)), place)


def _slice(node: ir.Node, place: Place, _: int) -> dict[int, Place]:
    ranges = slice_ranges(node)
    if ranges is None or place.axis in ranges:
        raise MixedError("a Slice takes some of them")
    return {0: place}


def _gather(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    """Entries of the index, or of the data beside the axis that is looked up in."""
    data, index = (rank_of(value) for value in node.inputs)
    if data is None or index is None:
        raise MixedError("a shape before Gather is not known")
    axis = axis_of(node, data, 0)
    if axis <= place.axis < axis + index:
        return {1: Place(place.axis - axis, place.outer)}
    return {0: Place(place.axis if place.axis < axis else place.axis - index + 1, place.outer)}


def _attention(node: ir.Node, place: Place, rank: int) -> dict[int, Place]:
    """Queries, and the rows of the mask that are theirs."""
    if place.axis == 0 or place.outer is not None:
        raise MixedError("Attention takes the queries of all rows from the same places")
    if place.axis != rank - 2:
        raise MixedError("Attention has them on another axis than the queries")
    if node.attributes.get_int("is_causal", 0):
        raise MixedError("Attention knows by the place of a query what it may see")
    if any(value is not None for value in node.inputs[4:]) or len(node.outputs) > 1:
        raise MixedError("Attention has a cache")
    found = {0: place}
    mask, length = shape_of(operand(node, 3)), (node.outputs[0].shape or ())[place.axis]
    if mask is not None and len(mask) > 1 and mask[-2] != 1:
        if not same_dim(mask[-2], length):
            raise MixedError("Attention may broadcast its mask")
        found[3] = Place(len(mask) - 2)
    elif operand(node, 3) is not None and mask is None:
        raise MixedError("the shape of a mask is not known")
    return found


def _product(dims: Sequence[Dim]) -> Size:
    return math.prod(map(size_of, dims), start=ONE)


Family = Callable[[ir.Node, Place, int], dict[int, Place]]

_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(BROADCASTING | {"Pow", "Sum", "Mean", "PRelu", "BitwiseAnd", "BitwiseOr"}, _broadcasting),
    **dict.fromkeys(
        (*ELEMENTWISE, "Gelu", "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid"),
        _of_first,
    ),
    **dict.fromkeys(("HardSwish", "Swish", "Mish", "Softplus", "Softsign", "ThresholdedRelu"), _of_first),
    **dict.fromkeys(("Clip", "Dropout", "Reciprocal", "Log", "Floor", "Ceil", "Round", "Sign"), _of_first),
    **dict.fromkeys(("Sin", "Cos", "IsInf", "BitwiseNot", "CastLike"), _of_first),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _along("axis", -1)),
    "Split": _along("axis", 0),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalisation),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _index_of_largest),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Attention": _attention,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _matmul,
    "Slice": _slice,
    "Transpose": _transpose,
}
"""Operator → how its axes come from those of its operands."""
