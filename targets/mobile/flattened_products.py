"""Products of more than two axes as products of matrices."""

from __future__ import annotations

import math

import numpy as np

from graphcompress.analysis.linears import Linear, linears
from graphcompress.graph.expressions import is_constant
from graphcompress.rewrite.rewriter import Rewriter

_QUANTISED = frozenset({"DequantizeLinear", "QuantizeLinear"})


def flatten_products(rw: Rewriter) -> int:
    """Every linear over [..., in] of known sizes becomes Reshape, MatMul of two matrices, Add, Reshape.

    The same numbers: a Reshape moves nothing. Left alone: linears over quantised values, whose
    DequantizeLinear has to stay next to the product. Returns how many were rewritten.
    """
    done = 0
    for linear in linears(rw.model):
        sizes = _sizes(linear)
        if sizes is None or linear.transposed or linear.node.op_type != "MatMul":
            continue
        _flatten(rw, linear, sizes)
        done += 1
    return done


def _sizes(linear: Linear) -> list[int] | None:
    """The sizes of an input with more than two axes, all of them known."""
    made_by = linear.input.producer()
    weight_by = linear.weight.producer()
    for node in (made_by, weight_by):
        if node is not None and node.op_type in _QUANTISED:
            return None
    shape = linear.input.shape
    if shape is None or len(shape) < 3 or not shape.is_static() or not is_constant(linear.weight):
        return None
    return [int(size) for size in shape.numpy()]


def _flatten(rw: Rewriter, linear: Linear, sizes: list[int]) -> None:
    node, name = linear.node, linear.output.name
    rows = math.prod(sizes[:-1])
    flat = rw.constant(np.array([rows, linear.in_features], np.int64), f"{name}.rows")
    x = rw.node("Reshape", node.inputs[0], flat, before=node, name=f"{name}.matrix")
    product = rw.node("MatMul", x, node.inputs[1], before=node, name=f"{name}.product")
    if linear.bias is not None:
        product = rw.node("Add", product, linear.bias, before=node, name=f"{name}.sum")
    whole = rw.constant(np.array([*sizes[:-1], linear.out_features], np.int64), f"{name}.shape")
    rw.supersede(linear.output, rw.node("Reshape", product, whole, before=node, name=f"{name}.tensor"))
