"""How a sum of Kronecker products is multiplied as two integer products that a tensor core takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphcompress.graph.expressions import evaluate
from graphcompress.numerics.kronecker import Split
from graphcompress.numerics.quantise import quantise_rows, quantise_weight
from graphcompress.rewrite.kronecker import KroneckerWeight

SMALLEST_SIDE = 16
"""A product with a smaller side is no integer product on a tensor core."""

WORTH = 0.8
"""Both products together may take at most this share of the multiply-accumulates of the dense one."""


@dataclass(frozen=True)
class Layout:
    """One product with a factor on a token's features as a matrix [rows, columns].

    A side below 16 is made larger by an identity: ``I ⊗ S`` from the right takes ``copies`` rows at once,
    ``S ⊗ I`` from the left works on ``copies`` pieces of every row. Views alone: nothing is moved.

    Attributes:
        rows, columns: of the matrix, after ``swapped``.
        inner: size that is summed over.
        outer: size that takes its place.
        on_left: the factor stands on the left and sums over the rows; else over the columns.
        swapped: rows and columns are exchanged before and after the product.
        copies: of the factor in the constant.
    """

    rows: int
    columns: int
    inner: int
    outer: int
    on_left: bool
    swapped: bool = False
    copies: int = 1

    @property
    def view(self) -> tuple[int, int]:
        """The matrix that is multiplied."""
        g = self.copies
        return (self.rows * g, self.columns // g) if self.on_left else (self.rows // g, self.columns * g)

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns behind the product, before they are exchanged back."""
        return (self.outer, self.columns) if self.on_left else (self.rows, self.outer)

    @property
    def moves(self) -> bool:
        """Whether exchanging rows and columns takes more than another view."""
        return self.swapped and min(self.rows, self.columns) > 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one token."""
        return self.inner * self.outer * (self.columns if self.on_left else self.rows) * self.copies


@dataclass(frozen=True, eq=False)
class FactorProduct:
    """One of the two products: its layout, and the constant as int8 values with a scale per output."""

    layout: Layout
    values: np.ndarray
    scale: np.ndarray

    @property
    def dense(self) -> np.ndarray:
        """The constant as float32."""
        scale = self.scale[:, None] if self.layout.on_left else self.scale
        return np.asarray(self.values.astype(np.float32) * scale)

    def prepared(self, x: np.ndarray) -> np.ndarray:
        """The features of every token [tokens, .] as what is multiplied, [tokens, ., .]."""
        layout = self.layout
        if layout.swapped:
            x = x.reshape(len(x), layout.columns, layout.rows).swapaxes(1, 2)
        return x.reshape(len(x), *layout.view)

    def product(self, x: np.ndarray) -> np.ndarray:
        """Features behind the product [tokens, .] for what :meth:`prepared` gave."""
        multiplied = self.dense @ x if self.layout.on_left else x @ self.dense
        y: np.ndarray = multiplied.reshape(len(x), *self.layout.result)
        return (y.swapaxes(1, 2) if self.layout.swapped else y).reshape(len(x), -1)


@dataclass(frozen=True, eq=False)
class TwoProducts:
    """Two products, one after the other."""

    first: FactorProduct
    second: FactorProduct

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one token."""
        return self.first.layout.macs + self.second.layout.macs


def two_products(kron: KroneckerWeight, factors: np.ndarray | None = None) -> TwoProducts | str:
    """The two products with the fewest operations, or why there are none that are worth it.

    ``factors`` [in] multiply the rows of the weight; only where :func:`takes_factors`.
    """
    s, r = kron.split, _terms(kron)
    found = list(_orders(s, r))
    if not found:
        return f"a side of its products is below {SMALLEST_SIDE}"
    b_first, first, second = min(found, key=lambda order: order[1].macs + order[2].macs)
    if first.macs + second.macs > WORTH * s.in_features * s.out_features:
        return "its factors take as many operations as the expanded weight"
    more = r - kron.rank
    a = np.pad(evaluate(kron.a).astype(np.float32), ((0, 0), (0, more))).reshape(s.n1, s.m1, r)
    b = np.pad(evaluate(kron.b).astype(np.float32), ((0, more), (0, 0))).reshape(r, s.n2, s.m2)
    if factors is not None and s.n2 == 1:
        a = a * factors[:, None, None]
    elif factors is not None:
        b = b * factors[:, None]
    if b_first:
        right, left = b.transpose(1, 0, 2).reshape(s.n2, -1), a.transpose(0, 2, 1).reshape(-1, s.m1)
        return TwoProducts(_step(first, right), _step(second, left))
    return TwoProducts(_step(first, a.reshape(s.n1, -1)), _step(second, b.reshape(-1, s.m2)))


def _terms(kron: KroneckerWeight) -> int:
    """The rank; low rank, whose rank is a side of both products, is filled up with zeros."""
    low_rank = kron.split.n2 == 1 and kron.split.m1 == 1
    return max(kron.rank, SMALLEST_SIDE) if low_rank else kron.rank


def takes_factors(split: Split) -> bool:
    """Whether one factor has a row for every input feature, so that it takes what multiplies them."""
    return split.n2 == 1 or split.n1 == 1


def _orders(s: Split, rank: int) -> Iterator[tuple[bool, Layout, Layout]]:
    """Both orders in which the factors can be multiplied, where tensor cores take them: B first, or A."""
    orders = (
        (True, _right(s.n1, s.n2, rank * s.m2), _left(s.n1 * rank, s.m2, s.m1)),
        (False, _left(s.n1, s.n2, s.m1 * rank), _right(s.m1, rank * s.n2, s.m2)),
    )
    for b_first, first, second in orders:
        if first is not None and second is not None:
            yield b_first, first, second


def _right(rows: int, columns: int, outer: int) -> Layout | None:
    """A factor [columns, outer] from the right of [rows, columns]."""
    for copies in _divisors(rows):
        if copies * min(columns, outer) >= SMALLEST_SIDE:
            return Layout(rows, columns, columns, outer, on_left=False, copies=copies)
    return None


def _left(rows: int, columns: int, outer: int) -> Layout | None:
    """A factor [outer, rows] from the left of [rows, columns]; from the right, with both exchanged."""
    for copies in _divisors(columns):
        if copies * min(rows, outer) >= SMALLEST_SIDE and columns // copies >= SMALLEST_SIDE:
            return Layout(rows, columns, rows, outer, on_left=True, copies=copies)
    found = _right(columns, rows, outer)
    if found is None:
        return None
    return Layout(columns, rows, rows, outer, on_left=False, swapped=True, copies=found.copies)


def _step(layout: Layout, factor: np.ndarray) -> FactorProduct:
    """``factor`` [inner, outer] in int8, as ``layout`` multiplies it."""
    g = layout.copies
    identity = np.eye(g, dtype=np.int8)
    if not layout.on_left:
        right = quantise_weight(np.ascontiguousarray(factor))
        return FactorProduct(
            layout, np.kron(identity, right.values), np.tile(_used(right.scale, right.values, 0), g)
        )
    left = quantise_rows(np.ascontiguousarray(factor.T))
    return FactorProduct(
        layout, np.kron(left.values, identity), np.repeat(_used(left.scale[:, 0], left.values, 1), g)
    )


def _used(scale: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    """Scales, 1 where all that they belong to is zero: a tiny one would ask for float32."""
    return np.where(values.any(axis=axis), scale, np.float32(1.0))


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
