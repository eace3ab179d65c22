"""Gelu, BiasGelu, FastGelu, QuickGelu: activations, with the bias that was drawn into them."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphcompress.passes.simplify.fused.base import Operator, Writer

_TANH_INNER = 0.044715
"""The factor of the cube in the tanh approximation of GELU, 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))),
arXiv:1606.08415."""

_QUICK_ALPHA = 1.702
"""QuickGelu's default, x·sigmoid(1.702·x)."""


def gelu(w: Writer) -> None:
    """The exact GELU, 0.5·x·(1 + erf(x/√2)), after the bias if there is one."""
    w.stand_in(exact(w, _with_bias(w)))


def fast_gelu(w: Writer) -> None:
    """The tanh approximation of GELU, after the bias if there is one."""
    x = _with_bias(w)
    cube = w.op("Mul", w.op("Mul", x, x), x)
    inner = w.op("Add", x, w.op("Mul", cube, w.scalar(_TANH_INNER, x)))
    angle = w.op("Mul", inner, w.scalar(math.sqrt(2 / math.pi), x))
    w.stand_in(_half_of(w, x, w.op("Tanh", angle)))


def quick_gelu(w: Writer) -> None:
    """x·sigmoid(alpha·x); SiLU for alpha 1."""
    x, alpha = w.required(0), w.number("alpha", _QUICK_ALPHA)
    inner = x if alpha == 1.0 else w.op("Mul", x, w.scalar(alpha, x))
    w.stand_in(w.op("Mul", x, w.op("Sigmoid", inner)))


def exact(w: Writer, x: ir.Value) -> ir.Value:
    """0.5·x·(1 + erf(x/√2))."""
    if w.has("Gelu"):
        return w.op("Gelu", x)
    return _half_of(w, x, w.op("Erf", w.op("Div", x, w.scalar(math.sqrt(2.0), x))))


def _half_of(w: Writer, x: ir.Value, bent: ir.Value) -> ir.Value:
    """0.5·x·(1 + bent)."""
    return w.op("Mul", w.op("Mul", x, w.op("Add", bent, w.scalar(1.0, x))), w.scalar(0.5, x))


def _with_bias(w: Writer) -> ir.Value:
    x, bias = w.required(0), w.input(1)
    return x if bias is None else w.op("Add", x, bias)


OPERATORS = {
    "BiasGelu": Operator(gelu),
    "FastGelu": Operator(fast_gelu),
    "Gelu": Operator(gelu),
    "QuickGelu": Operator(quick_gelu),
}
