"""Activations that exporters spell out: GELU, its approximation by tanh, and SiLU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.arguments import is_standard, only_reader, operand_beside, scalar, scaled
from graphcompress.graph.model import Model

GELU, TANH_GELU, SILU = "gelu", "tanh_gelu", "silu"

_TOLERANCE = 1e-4
"""Relative; exporters round the constants of an activation to float32, or to four digits."""

Chain = tuple[ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Activation:
    """``output = function(x)``, spelt out over several nodes or as one operator.

    Attributes:
        function: ``gelu``: x · Φ(x); ``tanh_gelu``: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), which is
            another function (arXiv:1606.08415 has both); ``silu``: x · sigmoid(x).
        x: the argument.
        nodes: what computes it, in the order of execution.
    """

    function: str
    x: ir.Value
    nodes: Chain


def activations(model: Model) -> list[Activation]:
    """Activations of the main graph in execution order, whichever order their factors are multiplied in."""
    return [found for node in model.graph if (found := _activation_at(node)) is not None]


def _activation_at(node: ir.Node) -> Activation | None:
    if node.op_type == "Gelu":
        return _operator(node)
    if is_standard(node, "Sigmoid"):
        return _silu(node)
    return _gelu(node) if is_standard(node, "Erf") or is_standard(node, "Tanh") else None


def _operator(node: ir.Node) -> Activation | None:
    tanh = node.attributes.get_string("approximate", "none") == "tanh"
    x = node.inputs[0]
    return None if x is None else Activation(TANH_GELU if tanh else GELU, x, (node,))


def _silu(sigmoid: ir.Node) -> Activation | None:
    x, product = sigmoid.inputs[0], only_reader(sigmoid.outputs[0])
    if x is None or product is None or not is_standard(product, "Mul"):
        return None
    if operand_beside(product, sigmoid.outputs[0]) is not x:
        return None
    return Activation(SILU, x, (sigmoid, product))


def _gelu(curve: ir.Node) -> Activation | None:
    """The GELU around an Erf or a Tanh: 1 is added to the curve, and ½ · x multiplies the sum."""
    found = _over_root_two(curve.inputs[0]) if curve.op_type == "Erf" else _cubic(curve.inputs[0])
    add = only_reader(curve.outputs[0])
    if found is None or add is None or not is_standard(add, "Add"):
        return None
    if not _near(scalar(operand_beside(add, curve.outputs[0])), 1.0):
        return None
    x, inner = found
    outer = _times_half(add.outputs[0], x)
    function = GELU if curve.op_type == "Erf" else TANH_GELU
    return None if outer is None else Activation(function, x, (*inner, curve, add, *outer))


def _over_root_two(value: ir.Value | None) -> tuple[ir.Value, Chain] | None:
    """The x of ``x / √2``, and the node of it when nothing else reads that."""
    found = _times(value, math.sqrt(0.5))
    if found is None:
        return None
    x, node = found
    return x, (node,) if only_reader(node.outputs[0]) is not None else ()


def _cubic(value: ir.Value | None) -> tuple[ir.Value, Chain] | None:
    """The x of ``√(2/π) (x + 0.044715 x³)``, and the nodes of it."""
    outer = _times(value, math.sqrt(2 / math.pi))
    add = None if outer is None else outer[0].producer()
    if outer is None or add is None or not is_standard(add, "Add"):
        return None
    for x, other in (tuple(add.inputs), tuple(reversed(add.inputs))):
        small = _times(other, 0.044715)
        power = None if small is None else small[0].producer()
        if x is None or small is None or power is None or not is_standard(power, "Pow"):
            continue
        if power.inputs[0] is x and _near(scalar(power.inputs[1]), 3.0):
            return x, (power, small[1], add, outer[1])
    return None


def _times_half(value: ir.Value, x: ir.Value) -> Chain | None:
    """Nodes that multiply ``value`` by x and by ½, one after the other or by ½ · x at once."""
    first = only_reader(value)
    if first is None:
        return None
    if is_standard(first, "Mul"):
        half = _times(operand_beside(first, value), 0.5)
        if half is not None and half[0] is x:
            return (half[1], first) if only_reader(half[1].outputs[0]) is not None else (first,)
    second = only_reader(first.outputs[0])
    if second is None:
        return None
    for halves, multiplies in ((first, second), (second, first)):
        if _times(halves.outputs[0], 0.5) and is_standard(multiplies, "Mul") and x in multiplies.inputs:
            return first, second
    return None


def _times(value: ir.Value | None, factor: float) -> tuple[ir.Value, ir.Node] | None:
    """What a Mul or Div multiplies by ``factor`` to get ``value``, and that node."""
    node = None if value is None else value.producer()
    found = scaled(node)
    return (found[0], node) if node is not None and found is not None and _near(found[1], factor) else None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _TOLERANCE * abs(wanted)
