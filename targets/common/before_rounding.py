"""What an int8 product over a Kronecker weight was before it was rounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.integer import IntegerProduct
from graphcompress.graph.match import array_of, operand, producer
from graphcompress.rewrite.kronecker import KroneckerWeight, read_expression
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True, eq=False)
class Unrounded:
    """``x · diag(factors) · weight``, in float.

    Attributes:
        x: activation [., in].
        weight: constant [in, out], a sum of Kronecker products.
        kronecker: its factors.
        factors: what smoothing moved from the activation into the rows of the weight [in]; None where that
            was nothing, or could be taken back.
        smoothed: the activation without its outliers and what it was divided by, which multiplies the rows of
            the weight; None where it was not.
    """

    x: ir.Value
    weight: ir.Value
    kronecker: KroneckerWeight
    factors: np.ndarray | None = None
    smoothed: tuple[ir.Value, np.ndarray] | None = None


def before_rounding(product: IntegerProduct) -> Unrounded | None:
    """The float product that ``product`` rounds; None where its weight is not made from Kronecker factors.

    Smoothing divides an activation and multiplies the rows of the weight. Where the division is a Mul of its
    own both are taken back; where a normalisation took it into its gain, the factors are returned.
    """
    weight, x = _quantised_from(product.b), _quantised_from(product.a)
    if x is None:
        return None
    whole = read_expression(weight) if weight is not None else None
    if weight is not None and whole is not None:
        return Unrounded(x, weight, whole)
    rows = _scaled(weight)
    kronecker = read_expression(rows[0]) if rows is not None else None
    if rows is None or kronecker is None:
        return None
    inner, factors = rows
    divided = _scaled(x)
    if divided is not None and _cancel(factors, divided[1]):
        return Unrounded(divided[0], inner, kronecker, smoothed=(x, factors))
    return Unrounded(x, inner, kronecker, factors, smoothed=(x, factors))


class Scaler:
    """Multiplies activations by factors per feature, each pair of them once."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._made: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def scaled(self, x: ir.Value, factors: np.ndarray | None, before: ir.Node) -> ir.Value:
        """``x · factors``; ``x`` itself where there are none. ``before`` is the first node that reads it."""
        if factors is None:
            return x
        key = (x, factors.tobytes())
        if key not in self._made:
            constant = self._rw.constant(factors.astype(np.float32), f"{x.name}.factors")
            value = self._rw.at(before, x.name).op("Mul", x, constant, name="unsmoothed")
            value.type, value.shape = x.type, None if x.shape is None else x.shape.copy()
            self._made[key] = value
        return self._made[key]


def _quantised_from(value: ir.Value) -> ir.Value | None:
    return operand(producer(value, "QuantizeLinear", "DynamicQuantizeLinear"), 0)


def _scaled(value: ir.Value | None) -> tuple[ir.Value, np.ndarray] | None:
    """The first operand of a Mul and its second, a stored factor per feature [in]."""
    product = producer(value, "Mul")
    scaled, factors = operand(product, 0), array_of(operand(product, 1))
    return None if scaled is None or factors is None else (scaled, factors.reshape(-1))


def _cancel(factors: np.ndarray, inverse: np.ndarray) -> bool:
    same = factors.shape == inverse.shape
    return same and bool(np.allclose(factors * inverse, 1.0, rtol=1e-5))
