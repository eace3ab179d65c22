"""Activations: GELU, the ELUs and their relatives."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from graphcompress.files.runtime import CONTRIB
from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator, single_call


@operator("Gelu")
@operator("Gelu", domain=CONTRIB)
def gelu(builder: FxBuilder, node: ir.Node) -> Operand:
    """X · Φ(x), or its approximation by tanh."""
    x = builder.tensor(node.inputs[0])
    if node.attributes.get_string("approximate", "none") == "tanh":
        return builder.call(functional.gelu, x, approximate="tanh")
    return builder.call(functional.gelu, x)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """A sigmoid of three straight lines."""
    return torch.clamp(x * alpha + beta, 0, 1)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where it is positive, ``slope`` times ``x`` elsewhere."""
    return torch.where(x >= 0, x, x * slope)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """An ELU times ``gamma``."""
    return functional.elu(x, alpha) * gamma


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    """``x`` closer to 0 by ``bias``; 0 where it is within ``lambd`` of it."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


def swish(x: Tensor, alpha: float) -> Tensor:
    """``x · sigmoid(alpha · x)``."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where it is larger than ``alpha``, 0 elsewhere."""
    return functional.threshold(x, alpha, 0.0)


single_call("Celu", functional.celu, alpha=1.0)
single_call("Elu", functional.elu, alpha=1.0)
single_call("HardSigmoid", hard_sigmoid, alpha=0.2, beta=0.5)
single_call("LeakyRelu", functional.leaky_relu, alpha=0.01)
single_call("PRelu", prelu)
single_call("Selu", selu, alpha=1.6732632423543772, gamma=1.0507009873554805)
single_call("Shrink", shrink, lambd=0.5, bias=0.0)
single_call("Softplus", functional.softplus)
single_call("Swish", swish, alpha=1.0)
single_call("ThresholdedRelu", thresholded_relu, alpha=1.0)
