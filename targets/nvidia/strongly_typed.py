"""A strongly typed graph: every precision is in it, for compilers that choose none themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphcompress.analysis.linears import embeddings
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.expressions import evaluate
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.kronecker import read_expression
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.normalisations import fuse_normalizations
from graphcompress.rules.opsets.definitions import spell_out
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.common.kronecker_factors import multiply_factors
from graphcompress.targets.nvidia.dequantised_tables import dequantise_before_lookup
from graphcompress.targets.nvidia.float16 import clip_constants, to_half
from graphcompress.targets.nvidia.float16_range import wide_values
from graphcompress.targets.nvidia.int8_factors import multiply_int8_factors
from graphcompress.targets.nvidia.refusals import is_integer_product, products_left_in_float, refuse
from graphcompress.targets.nvidia.unpacked_products import unpack_products

OLDEST_OPSET, NEWEST_OPSET = 19, 20
"""Scales may be float16 since opset 19; TensorRT 10 reads up to opset 20 in its first releases."""

CALIBRATION_SAMPLES = 64
"""The activations between two int8 products are calibrated on at most this many samples."""


@dataclass(frozen=True)
class Typed:
    """A graph with its precisions in it.

    Attributes:
        model: the graph.
        int8_products: names of the nodes that multiply int8 by int8.
        record: what was done, for the manifest.
        notes: what a user should know.
    """

    model: Model
    int8_products: tuple[str, ...]
    record: Mapping[str, Any]
    notes: tuple[str, ...]


def strongly_typed(model: Model, ctx: Context, *, half: bool) -> Typed:
    """A copy of ``model`` in standard operators and opset 19 or 20: float16 (``half``) around symmetric int8.

    Operators that are newer are written as ONNX defines them; one without a definition keeps its opset, which
    a note says. Kronecker weights are multiplied as two int8 products where that is worth it and stored
    expanded where it is not; int8 tables are dequantised before they are looked up.

    Raises:
        UnsupportedModelError: it holds what TensorRT refuses; the message names the node and what to do.
    """
    typed = model.clone()
    spelt_out = spell_out(typed, ctx, NEWEST_OPSET)
    reason = legalise(typed, ctx, NEWEST_OPSET)
    samples = (ctx.samples or varied_samples(model, seed=ctx.seed)).spread(CALIBRATION_SAMPLES)
    with Rewriter(typed, ctx) as rw:
        factored, expanded = multiply_int8_factors(rw, samples)
        # What the new products replaced goes now, for all that is left is expanded below.
        rw.clean()
        _restore_factors(rw)
        stored = multiply_factors(rw, expand=True)
        tables = dequantise_before_lookup(rw)
        unpacked = unpack_products(rw)
        reason = reason or raise_opset(rw, OLDEST_OPSET)
        fuse_normalizations(rw)  # of a model whose own opset had no operator for them
        clipped = clip_constants(rw) if half else 0
    refuse(typed)
    record: dict[str, Any] = {
        "opset": typed.opset,
        "spelt_out_for_the_opset": spelt_out,
        "kronecker_two_int8_products": list(factored),
        "kronecker_expanded": expanded,
        "expressions_stored_expanded": list(stored.expanded),
        "tables_dequantised_before_lookup": tables,
        "packed_products_divided": unpacked,
        "constants_clipped_for_float16": clipped,
    }
    if half:
        wide = wide_values(typed, ctx)
        with Rewriter(typed, ctx) as rw:
            halved = to_half(rw, wide)
        record |= {"float16_nodes": halved.half, "float32_nodes": list(halved.kept), "casts": halved.casts}
        record["values_beyond_float16"] = sorted(value.name or "" for value in wide)
    _name_nodes(typed)
    products = tuple(node.name or "" for node in typed.graph if is_integer_product(node))
    in_float = products_left_in_float(typed)
    record["products_left_in_float"] = in_float
    notes = tuple(_notes(factored, expanded, in_float))
    if reason is not None:
        notes = (f"the graph stays in opset {typed.opset}, which not every TensorRT reads: {reason}", *notes)
    return Typed(typed, products, record if reason is None else {**record, "opset_reason": reason}, notes)


def _restore_factors(rw: Rewriter) -> None:
    """Factors of tables that are stored in low bits: as the numbers that they stand for."""
    for embedding in embeddings(rw.model):
        weight = read_expression(embedding.weight)
        for factor in (weight.a, weight.b) if weight is not None else ():
            if factor.const_value is None:
                rw.replace(factor, rw.constant(evaluate(factor), f"{factor.name}.restored", factor.dtype))


def _name_nodes(model: Model) -> None:
    """Every node has a name of its own: by it the log of a compiler is read."""
    taken: set[str] = set()
    for node in model.graph:
        name = node.name or f"node_{node.outputs[0].name}"
        number = 1
        unique = name
        while unique in taken:
            unique, number = f"{name}.{number}", number + 1
        node.name = unique
        taken.add(unique)


def _notes(factored: Mapping[str, float], expanded: Mapping[str, str], in_float: list[str]) -> list[str]:
    notes = []
    if in_float:
        notes.append(
            f"{len(in_float)} products have int8 weights and are computed in float: their activation is not "
            f"int8, or something lies between a DequantizeLinear and the product (such as {in_float[0]})"
        )
    if factored:
        worst = min(factored, key=lambda name: factored[name])
        notes.append(
            f"{len(factored)} Kronecker weights are multiplied as two int8 products each, "
            f"which keep at least {factored[worst]:.1f} dB of the exact one ({worst})"
        )
    for reason in dict.fromkeys(expanded.values()):
        names = [name for name, why in expanded.items() if why == reason]
        notes.append(
            f"{len(names)} Kronecker weights are stored expanded, in int8: {reason} (such as {names[0]})"
        )
    return notes
