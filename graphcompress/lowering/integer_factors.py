"""Kronecker weights as two integer products: int8 factors, int8 activations, int8 in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.calibrate import observe
from graphcompress.data.load import Samples
from graphcompress.expressions import evaluate
from graphcompress.forms.family import put_in_place
from graphcompress.forms.integer import IntegerLinear, IntegerSite
from graphcompress.kronecker_forms import KroneckerWeight, read_expression
from graphcompress.lowering.factors import before_rounding
from graphcompress.numerics.kronecker.product import plan
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import Activation, RowSample, quantisation
from graphcompress.numerics.quantise import Affine, quantise_rows, quantise_weight
from graphcompress.rewrite import Rewriter

SMALLEST_SIDE = 16
"""A product with a smaller side is no integer product on a tensor core."""

MIN_SQNR_DB = 12.0
"""What two products must keep of the exact one; else the weight is expanded and rounded once."""

WORTH = 0.8
"""Share of the multiply-accumulates of the dense product that both may take."""


@dataclass(frozen=True, eq=False)
class Step:
    """One of the two products: the constant (int8 values and scales), and on which side it stands."""

    values: np.ndarray
    scale: np.ndarray
    on_left: bool

    @property
    def dense(self) -> np.ndarray:
        """The constant as float32."""
        return np.asarray(
            self.values.astype(np.float32) * (self.scale[:, None] if self.on_left else self.scale)
        )


@dataclass(frozen=True, eq=False)
class Recipe:
    """Shapes [tokens, ...] before the first product and between the two, and the constants."""

    first_shape: tuple[int, ...]
    second_shape: tuple[int, ...]
    first: Step
    second: Step

    def sides(self) -> list[int]:
        """Every side of both products but the tokens."""
        inner = (*self.first_shape[1:], *self.second_shape[1:])
        return [*self.first.values.shape, *self.second.values.shape, *inner]

    def macs(self) -> int:
        """Multiply-accumulates for one token."""
        first = self.first.values.size * (
            self.first_shape[-1] if self.first.on_left else _rows(self.first_shape)
        )
        return first + self.second.values.size * (
            self.second_shape[-1] if self.second.on_left else _rows(self.second_shape)
        )


def multiply_int8_factors(rw: Rewriter, samples: Samples) -> tuple[list[str], dict[str, str]]:
    """Write int8 linears over Kronecker weights as two int8 products each, where that is worth it.

    Returns the names of those that were, and why each other one stays one product with an expanded weight:
    a side below 16, no fewer operations, or too little left of the exact product. The activation between the
    two is quantised with a scale from ``samples``.
    """
    found = [(site, pair) for site in _sites(rw) if (pair := before_rounding(site)) is not None]
    seen = {x: Activation() for _, (x, _) in found}
    rows = {x: RowSample() for x in seen}
    observe(
        rw.model, {x: _Both(seen[x], rows[x]) for x in seen}, samples, text="int8 factors", optimize=False
    )
    done: list[str] = []
    dense: dict[str, str] = {}
    for site, (x, weight) in found:
        kron = read_expression(weight)
        if kron is None:
            continue
        recipe = recipe_of(kron)
        name = site.name
        reason = unsuitable(kron, recipe)
        if reason is None:
            input_range = _range(seen[x])
            between, figure = _simulate(recipe, rows[x].rows, evaluate(weight), input_range)
            reason = (
                None if figure >= MIN_SQNR_DB else f"two products would keep {figure:.1f} dB of the exact one"
            )
        if reason is not None:
            dense[name] = reason
            continue
        _write(rw, site, x, recipe, input_range, between)
        done.append(name)
    return done, dense


class _Both:
    def __init__(self, *observers: Activation | RowSample) -> None:
        self._observers = observers

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one batch."""
        for observer in self._observers:
            observer.update(array)


def _sites(rw: Rewriter) -> Iterable[IntegerSite]:
    return (site for site in IntegerLinear().sites(rw.model) if isinstance(site, IntegerSite))


def recipe_of(kron: KroneckerWeight) -> Recipe:
    """The two products in the order with fewer operations, with their factors in int8."""
    s, r = kron.split, kron.rank
    a = evaluate(kron.a).astype(np.float32)
    b = evaluate(kron.b).astype(np.float32)
    if s.n2 == 1 and s.m1 == 1:
        return Recipe((s.n1,), (r,), _right(a), _right(b))
    a, b = a.reshape(s.n1, s.m1, r), b.reshape(r, s.n2, s.m2)
    if plan(s, r).order == "b_first":
        right = _right(b.transpose(1, 0, 2).reshape(s.n2, r * s.m2))
        return Recipe((s.n1, s.n2), (s.n1 * r, s.m2), right, _left(a.transpose(1, 0, 2).reshape(s.m1, -1)))
    left = _left(a.transpose(1, 2, 0).reshape(s.m1 * r, s.n1))
    return Recipe((s.n1, s.n2), (s.m1, r * s.n2), left, _right(b.reshape(r * s.n2, s.m2)))


def unsuitable(kron: KroneckerWeight, recipe: Recipe) -> str | None:
    """Why ``recipe`` is not worth it, or None."""
    if min(recipe.sides()) < SMALLEST_SIDE:
        return f"a side of its products is below {SMALLEST_SIDE}"
    if recipe.macs() > WORTH * kron.split.in_features * kron.split.out_features:
        return "its factors take as many operations as the expanded weight"
    return None


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1


def _right(matrix: np.ndarray) -> Step:
    quantised = quantise_weight(np.ascontiguousarray(matrix))
    return Step(quantised.values, quantised.scale, on_left=False)


def _left(matrix: np.ndarray) -> Step:
    quantised = quantise_rows(np.ascontiguousarray(matrix))
    return Step(quantised.values, quantised.scale[:, 0], on_left=True)


def _range(activation: Activation) -> Affine:
    return quantisation(activation.histogram, "mse", signed=True)


def _simulate(
    recipe: Recipe, rows: np.ndarray, dense: np.ndarray, input_range: Affine
) -> tuple[Affine, float]:
    """The range between both products, and what the two keep of ``rows · dense``."""
    x = input_range.fake_quantise(rows).reshape(-1, *recipe.first_shape)
    x = _times(recipe.first, x).reshape(-1, *recipe.second_shape)
    activation = Activation()
    activation.update(x.reshape(len(x), -1))
    between = _range(activation)
    y = _times(recipe.second, between.fake_quantise(x)).reshape(len(rows), -1)
    return between, sqnr_db(rows @ dense, y)


def _times(step: Step, x: np.ndarray) -> np.ndarray:
    return np.asarray(step.dense @ x if step.on_left else x @ step.dense)


def _write(
    rw: Rewriter, site: IntegerSite, x: ir.Value, recipe: Recipe, input_range: Affine, between: Affine
) -> None:
    last, name = site.nodes[-1], site.name
    axes = [0] * (len(x.shape) - 1 if x.shape is not None else 0)
    value = x
    if len(recipe.first_shape) == 2:
        value = _reshape(rw, value, [*axes, *recipe.first_shape], last, f"{name}.parts")
    value = _rounded(rw, value, input_range, last, f"{name}.input")
    value = _product(rw, recipe.first, value, last, f"{name}.first")
    if len(recipe.first_shape) == 2:
        value = _reshape(rw, value, [*axes, *recipe.second_shape], last, f"{name}.between")
    value = _rounded(rw, value, between, last, f"{name}.between")
    value = _product(rw, recipe.second, value, last, f"{name}.second")
    if len(recipe.first_shape) == 2:
        value = _reshape(rw, value, [*axes, -1], last, f"{name}.joined")
    if site.bias is not None:
        value = rw.node("Add", value, site.bias, before=last, name=f"{name}.sum")
    put_in_place(rw, last.outputs[0], value)


def _rounded(rw: Rewriter, x: ir.Value, range_: Affine, before: ir.Node, name: str) -> ir.Value:
    scale = rw.constant(np.array(range_.scale, np.float32), f"{name}.scale")
    zero = rw.constant(np.array(0, np.int8), f"{name}.zero_point")
    quantised = rw.node("QuantizeLinear", x, scale, zero, before=before, name=f"{name}.quantised")
    return rw.node("DequantizeLinear", quantised, scale, zero, before=before, name=f"{name}.dequantised")


def _product(rw: Rewriter, step: Step, x: ir.Value, before: ir.Node, name: str) -> ir.Value:
    values = rw.constant(step.values, f"{name}.factor")
    scale = rw.constant(step.scale, f"{name}.scale")
    zero = rw.constant(np.zeros(step.scale.shape, np.int8), f"{name}.zero_point")
    axis = 0 if step.on_left else 1
    factor = rw.node(
        "DequantizeLinear", values, scale, zero, before=before, name=f"{name}.factor.dequantised", axis=axis
    )
    operands = (factor, x) if step.on_left else (x, factor)
    return rw.node("MatMul", *operands, before=before, name=f"{name}.product")


def _reshape(rw: Rewriter, x: ir.Value, shape: Iterable[int], before: ir.Node, name: str) -> ir.Value:
    target = rw.constant(np.array(list(shape), np.int64), f"{name}.shape")
    return rw.node("Reshape", x, target, before=before, name=name)
