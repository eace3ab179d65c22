"""How the weight of a linear or an embedding is stored in 8 bits, decided before the graph is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, stored_parameters
from graphcompress.graph.expressions import evaluate, expression_nodes, leaves
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.quantise import (
    QuantisedArray,
    WeightRange,
    quantise_blocks,
    quantise_columns,
    quantise_rows,
    quantise_weight,
)

SMALLEST_LEAF = 1024
"""A leaf of an expression with fewer parameters stays as it is: the operators that restore it would cost more
than it saves."""

LEAF_MIN_DB = 35.0
"""A leaf must keep this SQNR, in dB, in int8, or else in float16; one that keeps it in neither stays as it
is."""

COLUMN_LOSS_DB = 1.0
"""One scale per column may have an SQNR that is this many dB below that of one per row, because it needs one
operator less at run time."""

Leaf = QuantisedArray | np.ndarray
"""A leaf of an expression: int8 in blocks, or float16."""


@dataclass(frozen=True, eq=False)
class LowBitWeight:
    """A weight [in, out] in int8.

    Attributes:
        quantised: values [in, out], scale [out].
        leaves: low-bit forms of the leaves that have one, when the weight stays an expression; then the
            values are quantised from the expression when the session is made.
        is_expression: the weight stays an expression.
        factors: [in] by which the rows were multiplied before, and the activation has to be divided.
    """

    quantised: QuantisedArray
    leaves: Mapping[ir.Value, Leaf] = field(default_factory=dict)
    is_expression: bool = False
    factors: np.ndarray | None = None


def low_bit_linear(linear: Linear, kind: WeightRange, factors: np.ndarray | None = None) -> LowBitWeight:
    """Quantise the weight of ``linear``; an expression stays one when its leaves are smaller.

    ``factors`` [in] multiply its rows before, for an activation that is divided by them.
    """
    by_row = np.float32(1.0) if factors is None else factors[:, None]
    if not stays_expression(linear):
        return LowBitWeight(quantise_weight(linear.dense() * by_row, kind), factors=factors)
    chosen = low_bit_leaves(linear.weight)
    # Scales are taken from what the stored leaves give: their own rounding is part of the weight that runs.
    array = evaluate(linear.weight, {leaf: restored(leaf, form) for leaf, form in chosen.items()})
    dense = linear.arranged(array)
    quantised = quantise_weight(dense * by_row, kind)
    return LowBitWeight(quantised, chosen, is_expression=True, factors=factors)


def stays_expression(item: Linear | Embedding) -> bool:
    """Whether the weight is an expression that stores fewer parameters than the weight has."""
    if item.weight.const_value is not None:
        return False
    size = int(np.prod(item.weight.shape.numpy())) if item.weight.shape is not None else 0
    return stored_parameters(item.weight) < size


def low_bit_table(embedding: Embedding) -> tuple[QuantisedArray, float]:
    """A table [rows, width] with scales per column, or per row where that is clearly better; and its SQNR."""
    dense = embedding.dense()
    by_row, by_column = quantise_rows(dense), quantise_columns(dense)
    row_db, column_db = (sqnr_db(dense, form.dequantise()) for form in (by_row, by_column))
    return (by_row, row_db) if row_db - column_db > COLUMN_LOSS_DB else (by_column, column_db)


def low_bit_leaves(weight: ir.Value) -> dict[ir.Value, Leaf]:
    """Low-bit forms of the leaves that only this expression uses: int8, or float16 where int8 is bad.

    A leaf whose numbers are too large or too small for float16 too is left out.
    """
    nodes = set(expression_nodes(weight))
    forms = {
        leaf: _low_bit_leaf(leaf)
        for leaf in leaves(weight)
        if leaf.dtype == ir.DataType.FLOAT
        and int(np.prod(leaf.shape.numpy() if leaf.shape is not None else 0)) >= SMALLEST_LEAF
        # A leaf that something else reads would have to stay in float anyway, and be stored twice.
        and all(node in nodes for node, _ in leaf.uses())
    }
    return {leaf: form for leaf, form in forms.items() if form is not None}


def restored(leaf: ir.Value, form: Leaf) -> np.ndarray:
    """The float32 array of the leaf's shape that its low-bit form stands for."""
    array = form.dequantise() if isinstance(form, QuantisedArray) else form.astype(np.float32)
    return array.reshape(leaf.shape.numpy() if leaf.shape is not None else array.shape)


def _low_bit_leaf(leaf: ir.Value) -> Leaf | None:
    array = evaluate(leaf)
    blocks = quantise_blocks(array)
    if blocks is not None and sqnr_db(array.reshape(blocks.values.shape), blocks.dequantise()) >= LEAF_MIN_DB:
        return blocks
    # The cast would make it infinite, with a warning, before its SQNR could be asked.
    if np.abs(array).max() > np.finfo(np.float16).max:
        return None
    half = array.astype(np.float16)
    return half if sqnr_db(array, half.astype(np.float32)) >= LEAF_MIN_DB else None
