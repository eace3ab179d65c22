"""Kronecker weights as two integer products: int8 factors, int8 activations, int8 in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.integer import IntegerProduct, integer_products
from graphcompress.data.load import Samples
from graphcompress.graph.expressions import evaluate
from graphcompress.graph.match import operand, producer, scalar
from graphcompress.measure.calibrate import observe
from graphcompress.numerics.metrics import row_sqnr_db
from graphcompress.numerics.observers import Activation, quantisation
from graphcompress.numerics.quantise import Affine
from graphcompress.rewrite.kronecker import KroneckerWeight
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.before_rounding import Scaler, before_rounding
from graphcompress.targets.nvidia.int8_factor_products import (
    FactorProduct,
    TwoProducts,
    takes_factors,
    two_products,
)

MIN_SQNR_DB = 12.0
"""Two products must keep this SQNR, in dB, of the exact one; else the weight is expanded and rounded once."""


def multiply_int8_factors(rw: Rewriter, samples: Samples) -> tuple[dict[str, float], dict[str, str]]:
    """Write int8 linears over Kronecker weights as two int8 products each, where that is worth it.

    Returns how many dB of the exact product those keep that were, by name, and why each other one stays one
    product with an expanded weight: sizes that no integer product has, no fewer operations, or too little
    left of the exact product. The activation between the two is quantised with a scale from ``samples``.
    """
    found = list(_candidates(rw))
    seen = {site.x: Activation() for site in found}
    observe(rw.model, seen, samples, text="int8 factors", optimize=False)
    done: dict[str, float] = {}
    dense: dict[str, str] = {}
    for site in found:
        products = two_products(site.kronecker, site.factors)
        name = site.rounded.output.name or ""  # before it is rewritten
        if isinstance(products, str):
            dense[name] = products
            continue
        input_range = site.rounding or _range(seen[site.x])
        between, figure = _simulate(products, seen[site.x].sample.rows, site.dense(), input_range)
        if figure < MIN_SQNR_DB:
            dense[name] = f"two products would keep {figure:.1f} dB of the exact one"
            continue
        _Writer(rw, site.rounded, site.x).write(products, input_range, between)
        done[name] = figure
    return done, dense


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An int8 product and the float one that it rounds; ``factors`` go into the Kronecker factors."""

    rounded: IntegerProduct
    x: ir.Value
    weight: ir.Value
    kronecker: KroneckerWeight
    factors: np.ndarray | None

    @property
    def rounding(self) -> Affine | None:
        """How the int8 product rounds ``x``, which was judged by the model's outputs; None of another one."""
        scale, zero = scalar(self.rounded.a_scale), scalar(self.rounded.a_zero)
        own = operand(producer(self.rounded.a), 0) is self.x and zero == 0
        return Affine(scale, 0, signed=True) if own and scale is not None else None

    def dense(self) -> np.ndarray:
        """The weight [in, out]."""
        weight = evaluate(self.weight)
        return weight if self.factors is None else weight * self.factors[:, None]


def _candidates(rw: Rewriter) -> Iterator[_Candidate]:
    """Every int8 product over a Kronecker weight; what smoothing moved is in the factors, or taken back.

    In the factors wherever one has a row for every feature: rounding then finds no outliers.
    """
    scaler = Scaler(rw)
    for product in integer_products(rw.model):
        before = before_rounding(product)
        if before is None:
            continue
        x, factors = before.smoothed or (before.x, before.factors)
        if not takes_factors(before.kronecker.split):
            x, factors = scaler.scaled(before.x, before.factors, product.nodes[-1]), None
        yield _Candidate(product, x, before.weight, before.kronecker, factors)


def _range(activation: Activation) -> Affine:
    return quantisation(activation.histogram, "mse", signed=True)


def _simulate(
    products: TwoProducts, rows: np.ndarray, dense: np.ndarray, input_range: Affine
) -> tuple[Affine, float]:
    """The range between both products, and how many dB the two keep of ``rows · dense``."""
    first = products.first.prepared(input_range.fake_quantise(rows))
    x = products.second.prepared(products.first.product(first))
    activation = Activation()
    activation.update(x.reshape(len(x), -1))
    between = _range(activation)
    y = products.second.product(between.fake_quantise(x))
    return between, row_sqnr_db(rows @ dense, y)


class _Writer:
    """Puts both products in the place of one int8 linear."""

    def __init__(self, rw: Rewriter, product: IntegerProduct, x: ir.Value) -> None:
        self._rw, self._rounded, self._value = rw, product, x
        self._place = rw.at(product.nodes[-1])
        self._axes = len(x.shape) - 1 if x.shape is not None else 0

    def write(self, products: TwoProducts, input_range: Affine, between: Affine) -> None:
        """``x`` → first product → second product → bias."""
        self._multiply(products.first, input_range, "first")
        self._multiply(products.second, between, "second")
        self._view([-1], "joined")
        value = self._value
        if self._rounded.bias is not None:
            value = self._place.op("Add", value, self._rounded.bias, name="sum")
        self._rw.replace(self._rounded.output, value, take_name=True)

    def _multiply(self, step: FactorProduct, range_: Affine, word: str) -> None:
        layout = step.layout
        if layout.moves:
            self._view([layout.columns, layout.rows], f"{word}.matrix")
            self._exchange(f"{word}.exchanged")
        self._view([-1] if layout.view[0] == 1 else layout.view, f"{word}.parts")
        self._round(range_, f"{word}.input")
        self._product(step, word)
        if layout.moves:
            self._view(layout.result, f"{word}.result")
            self._exchange(f"{word}.back")

    @property
    def _features(self) -> list[int | ir.SymbolicDim]:
        """Sizes of a token's features."""
        return list(self._value.shape or ())[self._axes :]

    def _view(self, shape: Sequence[int], word: str) -> None:
        """Give a token's features ``shape``; nothing where they have it."""
        own, flat = self._features, list(shape) == [-1]
        if own == list(shape) or (flat and len(own) == 1):
            return
        # A 0 keeps a size: batch and length may vary.
        target = self._place.constant([*[0] * self._axes, *shape], f"{word}.shape")
        made = self._place.op("Reshape", self._value, target, name=word)
        whole = math.prod(size for size in own if isinstance(size, int))
        self._go_on(made, [whole] if flat else shape)

    def _exchange(self, word: str) -> None:
        perm = [*range(self._axes), self._axes + 1, self._axes]
        self._go_on(self._place.op("Transpose", self._value, name=word, perm=perm), self._features[::-1])

    def _round(self, range_: Affine, word: str) -> None:
        scale = self._place.constant(range_.scale, f"{word}.scale")
        zero = self._place.constant(np.array(0, np.int8), f"{word}.zero_point")
        quantised = self._place.op("QuantizeLinear", self._value, scale, zero, name=f"{word}.quantised")
        made = self._place.op("DequantizeLinear", quantised, scale, zero, name=f"{word}.dequantised")
        self._go_on(made, self._features)

    def _product(self, step: FactorProduct, word: str) -> None:
        on_left = step.layout.on_left
        values = self._place.constant(step.values, f"{word}.factor")
        scale = self._place.constant(step.scale, f"{word}.scale")
        zero = self._place.constant(np.zeros(step.scale.shape, np.int8), f"{word}.zero_point")
        axis, name = 0 if on_left else 1, f"{word}.dequantised"
        factor = self._place.op("DequantizeLinear", values, scale, zero, name=name, axis=axis)
        operands = (factor, self._value) if on_left else (self._value, factor)
        own = self._features
        sizes = [step.values.shape[0], own[1]] if on_left else [*own[:-1], step.values.shape[1]]
        self._go_on(self._place.op("MatMul", *operands, name=f"{word}.product"), sizes)

    def _go_on(self, value: ir.Value, features: Sequence[int | ir.SymbolicDim]) -> None:
        """``value`` is what follows reads; it has these ``features``."""
        value.shape = ir.Shape([*list(self._value.shape or ())[: self._axes], *features])
        value.type = self._value.type
        self._value = value
