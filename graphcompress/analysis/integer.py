"""Integer products: linears over quantised activations and weights, with their scales and their bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.graph.expressions import Constants
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


@dataclass(frozen=True, eq=False)
class IntegerProduct:
    """``output = (a - a_zero) · (b - b_zero) · a_scale · b_scale + bias``, ``a`` being activations.

    Attributes:
        a: integers [..., in], with one scale.
        b: constant integers [in, out], with one scale or one per output.
        a_scale, b_scale, a_zero, b_zero: what the integers stand for.
        bias: [out], or None.
        nodes: what computes it, in the order of execution; of what makes ``a`` float, what it alone reads.
    """

    a: ir.Value
    b: ir.Value
    a_scale: ir.Value
    b_scale: ir.Value
    a_zero: ir.Value
    b_zero: ir.Value | None
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]

    @property
    def output(self) -> ir.Value:
        """What it computes, the bias included."""
        return self.nodes[-1].outputs[0]


def integer_products(model: Model) -> list[IntegerProduct]:
    """Integer products of the main graph in execution order.

    A MatMul between DequantizeLinear pairs, or MatMulInteger with its scales, and the bias behind it.
    """
    constant = Constants()
    found = (_static(node, constant) or _dynamic(node, constant) for node in model.graph)
    return [product for product in found if product is not None]


def dequantised_operands(node: ir.Node, constant: Constants | None = None) -> tuple[ir.Node, ir.Node] | None:
    """What dequantises both operands of a MatMul or a Gemm, when one of them alone is constant."""
    if not is_standard(node, "MatMul", "Gemm"):
        return None
    left, right = (producer(value, "DequantizeLinear") for value in node.inputs[:2])
    one_weight = sum(map(constant or Constants(), node.inputs[:2])) == 1
    return (left, right) if left is not None and right is not None and one_weight else None


def _static(node: ir.Node, constant: Constants) -> IntegerProduct | None:
    sides = dequantised_operands(node, constant)
    if sides is None or node.op_type != "MatMul" or not constant(node.inputs[1]):
        return None
    left, right = sides
    if not _is_scalar(operand(left, 1)) or not _by_column(right):
        return None
    inner = (left, node) if only_reader(left.outputs[0]) is node else (node,)
    return _product(constant, inner, *([operand(side, index) for side in sides] for index in range(3)))


def _dynamic(node: ir.Node, constant: Constants) -> IntegerProduct | None:
    """MatMulInteger → Cast → Mul by the product of both scales."""
    cast = only_reader(node.outputs[0], "Cast") if is_standard(node, "MatMulInteger") else None
    scaled = only_reader(cast.outputs[0], "Mul") if cast is not None else None
    if cast is None or scaled is None:
        return None
    scales = producer(operand_beside(scaled, cast.outputs[0]), "Mul")
    if scales is None:
        return None
    a_scale, b_scale = sorted(scales.inputs, key=constant)
    if constant(a_scale) or not constant(b_scale) or not constant(node.inputs[1]):
        return None
    inner = (scales,) if only_reader(scales.outputs[0]) is scaled else ()
    zeros = [operand(node, 2), operand(node, 3)]
    return _product(constant, (*inner, node, cast, scaled), node.inputs[:2], [a_scale, b_scale], zeros)


def _product(
    constant: Constants,
    nodes: tuple[ir.Node, ...],
    factors: Sequence[ir.Value | None],
    scales: Sequence[ir.Value | None],
    zeros: Sequence[ir.Value | None],
) -> IntegerProduct | None:
    """With the bias behind it; of factors, scales and zero points, the activation's come first."""
    (a, b), (a_scale, b_scale), (a_zero, b_zero) = factors, scales, zeros
    if a is None or b is None or a_scale is None or b_scale is None or a_zero is None or rank_of(b) != 2:
        return None
    product = nodes[-1].outputs[0]
    add = only_reader(product, "Add")
    bias = operand_beside(add, product)
    vector = rank_of(bias) == 1 and fixed_size(bias, 0) == fixed_size(b, 1)
    if add is None or not constant(bias) or not vector:
        return IntegerProduct(a, b, a_scale, b_scale, a_zero, b_zero, None, nodes)
    return IntegerProduct(a, b, a_scale, b_scale, a_zero, b_zero, bias, (*nodes, add))


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
