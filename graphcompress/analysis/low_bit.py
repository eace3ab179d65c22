"""Weights stored as integers: the scale that each is read with, found by following its readers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import operand

PAIR_LIMIT = 128
"""Largest sum of two neighbours of one sign that x86 without VNNI adds in 16 bits: 255 · 128 < 2¹⁵."""

LOW_BIT = frozenset(ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (2, 4, 8, 16))
"""Integer types that weights and activations are quantised to."""

_MOVES = frozenset({"Cast", "Gather", "Identity", "Reshape", "Transpose"})


@dataclass(frozen=True)
class LowBit:
    """How integers stand for numbers: ``(q - zero_point) · scale``.

    Attributes:
        scale: initializer with the scale.
        zero_point: initializer with the zero point; None: it is 0.
        axis: that of scales per channel or per block; None: the scale broadcasts by itself.
        lower, upper: the range in use: what the stored integers span, never more than their type holds.
        pairs: axis along which neighbours 0 and 1, 2 and 3, … keep to :data:`PAIR_LIMIT`, where they do: a
            trained weight has to keep to it, too.
    """

    scale: ir.Value
    zero_point: ir.Value | None
    axis: int | None
    lower: int
    upper: int
    pairs: int | None = None


def integer_range(dtype: ir.DataType | None) -> tuple[int, int] | None:
    """Smallest and largest number of a quantised type."""
    return (int(dtype.min), int(dtype.max)) if dtype in LOW_BIT and dtype is not None else None


def low_bit(value: ir.Value) -> LowBit | None:
    """The scale behind the integers of an initializer; None: it is no quantised weight."""
    limits = integer_range(value.dtype)
    if limits is None or value.const_value is None or not value.shape:
        return None
    found = next(_scales(value), None)
    if found is None or found[0].const_value is None or not _fits(value, *found[:2]):
        return None
    scale, axis, zero_point = found
    zero_point = None if zero_point is None or is_zero(zero_point) else zero_point
    if zero_point is None:
        largest = max(int(np.abs(value.const_value.numpy().astype(np.int32)).max(initial=1)), 1)
        limits = (max(limits[0], -largest), min(limits[1], largest))
    return LowBit(scale, zero_point, axis, *limits, _pair_axis(value.const_value.numpy(), axis))


def _pair_axis(numbers: np.ndarray, channel_axis: int | None) -> int | None:
    """The input axis of an int8 matrix with scales per output channel that keeps to the limit of pairs.

    None where it does not, and where the range of the integers is so small that it always does.
    """
    if numbers.dtype != np.int8 or numbers.ndim != 2 or channel_axis not in (0, 1):
        return None
    rows = numbers.shape[1 - channel_axis] // 2 * 2
    pairs = np.moveaxis(numbers.astype(np.int16), 1 - channel_axis, 0)[:rows].reshape(rows // 2, 2, -1)
    if np.abs(pairs).max(initial=0) <= PAIR_LIMIT // 2:
        return None
    largest = max(int(np.maximum(sign * pairs, 0).sum(axis=1).max()) for sign in (1, -1))
    return 1 - channel_axis if largest <= PAIR_LIMIT else None


def is_zero(value: ir.Value) -> bool:
    """Whether a stored tensor holds zeros only."""
    return value.const_value is not None and not value.const_value.numpy().astype(np.int32).any()


def _scales(value: ir.Value) -> Iterator[tuple[ir.Value, int | None, ir.Value | None]]:
    """Scale, axis in ``value`` and zero point of every reader that turns the integers into numbers."""
    rank = len(value.shape) if value.shape is not None else 0
    pending = [(value, False)]
    while pending:
        current, flipped = pending.pop(0)
        for node, index in current.uses():
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "DequantizeLinear" and index == 0:
                yield from _dequantised(node, rank, flipped)
            elif node.op_type == "MatMulInteger":
                yield from _multiplied(node, index, rank, flipped)
            elif node.op_type == "Mul":
                scale = _stored_factor(node.inputs[1 - index])
                if scale is not None:
                    yield scale, _channel_axis(scale, rank - 1, rank, flipped), None
            elif node.op_type in _MOVES and index == 0:
                pending.append((node.outputs[0], flipped ^ (node.op_type == "Transpose")))


def _dequantised(
    node: ir.Node, rank: int, flipped: bool
) -> Iterator[tuple[ir.Value, int | None, ir.Value | None]]:
    scale, source = node.inputs[1], node.inputs[0]
    if scale is None or source is None or source.shape is None:
        return
    axis = node.attributes.get_int("axis", 1) % len(source.shape) - len(source.shape) + rank
    yield scale, _channel_axis(scale, axis, rank, flipped), operand(node, 2)


def _multiplied(
    node: ir.Node, index: int, rank: int, flipped: bool
) -> Iterator[tuple[ir.Value, int | None, ir.Value | None]]:
    """MatMulInteger → Cast → Mul by the scale, alone or times that of the activation."""
    for cast in node.outputs[0].consumers():
        if cast.op_type != "Cast" or index != 1:
            continue
        for product in cast.outputs[0].consumers():
            other = [value for value in product.inputs if value is not cast.outputs[0]]
            scale = _stored_factor(other[0]) if product.op_type == "Mul" and other else None
            if scale is not None:
                yield scale, _channel_axis(scale, rank - 1, rank, flipped), operand(node, 3)


def _stored_factor(value: ir.Value | None) -> ir.Value | None:
    """The stored tensor of floats that ``value`` is, was gathered from, or is a multiple of."""
    if value is None or value.const_value is not None:
        return value if value is not None and value.dtype == ir.DataType.FLOAT else None
    node = value.producer()
    if node is None or node.op_type not in ("Gather", "Mul"):
        return None
    operands = node.inputs[:1] if node.op_type == "Gather" else node.inputs
    stored = [operand for operand in operands if operand is not None and operand.const_value is not None]
    return stored[0] if stored and stored[0].dtype == ir.DataType.FLOAT else None


def _channel_axis(scale: ir.Value, axis: int, rank: int, flipped: bool) -> int | None:
    if scale.const_value is None or scale.const_value.size == 1:
        return None
    return rank - 1 - axis if flipped and rank == 2 else axis


def _fits(value: ir.Value, scale: ir.Value, axis: int | None) -> bool:
    """Whether the scale broadcasts against the integers as they are stored."""
    if value.shape is None or scale.const_value is None:
        return False
    shape, steps = value.shape.numpy(), scale.const_value.shape.numpy()
    if axis is None or len(steps) == 0:
        return True
    if len(steps) == 1:
        return bool(steps[0] == shape[axis])
    return (len(steps) == len(shape) and all(b in (1, a) for a, b in zip(shape, steps, strict=True))) or (
        len(steps) == len(shape) and shape[axis] % steps[axis] == 0
    )
