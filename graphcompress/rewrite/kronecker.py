"""Two forms of a sum of Kronecker products in a graph: a constant expression, products with the factors.

A pass writes the expression (what the weight is). A target that measured the products to be faster calls
:func:`write_products` (how it is multiplied).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import fixed_shape, operand, producer, rank_of
from graphcompress.numerics.kronecker import Factors, Order, Split, plan
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True, eq=False)
class KroneckerWeight:
    """A weight that is an expression of Kronecker factors.

    Attributes:
        split: sizes.
        rank: number of terms.
        a: constant [n1·m1, rank].
        b: constant [rank, n2·m2].
    """

    split: Split
    rank: int
    a: ir.Value
    b: ir.Value


def write_expression(
    rw: Rewriter, factors: Factors, name: str, dtype: ir.DataType, before: ir.Node
) -> ir.Value:
    """The weight [in, out] as ``Reshape(Transpose(Reshape(MatMul(A, B))))`` over the stored factors.

    A [n1·m1, rank] and B [rank, n2·m2] are stored as ``<name>.kron_a`` and ``<name>.kron_b`` in ``dtype``.
    Steps that would move nothing are left out: low rank is the bare MatMul, an embedding has no Transpose.
    """
    left = rw.constant(factors.a.astype(dtype.numpy()), f"{name}.kron_a")
    right = rw.constant(factors.b.astype(dtype.numpy()), f"{name}.kron_b")
    return _expression(rw.at(before, name), left, right, factors.split, [])


def write_stack(
    rw: Rewriter, factors: Sequence[Factors], name: str, dtype: ir.DataType, before: ir.Node
) -> ir.Value:
    """As :func:`write_expression`, a weight [experts, in, out]: ``factors`` of one split and rank."""
    sides = (np.stack([each.a for each in factors]), np.stack([each.b for each in factors]))
    left, right = (
        rw.constant(array.astype(dtype.numpy()), f"{name}.kron_{letter}")
        for array, letter in zip(sides, "ab", strict=True)
    )
    return _expression(rw.at(before, name), left, right, factors[0].split, [len(factors)])


def _expression(b: Builder, left: ir.Value, right: ir.Value, s: Split, experts: list[int]) -> ir.Value:
    """Arranges A · B as a weight; ``experts`` holds their number where the factors are stacks."""
    value = b.op("MatMul", left, right, name="kron_arranged")
    shape = [s.n1 * s.m1, s.n2 * s.m2]
    if s.n2 > 1 and s.m1 > 1:
        value = _reshape(b, value, [*experts, s.n1, s.m1, s.n2, s.m2], "kron_terms")
        perm = [*range(len(experts)), *(axis + len(experts) for axis in (0, 2, 1, 3))]
        value = b.op("Transpose", value, name="kron_moved", perm=perm)
        shape = [s.n1, s.n2, s.m1, s.m2]
    if shape != [s.in_features, s.out_features]:
        value = _reshape(b, value, [*experts, s.in_features, s.out_features], "kron")
    return value


def read_expression(weight: ir.Value) -> KroneckerWeight | None:
    """The factors of a weight that :func:`write_expression` wrote (whatever constants they are), or None."""
    terms: ir.Value | None = None
    product: ir.Value | None = operand(producer(weight, "Reshape"), 0) or weight
    if moved := producer(product, "Transpose"):
        terms = moved.inputs[0]
        product = operand(producer(terms, "Reshape"), 0)
    node = producer(product, "MatMul")
    a, b = operand(node, 0), operand(node, 1)
    sizes, left, right = fixed_shape(weight), fixed_shape(a), fixed_shape(b)
    if a is None or b is None or sizes is None or left is None or right is None or not is_constant(product):
        return None
    if not len(sizes) == len(left) == len(right) == 2:
        return None
    split = _split_of(sizes, left[0], right[1], fixed_shape(terms))
    return None if split is None else KroneckerWeight(split, left[1], a, b)


def write_products(
    rw: Rewriter, linear: Linear, weight: KroneckerWeight, order: Order | None = None
) -> ir.Value:
    """Replace the MatMul of ``linear`` by two with the factors, in the cheaper order unless one is given.

    Only Reshape and MatMul run: [., in] becomes [., n1, n2]; one factor is multiplied from the right, the
    other from the left, whose columns hold the terms, so that nothing is transposed. Returns the product,
    before the bias. The factors stay stored as they are; their layout is a constant expression.

    Raises:
        UnsupportedModelError: the rank of the input is not known.
    """
    rank = rank_of(linear.input)
    if rank is None:
        raise UnsupportedModelError(f"input {linear.input.name!r} of {linear.name!r} has no known rank")
    s = weight.split
    order = order or plan(s, weight.rank).order
    batch = [0] * (rank - 1)
    b = rw.at(linear.node, linear.name)
    x = _reshape(b, linear.input, [*batch, s.n1, s.n2], "kron_input")
    if order == "b_first":
        right = _arranged(b, weight.b, [weight.rank, s.n2, s.m2], [1, 0, 2], [s.n2, -1])
        left = _arranged(b, weight.a, [s.n1, s.m1, weight.rank], [1, 0, 2], [s.m1, -1])
        x = b.op("MatMul", x, right, name="kron_b_product")
        x = _reshape(b, x, [*batch, s.n1 * weight.rank, s.m2], "kron_between")
        x = b.op("MatMul", left, x, name="kron_a_product")
    else:
        left = _arranged(b, weight.a, [s.n1, s.m1, weight.rank], [1, 2, 0], [-1, s.n1])
        right = _reshape(b, weight.b, [weight.rank * s.n2, s.m2], "kron_right")
        x = b.op("MatMul", left, x, name="kron_a_product")
        x = _reshape(b, x, [*batch, s.m1, weight.rank * s.n2], "kron_between")
        x = b.op("MatMul", x, right, name="kron_b_product")
    product = _reshape(b, x, [*batch, s.out_features], "kron_product")
    rw.replace(linear.node.outputs[0], product)
    return product


def _arranged(b: Builder, factor: ir.Value, shape: list[int], perm: list[int], joined: list[int]) -> ir.Value:
    b = b.named(factor.name or "factor")
    moved = b.op("Transpose", _reshape(b, factor, shape, "terms"), name="moved", perm=perm)
    return _reshape(b, moved, joined, "joined")


def _reshape(b: Builder, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    return b.op("Reshape", value, b.constant(shape, f"{name}.shape"), name=name)


def _split_of(sizes: tuple[int, ...], rows: int, columns: int, terms: tuple[int, ...] | None) -> Split | None:
    """The split from the weight's sizes [in, out], the rows of A and the columns of B."""
    if terms is not None:
        split = Split(*terms) if len(terms) == 4 else None
    elif rows == sizes[0] and columns == sizes[1]:
        split = Split(rows, 1, 1, columns)
    elif rows % sizes[0] == 0 and sizes[1] % columns == 0:
        split = Split(sizes[0], rows // sizes[0], 1, columns)
    elif columns % sizes[1] == 0 and rows and sizes[0] % rows == 0:
        split = Split(rows, 1, sizes[0] // rows, sizes[1])
    else:
        return None
    if split is None or (split.in_features, split.out_features) != sizes:
        return None
    return split if (split.n1 * split.m1, split.n2 * split.m2) == (rows, columns) else None
