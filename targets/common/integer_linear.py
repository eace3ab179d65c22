"""int8 linears: where ONNX Runtime multiplies integers, and what happens to the product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import (
    fixed_size,
    is_standard,
    only_reader,
    operand,
    operand_beside,
    producer,
    rank_of,
    shape_of,
)
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB, Family, Form, Site, disjoint


@dataclass(frozen=True, eq=False)
class IntegerSite(Site):
    """``output = (a - a_zero) · (b - b_zero) · a_scale · b_scale + bias``, ``a`` being activations."""

    a: ir.Value
    b: ir.Value
    a_scale: ir.Value
    b_scale: ir.Value
    a_zero: ir.Value
    b_zero: ir.Value | None
    bias: ir.Value | None


class IntegerLinear(Family[IntegerSite]):
    """A MatMul between DequantizeLinear pairs, or MatMulInteger with its scales, and the bias behind it.

    ONNX Runtime fuses either into MatMulIntegerToFloat when the session is made, but adds the bias of the
    first in an operator of its own.
    """

    name: ClassVar[str] = "int8 linear"
    default: ClassVar[str] = "integer_to_float"

    @property
    def forms(self) -> Mapping[str, Form[IntegerSite]]:
        """``integer_to_float``: MatMulIntegerToFloat of com.microsoft, which adds the bias."""
        return {"integer_to_float": _as_integer_to_float}

    def sites(self, model: Model) -> list[IntegerSite]:
        """Every linear over quantised activations and weights of two dimensions."""
        return disjoint(_static(node) or _dynamic(node) for node in model.graph)


def _static(node: ir.Node) -> IntegerSite | None:
    if not is_standard(node, "MatMul"):
        return None
    left, right = (producer(value, "DequantizeLinear") for value in node.inputs)
    if left is None or right is None or is_constant(left.outputs[0]) or not is_constant(right.outputs[0]):
        return None
    if not _is_scalar(operand(left, 1)) or not _by_column(right):
        return None
    inner = (left, node) if only_reader(left.outputs[0]) is node else (node,)
    return _site(inner, *([operand(side, index) for side in (left, right)] for index in range(3)))


def _dynamic(node: ir.Node) -> IntegerSite | None:
    """MatMulInteger → Cast → Mul by the product of both scales."""
    cast = only_reader(node.outputs[0], "Cast") if is_standard(node, "MatMulInteger") else None
    product = only_reader(cast.outputs[0], "Mul") if cast is not None else None
    if cast is None or product is None:
        return None
    scales = producer(operand_beside(product, cast.outputs[0]), "Mul")
    if scales is None:
        return None
    a_scale, b_scale = sorted(scales.inputs, key=is_constant)
    if is_constant(a_scale) or not is_constant(b_scale) or not is_constant(node.inputs[1]):
        return None
    inner = (scales,) if only_reader(scales.outputs[0]) is product else ()
    zeros = [operand(node, 2), operand(node, 3)]
    return _site((*inner, node, cast, product), node.inputs[:2], [a_scale, b_scale], zeros)


def _site(
    nodes: tuple[ir.Node, ...],
    factors: Sequence[ir.Value | None],
    scales: Sequence[ir.Value | None],
    zeros: Sequence[ir.Value | None],
) -> IntegerSite | None:
    """The site of a product; of factors, scales and zero points, the activation's come first."""
    (a, b), (a_scale, b_scale), (a_zero, b_zero) = factors, scales, zeros
    if a is None or b is None or a_scale is None or b_scale is None or a_zero is None or rank_of(b) != 2:
        return None
    product = nodes[-1].outputs[0]
    add = only_reader(product, "Add")
    bias = operand_beside(add, product)
    vector = rank_of(bias) == 1 and fixed_size(bias, 0) == fixed_size(b, 1)
    if add is None or not is_constant(bias) or not vector:
        return IntegerSite(nodes, a, b, a_scale, b_scale, a_zero, b_zero, None)
    return IntegerSite((*nodes, add), a, b, a_scale, b_scale, a_zero, b_zero, bias)


def _by_column(dequantize: ir.Node) -> bool:
    """Whether the weight [in, out] has one scale, or one per output."""
    weight, scale = dequantize.inputs[:2]
    if _is_scalar(scale):
        return True
    axis = dequantize.attributes.get_int("axis", 1)
    blocked = dequantize.attributes.get_int("block_size", 0)
    return rank_of(weight) == 2 and rank_of(scale) == 1 and axis in (1, -1) and not blocked


def _is_scalar(value: ir.Value | None) -> bool:
    shape = shape_of(value)
    return shape is not None and all(size == 1 for size in shape)


def _as_integer_to_float(rw: Rewriter, site: IntegerSite) -> None:
    operands = [site.a, site.b, site.a_scale, site.b_scale, site.a_zero, site.b_zero, site.bias]
    while operands[-1] is None:
        operands.pop()
    value = site.place(rw).op("MatMulIntegerToFloat", *operands, name="", domain=CONTRIB)
    rw.replace(site.output, value, take_name=True)
