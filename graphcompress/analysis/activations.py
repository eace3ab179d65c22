"""Activations that exporters spell out: GELU, its approximation by tanh, and SiLU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.graph.match import Number, OneOf, Op, Pattern, Some, find
from graphcompress.graph.model import Model

GELU, TANH_GELU, SILU = "gelu", "tanh_gelu", "silu"


@dataclass(frozen=True, eq=False)
class ActivationFunction:
    """``output = function(x)``, spelt out over several nodes or as one operator.

    Attributes:
        function: ``gelu``: x · Φ(x); ``tanh_gelu``: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), which is
            another function (arXiv:1606.08415 has both); ``silu``: x · sigmoid(x).
        x: the argument.
        nodes: what computes it, in the order of execution.
    """

    function: str
    x: ir.Value
    nodes: tuple[ir.Node, ...]


def activations(model: Model) -> list[ActivationFunction]:
    """Activations of the main graph in execution order, whichever order their factors are multiplied in."""
    return [found for node in model.graph if (found := _activation_at(node)) is not None]


def _activation_at(node: ir.Node) -> ActivationFunction | None:
    if node.op_type == "Gelu" and node.inputs[0] is not None:
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        return ActivationFunction(TANH_GELU if tanh else GELU, node.inputs[0], (node,))
    for function, pattern in _SPELT_OUT.items() if node.op_type in ("Mul", "Div") else ():
        found = find(pattern, node.outputs[0])
        if found is not None:
            return ActivationFunction(function, found["x"], found.nodes)
    return None


_X = Some("x")


def _times(pattern: Pattern, factor: float, *, shared: bool = False) -> Pattern:
    """``factor ·`` a pattern, multiplied or divided by a number."""
    product = Op("Mul", pattern, Number(factor), shared=shared)
    return OneOf(product, Op("Div", pattern, Number(1 / factor), shared=shared))


def _gelu(curve: Pattern) -> Pattern:
    """``½ · x · (1 + curve)``, in any order."""
    sum_ = Op("Add", curve, Number(1.0))
    halved = OneOf(Op("Mul", sum_, _times(_X, 0.5, shared=True)), Op("Mul", _times(sum_, 0.5), _X))
    return OneOf(halved, _times(Op("Mul", sum_, _X), 0.5))


_CUBE = _times(Op("Pow", _X, Number(3.0)), 0.044715)
_SPELT_OUT = {
    GELU: _gelu(Op("Erf", _times(_X, math.sqrt(0.5), shared=True))),
    TANH_GELU: _gelu(Op("Tanh", _times(Op("Add", _X, _CUBE), math.sqrt(2 / math.pi)))),
    SILU: Op("Mul", _X, Op("Sigmoid", _X)),
}
