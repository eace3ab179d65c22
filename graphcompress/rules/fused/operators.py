"""Which fused operators are written again in standard ones, and what keeps one from it."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.fused import activations, attention, normalisations, products, rotary
from graphcompress.rules.fused.base import Operator, Writer

FUSED_DOMAIN = "com.microsoft"

_CONTRIB: dict[str, Operator] = {
    **activations.OPERATORS,
    **attention.OPERATORS,
    **normalisations.OPERATORS,
    **products.OPERATORS,
    **rotary.OPERATORS,
}
GPU_ONLY = frozenset(
    """
    BiasAdd BiasDropout BiasSoftmax BiasSplitGelu DecoderAttention DecoderMaskedSelfAttention
    GatedRelativePositionBias GemmFastGelu GroupNorm LongformerAttention NhwcConv NhwcFusedConv
    PackedAttention PackedMultiHeadAttention PagedAttention RelativePositionBias RemovePadding
    RestorePadding SkipGroupNorm
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
"""Fused operators that ONNX Runtime has for GPUs alone: on a CPU no result could be checked."""

_KEPT = {
    "DecoderMaskedMultiHeadAttention": "it decodes one token at a time into a shared cache",
    "GroupQueryAttention": "its cache has texts of unequal lengths, so its heads are not cut",
}
"""Operators that are passed around as they are, and why."""

_LAYER_NORM_OPSET = 17
"""The opset that LayerNormalization came with; ONNX Runtime writes it into models of earlier ones too."""


def standardise(rw: Rewriter) -> Counter[str]:
    """Write every fused operator of the main graph in standard ones; how often each.

    What cannot be is kept as a custom operator, and the reason recorded.
    """
    done: Counter[str] = Counter()
    for node in list(rw.model.graph):
        operator = _operator(node, rw.model.opset)
        if operator is None:
            if node.domain == FUSED_DOMAIN:
                rw.skip(node_name(node), f"{node.op_type} of ONNX Runtime is kept: {_why_kept(node)}")
            continue
        reason = operator.obstacle(node)
        if reason is not None:
            rw.skip(node_name(node), f"{node.op_type} of ONNX Runtime is kept: {reason}")
            continue
        operator.write(Writer(rw, node))
        done[f"{node.op_type} of ONNX Runtime"] += 1
    if done:
        rw.clean()
    return done


def obstacle(node: ir.Node) -> str | None:
    """Why a fused ``node`` cannot be written in standard operators, or None."""
    operator = _operator(node, None)
    return _why_kept(node) if operator is None else operator.obstacle(node)


def _why_kept(node: ir.Node) -> str:
    return _KEPT.get(node.op_type, "it has no form in standard operators here")


def node_name(node: ir.Node) -> str:
    """What to call a node: its name, or that of its output."""
    return node.name or node.outputs[0].name or node.op_type


def _operator(node: ir.Node, opset: int | None) -> Operator | None:
    if node.domain == FUSED_DOMAIN:
        return _CONTRIB.get(node.op_type)
    if node.domain:
        return None
    if opset is not None and opset < _LAYER_NORM_OPSET and node.op_type in normalisations.EARLY_OPERATORS:
        return normalisations.EARLY_OPERATORS[node.op_type]
    return normalisations.STANDARD_OPERATORS.get(node.op_type)
