"""The operator Attention of opset 23, written out in elementary operators."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.attentions import operator_heads
from graphcompress.graph.match import dtype_of, fixed_size, operand, rank_of
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter

_PLAIN_ATTRIBUTES = frozenset({"scale", "q_num_heads", "kv_num_heads", "softmax_precision"})
_SWAPPED = [0, 2, 1, 3]


def decompose_attention(rw: Rewriter, node: ir.Node) -> bool:
    """Replace an Attention node by ``softmax(scale · q · kᵀ + mask) · v``; returns whether it did.

    Left alone: caches of keys and values, soft caps, causal attention, fewer key heads than query heads,
    outputs besides the first, and operands whose sizes are not known.
    """
    if any(name not in _PLAIN_ATTRIBUTES and _is_set(attr) for name, attr in node.attributes.items()):
        return False
    if any(value.uses() for value in node.outputs[1:]) or any(value is not None for value in node.inputs[4:]):
        return False
    heads = [operator_heads(node, index) for index in range(3)]
    size = fixed_size(node.inputs[0], -1)
    if heads[0] is None or size is None or len(set(heads)) != 1:
        return False
    flat = rank_of(node.inputs[0]) == 3
    scale = node.attributes.get_float("scale", 1.0 / math.sqrt(size // heads[0] if flat else size))
    b = rw.at(node)
    q, k, v = (_split(rw, node, index, heads[0]) for index in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, name="keys", perm=[0, 1, 3, 2]), name="products")
    scores = b.op("Mul", scores, b.constant(scale, "scale_factor", like=q), name="scores")
    mask = operand(node, 3)
    if mask is not None:
        scores = b.op("Add", scores, _bias(b, mask, node.inputs[0]), name="masked")
    probabilities = b.op("Softmax", scores, name="probabilities", axis=-1)
    context = b.op("MatMul", probabilities, v, name="context")
    if flat:
        moved = b.op("Transpose", context, name="moved", perm=_SWAPPED)
        context = b.op("Reshape", moved, b.constant([0, 0, -1], "merged_shape"), name="merged")
    rw.replace(node.outputs[0], context, take_name=True)
    return True


def _is_set(attribute: ir.Attr) -> bool:
    """Whether an attribute differs from 0, the default of all that are not plain."""
    return attribute.value not in (0, 0.0)


def _split(rw: Rewriter, node: ir.Node, index: int, heads: int) -> ir.Value | None:
    """[batch, heads, tokens, size] of an operand."""
    value = node.inputs[index]
    if value is None or rank_of(value) == 4:
        return value
    b = rw.at(node, value.name)
    parts = b.op("Reshape", value, b.constant([0, 0, heads, -1], "heads_shape"), name="parts")
    return b.op("Transpose", parts, name="heads", perm=_SWAPPED)


def _bias(b: Builder, mask: ir.Value, like: ir.Value | None) -> ir.Value:
    """A mask of booleans (True: attend) as numbers to add to the scores."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    # The lowest number in place of -inf: a row that may attend to nothing gives an average, and no NaN.
    lowest = float(np.finfo(dtype_of(like).numpy()).min)
    nothing = b.constant(0, "nothing", like=like)
    return b.op("Where", mask, nothing, b.constant(lowest, "lowest", like=like), name="mask")
