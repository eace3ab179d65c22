"""Activations that exporters spell out: SiLU, and the approximation of GELU by tanh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx_ir as ir
from torch import fx
from torch.nn import functional

from graphcompress.analysis.arguments import scalar
from graphcompress.fx.builder import Builder
from graphcompress.graph.model import Model
from graphcompress.rules.family import is_standard, only_reader, operand_beside

Written = tuple[tuple[ir.Node, ...], Callable[[Builder], fx.Node]]

_TOLERANCE = 1e-4


def spelt_out_activations(model: Model) -> Iterator[Written]:
    """Every ``x · sigmoid(x)`` and every ``½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))``."""
    for node in model.graph:
        found = _silu(node) if is_standard(node, "Sigmoid") else None
        found = _tanh_gelu(node) if is_standard(node, "Tanh") else found
        if found is not None:
            yield found


def _silu(sigmoid: ir.Node) -> Written | None:
    x, product = sigmoid.inputs[0], only_reader(sigmoid.outputs[0])
    if x is None or product is None or not is_standard(product, "Mul"):
        return None
    if operand_beside(product, sigmoid.outputs[0]) is not x:
        return None
    return (sigmoid, product), lambda builder: builder.call(functional.silu, builder.tensor(x))


def _tanh_gelu(tanh: ir.Node) -> Written | None:
    found = _cubic(tanh.inputs[0])
    add = only_reader(tanh.outputs[0])
    if found is None or add is None or not is_standard(add, "Add"):
        return None
    x, inner = found
    product = only_reader(add.outputs[0])
    if not _near(scalar(operand_beside(add, tanh.outputs[0])), 1.0) or product is None:
        return None
    half = _scaled(operand_beside(product, add.outputs[0]), 0.5)
    if not is_standard(product, "Mul") or half is None or half[0] is not x:
        return None
    nodes = (*inner, tanh, add, half[1], product)
    return nodes, lambda builder: builder.call(functional.gelu, builder.tensor(x), approximate="tanh")


def _cubic(value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """The x of ``√(2/π) (x + 0.044715 x³)``, and the nodes of it."""
    outer = _scaled(value, math.sqrt(2 / math.pi))
    add = None if outer is None else outer[0].producer()
    if outer is None or add is None or not is_standard(add, "Add"):
        return None
    for x, other in (tuple(add.inputs), tuple(reversed(add.inputs))):
        small = _scaled(other, 0.044715)
        power = None if small is None else small[0].producer()
        if x is None or small is None or power is None or not is_standard(power, "Pow"):
            continue
        if power.inputs[0] is x and _near(scalar(power.inputs[1]), 3.0):
            return x, (power, small[1], add, outer[1])
    return None


def _scaled(value: ir.Value | None, factor: float) -> tuple[ir.Value, ir.Node] | None:
    """The value that a Mul multiplies by ``factor``, and the Mul."""
    node = None if value is None else value.producer()
    if node is None or not is_standard(node, "Mul"):
        return None
    for index in (0, 1):
        other = node.inputs[1 - index]
        if _near(scalar(node.inputs[index]), factor) and other is not None:
            return other, node
    return None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _TOLERANCE * abs(wanted)
