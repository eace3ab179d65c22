"""What float16 cannot compute: sums of squares, vanishing epsilons, angles, values beyond its range."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from graphcompress.data.made_up import varied_samples
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import array_of, operand, producer, tensor_of
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.plugin.context import Context

LARGEST = 65504.0
"""Largest finite number of float16 (IEEE 754 binary16)."""

LIMIT = 32000.0
"""A value observed above this (half of the largest float16) stays in float32, and what reads it, too."""

OBSERVED_SAMPLES = 4
"""Ranges are observed on this many samples: they follow from the model more than from the text, and the limit
leaves a factor of two."""

_GROWING = frozenset({"Add", "Conv", "Div", "Gemm", "MatMul", "Mul", "Sub", "Sum"})
"""Operators whose results may be larger than what they read."""

_SMALLEST = 2.0**-14
"""Smallest normal number of float16 (IEEE 754 binary16): smaller ones lose digits."""

SMALLEST_SCALE = 1e-5
"""Below this, float16 keeps a scale to less than half a percent."""

_SUMS = frozenset(
    {"CumSum", "Einsum", "Exp", "GlobalAveragePool", "InstanceNormalization", "Log", "LogSoftmax"}
    | {"LpNormalization", "MeanVarianceNormalization", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2"}
    | {"ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Sqrt"}
)
_ANGLES = frozenset({"Cos", "Sin", "Tan"})
_ALWAYS_BEHIND = frozenset(
    {"Abs", "Clip", "Div", "Expand", "Max", "Min", "Neg", "Reshape", "Squeeze", "Sub", "Unsqueeze"}
)
_BEHIND = _ALWAYS_BEHIND | {"Add", "Mul", "Sum", "Where"}
_BEFORE = frozenset({"Abs", "Add", "Div", "Expand", "Mul", "Neg", "Reshape", "Sub", "Unsqueeze"})


class _Peak:
    """Largest finite magnitude."""

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one batch."""
        # A mask of minus infinity is no activation.
        finite = array[np.isfinite(array)]
        self.largest = max(self.largest, float(np.abs(finite).max(initial=0.0)))


def wide_values(model: Model, ctx: Context) -> set[ir.Value]:
    """Values that samples (synthetic ones, where the user gave none) drive near the end of float16."""
    samples = (ctx.samples or varied_samples(model, seed=ctx.seed)).spread(OBSERVED_SAMPLES)
    peaks = {
        value: _Peak()
        for node in model.graph
        if node.op_type in _GROWING and not is_constant(node.outputs[0])
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.uses()
    }
    observe(model, peaks, samples, progress=ctx.progress, text="ranges for float16", optimize=False)
    return {value for value, peak in peaks.items() if peak.largest > LIMIT}


def overflows_half(array: np.ndarray) -> bool:
    """Whether a finite number of ``array`` is beyond float16."""
    ends = array.max(initial=0.0), array.min(initial=0.0)
    # Two reductions need no copy of a large weight, unlike the masks below.
    if np.isfinite(ends).all():
        return bool(max(ends[0], -ends[1]) > LARGEST)
    return bool((np.isfinite(array) & (np.abs(array) > LARGEST)).any())


def critical_nodes(graph: ir.Graph, wide: Collection[ir.Value]) -> set[ir.Node]:
    """Nodes that have to compute in float32; ``wide`` are values beyond float16."""
    found: set[ir.Node] = set()
    spread: set[ir.Node] = set()
    for node in graph:
        if node.domain:
            continue
        if node.op_type in _SUMS or _holds_tiny(node) or _continues(node, spread):
            spread.add(node)
        if any(value in wide for value in (*node.inputs, *node.outputs)) or node.op_type in _ANGLES:
            found.add(node)
    # Backwards, so that what leads to such a node is met after all its readers.
    for node in reversed(list(graph)):
        readers = node.outputs[0].consumers() if node.outputs else ()
        elementwise = node.op_type in _BEFORE and not node.domain
        if elementwise and readers and all(reader in spread for reader in readers):
            spread.add(node)
    return found | spread | set(_angles(graph))


def _continues(node: ir.Node, spread: set[ir.Node]) -> bool:
    """Whether ``node`` computes elementwise on what was computed in float32 for its range.

    A sum or product with another activation is where the range is that of activations again.
    """
    makers = [maker for value in node.inputs if (maker := producer(value)) is not None]
    behind = node.op_type in _BEHIND and not spread.isdisjoint(makers)
    return behind and (node.op_type in _ALWAYS_BEHIND or spread.issuperset(makers))


def _holds_tiny(node: ir.Node) -> bool:
    """Whether a constant that ``node`` reads is beyond float16, or a number or scale loses its meaning."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = array_of(operand(node, 1))
        return scale is not None and float(scale.min(initial=1.0)) < SMALLEST_SCALE
    stored = (tensor for value in node.inputs if (tensor := tensor_of(value)) is not None)
    return any(tensor.dtype == ir.DataType.FLOAT and _is_beyond(tensor.numpy()) for tensor in stored)


def _is_beyond(array: np.ndarray) -> bool:
    """Whether float16 does not hold ``array``: all of it, or, of one number, what it means."""
    if overflows_half(array) or array.size != 1:
        return overflows_half(array)
    number = abs(float(array.reshape(())))
    return 0.0 < number < _SMALLEST or (bool(np.isfinite(number)) and number > 2 * LIMIT)


def _angles(graph: ir.Graph) -> Iterator[ir.Node]:
    """Everything that computes the argument of a Sin or Cos: positions times frequencies."""
    pending = [value for node in graph if node.op_type in _ANGLES for value in node.inputs]
    seen: set[ir.Node] = set()
    while pending:
        node = producer(pending.pop())
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending.extend(node.inputs)
