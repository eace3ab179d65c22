"""Gives linears another bias, and what a refit found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.rewrite.rewriter import Rewriter


def write_bias(rw: Rewriter, readers: Sequence[Linear], bias: np.ndarray) -> None:
    """Give linears that share their bias another one [out], or one where they have none."""
    first = readers[0]
    value = first.bias
    # A bias that others read too, or that is computed, may not be overwritten; the readers get their own.
    if value is not None and value.is_initializer() and len(value.uses()) == len(readers):
        rw.overwrite(value, bias)
        return
    dtype = first.output.dtype or ir.DataType.FLOAT
    new = rw.constant(bias.astype(dtype.numpy()), f"{first.name}.bias", dtype)
    for linear in readers:
        _set_bias(rw, linear, new)


def write_fit(rw: Rewriter, readers: Sequence[Linear], fit: LinearMap) -> None:
    """Store another weight [in, out] and bias for linears that share both; the weight is an initializer."""
    first = readers[0]
    rw.overwrite(first.weight, fit.weight.T if first.transposed else fit.weight)
    write_bias(rw, readers, fit.bias)


def _set_bias(rw: Rewriter, linear: Linear, new: ir.Value) -> None:
    value = linear.bias
    if value is not None:
        # A Gemm has its bias as an input; behind a MatMul it is an operand of the Add.
        node = linear.node if linear.node.op_type == "Gemm" else linear.output.producer()
        rw.set_input(node, list(node.inputs).index(value), new)  # type: ignore[union-attr, arg-type]
    elif linear.node.op_type == "Gemm":
        rw.set_input(linear.node, 2, new)
    else:
        product = linear.node.outputs[0]
        users = {use.node for use in product.uses()}
        first = next((node for node in rw.model.graph if node in users), None)
        total = rw.at(first, product.name).op("Add", product, new, name="sum")
        rw.replace(product, total)
