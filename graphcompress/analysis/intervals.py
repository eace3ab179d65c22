"""Intervals, and how each operator moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.expressions import is_constant

SLACK = 1.01
"""Rounding of long sums (MatMul, LayerNormalization, Softmax): far above length · epsilon."""

_LARGEST_CONSTANT = 1 << 28


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


UNIT = Interval(0.0, 1.0)
TRUE = Interval(1.0, 1.0)
FALSE = Interval(0.0, 0.0)


def of_array(value: ir.Value) -> Interval | None:
    """The range of a stored tensor; None when it holds NaN or infinity."""
    tensor = value.const_value
    if (
        tensor is None
        or tensor.size == 0
        or tensor.size > _LARGEST_CONSTANT
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
    """``interval`` when it is finite in ``dtype``; an integer that may wrap around is any of its type."""
    if math.isnan(interval.low) or math.isnan(interval.high) or dtype is None:
        return None
    if dtype == ir.DataType.BOOL or not dtype.is_floating_point():
        whole = of_type(dtype)
        inside = whole is not None and whole.low <= interval.low and interval.high <= whole.high
        return interval if inside else whole
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return None
    return interval if interval.magnitude <= float(np.finfo(dtype.numpy()).max) else None


# ---- how each operator moves an interval

Operands = list[Interval | None]
Transfer = Callable[[ir.Node, Operands], Interval | None]


def _first(node: ir.Node, operands: Operands) -> Interval | None:
    return operands[0]


def _hull(intervals: Operands) -> Interval | None:
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(intervals):
        return None
    return Interval(min(i.low for i in known), max(i.high for i in known))


def _corners(combine: Callable[[float, float], float]) -> Transfer:
    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        a, b = operands
        if a is None or b is None:
            return None
        ends = [combine(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return Interval(min(ends), max(ends))

    return transfer


def _mul(node: ir.Node, operands: Operands) -> Interval | None:
    """The product; x · 1/√(mean x² + ε), a decomposed RMSNormalization, is at most √n whatever x is."""
    interval = _corners(lambda x, y: x * y)(node, operands)
    normalized = _root_mean_square_of(node)
    if normalized is None or normalized.shape is None or interval is None:
        return interval
    size = normalized.shape[-1]
    largest = math.sqrt(size) * SLACK if isinstance(size, int) else math.inf
    return Interval.around(min(largest, interval.magnitude))


def _root_mean_square_of(node: ir.Node) -> ir.Value | None:
    """The x when ``node`` is x · Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2), last axis), ε))) with ε > 0."""
    for x, inverse in (node.inputs, reversed(node.inputs)):
        steps = _steps(inverse, "Reciprocal", "Sqrt", "Add", "ReduceMean", "Pow")
        if steps and steps[-1].inputs[0] is x and _is_mean_of_squares(*steps[2:]):
            return x
    return None


def _steps(value: ir.Value | None, *op_types: str) -> list[ir.Node]:
    """The nodes above ``value``, each the producer of the first input of the one before, or nothing."""
    nodes: list[ir.Node] = []
    for op_type in op_types:
        node = None if value is None else value.producer()
        if node is None or node.domain or node.op_type != op_type:
            return []
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def _is_mean_of_squares(shifted: ir.Node, mean: ir.Node, power: ir.Node) -> bool:
    axes = [_scalar(mean.inputs[1])] if len(mean.inputs) > 1 else [*(mean.attributes.get_ints("axes") or ())]
    return axes == [-1] and _scalar(power.inputs[1]) == 2 and (_scalar(shifted.inputs[1]) or 0.0) > 0


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1 or value.is_graph_input():
        return None
    return float(value.const_value.numpy().reshape(()))


def _pow(node: ir.Node, operands: Operands) -> Interval | None:
    x, exponent = operands[0], _scalar(node.inputs[1])
    if x is None or exponent not in (2.0, 3.0) or x.magnitude > 1e100:
        return None
    if exponent == 2.0:
        return Interval(0.0, x.magnitude**2)
    return Interval(x.low**3, x.high**3)


def _sqrt(node: ir.Node, operands: Operands) -> Interval | None:
    x = operands[0]
    return None if x is None or x.low < 0 else Interval(math.sqrt(x.low), math.sqrt(x.high))


def _reciprocal(node: ir.Node, operands: Operands) -> Interval | None:
    x = operands[0]
    return None if x is None or x.low <= 0 <= x.high else Interval(1 / x.high * 0.999, 1 / x.low * SLACK)


def _div(node: ir.Node, operands: Operands) -> Interval | None:
    a, b = operands
    if a is None or b is None or b.low <= 0 <= b.high:
        return None
    ends = [x / y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(ends), max(ends))


def _monotone(function: Callable[[float], float]) -> Transfer:
    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        x = operands[0]
        return None if x is None else Interval(function(x.low), function(x.high))

    return transfer


def _neg(node: ir.Node, operands: Operands) -> Interval | None:
    x = operands[0]
    return None if x is None else Interval(-x.high, -x.low)


def _abs(node: ir.Node, operands: Operands) -> Interval | None:
    return None if operands[0] is None else Interval(0.0, operands[0].magnitude)


def _within(low: float, high: float) -> Transfer:
    """An operator whose results lie in [low, high] for every input that is not NaN."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        return None if operands[0] is None else Interval(low, high)

    return transfer


def _gelu(node: ir.Node, operands: Operands) -> Interval | None:
    return None if operands[0] is None else Interval(-0.5, max(operands[0].high, 0.0) * SLACK + 0.5)


def _where(node: ir.Node, operands: Operands) -> Interval | None:
    condition, then, otherwise = operands
    if condition == TRUE:
        return then
    if condition == FALSE:
        return otherwise
    if _guards_softmax(node):
        return _hull([then, UNIT])
    return _hull([then, otherwise])


def _guards_softmax(node: ir.Node) -> bool:
    """Whether ``node`` is Where(IsNaN(x), …, x) with x of a Softmax: what is not NaN lies in [0, 1]."""
    test = None if node.inputs[0] is None else node.inputs[0].producer()
    x = node.inputs[2]
    source = None if x is None else x.producer()
    if test is None or source is None or test.domain or source.domain:
        return False
    return test.op_type == "IsNaN" and test.inputs[0] is x and source.op_type == "Softmax"


def _extreme(choose: Callable[[list[float]], float]) -> Transfer:
    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        known = [interval for interval in operands if interval is not None]
        if len(known) < len(operands):
            return None
        return Interval(choose([i.low for i in known]), choose([i.high for i in known]))

    return transfer


def _range(node: ir.Node, operands: Operands) -> Interval | None:
    start, limit, delta = operands
    if start is None or limit is None or delta is None:
        return None
    if delta.low > 0:
        return Interval(start.low, max(limit.high, start.low))
    return Interval(min(limit.low, start.high), start.high) if delta.high < 0 else None


def _size(node: ir.Node, operands: Operands) -> Interval | None:
    return Interval(0.0, float(1 << 62))


def _matmul(node: ir.Node, operands: Operands) -> Interval | None:
    """|x · W| ≤ max|x| · the largest column sum of |W|; probabilities average; else length · max · max."""
    a, b = operands[:2]
    x, weight = node.inputs[:2]
    if a is None or b is None or x is None or weight is None:
        return None
    if _averages(x):
        return Interval.around(b.magnitude * SLACK)
    column = _largest_column_sum(weight) if is_constant(weight) else None
    if column is not None:
        return Interval.around(a.magnitude * column * SLACK)
    inner = x.shape[-1] if x.shape is not None and len(x.shape) else None
    return Interval.around(inner * a.magnitude * b.magnitude * SLACK) if isinstance(inner, int) else None


def _largest_column_sum(weight: ir.Value) -> float | None:
    tensor = weight.const_value
    if tensor is None or len(tensor.shape) < 2 or tensor.size > _LARGEST_CONSTANT:
        return None
    return float(np.abs(tensor.numpy()).sum(axis=-2, dtype=np.float64).max())


def _conv(node: ir.Node, operands: Operands) -> Interval | None:
    """|x * W + b| ≤ max|x| · the largest sum of one filter's |W| + max|b|."""
    x, weight = operands[0], node.inputs[1]
    bias = operands[2] if len(operands) > 2 else FALSE
    if x is None or bias is None or weight is None or weight.const_value is None or weight.is_graph_input():
        return None
    filters = np.abs(weight.const_value.numpy()).reshape(weight.const_value.shape[0], -1)
    return Interval.around(x.magnitude * float(filters.sum(axis=1).max()) * SLACK + bias.magnitude)


def _averages(value: ir.Value) -> bool:
    """Whether rows of ``value`` (last axis) are not negative and sum to at most one: probabilities."""
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Softmax":
        rank = len(value.shape) if value.shape is not None else 0
        return node.attributes.get_int("axis", -1) in (-1, rank - 1)
    if node.op_type != "Where" or node.inputs[1] is None or node.inputs[2] is None:
        return False
    zero = node.inputs[1].const_value
    return zero is not None and zero.size == 1 and not zero.numpy().any() and _averages(node.inputs[2])


def _layer_norm(node: ir.Node, operands: Operands) -> Interval | None:
    """(x - mean) / std is at most √n whatever x is, as long as its variance is finite."""
    x, scale = operands[:2]
    bias = operands[2] if len(operands) > 2 else Interval(0.0, 0.0)
    data = node.inputs[0]
    axis = node.attributes.get_int("axis", -1)
    if x is None or scale is None or bias is None or data is None or data.shape is None or x.magnitude > 1e15:
        return None
    sizes = list(data.shape)[axis:]
    if data.dtype != ir.DataType.FLOAT or not all(isinstance(size, int) for size in sizes):
        return None
    largest = math.sqrt(math.prod(int(size) for size in sizes if isinstance(size, int))) * SLACK
    return Interval.around(largest * scale.magnitude + bias.magnitude)


def _compare(
    certain: Callable[[Interval, Interval], bool], opposite: Callable[[Interval, Interval], bool]
) -> Transfer:
    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        a, b = operands
        if a is None or b is None:
            return UNIT
        return TRUE if certain(a, b) else FALSE if opposite(a, b) else UNIT

    return transfer


def _is_nan(node: ir.Node, operands: Operands) -> Interval | None:
    return UNIT if operands[0] is None else FALSE


def _not(node: ir.Node, operands: Operands) -> Interval | None:
    return UNIT if operands[0] is None else Interval(1 - operands[0].high, 1 - operands[0].low)


_SAME_RANGE = (
    *("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"),
    *("Gather", "GatherND", "GatherElements", "Slice", "Split", "ReduceMax", "ReduceMin", "ReduceMean"),
)

TRANSFER: dict[str, Transfer] = {
    "Add": _corners(lambda x, y: x + y),
    "Sub": _corners(lambda x, y: x - y),
    "Mul": _mul,
    "Pow": _pow,
    "Sqrt": _sqrt,
    "Reciprocal": _reciprocal,
    "Div": _div,
    "Neg": _neg,
    "Abs": _abs,
    "Relu": _monotone(lambda x: max(x, 0.0)),
    "Tanh": _within(-1.0, 1.0),
    "Erf": _within(-1.0, 1.0),
    "Sin": _within(-1.0, 1.0),
    "Cos": _within(-1.0, 1.0),
    "Sigmoid": _within(0.0, 1.0),
    "Softmax": _within(0.0, SLACK),
    "Gelu": _gelu,
    "Where": _where,
    "Min": _extreme(min),
    "Max": _extreme(max),
    "Range": _range,
    "Shape": _size,
    "Size": _size,
    "MatMul": _matmul,
    "Conv": _conv,
    "LayerNormalization": _layer_norm,
    "IsNaN": _is_nan,
    "Not": _not,
    "And": _extreme(min),
    "Or": _extreme(max),
    "GreaterOrEqual": _compare(lambda a, b: a.low >= b.high, lambda a, b: a.high < b.low),
    "Greater": _compare(lambda a, b: a.low > b.high, lambda a, b: a.high <= b.low),
    "LessOrEqual": _compare(lambda a, b: a.high <= b.low, lambda a, b: a.low > b.high),
    "Less": _compare(lambda a, b: a.high < b.low, lambda a, b: a.low >= b.high),
    "Concat": lambda node, operands: _hull(operands),
    **dict.fromkeys(_SAME_RANGE, _first),
}
"""Operator → the interval of its result from those of its operands (None: nothing is known)."""
