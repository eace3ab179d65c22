"""Intervals that hold all elements of a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

SLACK = 1.01
"""Bounds of long sums (MatMul, LayerNormalization, Softmax) are widened by this factor, because the runtime
rounds: 1 % is far above the length of a sum times the epsilon of float32, 1.2e-7."""

LARGEST_CONSTANT = 1 << 28
"""Stored tensors of more elements than this (1 GiB in float32) are not read, and so of unknown range."""


@dataclass(frozen=True)
class Interval:
    """All elements lie in [low, high]; both are finite, and so no element is NaN."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """Largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @classmethod
    def around(cls, magnitude: float) -> Interval:
        """[-magnitude, magnitude]."""
        return cls(-magnitude, magnitude)

    def below(self, high: float) -> Interval:
        """The same elements, none of which is above ``high``, either."""
        return Interval(min(self.low, high), min(self.high, high))


UNIT = Interval(0.0, 1.0)
TRUE = Interval(1.0, 1.0)
FALSE = Interval(0.0, 0.0)


def of_array(value: ir.Value) -> Interval | None:
    """The range of a stored tensor; None when it holds NaN or infinity."""
    tensor = value.const_value
    if (
        tensor is None
        or tensor.size == 0
        or tensor.size > LARGEST_CONSTANT
        or tensor.dtype == ir.DataType.STRING
    ):
        return None
    array = tensor.numpy()
    low, high = float(array.min()), float(array.max())
    return Interval(low, high) if math.isfinite(low) and math.isfinite(high) else None


def of_type(dtype: ir.DataType | None) -> Interval | None:
    """All numbers of an integer type; None for floats."""
    if dtype == ir.DataType.BOOL:
        return UNIT
    if dtype is None or not dtype.is_integer():
        return None
    limits = np.iinfo(dtype.numpy())
    return Interval(float(limits.min), float(limits.max))


def fit(interval: Interval, dtype: ir.DataType | None) -> Interval | None:
    """``interval`` when it is finite in ``dtype``, its ends rounded to ``dtype`` as a result is.

    An integer that may wrap around is any of its type.
    """
    if math.isnan(interval.low) or math.isnan(interval.high) or dtype is None:
        return None
    if dtype == ir.DataType.BOOL or not dtype.is_floating_point():
        whole = of_type(dtype)
        # A result beyond its type wraps around, and then may be anything.
        inside = whole is not None and whole.low <= interval.low and interval.high <= whole.high
        return interval if inside else whole
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return None
    if interval.magnitude > float(np.finfo(dtype.numpy()).max):
        return None
    # The runtime rounds results to their type as well, possibly beyond an end that was computed in double
    # precision.
    low, high = np.array([interval.low, interval.high]).astype(dtype.numpy())
    return Interval(float(low), float(high))


Operands = list[Interval | None]
Transfer = Callable[[ir.Node, Operands], Interval | None]
"""The interval of a result from those of the operands (None: nothing is known)."""


def hull(intervals: Operands) -> Interval | None:
    """The smallest interval that holds all; None when one is not known."""
    known = [interval for interval in intervals if interval is not None]
    # One operand that may be NaN or infinite makes the whole result unknown.
    if not known or len(known) < len(intervals):
        return None
    return Interval(min(i.low for i in known), max(i.high for i in known))
