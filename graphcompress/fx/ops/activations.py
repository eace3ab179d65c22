"""Activations: GELU, the ELUs and their relatives."""

from __future__ import annotations

import operator as op
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator


@operator("Gelu")
def gelu(builder: FxBuilder, node: ir.Node) -> Operand:
    """X · Φ(x), or its approximation by tanh."""
    x = builder.tensor(node.inputs[0])
    if node.attributes.get_string("approximate", "none") == "tanh":
        return builder.call(functional.gelu, x, approximate="tanh")
    return builder.call(functional.gelu, x)


@operator("Softplus", "Elu", "Celu", "Selu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Shrink", "Swish")
def activation(builder: FxBuilder, node: ir.Node) -> Operand:
    """Activations with parameters of their own."""
    return _ACTIVATIONS[node.op_type](builder, node, builder.tensor(node.inputs[0]))


def _elu(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    return builder.call(functional.elu, x, _float(node, "alpha", 1.0))


def _celu(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    return builder.call(functional.celu, x, _float(node, "alpha", 1.0))


def _selu(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    alpha = _float(node, "alpha", 1.6732632423543772)
    scaled = builder.call(functional.elu, x, alpha)
    return builder.call(op.mul, scaled, _float(node, "gamma", 1.0507009873554805))


def _leaky_relu(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    return builder.call(functional.leaky_relu, x, _float(node, "alpha", 0.01))


def _thresholded_relu(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    return builder.call(functional.threshold, x, _float(node, "alpha", 1.0), 0.0)


def _hard_sigmoid(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    scaled = builder.call(op.mul, x, _float(node, "alpha", 0.2))
    return builder.call(torch.clamp, builder.call(op.add, scaled, _float(node, "beta", 0.5)), 0, 1)


def _shrink(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    lambd, bias = _float(node, "lambd", 0.5), _float(node, "bias", 0.0)
    above = builder.call(torch.where, builder.call(op.gt, x, lambd), builder.call(op.sub, x, bias), 0.0)
    return builder.call(torch.where, builder.call(op.lt, x, -lambd), builder.call(op.add, x, bias), above)


def _swish(builder: FxBuilder, node: ir.Node, x: fx.Node) -> fx.Node:
    alpha = _float(node, "alpha", 1.0)
    if alpha == 1.0:
        return builder.call(functional.silu, x)
    return builder.call(op.mul, x, builder.call(torch.sigmoid, builder.call(op.mul, x, alpha)))


_ACTIVATIONS: dict[str, Callable[[FxBuilder, ir.Node, fx.Node], fx.Node]] = {
    "Celu": _celu,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softplus": lambda builder, node, x: builder.call(functional.softplus, x),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}


@operator("PRelu")
def prelu(builder: FxBuilder, node: ir.Node) -> Operand:
    """X where it is positive, a slope times x elsewhere."""
    x, slope = builder.tensor(node.inputs[0]), builder.tensor(node.inputs[1])
    return builder.call(torch.where, builder.call(op.ge, x, 0), x, builder.call(op.mul, x, slope))


def _float(node: ir.Node, name: str, default: float) -> float:
    number: float = node.attributes.get_float(name, default)
    return number
