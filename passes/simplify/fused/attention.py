"""Attention and MultiHeadAttention of com.microsoft: linears, heads, scores, mask, Softmax, heads merged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import array_of, fixed_size, operand, rank_of
from graphcompress.passes.simplify.fused import masks
from graphcompress.passes.simplify.fused.base import Operator, Writer, reads_outputs


def packed(w: Writer) -> None:
    """Attention: the merged weight becomes three linears; the past, if there is one, goes before the keys."""
    x, weights, bias, past = w.required(0), w.required(1), w.input(2), w.input(4)
    sizes = _hidden_sizes(w.fused)
    parts = _parts(w, weights, sizes)
    biases = [None] * 3 if bias is None else _parts(w, bias, sizes)
    q, k, v = (_linear(w, x, part, addend) for part, addend in zip(parts, biases, strict=True))
    q, k, v = (_split_heads(w, value, size) for value, size in zip((q, k, v), sizes, strict=True))
    # Past and present hold keys and values in one tensor, [2, batch, heads, tokens, size].
    if past is not None:
        k, v = (
            w.op("Concat", w.op("Gather", past, w.constant(index, "index"), axis=0), value, axis=2)
            for index, value in enumerate((k, v))
        )
    joined = None
    if reads_outputs(w.fused, (1,)):
        joined = w.op("Concat", *(w.op("Unsqueeze", value, w.integers(0)) for value in (k, v)), axis=0)
    scale = w.number("scale", 0.0) or 1 / math.sqrt(sizes[0] // w.integer("num_heads"))
    w.stand_in(_attend(w, (q, k, v), x, w.input(3), w.input(5), scale), joined)


def multi_head(w: Writer) -> None:
    """MultiHeadAttention: linears before it make queries, keys and values, or a cache gives the last two."""
    operands = [w.required(index) for index in range(3)]
    sizes = [_hidden(w.fused, index) or 0 for index in range(3)]
    bias = w.input(3)
    if bias is not None:
        addends = _parts(w, bias, sizes)
        operands = [w.op("Add", value, part) for value, part in zip(operands, addends, strict=True)]
    q, k, v = (
        value if rank_of(source) == 4 else _split_heads(w, value, size)
        for value, source, size in zip(operands, w.fused.inputs, sizes, strict=False)
    )
    pasts = [w.input(index) for index in (6, 7)]
    k, v = (
        value if past is None else w.op("Concat", past, value, axis=2)
        for past, value in zip(pasts, (k, v), strict=True)
    )
    scale = w.number("scale", 0.0) or 1 / math.sqrt(sizes[0] // w.integer("num_heads"))
    out = _attend(w, (q, k, v), w.required(0), w.input(4), w.input(5), scale)
    w.stand_in(out, k, v)


def _attend(
    w: Writer,
    heads: Sequence[ir.Value],
    query: ir.Value,
    mask: ir.Value | None,
    bias: ir.Value | None,
    scale: float,
) -> ir.Value:
    """softmax(scale · q · kᵀ + mask + bias) · v with heads merged: [batch, queries, hidden]."""
    q, k, v = heads
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = masks.masked(w, w.op("Mul", scores, w.scalar(scale, scores)), mask, query, bias)
    context = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
    return w.op("Reshape", w.op("Transpose", context, perm=[0, 2, 1, 3]), w.integers(0, 0, -1))


def _split_heads(w: Writer, value: ir.Value, hidden: int) -> ir.Value:
    """[batch, length, hidden] → [batch, heads, length, size]."""
    heads = w.integer("num_heads")
    split = w.op("Reshape", value, w.integers(0, 0, heads, hidden // heads))
    return w.op("Transpose", split, perm=[0, 2, 1, 3])


def _linear(w: Writer, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    product = w.op("MatMul", x, weight)
    return product if bias is None else w.op("Add", product, bias)


def _parts(w: Writer, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
    """Queries', keys' and values' share of a stored weight or bias along its last axis."""
    stops = np.cumsum(sizes)
    names = [f"{value.name}.{part}" for part in ("query", "key", "value")]
    array = array_of(value)
    if array is None:
        return [
            w.op("Slice", value, w.integers(int(stop) - size), w.integers(int(stop)), w.integers(-1))
            for stop, size in zip(stops, sizes, strict=True)
        ]
    arrays = np.split(array, stops[:-1], axis=-1)
    return [
        w.rw.constant(np.ascontiguousarray(part), name, value.dtype)
        for part, name in zip(arrays, names, strict=True)
    ]


def _hidden_sizes(node: ir.Node) -> list[int]:
    """Widths of queries, keys and values in the merged weight."""
    given = node.attributes.get_ints("qkv_hidden_sizes", [])
    return list(given) or [(fixed_size(operand(node, 1), -1) or 0) // 3] * 3


def _hidden(node: ir.Node, index: int) -> int | None:
    """Width of the queries, keys or values of a MultiHeadAttention, all heads together."""
    value = operand(node, index)
    size = fixed_size(value, -1)
    if size is None:
        return None
    return size * node.attributes.get_int("num_heads", 1) if rank_of(value) == 4 else size


# ---- what is not handled


def _packed_obstacle(node: ir.Node) -> str | None:
    weights = operand(node, 1)
    if fixed_size(weights, -1) is None:
        return "the shape of its weights is not known"
    if node.attributes.get_int("do_rotary", 0):
        return "it turns positions itself (do_rotary)"
    if not is_constant(weights):
        return "its weights are computed at run time"
    return _common_obstacle(node, mask=3, shared=(6,), traces=())


def _multi_head_obstacle(node: ir.Node) -> str | None:
    operands = [operand(node, index) for index in range(3)]
    if any(value is None for value in operands):
        return "queries, keys and values are packed in one input"
    if any(rank_of(value) not in (3, 4) or _hidden(node, i) is None for i, value in enumerate(operands)):
        return "the shape of its queries, keys or values is not known, or they are packed"
    if rank_of(operands[0]) != 3 or (operand(node, 3) and rank_of(operands[1]) == 4):
        return "it has queries or biases of a form that is not handled beside cached keys"
    return _common_obstacle(node, mask=4, shared=(8, 9), traces=(3,))


def _common_obstacle(node: ir.Node, mask: int, shared: Sequence[int], traces: Sequence[int]) -> str | None:
    if node.attributes.get_int("past_present_share_buffer", 0) or any(operand(node, i) for i in shared):
        return "past and present share a buffer"
    if reads_outputs(node, traces):
        return "its scores are read (output qk)"
    return masks.obstacle(operand(node, mask), operand(node, 0))


OPERATORS = {
    "Attention": Operator(packed, _packed_obstacle),
    "MultiHeadAttention": Operator(multi_head, _multi_head_obstacle),
}
