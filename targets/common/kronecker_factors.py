"""Kronecker factors that stay factors at run time, for runtimes that fold no constants when they load."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.integer import integer_products
from graphcompress.analysis.linears import Embedding, embeddings, linears
from graphcompress.graph.expressions import evaluate, leaves
from graphcompress.graph.match import (
    dtype_of,
    fixed_shape,
    fixed_size,
    is_standard,
    operand,
    producer,
    tensor_of,
)
from graphcompress.graph.model import number_of_parameters
from graphcompress.numerics.kronecker import Split
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.kronecker import KroneckerWeight, read_expression, write_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.linears import is_whole_expression
from graphcompress.targets.common.before_rounding import Scaler, before_rounding


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
    for product in integer_products(rw.model):
        before = before_rounding(product)
        if before is None:
            continue
        place = rw.at(product.nodes[-1])
        x = scaler.scaled(before.x, before.factors, product.nodes[-1])
        value = place.op("MatMul", x, before.weight, name="product")
        if product.bias is not None:
            value = place.op("Add", value, product.bias, name="sum")
        rw.replace(product.output, value, take_name=True)


# ---- embeddings


def look_up_factors(rw: Rewriter, embedding: Embedding) -> bool:
    """``(A ⊗ B)[i] = Σᵣ A[i // n2, ·, r] ⊗ B[r, i % n2, ·]``: the rows that are asked for."""
    weight, ids = read_expression(embedding.weight), embedding.indices
    if weight is None or ids.shape is None:
        return False
    s, rank, axes = weight.split, weight.rank, [0] * len(ids.shape)
    place = rw.at(embedding.node)
    upper, lower = _row_numbers(place, ids, s)
    left = _rows(rw.at(embedding.node, f"{place.name}.a"), weight, upper)
    right = _right_rows(rw.at(embedding.node, f"{place.name}.b"), weight, lower)
    left = _reshape(place, left, [*axes, s.m1, rank], "a_terms")
    product = place.op("MatMul", left, right, name="terms")
    row = _reshape(place, product, [*axes, s.out_features], "row")
    rw.replace(embedding.output, row, take_name=True)
    return True


def _row_numbers(place: Builder, ids: ir.Value, s: Split) -> tuple[ir.Value, ir.Value | None]:
    """Which row of A and which of B each id asks for; None where B has one."""
    if s.n2 == 1:
        return ids, None
    size = place.constant(s.n2, "rows_of_b", like=ids)
    return place.op("Div", ids, size, name="upper"), place.op("Mod", ids, size, name="lower")


def _rows(place: Builder, weight: KroneckerWeight, ids: ir.Value) -> ir.Value:
    """Rows [., m1·rank] of A; low-bit storage is restored for these rows alone."""
    width, half = weight.split.m1 * weight.rank, operand(producer(weight.a, "Cast"), 0)
    stored = half if half is not None and tensor_of(half) is not None else weight.a
    values, scale = _blocks(weight.a) or (stored, None)
    table = _folded(place, values, [weight.split.n1, width], "table")
    rows = place.op("Gather", table, ids, name="rows", axis=0)
    if table.dtype != dtype_of(weight.a):
        rows = place.op("Cast", rows, name="float", to=int(dtype_of(weight.a)))
    if scale is None:
        return rows
    steps = place.rw.constant(evaluate(scale).reshape(-1), f"{scale.name}.flat", scale.dtype)
    numbers = _block_numbers(place, ids, width, fixed_size(values, 1) or 1)
    return place.op("Mul", rows, place.op("Gather", steps, numbers, name="steps", axis=0), name="restored")


def _block_numbers(place: Builder, ids: ir.Value, width: int, block: int) -> ir.Value:
    """The block of every entry of the rows: ``(id · width + 0 … width-1) // block``."""
    column = place.op("Unsqueeze", ids, place.constant([-1], "last"), name="column")
    start = place.op("Mul", column, place.constant(width, "width", like=ids), name="start")
    offsets = place.constant(np.arange(width), "offsets", like=ids)
    entries = place.op("Add", start, offsets, name="place")
    return place.op("Div", entries, place.constant(block, "block", like=ids), name="blocks")


def _right_rows(place: Builder, weight: KroneckerWeight, ids: ir.Value | None) -> ir.Value:
    """B as [rank, m2], or its rows [., rank, m2]."""
    s = weight.split
    b = evaluate(weight.b).reshape(weight.rank, s.n2, s.m2)
    if ids is None:
        return place.constant(b[:, 0], "table")
    table = place.constant(np.ascontiguousarray(b.transpose(1, 0, 2)), "table")
    return place.op("Gather", table, ids, name="rows", axis=0)


def _blocks(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The int8 values [blocks, block] and the scales that ``value`` restores, when it is stored so."""
    reshape = producer(value, "Reshape")
    product = producer(value if reshape is None else reshape.inputs[0], "Mul")
    values, scale = operand(producer(operand(product, 0), "Cast"), 0), operand(product, 1)
    stored, steps = tensor_of(values), tensor_of(scale)
    if values is None or scale is None or stored is None or steps is None:
        return None
    one_each = stored.dtype == ir.DataType.INT8 and steps.size == stored.shape[0]
    return (values, scale) if one_each else None


def _folded(place: Builder, value: ir.Value, shape: list[int], name: str) -> ir.Value:
    """A stored tensor with the elements of ``value`` in another shape."""
    return place.constant(evaluate(value).reshape(shape), name, like=value)


def _reshape(place: Builder, value: ir.Value, shape: list[int], name: str) -> ir.Value:
    return place.op("Reshape", value, place.constant(shape, f"{name}.shape"), name=name)


# ---- everything else


def _store_the_rest(rw: Rewriter, *, restored_at_run_time: bool) -> list[str]:
    """Constant expressions become tensors; names of those that are larger so.

    What only restores low-bit storage may be left to run time: it has as many elements as are stored.
    """
    # Expressions that nothing reads any more would be stored otherwise.
    rw.clean()
    larger = []
    for node in list(rw.model.graph):
        value = _to_store(rw, node)
        if value is None:
            continue
        elements, stored = math.prod(fixed_shape(value) or ()), leaves(value)
        bytes_stored = sum(leaf.const_value.nbytes for leaf in stored if leaf.const_value is not None)
        grows = elements * dtype_of(value).itemsize > bytes_stored
        only_restored = elements <= sum(number_of_parameters(leaf) for leaf in stored)
        # Restoring low-bit storage at every call costs about as much as reading the larger tensor would.
        if grows and only_restored and restored_at_run_time:
            continue
        if grows:
            larger.append(value.name or "")
        rw.replace(value, rw.constant(evaluate(value), f"{value.name}.stored", value.dtype))
    return larger


def _to_store(rw: Rewriter, node: ir.Node) -> ir.Value | None:
    """The constant that ``node`` computes and something variable reads; in front of a DequantizeLinear."""
    if len(node.outputs) != 1 or not is_whole_expression(rw, node.outputs[0]):
        return None
    # The integers are stored and not the floats, so that int8 products stay int8.
    value = node.inputs[0] if is_standard(node, "DequantizeLinear") else node.outputs[0]
    computed = value is not None and value.const_value is None and fixed_shape(value) is not None
    return value if computed else None
