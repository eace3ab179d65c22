"""One form for linears: MatMul with a weight [in, out], then Add with a bias [out]; one scale per product."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY, linear_at
from graphcompress.graph.expressions import evaluate, expression_nodes, leaves
from graphcompress.graph.match import (
    array_of,
    fixed_shape,
    only_reader,
    operand,
    producer,
    rank_of,
    scalar,
    shape_of,
)
from graphcompress.graph.model import is_weight
from graphcompress.graph.sizes import reshape_target, same_shape
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule

SMALL_BYTES = 64
"""Results of at most this many bytes are folded even when the expression is smaller."""


def fold_weight(rw: Rewriter, node: ir.Node) -> str | None:
    """A constant expression over weights is computed once, unless it is the smaller form of its result.

    Left alone: an expression whose result is larger than its leaves (Kronecker factors, low-bit storage),
    anything behind a DequantizeLinear, and an expression whose leaves are read elsewhere too (tied weights),
    because folding would store them twice.
    """
    value = node.outputs[0]
    if len(node.outputs) != 1 or value.is_graph_output():
        return None
    if not is_whole_expression(rw, value) or why_not_fold(value) is not None:
        return None
    name = weight_name(value)
    suffix = "transposed" if node.op_type == "Transpose" else "folded"
    folded = rw.constant(evaluate(value), f"{name}.{suffix}", value.dtype)
    folded.metadata_props[NAME_KEY] = name
    rw.touch(name, f"{node.op_type} of a weight folded")
    rw.replace(value, folded)
    return f"{node.op_type} of a weight"


def is_whole_expression(rw: Rewriter, value: ir.Value) -> bool:
    """Whether ``value`` is computed from constants and read by something that is not constant."""
    if value.const_value is not None or not rw.is_constant(value):
        return False
    return any(not rw.is_constant(use.node.outputs[0]) for use in value.uses())


def why_not_fold(value: ir.Value) -> str | None:
    """Why the constant expression ``value`` is not computed now, or None."""
    shape = fixed_shape(value)
    if shape is None or value.dtype is None:
        return "its shape is not known"
    nodes = set(expression_nodes(value))
    if any(node.op_type == "DequantizeLinear" for node in nodes):
        return "quantised: runtimes look for its DequantizeLinear"
    stored = leaves(value)
    bytes_after = int(math.prod(shape) * value.dtype.itemsize)
    if bytes_after > SMALL_BYTES and bytes_after > sum(
        leaf.const_value.nbytes for leaf in stored if leaf.const_value is not None
    ):
        return "the expression is smaller than its result"
    if any(use.node not in nodes for leaf in stored if is_weight(leaf) for use in leaf.uses()):
        return "tied: the stored tensor has other readers, folding would store it twice"
    return None


def weight_name(value: ir.Value) -> str:
    """What a user calls the weight that the constant ``value`` stands for."""
    stored = leaves(value)
    named = [leaf for leaf in stored if is_weight(leaf)] or stored
    given = (item.metadata_props.get(NAME_KEY) for item in (value, named[0]))
    return next(filter(None, given), named[0].name) or "weight"


def gemm(rw: Rewriter, node: ir.Node) -> str | None:
    """A Gemm with a constant weight becomes MatMul and Add."""
    found = linear_at(node, rw.is_constant)
    if found is None:
        return None
    bias = operand(node, "C")
    if bias is not None and fixed_shape(bias) != (found.out_features,):
        flat = _flatten_bias(rw, node, 2, found.out_features)
        return "bias of more than one axis" if flat else None
    weight = found.weight
    if found.transposed:
        # The Transpose stays a node here: fold_weight decides in the next round, as it knows of tied weights.
        weight = rw.at(node, found.name).op("Transpose", weight, name="transposed", perm=[1, 0])
    rw.touch(found, "Gemm became MatMul and Add")
    rw.set_weight(found, weight)
    return "Gemm"


def gemm_with_factors(rw: Rewriter, node: ir.Node) -> str | None:
    """A Gemm of a weight with alpha, beta, transA or a computed C becomes MatMul and Add, each as it is.

    alpha goes into the weight, or, where a number would lose digits there, behind the product.
    """
    x, weight, added = (operand(node, place) for place in ("A", "B", "C"))
    if x is None or weight is None or rw.is_constant(x) or not rw.is_constant(weight):
        return None
    if weight.dtype is None or not weight.dtype.is_floating_point():
        return None
    alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
    b = rw.at(node, weight_name(weight))
    if node.attributes.get_int("transA", 0):
        x = b.op("Transpose", x, name="rows", perm=[1, 0])
    inside = alpha == 1.0 or _keeps_digits(evaluate(weight), alpha, weight.dtype)
    if node.attributes.get_int("transB", 0):
        weight = b.op("Transpose", weight, name="transposed", perm=[1, 0])
    if inside and alpha != 1.0:
        weight = b.op("Mul", weight, alpha, name="scaled")
    out = b.op("MatMul", x, weight, name="product")
    if not inside:
        out = b.op("Mul", out, alpha, name="scaled_product")
    if added is not None:
        bias = added if beta == 1.0 else b.op("Mul", added, beta, name="scaled_bias")
        out = b.op("Add", out, bias, name="sum")
    rw.replace(node.outputs[0], out, take_name=True)
    return "Gemm with factors"


def _keeps_digits(array: np.ndarray, factor: float, dtype: ir.DataType) -> bool:
    """Whether ``array`` times ``factor`` has all its digits in ``dtype``."""
    sizes = np.abs(array[array != 0].astype(np.float64)) * abs(factor)
    limit = float(np.finfo(array.dtype).max) if array.dtype.kind == "f" else np.inf
    return not sizes.size or bool(_LEAST.get(dtype, 0.0) <= sizes.min() and sizes.max() < limit)


def bias_last(rw: Rewriter, node: ir.Node) -> str | None:
    """A bias is the second operand of the Add after a MatMul, and has one axis."""
    a, b = node.inputs
    if not producer(a, "MatMul") and producer(b, "MatMul") and rw.is_constant(a):
        rw.set_input(node, 0, b)
        rw.set_input(node, 1, a)
        return "bias before its product"
    shape, rank = shape_of(a), rank_of(b)
    if not producer(a, "MatMul") or not rw.is_constant(b) or shape is None or rank is None:
        return None
    # A bias with more axes than the product gives axes to the sum, which a vector would not.
    flat = 2 <= rank <= len(shape) and _flatten_bias(rw, node, 1, shape[-1])
    return "bias of more than one axis" if flat else None


def _flatten_bias(rw: Rewriter, node: ir.Node, index: int, width: int | ir.SymbolicDim) -> bool:
    """Give ``node`` its bias as [width] when it is [1, …, width]."""
    bias = node.inputs[index]
    array = array_of(bias)
    if bias is None or array is None or not isinstance(width, int):
        return False
    # A Gemm may broadcast one number over its columns; behind it stands an Add that is to have a whole bias.
    if array.size == 1 and width > 1 and node.op_type == "Gemm":
        array = np.full(width, array.reshape(()), array.dtype)
    if array.size != width or (array.ndim and array.shape[-1] != width):
        return False
    name = f"{bias.name}.flat"
    known = rw.model.graph.initializers.get(name)
    # What several linears add, such as those of the parts of a model that writes, stays one weight.
    same = known is not None and np.array_equal(evaluate(known), array.reshape(-1))
    flat = known if known is not None and same else rw.constant(array.reshape(-1), name, bias.dtype)
    flat.metadata_props[NAME_KEY] = bias.metadata_props.get(NAME_KEY) or bias.name or ""
    rw.set_input(node, index, flat)
    return True


_LEAST: dict[ir.DataType | None, float] = {
    ir.DataType.FLOAT16: 2.0**-14,
    ir.DataType.FLOAT: 2.0**-126,
    ir.DataType.BFLOAT16: 2.0**-126,
}
"""The smallest number of a type that has all its digits."""


def one_scale(rw: Rewriter, node: ir.Node) -> str | None:
    """Scalar factors on both operands of a product become one on the left (Q·√s times K·√s).

    The factor is not folded into the weight behind it: weights stay those of the checkpoint, tied ones stay
    tied, and runtimes fuse a scalar into the product for nothing.
    """
    left, right = (producer(value, "Mul") if only_reader(value) else None for value in node.inputs)
    if left is None or right is None:
        return None
    (a, factor), (b, other) = _scaled(rw, left), _scaled(rw, right)
    if a is None or b is None or factor is None or other is None or factor.dtype != other.dtype:
        return None
    product = np.asarray(evaluate(factor) * evaluate(other))
    least = _LEAST.get(factor.dtype, 0.0)
    if not least <= float(np.abs(product.astype(np.float64)).max()) < np.inf:  # 1e-30 · 1e-30 would be 0
        return None
    rw.set_input(left, 0, a)
    rw.set_input(left, 1, rw.at(left).constant(product.reshape(()), "scale", like=factor))
    rw.set_input(node, 1, b)
    return "second scale of a product"


def _scaled(rw: Rewriter, node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The operand and the scalar of a Mul."""
    for index in (1, 0):
        factor, value = node.inputs[index], node.inputs[1 - index]
        if scalar(factor) is None or rw.is_constant(value):
            continue
        if same_shape(shape_of(value), node.outputs[0].shape):
            return value, factor
    return None, None


def unflattened_rows(rw: Rewriter, node: ir.Node) -> str | None:
    """A linear between Reshapes [.., in] → [rows, in] and from [rows, out] multiplies the rows as they were.

    Exporters write ``addmm`` over two axes only; MatMul takes any number, so that the first Reshape and the
    arithmetic of its target go, and the second mostly turns out to move nothing.
    """
    linear, data = linear_at(node, rw.is_constant), operand(producer(node.inputs[0], "Reshape"), 0)
    shape = shape_of(data)
    if linear is None or shape is None or len(shape) < 3:
        return None
    if shape[-1] != linear.in_features or rank_of(linear.input) != 2:
        return None
    back = only_reader(linear.output, "Reshape")
    if back is None or back.outputs[0].shape is None:
        return None
    sizes = reshape_target([*shape[:-1], linear.out_features], list(back.outputs[0].shape))
    if sizes is None:
        return None
    rw.set_input(node, 0, data)
    rw.set_input(back, 1, rw.at(back).constant(sizes, "shape"))
    rw.set_attribute(back, "allowzero", None)  # a 0 copies
    for value in (node.outputs[0], linear.output):
        value.shape = None  # until shapes are inferred anew
    return "Reshape around a linear"


RULES: dict[str, tuple[Rule, ...]] = {
    "Gemm": (gemm, gemm_with_factors),
    "Add": (bias_last,),
    "MatMul": (one_scale, unflattened_rows),
}
"""Operator → rules, tried in this order; :func:`fold_weight` is for every operator."""
