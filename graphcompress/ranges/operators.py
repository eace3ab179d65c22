"""How each operator moves an interval: a function for every operator."""

from __future__ import annotations

from graphcompress.ranges import arithmetic, logic, products
from graphcompress.ranges.interval import SLACK, Transfer, hull

_SAME_RANGE = (
    *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"),
    *("Gather", "GatherND", "GatherElements", "Slice", "Split", "ReduceMax", "ReduceMin", "ReduceMean"),
)

TRANSFER: dict[str, Transfer] = {
    "Add": arithmetic.corners(lambda x, y: x + y),
    "Sub": arithmetic.corners(lambda x, y: x - y),
    "Mul": products.mul,
    "Pow": arithmetic.pow_,
    "Sqrt": arithmetic.sqrt,
    "Reciprocal": arithmetic.reciprocal,
    "Div": arithmetic.div,
    "Cast": arithmetic.cast,
    "Neg": arithmetic.neg,
    "Abs": arithmetic.abs_,
    "Relu": arithmetic.monotone(lambda x: max(x, 0.0)),
    "Tanh": arithmetic.within(-1.0, 1.0),
    "Erf": arithmetic.within(-1.0, 1.0),
    "Sin": arithmetic.within(-1.0, 1.0),
    "Cos": arithmetic.within(-1.0, 1.0),
    "Sigmoid": arithmetic.within(0.0, 1.0),
    "Softmax": arithmetic.within(0.0, SLACK),
    "Gelu": arithmetic.gelu,
    "Where": logic.where,
    "Min": arithmetic.extreme(min),
    "Max": arithmetic.extreme(max),
    "Range": arithmetic.range_,
    "Shape": arithmetic.size_of_shape,
    "Size": arithmetic.size_of_shape,
    "MatMul": products.matmul,
    "Conv": products.conv,
    "LayerNormalization": products.layer_norm,
    "IsNaN": logic.is_nan,
    "Not": logic.not_,
    "And": arithmetic.extreme(min),
    "Or": arithmetic.extreme(max),
    "Equal": logic.compare(
        lambda a, b: a.low == a.high == b.low == b.high, lambda a, b: a.high < b.low or a.low > b.high
    ),
    "GreaterOrEqual": logic.compare(lambda a, b: a.low >= b.high, lambda a, b: a.high < b.low),
    "Greater": logic.compare(lambda a, b: a.low > b.high, lambda a, b: a.high <= b.low),
    "LessOrEqual": logic.compare(lambda a, b: a.high <= b.low, lambda a, b: a.low > b.high),
    "Less": logic.compare(lambda a, b: a.high < b.low, lambda a, b: a.low >= b.high),
    "Concat": lambda node, operands: hull(operands),
    **dict.fromkeys(_SAME_RANGE, arithmetic.first),
}
"""Operator → the interval of its result from those of its operands (None: nothing is known)."""
