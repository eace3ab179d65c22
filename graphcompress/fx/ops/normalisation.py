"""Softmax and normalisations."""

from __future__ import annotations

import operator as op

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator, single_call
from graphcompress.graph.match import operand


def hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest entry along ``axis``, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def instance_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalisation of every channel of every sample."""
    return functional.instance_norm(x, weight=gain, bias=shift, eps=eps)


single_call("Hardmax", hardmax, axis=-1)
single_call("InstanceNormalization", instance_norm, epsilon=1e-5)
single_call("LogSoftmax", functional.log_softmax, axis=-1)
single_call("LpNormalization", functional.normalize, p=2, axis=-1)
single_call("Softmax", functional.softmax, axis=-1)


@operator("LayerNormalization")
def layer_norm(builder: FxBuilder, node: ir.Node) -> Operand | tuple[Operand | None, ...]:
    """Mean 0 and variance 1 over the last axes, then gain and shift."""
    value = node.inputs[0]
    shape = _normalised(builder, node, node.attributes.get_int("axis", -1))
    bias = operand(node, 2)
    x, gain = builder.tensor(value), _shaped(builder, node.inputs[1], len(shape))
    shift = None if bias is None else _shaped(builder, bias, len(shape))
    eps = node.attributes.get_float("epsilon", 1e-5)
    made = builder.call(functional.layer_norm, x, shape, gain, shift, eps)
    if len(node.outputs) == 1:
        return made
    axes = list(range(-len(shape), 0))
    mean = builder.call(torch.mean, x, axes, keepdim=True)
    variance = builder.call(torch.var, x, axes, unbiased=False, keepdim=True)
    return made, mean, builder.call(torch.rsqrt, builder.call(op.add, variance, eps))


@operator("RMSNormalization")
def rms_norm(builder: FxBuilder, node: ir.Node) -> Operand:
    """Root mean square 1 over the last axes, then gain."""
    shape = _normalised(builder, node, node.attributes.get_int("axis", -1))
    gain = _shaped(builder, node.inputs[1], len(shape))
    eps = node.attributes.get_float("epsilon", 1e-5)
    return builder.call(functional.rms_norm, builder.tensor(node.inputs[0]), shape, gain, eps)


def _normalised(builder: FxBuilder, node: ir.Node, axis: int) -> tuple[object, ...]:
    value = node.inputs[0]
    rank = builder.rank(value, node)
    if value is None:
        builder.refuse(node, "it has no input")
    return tuple(builder.size(value, index) for index in range(axis % rank, rank))


def _shaped(builder: FxBuilder, value: ir.Value | None, rank: int) -> fx.Node:
    """A gain of the rank of what it scales, as PyTorch wants it."""
    x = builder.tensor(value)
    if value is None or value.shape is None or len(value.shape) == rank:
        return x
    return builder.method("reshape", x, *[int(size) for size in value.shape.numpy()[-rank:]])


@operator("BatchNormalization")
def batch_norm(builder: FxBuilder, node: ir.Node) -> Operand:
    """Normalisation by running statistics."""
    if node.attributes.get_int("training_mode", 0):
        builder.refuse(node, "it updates its statistics in the graph")
    x, gain, shift, mean, variance = map(builder.tensor, node.inputs)
    eps = node.attributes.get_float("epsilon", 1e-5)
    return builder.call(functional.batch_norm, x, mean, variance, gain, shift, eps=eps)


@operator("GroupNormalization")
def group_norm(builder: FxBuilder, node: ir.Node) -> Operand:
    """Normalisation of groups of channels; before opset 21 with a gain per group."""
    value, groups = node.inputs[0], node.attributes.get_int("num_groups", 1)
    x, gain, shift = map(builder.tensor, node.inputs)
    channels = None if value is None or value.shape is None else value.shape[1]
    scale = node.inputs[1]
    if scale is not None and scale.shape is not None and scale.shape[0] != channels:
        if not isinstance(channels, int):
            builder.refuse(node, "the number of channels is not fixed")
        gain, shift = (
            builder.method("repeat_interleave", item, channels // groups) for item in (gain, shift)
        )
    eps = node.attributes.get_float("epsilon", 1e-5)
    return builder.call(functional.group_norm, x, groups, gain, shift, eps)
