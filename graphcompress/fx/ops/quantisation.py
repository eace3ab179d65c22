"""Quantisation, as rounding with a gradient that passes straight through."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from graphcompress.analysis.low_bit import integer_range, is_zero
from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.functional import dequantise, dynamic_quantise, fake_quantise, quantise
from graphcompress.fx.ops.table import operator
from graphcompress.graph.match import operand


@operator("QuantizeLinear")
def quantize_linear(builder: FxBuilder, node: ir.Node) -> Operand:
    """Floats in steps of a scale; the integers are kept as floats."""
    out = node.outputs[0]
    limits = integer_range(out.dtype)
    if limits is None:
        builder.refuse(node, f"it quantises to {out.dtype}")
    builder.quantised.add(out)
    scale, zero = _parameters(builder, node)
    axis = _axis(node)
    channel = () if axis is None else (axis,)
    return builder.shared(quantise, builder.tensor(node.inputs[0]), scale, zero, *limits, *channel)


@operator("DequantizeLinear")
def dequantize_linear(builder: FxBuilder, node: ir.Node) -> Operand:
    """The floats that integers stand for; together with the quantisation before it one rounding."""
    x = builder.tensor(node.inputs[0])
    scale, zero = _parameters(builder, node)
    axis = _axis(node)
    if x.target is quantise and _same_grid(builder, node, x, scale, zero, axis):
        return builder.shared(fake_quantise, *x.args)
    return builder.call(dequantise, x, scale, zero, *(() if axis is None else (axis,)))


def _same_grid(
    builder: FxBuilder, node: ir.Node, x: fx.Node, scale: fx.Node, zero: fx.Node | int, axis: int | None
) -> bool:
    """Whether ``x`` was quantised with the same scale and zero point along the same axis."""
    _, its_scale, its_zero, _, _, *channel = x.args
    rank = builder.rank(node.inputs[0], node)
    its_axis = channel[0] % rank if channel and rank else None  # type: ignore[operator]
    return its_scale is scale and its_zero == zero and its_axis == (axis % rank if axis is not None else None)


def _parameters(builder: FxBuilder, node: ir.Node) -> tuple[fx.Node, fx.Node | int]:
    """Scale and zero point; a stored zero point of zeros is the number 0."""
    zero = operand(node, 2)
    if zero is None or (zero.const_value is not None and is_zero(zero)):
        return builder.tensor(node.inputs[1]), 0
    return builder.tensor(node.inputs[1]), builder.tensor(zero)


def _axis(node: ir.Node) -> int | None:
    """The axis of scales per channel or per block; None for one scale."""
    scale = node.inputs[1]
    if scale is None or scale.shape is None or all(size == 1 for size in scale.shape):
        return None
    axis: int = node.attributes.get_int("axis", 1)
    source = node.inputs[0]
    return axis if source is None or source.shape is None else axis % len(source.shape)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(builder: FxBuilder, node: ir.Node) -> tuple[Operand | None, ...]:
    """Floats in 256 steps over their own range."""
    builder.quantised.update((node.outputs[0], node.outputs[2]))
    parts = builder.call(dynamic_quantise, builder.tensor(node.inputs[0]))
    return tuple(builder.item(parts, index) for index in range(3))
