"""Products of matrices and tensors."""

from __future__ import annotations

import operator as op
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator, single_call
from graphcompress.graph.match import operand

single_call("MatMul", torch.matmul)


@operator("Gemm")
def gemm(builder: FxBuilder, node: ir.Node) -> Operand:
    """Alpha · A · B + beta · C; a linear, where the factors are 1."""
    a, b, c = (operand(node, index) for index in range(3))
    left, right = builder.tensor(a), builder.tensor(b)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if node.attributes.get_int("transA", 0):
        left = builder.method("t", left)
    transposed = bool(node.attributes.get_int("transB", 0))
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.shape is not None and len(c.shape) == 1)):
        weight = right if transposed else builder.method("t", right)
        bias = () if c is None else (builder.tensor(c),)
        return builder.call(functional.linear, left, weight, *bias)
    product = builder.call(torch.matmul, left, builder.method("t", right) if transposed else right)
    if alpha != 1.0:
        product = builder.call(op.mul, product, alpha)
    if c is None:
        return product
    term = builder.tensor(c) if beta == 1.0 else builder.call(op.mul, builder.tensor(c), beta)
    return builder.call(op.add, product, term)


@operator("MatMulInteger")
def matmul_integer(builder: FxBuilder, node: ir.Node) -> Operand:
    """Product of integers, kept as floats: exact up to 2²⁴, and gradients flow."""
    builder.quantised.add(node.outputs[0])
    left, right = (shifted(builder, node, index, index + 2) for index in (0, 1))
    return builder.call(torch.matmul, left, right)


def shifted(builder: FxBuilder, node: ir.Node, index: int, zero_index: int) -> fx.Node:
    """A quantised operand as floats, minus its zero point (per row of a left operand, if per channel)."""
    x = builder.method("float", builder.tensor(node.inputs[index]))
    zero = operand(node, zero_index)
    array = builder.array(zero)
    if zero is None or (array is not None and not array.any()):
        return x
    point = builder.tensor(zero)
    if index == 0 and zero.shape is not None and len(zero.shape) == 1 and zero.shape[0] != 1:
        point = builder.method("unsqueeze", point, -1)
    return builder.call(op.sub, x, point)


@operator("Einsum")
def einsum(builder: FxBuilder, node: ir.Node) -> Operand:
    """Sums of products over named axes."""
    equation = node.attributes.get_string("equation").replace(" ", "")
    return builder.call(torch.einsum, equation, *map(builder.tensor, node.inputs))


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("Conv")
def conv(builder: FxBuilder, node: ir.Node) -> Operand:
    """Convolution over one to three axes."""
    weight = node.inputs[1]
    dims = builder.rank(weight, node) - 2
    if dims not in _CONVOLUTIONS:
        builder.refuse(node, f"a convolution over {dims} axes")
    x, padding = _padding(builder, node, dims)
    bias = operand(node, 2)
    return builder.call(
        _CONVOLUTIONS[dims],
        x,
        builder.tensor(weight),
        None if bias is None else builder.tensor(bias),
        stride=tuple(node.attributes.get_ints("strides", [1] * dims)),
        padding=padding,
        dilation=tuple(node.attributes.get_ints("dilations", [1] * dims)),
        groups=node.attributes.get_int("group", 1),
    )


def _padding(builder: FxBuilder, node: ir.Node, dims: int) -> tuple[fx.Node, tuple[int, ...]]:
    """The input, padded beforehand where both sides differ, and the padding that is left to do."""
    x = builder.tensor(node.inputs[0])
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    pads = _automatic(builder, node, dims, automatic) if automatic.startswith("SAME") else None
    pads = list(node.attributes.get_ints("pads", [0] * 2 * dims)) if pads is None else pads
    if pads[:dims] == pads[dims:]:
        return x, tuple(pads[:dims])
    both = [side for axis in reversed(range(dims)) for side in (pads[axis], pads[axis + dims])]
    return builder.call(functional.pad, x, both), (0,) * dims


def _automatic(builder: FxBuilder, node: ir.Node, dims: int, kind: str) -> list[int]:
    source, weight = node.inputs[:2]
    sizes = [] if source is None or source.shape is None else source.shape[2:]
    if weight is None or weight.shape is None or not all(isinstance(size, int) for size in sizes):
        builder.refuse(node, f"auto_pad {kind} of sizes that are not fixed")
    strides = node.attributes.get_ints("strides", [1] * dims)
    dilations = node.attributes.get_ints("dilations", [1] * dims)
    totals = [
        max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        for size, stride, kernel, dilation in _whole(sizes, strides, weight.shape[2:], dilations)
    ]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return small + large if kind == "SAME_UPPER" else large + small


def _whole(*columns: Sequence[object]) -> list[tuple[int, ...]]:
    return [tuple(int(number) for number in row) for row in zip(*columns, strict=True)]
