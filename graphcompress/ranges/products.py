"""How products and normalisations move intervals."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import scalar
from graphcompress.ranges.arithmetic import corners
from graphcompress.ranges.interval import FALSE, LARGEST_CONSTANT, SLACK, Interval, Operands


def matmul(node: ir.Node, operands: Operands) -> Interval | None:
    """|x · W| ≤ max|x| · the largest column sum of |W|; probabilities average; else length · max · max."""
    a, b = operands[:2]
    x, weight = node.inputs[:2]
    if a is None or b is None or x is None or weight is None:
        return None
    # A weighted mean with weights that sum to at most one stays within the range of what is averaged.
    if _averages(x):
        return Interval.around(b.magnitude * SLACK)
    column = _largest_column_sum(weight) if is_constant(weight) else None
    if column is not None:
        return Interval.around(a.magnitude * column * SLACK)
    # The bound grows with the length of the sum, so it needs a length that is fixed.
    inner = x.shape[-1] if x.shape is not None and len(x.shape) else None
    return Interval.around(inner * a.magnitude * b.magnitude * SLACK) if isinstance(inner, int) else None


def _largest_column_sum(weight: ir.Value) -> float | None:
    tensor = weight.const_value
    if tensor is None or len(tensor.shape) < 2 or tensor.size > LARGEST_CONSTANT:
        return None
    return float(np.abs(tensor.numpy()).sum(axis=-2, dtype=np.float64).max())


def conv(node: ir.Node, operands: Operands) -> Interval | None:
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
    # Entries that a guard sets to zero can only lower the sum of a row.
    return zero is not None and zero.size == 1 and not zero.numpy().any() and _averages(node.inputs[2])


def layer_norm(node: ir.Node, operands: Operands) -> Interval | None:
    """(x - mean) / √(variance + ε) is at most √n for every x of finite variance, as long as ε > 0."""
    x, scale = operands[:2]
    bias = operands[2] if len(operands) > 2 else Interval(0.0, 0.0)
    data = node.inputs[0]
    axis = node.attributes.get_int("axis", -1)
    # Squares of larger numbers, summed for the variance, come near the end of float32, and infinity over
    # infinity is NaN.
    if x is None or scale is None or bias is None or data is None or data.shape is None or x.magnitude > 1e15:
        return None
    # Without an epsilon a constant input is divided by zero.
    if node.attributes.get_float("epsilon", 1e-5) <= 0:
        return None
    sizes = list(data.shape)[axis:]
    if data.dtype != ir.DataType.FLOAT or not all(isinstance(size, int) for size in sizes):
        return None
    largest = math.sqrt(math.prod(int(size) for size in sizes if isinstance(size, int))) * SLACK
    return Interval.around(largest * scale.magnitude + bias.magnitude)


def mul(node: ir.Node, operands: Operands) -> Interval | None:
    """The product; x · 1/√(mean x² + ε), a decomposed RMSNormalization, is at most √n whatever x is."""
    interval = corners(lambda x, y: x * y)(node, operands)
    normalized = _root_mean_square_of(node)
    if normalized is None or normalized.shape is None or interval is None:
        return interval
    size = normalized.shape[-1]
    largest = math.sqrt(size) * SLACK if isinstance(size, int) else math.inf
    # Both bounds hold, so the smaller one does.
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
    if mean.attributes.get_int("keepdims", 1) != 1:
        return False
    # Since opset 18 the axes of ReduceMean are an input, before that an attribute.
    axes = [scalar(mean.inputs[1])] if len(mean.inputs) > 1 else [*(mean.attributes.get_ints("axes") or ())]
    return axes == [-1] and scalar(power.inputs[1]) == 2 and (scalar(shifted.inputs[1]) or 0.0) > 0
