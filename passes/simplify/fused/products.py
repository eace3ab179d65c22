"""FusedMatMul, FusedGemm, FusedConv: products with a transpose, a factor or an activation drawn in."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.graph.match import operand, rank_of
from graphcompress.passes.simplify.fused.base import Operator, Writer

_PLAIN_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")
_LEAKY_ALPHA = 0.01
"""The slope of LeakyRelu below zero, where no attribute says it: the default of ONNX."""


def matmul(w: Writer) -> None:
    """Product alpha · op(A) · op(B), where op swaps the last two axes, or moves the second to the front."""
    left = _turned(w, w.required(0), swap=w.integer("transA"), batch=w.integer("transBatchA"))
    right = _turned(w, w.required(1), swap=w.integer("transB"), batch=w.integer("transBatchB"))
    product = w.op("MatMul", left, right)
    alpha = w.number("alpha", 1.0)
    w.stand_in(product if alpha == 1.0 else w.op("Mul", product, w.scalar(alpha, product)))


def gemm(w: Writer) -> None:
    """Gemm, then the activation."""
    out = w.op(
        "Gemm",
        *w.fused.inputs,
        alpha=w.number("alpha", 1.0),
        beta=w.number("beta", 1.0),
        transA=w.integer("transA"),
        transB=w.integer("transB"),
    )
    w.stand_in(_activated(w, out, w.number("activation_alpha", _LEAKY_ALPHA)))


def conv(w: Writer) -> None:
    """Conv, the addition of Z if there is one, then the activation."""
    kept = ("group", "pads", "strides", "dilations", "kernel_shape", "auto_pad")
    attributes = {name: w.fused.attributes[name].value for name in kept if name in w.fused.attributes}
    out = w.op("Conv", *w.fused.inputs[:3], **attributes)
    rest = w.input(3)
    out = out if rest is None else w.op("Add", out, rest)
    alpha = next(iter(w.fused.attributes.get_floats("activation_params", [])), _LEAKY_ALPHA)
    w.stand_in(_activated(w, out, alpha))


def _activated(w: Writer, x: ir.Value, alpha: float) -> ir.Value:
    activation = w.fused.attributes.get_string("activation", "")
    if not activation:
        return x
    return w.op(activation, x, alpha=alpha) if activation == "LeakyRelu" else w.op(activation, x)


def _turned(w: Writer, x: ir.Value, *, swap: int, batch: int) -> ir.Value:
    """``x`` with its batch axes moved (the first to the last but one), then its last two axes swapped."""
    rank = rank_of(x) or 0
    order = list(range(rank))
    if batch:
        order = [*order[1:-1], order[0], order[-1]]
    if swap and rank > 1:
        order[-1], order[-2] = order[-2], order[-1]
    return x if order == list(range(rank)) else w.op("Transpose", x, perm=order)


# ---- what is not handled


def _unknown_rank(node: ir.Node) -> str | None:
    for index, names in ((0, ("transA", "transBatchA")), (1, ("transB", "transBatchB"))):
        turned = any(node.attributes.get_int(name, 0) for name in names)
        if turned and rank_of(operand(node, index)) is None:
            return f"input {index} is transposed and its number of axes is not known"
    return None


def _unknown_activation(node: ir.Node) -> str | None:
    activation = node.attributes.get_string("activation", "")
    if activation in (*_PLAIN_ACTIVATIONS, "LeakyRelu", ""):
        return None
    return f"its activation is {activation}"


OPERATORS = {
    "FusedConv": Operator(conv, _unknown_activation),
    "FusedGemm": Operator(gemm, _unknown_activation),
    "FusedMatMul": Operator(matmul, _unknown_rank),
    "TransposeMatMul": Operator(matmul, _unknown_rank),
}
