"""The operator Attention of opset 23, written out in elementary operators."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphcompress.rewrite.rewriter import Rewriter, put_in_place

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
    heads = [_heads(value, node, index) for index, value in enumerate(node.inputs[:3])]
    if any(item is None for item in heads) or heads[0] != heads[1] or heads[1] != heads[2]:
        return False
    q, k, v = (_split(rw, node, index) for index in range(3))
    size = _size(node.inputs[0], heads[0])
    if q is None or k is None or v is None or size is None:
        return False
    scale = node.attributes.get_float("scale", 1.0 / math.sqrt(size))
    name = node.outputs[0].name or "attention"
    transposed = rw.node("Transpose", k, before=node, name=f"{name}.keys", perm=[0, 1, 3, 2])
    scores = rw.node("MatMul", q, transposed, before=node, name=f"{name}.products")
    factor = rw.constant(np.array(scale, _dtype(q)), f"{name}.scale_factor")
    scores = rw.node("Mul", scores, factor, before=node, name=f"{name}.scores")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None:
        scores = rw.node("Add", scores, _bias(rw, mask, node, name), before=node, name=f"{name}.masked")
    probabilities = rw.node("Softmax", scores, before=node, name=f"{name}.probabilities", axis=-1)
    put_in_place(rw, node.outputs[0], _merged(rw, node, probabilities, v, name))
    return True


def _is_set(attribute: ir.Attr) -> bool:
    """Whether an attribute differs from 0, the default of all that are not plain."""
    return attribute.value not in (0, 0.0)


def _heads(value: ir.Value | None, node: ir.Node, index: int) -> int | None:
    if value is None or value.shape is None:
        return None
    if len(value.shape) == 3:
        return node.attributes.get_int("q_num_heads" if index == 0 else "kv_num_heads", 0) or None
    return value.shape[1] if len(value.shape) == 4 and isinstance(value.shape[1], int) else None


def _size(value: ir.Value | None, heads: int | None) -> int | None:
    if value is None or value.shape is None or heads is None or not isinstance(value.shape[-1], int):
        return None
    return value.shape[-1] if len(value.shape) == 4 else value.shape[-1] // heads


def _split(rw: Rewriter, node: ir.Node, index: int) -> ir.Value | None:
    """[batch, heads, tokens, size] of an operand."""
    value = node.inputs[index]
    if value is None or value.shape is None or len(value.shape) == 4:
        return value
    heads = _heads(value, node, index)
    shape = rw.constant(np.array([0, 0, heads, -1], np.int64), f"{value.name}.heads_shape")
    parts = rw.node("Reshape", value, shape, before=node, name=f"{value.name}.parts")
    return rw.node("Transpose", parts, before=node, name=f"{value.name}.heads", perm=_SWAPPED)


def _merged(rw: Rewriter, node: ir.Node, probabilities: ir.Value, v: ir.Value, name: str) -> ir.Value:
    context = rw.node("MatMul", probabilities, v, before=node, name=f"{name}.context")
    first = node.inputs[0]
    if first is None or first.shape is None or len(first.shape) == 4:
        return context
    moved = rw.node("Transpose", context, before=node, name=f"{name}.moved", perm=_SWAPPED)
    shape = rw.constant(np.array([0, 0, -1], np.int64), f"{name}.merged_shape")
    return rw.node("Reshape", moved, shape, before=node, name=f"{name}.merged")


def _bias(rw: Rewriter, mask: ir.Value, node: ir.Node, name: str) -> ir.Value:
    """A mask of booleans (True: attend) as numbers to add to the scores."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    dtype = _dtype(node.inputs[0])
    nothing = rw.constant(np.array(0, dtype), f"{name}.nothing")
    lowest = rw.constant(np.array(np.finfo(dtype).min, dtype), f"{name}.lowest")
    return rw.node("Where", mask, nothing, lowest, before=node, name=f"{name}.mask")


def _dtype(value: ir.Value | None) -> np.dtype:
    return np.dtype(np.float32) if value is None or value.dtype is None else value.dtype.numpy()
