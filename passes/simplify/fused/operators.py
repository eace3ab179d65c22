"""Which fused operators are written again in standard ones, and what keeps one from it."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import CONTRIB
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import node_name, rank_of
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.fused import activations, attention, normalisations, products, rotary
from graphcompress.passes.simplify.fused.base import Operator, Writer
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import definition

_OPERATORS: dict[str, Operator] = {
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


def standardise(rw: Rewriter) -> Counter[str]:
    """Write every fused operator of the main graph in standard ones; how often each.

    What cannot be is kept as a custom operator, and the reason recorded.
    """
    done: Counter[str] = Counter()
    for node in list(rw.model.graph):
        operator = _operator(node, rw.model.opset)
        if operator is None:
            if node.domain == CONTRIB:
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


def refuse_hidden(model: Model) -> None:
    """Refuse a model with fused operators that a CPU cannot run, or that would hide weights from every pass.

    Raises:
        UnsupportedModelError: it has such a node; the message names it.
    """
    where = model.path or "the model"
    for node in model.graph:
        if node.domain != CONTRIB:
            continue
        if node.op_type in GPU_ONLY:
            raise UnsupportedModelError(
                f"{where} was fused by ONNX Runtime for a GPU: its node {node_name(node)!r} is a "
                f"{node.op_type}, which does not run on a CPU; start from the model before it was optimised"
            )
        operator = _OPERATORS.get(node.op_type)
        reason = _why_kept(node) if operator is None else operator.obstacle(node)
        if reason is not None and any(map(_is_matrix, node.inputs)):
            raise UnsupportedModelError(
                f"{where} was fused by ONNX Runtime, and its node {node_name(node)!r} (a {node.op_type}) "
                f"holds weights that no pass can see: {reason}; start from the model before it was optimised"
            )


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether ``value`` is a weight of two or more dimensions."""
    rank = rank_of(value)
    if value is None or rank is None or value.dtype is None or not is_constant(value):
        return False
    return value.dtype.is_floating_point() and rank >= 2


def _why_kept(node: ir.Node) -> str:
    return _KEPT.get(node.op_type, "it has no form in standard operators here")


def _operator(node: ir.Node, opset: int) -> Operator | None:
    if node.domain == CONTRIB:
        return _OPERATORS.get(node.op_type)
    if node.domain or definition(node.op_type, opset) is not None:
        return None
    return normalisations.STANDARD_OPERATORS.get(node.op_type)
