"""How arithmetic on single elements moves intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphcompress.graph.match import scalar
from graphcompress.ranges.interval import FALSE, SLACK, TRUE, UNIT, Interval, Operands, Transfer


def first(node: ir.Node, operands: Operands) -> Interval | None:
    """The interval of the first operand."""
    return operands[0]


def corners(combine: Callable[[float, float], float]) -> Transfer:
    """An operator of two operands that takes its extremes where both are extreme."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        a, b = operands
        if a is None or b is None:
            return None
        ends = [combine(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return Interval(min(ends), max(ends))

    return transfer


def pow_(node: ir.Node, operands: Operands) -> Interval | None:
    """Powers 2 and 3."""
    x, exponent = operands[0], scalar(node.inputs[1])
    # Beyond that a Python float overflows with an error in place of infinity.
    if x is None or exponent not in (2.0, 3.0) or x.magnitude > 1e100:
        return None
    if exponent == 2.0:
        return Interval(0.0, x.magnitude**2)
    return Interval(x.low**3, x.high**3)


def sqrt(node: ir.Node, operands: Operands) -> Interval | None:
    """The root; nothing is known where the operand may be negative."""
    x = operands[0]
    return None if x is None or x.low < 0 else Interval(math.sqrt(x.low), math.sqrt(x.high))


def reciprocal(node: ir.Node, operands: Operands) -> Interval | None:
    """The reciprocal; nothing is known where the operand may be 0."""
    x = operands[0]
    if x is None or x.low <= 0 <= x.high:
        return None
    # The reciprocal is rounded by the runtime, in kernels that may estimate it; both ends get room for
    # that.
    ends = [factor / end for end in (x.low, x.high) for factor in (0.999, SLACK)]
    return Interval(min(ends), max(ends))


def div(node: ir.Node, operands: Operands) -> Interval | None:
    """The quotient, of integers without its fraction; nothing is known where the divisor may be 0."""
    a, b = operands
    if a is None or b is None or b.low <= 0 <= b.high:
        return None
    # On each side of zero the quotient is monotone in both operands, so its extremes lie in the corners.
    ends = [x / y for x in (a.low, a.high) for y in (b.low, b.high)]
    quotient = Interval(min(ends), max(ends))
    dtype = node.outputs[0].dtype
    return _without_fraction(quotient) if dtype is not None and dtype.is_integer() else quotient


def cast(node: ir.Node, operands: Operands) -> Interval | None:
    """The operand, to an integer without its fraction; to BOOL whether it is 0."""
    x, dtype = operands[0], ir.DataType(node.attributes.get_int("to", 0))
    if x is None:
        return None
    # To BOOL a half is true, which truncation would miss.
    if dtype == ir.DataType.BOOL:
        # An interval that touches zero may hold other numbers, too: both truth values are possible.
        return FALSE if x == FALSE else UNIT if x.low <= 0 <= x.high else TRUE
    return _without_fraction(x) if dtype.is_integer() else x


def _without_fraction(interval: Interval) -> Interval | None:
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return None
    return Interval(float(math.trunc(interval.low)), float(math.trunc(interval.high)))


def monotone(function: Callable[[float], float]) -> Transfer:
    """An operator that grows with its operand."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        x = operands[0]
        return None if x is None else Interval(function(x.low), function(x.high))

    return transfer


def neg(node: ir.Node, operands: Operands) -> Interval | None:
    """Both ends with their signs turned."""
    x = operands[0]
    return None if x is None else Interval(-x.high, -x.low)


def abs_(node: ir.Node, operands: Operands) -> Interval | None:
    """From 0 to the magnitude."""
    return None if operands[0] is None else Interval(0.0, operands[0].magnitude)


def within(low: float, high: float) -> Transfer:
    """An operator whose results lie in [low, high] for every input that is not NaN."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        return None if operands[0] is None else Interval(low, high)

    return transfer


def gelu(node: ir.Node, operands: Operands) -> Interval | None:
    """At least -0.5, and hardly above the operand."""
    return None if operands[0] is None else Interval(-0.5, max(operands[0].high, 0.0) * SLACK + 0.5)


def extreme(choose: Callable[[list[float]], float]) -> Transfer:
    """Min or Max."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        known = [interval for interval in operands if interval is not None]
        if len(known) < len(operands):
            return None
        return Interval(choose([i.low for i in known]), choose([i.high for i in known]))

    return transfer


def range_(node: ir.Node, operands: Operands) -> Interval | None:
    """From start towards limit, which may never be reached."""
    start, limit, delta = operands
    if start is None or limit is None or delta is None:
        return None
    if delta.low > 0:
        # An empty Range has no elements, for which any interval is right.
        # Of integers the last one is at least 1 below the limit.
        dtype = node.outputs[0].dtype
        last = limit.high - 1 if dtype is not None and dtype.is_integer() else limit.high
        return Interval(start.low, max(last, start.low))
    return Interval(min(limit.low, start.high), start.high) if delta.high < 0 else None


def size_of_shape(node: ir.Node, operands: Operands) -> Interval | None:
    """A size, whatever the operand."""
    return Interval(0.0, float(1 << 62))
