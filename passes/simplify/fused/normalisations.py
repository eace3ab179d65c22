"""Normalisations: with a residual addition in front, without a mean, and of the sum of embeddings."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import operand, producer, rank_of
from graphcompress.passes.simplify.fused.base import Operator, Writer, reads_outputs
from graphcompress.rules.opsets.versions import AXES_AS_INPUT

# What ONNX Runtime's operators take where no attribute says it; those that are named like standard ones take
# the standard's.
_SKIP_EPSILON = 1e-12
_EPSILON = 1e-5


def skip_layer_norm(w: Writer) -> None:
    """LayerNormalization(input + skip + bias); the sum is an output too."""
    total = _residual(w, bias=w.input(4))
    normed = layer_norm(w, total, w.required(2), w.input(3), w.number("epsilon", _SKIP_EPSILON))
    w.stand_in(normed, None, None, total)


def skip_rms_norm(w: Writer) -> None:
    """RMSNormalization(input + skip + bias); the sum is an output too."""
    total = _residual(w, bias=w.input(3))
    w.stand_in(rms_norm(w, total, w.required(2), w.number("epsilon", _SKIP_EPSILON)), None, None, total)


def simplified(w: Writer) -> None:
    """RMSNormalization: x / √(mean(x²) + epsilon) · scale along the last axis."""
    w.stand_in(rms_norm(w, w.required(0), w.required(1), w.number("epsilon", _EPSILON)))


def early_layer_norm(w: Writer) -> None:
    """LayerNormalization in a model of an opset that has none (before 17)."""
    normed = layer_norm(w, w.required(0), w.required(1), w.input(2), w.number("epsilon", _EPSILON))
    w.stand_in(normed)


def embeddings(w: Writer) -> None:
    """The sum of word, position and segment embeddings, normalised; and the number of ones in the mask."""
    ids, words, places = w.required(0), w.required(2), w.required(3)
    total = w.op("Gather", words, ids, axis=0)
    total = w.op("Add", total, w.op("Gather", places, w.input(8) or _positions(w, ids), axis=0))
    segments, table = w.input(1), w.input(4)
    if segments and table:
        total = w.op("Add", total, w.op("Gather", table, segments, axis=0))
    normed = layer_norm(w, total, w.required(5), w.input(6), w.number("epsilon", _SKIP_EPSILON))
    w.stand_in(normed, _lengths(w, ids) if reads_outputs(w.fused, (1,)) else None, total)


def layer_norm(w: Writer, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float) -> ir.Value:
    """LayerNormalization along the last axis, spelt out where the opset has none."""
    if w.has("LayerNormalization"):
        return w.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)
    centred = w.op("Sub", x, _mean(w, x))
    normed = w.op("Mul", _divided_by_root(w, centred, centred, epsilon), scale)
    return normed if bias is None else w.op("Add", normed, bias)


def rms_norm(w: Writer, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    """RMSNormalization along the last axis, spelt out where the opset has none."""
    if w.has("RMSNormalization"):
        return w.op("RMSNormalization", x, scale, axis=-1, epsilon=epsilon)
    return w.op("Mul", _divided_by_root(w, x, x, epsilon), scale)


def _divided_by_root(w: Writer, x: ir.Value, spread: ir.Value, epsilon: float) -> ir.Value:
    """``x`` / √(mean(spread²) + epsilon)."""
    square = w.op("Pow", spread, w.scalar(2.0, spread))
    return w.op("Div", x, w.op("Sqrt", w.op("Add", _mean(w, square), w.scalar(epsilon, x))))


def _mean(w: Writer, x: ir.Value) -> ir.Value:
    if w.rw.model.opset >= AXES_AS_INPUT:
        return w.op("ReduceMean", x, w.integers(-1), keepdims=1)
    return w.op("ReduceMean", x, axes=[-1], keepdims=1)


def _residual(w: Writer, bias: ir.Value | None) -> ir.Value:
    """The sum input + skip + bias; the bias goes to the operand that a linear made, to stay its bias."""
    x, skip = w.required(0), w.required(1)
    if bias is None:
        return w.op("Add", x, skip)
    if producer(skip, "MatMul") and not producer(x, "MatMul"):
        return w.op("Add", x, w.op("Add", skip, bias))
    return w.op("Add", w.op("Add", x, bias), skip)


def _positions(w: Writer, ids: ir.Value) -> ir.Value:
    """[1, sequence]: the integers from 0 on."""
    return w.op("Unsqueeze", w.count(w.size(ids, 1)), w.integers(0))


def _lengths(w: Writer, ids: ir.Value) -> ir.Value:
    """[batch] int32: how many elements of each row of the mask are 1; zeros without a mask."""
    mask = w.input(7)
    if mask is None:
        return w.op("Expand", w.constant(np.array(0, np.int32), "length"), w.size(ids, 0))
    one = w.constant(np.array(1, np.int32), "one")
    ones = w.op("Cast", w.op("Equal", mask, one), to=int(ir.DataType.INT32))
    return w.op("ReduceSum", ones, w.integers(1), keepdims=0)


# ---- what is not handled


def _trains(node: ir.Node) -> str | None:
    """Outputs that only training reads."""
    return "its mean and inv_std_var outputs are read" if reads_outputs(node, (1, 2)) else None


def _statistics_or_axis(node: ir.Node) -> str | None:
    if reads_outputs(node, (1, 2)):
        return "its outputs of statistics are read"
    axis, rank = node.attributes.get_int("axis", -1), rank_of(operand(node, 0))
    if axis == -1 or axis + 1 == rank:
        return None
    return f"its axis is {axis}, only the last one is handled"


OPERATORS = {
    "EmbedLayerNormalization": Operator(embeddings),
    "SkipLayerNormalization": Operator(skip_layer_norm, _trains),
    "SkipSimplifiedLayerNormalization": Operator(skip_rms_norm, _trains),
}
"""Operators of com.microsoft, and how each is written."""

STANDARD_OPERATORS = {
    "LayerNormalization": Operator(early_layer_norm, _statistics_or_axis),
    "SimplifiedLayerNormalization": Operator(simplified, _statistics_or_axis),
}
"""Operators that ONNX Runtime writes as standard ones into models of opsets that lack them."""
