"""Products of more than two axes as products of matrices."""

from __future__ import annotations

import math

from graphcompress.analysis.linears import Linear, linears
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import fixed_shape, producer
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


def _sizes(linear: Linear) -> tuple[int, ...] | None:
    """The sizes of an input with more than two axes, all of them known."""
    makers = (producer(linear.input), producer(linear.weight))
    if any(node is not None and node.op_type in _QUANTISED for node in makers):
        return None
    shape = fixed_shape(linear.input)
    return shape if shape is not None and len(shape) > 2 and is_constant(linear.weight) else None


def _flatten(rw: Rewriter, linear: Linear, sizes: tuple[int, ...]) -> None:
    node, place = linear.node, rw.at(linear.node, linear.output.name)
    rows = place.constant([math.prod(sizes[:-1]), linear.in_features], "rows")
    x = place.op("Reshape", node.inputs[0], rows, name="matrix")
    product = place.op("MatMul", x, node.inputs[1], name="product")
    if linear.bias is not None:
        product = place.op("Add", product, linear.bias, name="sum")
    shape = place.constant([*sizes[:-1], linear.out_features], "shape")
    rw.replace(linear.output, place.op("Reshape", product, shape, name="tensor"), take_name=True)
