"""Which models are refused before any work starts, and why."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphcompress.analysis.linears import embeddings, inner_linears, linears, overridable_weights
from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import CONTRIB
from graphcompress.graph.match import node_name
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Pass

QUANTISED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
"""Operators, in any domain, that a quantised model has and a floating-point one has not."""


def refuse_unsupported(model: Model, passes: Iterable[Pass]) -> None:
    """Refuse a model on which none of ``passes`` could do anything. Custom operators are passed around.

    Raises:
        UnsupportedModelError: a pass refuses it, it is quantised already, computes in bfloat16, or has
            neither linear maps nor embeddings.
    """
    where = model.path or "the model"
    for step in passes:
        step.check_model(model)
    for node in model.graph:
        if node.op_type in QUANTISED_OPS:
            raise UnsupportedModelError(
                f"{where} is quantised already (node {node.name!r} is a {node.op_type}); "
                "start from the floating-point model"
            )
    in_bfloat16 = [linear for linear in linears(model) if linear.output.dtype == ir.DataType.BFLOAT16]
    if in_bfloat16:
        raise UnsupportedModelError(
            f"{where} computes in bfloat16 (linear {in_bfloat16[0].name!r} and others), in which ONNX "
            "Runtime, by which every result is checked, has no products on a CPU; export it in float32 or "
            "float16"
        )
    fused = any(node.domain == CONTRIB for node in model.graph)  # with weights inside that a pass may find
    if not fused and not linears(model) and not embeddings(model):
        raise UnsupportedModelError(f"{where} {_why_nothing(model)}")


def _why_nothing(model: Model) -> str:
    """What is known of a model without linears and embeddings in its main graph."""
    overridable = next((value for value in overridable_weights(model)), None)
    if overridable is not None:
        return (
            f"has no weights of its own: {overridable.name!r} and others are inputs, too, which a caller may "
            "override; remove them from the inputs (keep_initializers_as_inputs=False at export)"
        )
    inside = next(inner_linears(model), None)
    if inside is not None:
        return (
            f"has its linear maps inside subgraphs (of node {node_name(inside[0])!r}, {inside[0].op_type}), "
            "where no pass looks; export the branches as models of their own"
        )
    return (
        "has no linear maps and no embeddings in standard operators: there is nothing to compress; "
        "give an exported Transformer"
    )
