"""Writes refitted weights and biases into a model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.numerics.least_squares import Fit
from graphcompress.rewrite import Rewriter


def write_fit(rw: Rewriter, linear: Linear, fit: Fit) -> None:
    """Store another weight [in, out] and bias for a linear whose weight is an initializer."""
    rw.overwrite(linear.weight, fit.weight.T if linear.transposed else fit.weight)
    write_bias(rw, linear, fit.bias)


def write_bias(rw: Rewriter, linear: Linear, bias: np.ndarray) -> None:
    """Give a linear another bias [out], or one where it has none."""
    value = linear.bias
    if value is not None and value.is_initializer() and len(value.uses()) == 1:
        rw.overwrite(value, bias)
        return
    dtype = linear.output.dtype or ir.DataType.FLOAT
    new = rw.constant(bias.astype(dtype.numpy()), f"{linear.name}.bias", dtype)
    if value is not None:
        node = linear.node if linear.node.op_type == "Gemm" else linear.output.producer()
        rw.set_input(node, list(node.inputs).index(value), new)  # type: ignore[union-attr, arg-type]
    elif linear.node.op_type == "Gemm":
        linear.node.resize_inputs(3)
        rw.set_input(linear.node, 2, new)
    else:
        product = linear.node.outputs[0]
        total = rw.node("Add", product, new, name=f"{product.name}.sum")
        rw.replace(product, total)
        rw.set_input(total.producer(), 0, product)  # type: ignore[arg-type]
