"""Which models are refused before any work starts, and why."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.analysis.linears import embeddings, inner_linears, linears, overridable_weights
from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model
from graphcompress.rules.fused.operators import FUSED_DOMAIN, GPU_ONLY, node_name, obstacle

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


def refuse_unsupported(model: Model) -> None:
    """Refuse a model on which no pass could do anything. Custom operators are kept and passed around.

    Raises:
        UnsupportedModelError: it is quantised already, has operators of ONNX Runtime that only a GPU runs or
            that hide weights, computes in bfloat16, or has neither linear maps nor embeddings.
    """
    where = model.path or "the model"
    for node in model.graph:
        if node.op_type in QUANTISED_OPS:
            raise UnsupportedModelError(
                f"{where} is quantised already (node {node.name!r} is a {node.op_type}); "
                "start from the floating-point model"
            )
        if node.domain == FUSED_DOMAIN and node.op_type in GPU_ONLY:
            raise UnsupportedModelError(
                f"{where} was fused by ONNX Runtime for a GPU: its node {node_name(node)!r} is a "
                f"{node.op_type}, which does not run on a CPU; start from the model before it was optimised"
            )
        _refuse_hidden_weights(node, where)
    in_bfloat16 = [linear for linear in linears(model) if linear.output.dtype == ir.DataType.BFLOAT16]
    if in_bfloat16:
        raise UnsupportedModelError(
            f"{where} computes in bfloat16 (linear {in_bfloat16[0].name!r} and others), in which ONNX "
            "Runtime, by which every result is checked, has no products on a CPU; export it in float32 or "
            "float16"
        )
    fused = any(node.domain == FUSED_DOMAIN for node in model.graph)
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


def _refuse_hidden_weights(node: ir.Node, where: object) -> None:
    if node.domain != FUSED_DOMAIN or not any(_is_matrix(value) for value in node.inputs):
        return
    reason = obstacle(node)
    if reason is not None:
        raise UnsupportedModelError(
            f"{where} was fused by ONNX Runtime, and its node {node_name(node)!r} (a {node.op_type}) "
            f"holds weights that no pass can see: {reason}; start from the model before it was optimised"
        )


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether ``value`` is a weight of two or more dimensions."""
    if value is None or value.shape is None or value.dtype is None or not is_constant(value):
        return False
    return value.dtype.is_floating_point() and len(value.shape) >= 2
