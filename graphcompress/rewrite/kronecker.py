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
from graphcompress.numerics.kronecker import Factors, Order, Split, plan
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
    s = factors.split
    a = rw.constant(factors.a.astype(dtype.numpy()), f"{name}.kron_a")
    b = rw.constant(factors.b.astype(dtype.numpy()), f"{name}.kron_b")
    value = rw.node("MatMul", a, b, before=before, name=f"{name}.kron_arranged")
    shape = [s.n1 * s.m1, s.n2 * s.m2]
    if s.n2 > 1 and s.m1 > 1:
        shape = [s.n1, s.m1, s.n2, s.m2]
        value = _reshape(rw, value, shape, f"{name}.kron_terms", before)
        value = rw.node("Transpose", value, before=before, name=f"{name}.kron_moved", perm=[0, 2, 1, 3])
        shape = [s.n1, s.n2, s.m1, s.m2]
    if shape != [s.in_features, s.out_features]:
        value = _reshape(rw, value, [s.in_features, s.out_features], f"{name}.kron", before)
    return value


def read_expression(weight: ir.Value) -> KroneckerWeight | None:
    """The factors of a weight that :func:`write_expression` wrote (whatever constants they are), or None."""
    sizes = _sizes(weight)
    product: ir.Value | None = weight
    terms: ir.Value | None = None
    if _is(product, "Reshape"):
        product = _operand(product, 0)
    if _is(product, "Transpose"):
        terms = _operand(product, 0)
        product = _operand(terms, 0) if _is(terms, "Reshape") else None
    if sizes is None or len(sizes) != 2 or not _is(product, "MatMul") or not is_constant(product):
        return None
    a, b = _operand(product, 0), _operand(product, 1)
    left, right = (None, None) if a is None or b is None else (_sizes(a), _sizes(b))
    if a is None or b is None or left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    split = _split_of(sizes, left[0], right[1], None if terms is None else _sizes(terms))
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
    if linear.input.shape is None:
        raise UnsupportedModelError(f"input {linear.input.name!r} of {linear.name!r} has no known rank")
    s = weight.split
    order = order or plan(s, weight.rank).order
    batch = [0] * (len(linear.input.shape) - 1)
    name, before = linear.name, linear.node
    x = _reshape(rw, linear.input, [*batch, s.n1, s.n2], f"{name}.kron_input", before)
    if order == "b_first":
        right = _arranged(rw, weight.b, [weight.rank, s.n2, s.m2], [1, 0, 2], [s.n2, -1], before)
        left = _arranged(rw, weight.a, [s.n1, s.m1, weight.rank], [1, 0, 2], [s.m1, -1], before)
        x = rw.node("MatMul", x, right, before=before, name=f"{name}.kron_b_product")
        x = _reshape(rw, x, [*batch, s.n1 * weight.rank, s.m2], f"{name}.kron_between", before)
        x = rw.node("MatMul", left, x, before=before, name=f"{name}.kron_a_product")
    else:
        left = _arranged(rw, weight.a, [s.n1, s.m1, weight.rank], [1, 2, 0], [-1, s.n1], before)
        right = _reshape(rw, weight.b, [weight.rank * s.n2, s.m2], f"{name}.kron_right", before)
        x = rw.node("MatMul", left, x, before=before, name=f"{name}.kron_a_product")
        x = _reshape(rw, x, [*batch, s.m1, weight.rank * s.n2], f"{name}.kron_between", before)
        x = rw.node("MatMul", x, right, before=before, name=f"{name}.kron_b_product")
    product = _reshape(rw, x, [*batch, s.out_features], f"{name}.kron_product", before)
    rw.replace(linear.node.outputs[0], product)
    return product


def _arranged(
    rw: Rewriter, factor: ir.Value, shape: list[int], perm: list[int], joined: list[int], before: ir.Node
) -> ir.Value:
    name = factor.name or "factor"
    value = _reshape(rw, factor, shape, f"{name}.terms", before)
    value = rw.node("Transpose", value, before=before, name=f"{name}.moved", perm=perm)
    return _reshape(rw, value, joined, f"{name}.joined", before)


def _reshape(rw: Rewriter, value: ir.Value, shape: Sequence[int], name: str, before: ir.Node) -> ir.Value:
    target = rw.constant(np.array(shape, np.int64), f"{name}.shape")
    return rw.node("Reshape", value, target, before=before, name=name)


def _split_of(sizes: list[int], rows: int, columns: int, terms: list[int] | None) -> Split | None:
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
    if split is None or [split.in_features, split.out_features] != sizes:
        return None
    return split if (split.n1 * split.m1, split.n2 * split.m2) == (rows, columns) else None


def _is(value: ir.Value | None, op_type: str) -> bool:
    node = None if value is None else value.producer()
    return node is not None and not node.domain and node.op_type == op_type


def _operand(value: ir.Value | None, index: int) -> ir.Value | None:
    node = None if value is None else value.producer()
    return None if node is None else node.inputs[index]


def _sizes(value: ir.Value) -> list[int] | None:
    if value.shape is None or not value.shape.is_static():
        return None
    return [int(size) for size in value.shape.numpy()]
