"""Kronecker factors that stay factors at run time, for runtimes that fold no constants when they load."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, embeddings, linears
from graphcompress.graph.expressions import Constants, evaluate, leaves
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import number_of_parameters
from graphcompress.numerics.kronecker import Split
from graphcompress.rewrite.kronecker import KroneckerWeight, read_expression, write_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.linears import is_whole_expression
from graphcompress.targets.common.integer import IntegerLinear, IntegerSite
from graphcompress.targets.common.unrounded import Scaler, before_rounding


@dataclass(frozen=True)
class Multiplied:
    """What became of weights that are expressions.

    Attributes:
        linears: products with the factors.
        tables: embeddings that are looked up in the factors.
        expanded: names of weights that are stored as what they evaluate to.
    """

    linears: int
    tables: int
    expanded: tuple[str, ...]


def multiply_factors(rw: Rewriter, *, expand: bool = False) -> Multiplied:
    """Compute with the factors of every Kronecker weight; store every other growing expression expanded.

    A linear whose quantised weight is such an expression multiplies in float: what was rounded is the
    expanded weight and the activation, neither of which exists any more. What smoothing had moved into such a
    weight goes back to the activation. A factor in low-bit storage is
    restored at every call, which costs as much as reading it. With ``expand`` linears are left to be stored
    as what their weights evaluate to; a table is looked up in its factors all the same, which costs nothing.
    """
    products = 0 if expand else _multiply(rw)
    tables = sum(look_up_factors(rw, embedding) for embedding in embeddings(rw.model))
    return Multiplied(products, tables, tuple(_store_the_rest(rw, restored_at_run_time=not expand)))


def _multiply(rw: Rewriter) -> int:
    _without_rounding(rw)
    products = 0
    for linear in linears(rw.model):
        weight = read_expression(linear.weight) if linear.node.op_type == "MatMul" else None
        if weight is not None and linear.input.shape is not None:
            write_products(rw, linear, weight)
            products += 1
    return products


def _without_rounding(rw: Rewriter) -> None:
    """int8 products whose weight is quantised from Kronecker factors become float products."""
    scaler = Scaler(rw)
    for site in IntegerLinear().sites(rw.model):
        before = before_rounding(site) if isinstance(site, IntegerSite) else None
        if before is None or not isinstance(site, IntegerSite):
            continue
        last = site.nodes[-1]
        x = scaler.scaled(before.x, before.factors, last)
        value = rw.node("MatMul", x, before.weight, before=last, name=f"{site.name}.product")
        if site.bias is not None:
            value = rw.node("Add", value, site.bias, before=last, name=f"{site.name}.sum")
        value.type, value.shape = last.outputs[0].type, last.outputs[0].shape
        rw.supersede(last.outputs[0], value)


# ---- embeddings


def look_up_factors(rw: Rewriter, embedding: Embedding) -> bool:
    """``(A ⊗ B)[i] = Σᵣ A[i // n2, ·, r] ⊗ B[r, i % n2, ·]``: the rows that are asked for."""
    weight, ids = read_expression(embedding.weight), embedding.indices
    if weight is None or ids.shape is None:
        return False
    s, rank, node = weight.split, weight.rank, embedding.node
    name, axes = embedding.output.name, [0] * len(ids.shape)
    upper, lower = _row_numbers(rw, ids, s, node, name or "table")
    left = _rows(rw, weight, upper, node, f"{name}.a")
    right = _right_rows(rw, weight, lower, node, f"{name}.b")
    left = _reshape(rw, left, [*axes, s.m1, rank], node, f"{name}.a_terms")
    product = rw.node("MatMul", left, right, before=node, name=f"{name}.terms")
    rw.supersede(embedding.output, _reshape(rw, product, [*axes, s.out_features], node, f"{name}.row"))
    return True


def _row_numbers(
    rw: Rewriter, ids: ir.Value, s: Split, before: ir.Node, name: str
) -> tuple[ir.Value, ir.Value | None]:
    """Which row of A and which of B each id asks for; None where B has one."""
    if s.n2 == 1:
        return ids, None
    dtype = ids.dtype or ir.DataType.INT64
    size = rw.constant(np.array(s.n2, dtype.numpy()), f"{name}.rows_of_b")
    upper = rw.node("Div", ids, size, before=before, name=f"{name}.upper")
    return upper, rw.node("Mod", ids, size, before=before, name=f"{name}.lower")


def _rows(rw: Rewriter, weight: KroneckerWeight, ids: ir.Value, before: ir.Node, name: str) -> ir.Value:
    """Rows [., m1·rank] of A; low-bit storage is restored for these rows alone."""
    width = weight.split.m1 * weight.rank
    blocks = _blocks(weight.a)
    if blocks is None:
        stored = weight.a if weight.a.const_value is not None else _half(weight.a)
        table = _folded(rw, stored or weight.a, [weight.split.n1, width], f"{name}.table")
        rows = rw.node("Gather", table, ids, before=before, name=f"{name}.rows", axis=0)
        dtype = weight.a.dtype or ir.DataType.FLOAT
        if table.dtype != dtype:
            rows = rw.node("Cast", rows, before=before, name=f"{name}.float", to=int(dtype))
        return rows
    values, scale = blocks
    table = _folded(rw, values, [weight.split.n1, width], f"{name}.table")
    rows = rw.node("Gather", table, ids, before=before, name=f"{name}.rows", axis=0)
    rows = rw.node("Cast", rows, before=before, name=f"{name}.float", to=int(ir.DataType.FLOAT))
    steps = rw.node(
        "Gather",
        _flat(rw, scale),
        _block_numbers(rw, ids, width, values, before, name),
        before=before,
        name=f"{name}.steps",
        axis=0,
    )
    return rw.node("Mul", rows, steps, before=before, name=f"{name}.restored")


def _block_numbers(
    rw: Rewriter, ids: ir.Value, width: int, values: ir.Value, before: ir.Node, name: str
) -> ir.Value:
    """The block of every entry of the rows: ``(id · width + 0 … width-1) // block``."""
    dtype = (ids.dtype or ir.DataType.INT64).numpy()
    block = int(values.shape[1]) if values.shape is not None else 1  # type: ignore[arg-type]
    last = rw.constant(np.array([-1], np.int64), f"{name}.last")
    column = rw.node("Unsqueeze", ids, last, before=before, name=f"{name}.column")
    start = rw.node(
        "Mul",
        column,
        rw.constant(np.array(width, dtype), f"{name}.width"),
        before=before,
        name=f"{name}.start",
    )
    place = rw.node(
        "Add",
        start,
        rw.constant(np.arange(width, dtype=dtype), f"{name}.offsets"),
        before=before,
        name=f"{name}.place",
    )
    size = rw.constant(np.array(block, dtype), f"{name}.block")
    return rw.node("Div", place, size, before=before, name=f"{name}.blocks")


def _right_rows(
    rw: Rewriter, weight: KroneckerWeight, ids: ir.Value | None, before: ir.Node, name: str
) -> ir.Value:
    """B as [rank, m2], or its rows [., rank, m2]."""
    s = weight.split
    b = evaluate(weight.b).reshape(weight.rank, s.n2, s.m2)
    if ids is None:
        return rw.constant(b[:, 0], f"{name}.table")
    table = rw.constant(np.ascontiguousarray(b.transpose(1, 0, 2)), f"{name}.table")
    return rw.node("Gather", table, ids, before=before, name=f"{name}.rows", axis=0)


def _blocks(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The int8 values [blocks, block] and the scales that ``value`` restores, when it is stored so."""
    node = value.producer()
    if is_standard(node, "Reshape") and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if not is_standard(node, "Mul") or node is None or node.inputs[0] is None:
        return None
    cast, scale = node.inputs[0].producer(), node.inputs[1]
    if not is_standard(cast, "Cast") or cast is None or scale is None or scale.const_value is None:
        return None
    values = cast.inputs[0]
    stored = values is not None and values.const_value is not None and values.dtype == ir.DataType.INT8
    one_each = stored and values is not None and scale.const_value.size == values.const_value.shape[0]  # type: ignore[union-attr]
    return (values, scale) if one_each and values is not None else None


def _half(value: ir.Value) -> ir.Value | None:
    """What a Cast of a stored tensor reads."""
    node = value.producer()
    inner = node.inputs[0] if is_standard(node, "Cast") and node is not None else None
    return inner if inner is not None and inner.const_value is not None else None


def _folded(rw: Rewriter, value: ir.Value, shape: list[int], name: str) -> ir.Value:
    """A stored tensor with the elements of ``value`` in another shape."""
    return rw.constant(evaluate(value).reshape(shape), name, value.dtype)


def _flat(rw: Rewriter, value: ir.Value) -> ir.Value:
    return _folded(rw, value, [-1], f"{value.name}.flat")


def _reshape(rw: Rewriter, value: ir.Value, shape: list[int], before: ir.Node, name: str) -> ir.Value:
    target = rw.constant(np.array(shape, np.int64), f"{name}.shape")
    return rw.node("Reshape", value, target, before=before, name=name)


# ---- everything else


def _store_the_rest(rw: Rewriter, *, restored_at_run_time: bool) -> list[str]:
    """Constant expressions become tensors; names of those that are larger so.

    What only restores low-bit storage may be left to run time: it has as many elements as are stored.
    """
    rw.clean()
    larger, constant = [], Constants()
    for node in list(rw.model.graph):
        value = _to_store(node, constant)
        if value is None:
            continue
        elements = math.prod(value.shape.numpy()) if value.shape is not None else 0
        stored = leaves(value)
        size = elements * (value.dtype.itemsize if value.dtype is not None else 4)
        grows = size > sum(leaf.const_value.nbytes for leaf in stored if leaf.const_value is not None)
        only_restored = elements <= sum(number_of_parameters(leaf) for leaf in stored)
        if grows and only_restored and restored_at_run_time:
            continue
        if grows:
            larger.append(value.name or "")
        rw.replace(value, rw.constant(evaluate(value), f"{value.name}.stored", value.dtype))
    return larger


def _to_store(node: ir.Node, constant: Constants) -> ir.Value | None:
    """The constant that ``node`` computes and something variable reads; in front of a DequantizeLinear."""
    value: ir.Value | None = node.outputs[0]
    if len(node.outputs) != 1 or not is_whole_expression(node.outputs[0], constant):
        return None
    if is_standard(node, "DequantizeLinear"):
        value = node.inputs[0]
    stored = value is None or value.const_value is not None or value.shape is None
    return None if stored or value is None or not value.shape.is_static() else value  # type: ignore[union-attr]
