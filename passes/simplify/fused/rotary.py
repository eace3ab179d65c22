"""RotaryEmbedding of com.microsoft: pairs of features turned by an angle that grows with the position."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.graph.match import fixed_size, operand, rank_of
from graphcompress.passes.simplify.fused.base import Operator, Writer


def rotary(w: Writer) -> None:
    """Split heads off where the input has none, turn the pairs, merge the heads again."""
    x, cos = w.required(0), w.required(2)
    flat = rank_of(x) == 3
    turned = w.integer("rotary_embedding_dim") or 2 * (fixed_size(cos, -1) or 0)
    if flat:
        # Without num_heads all features of a head turn, so that they are as many as it has.
        heads = w.integer("num_heads") or (fixed_size(x, -1) or 0) // turned
        x = w.op("Reshape", x, w.integers(0, 0, heads, (fixed_size(x, -1) or 0) // heads))
    angles = [_at_positions(w, w.required(index), heads_axis=2 if flat else 1) for index in (2, 3)]
    size = fixed_size(w.required(0), -1) or 0
    size = size // heads if flat else size
    out = _turn(w, _part(w, x, 0, turned, size), turned, *angles)
    if turned < size:
        out = w.op("Concat", out, _part(w, x, turned, size, size), axis=-1)
    w.stand_in(w.op("Reshape", out, w.integers(0, 0, -1)) if flat else out)


def _turn(w: Writer, x: ir.Value, width: int, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """(a, b) ↦ (a·cos - b·sin, b·cos + a·sin)."""
    if w.integer("interleaved"):
        pairs = w.op("Reshape", x, w.integers(0, 0, 0, width // 2, 2))
        a, b = (w.op("Squeeze", _slice(w, pairs, i, i + 1), w.integers(-1)) for i in (0, 1))
    else:
        a, b = _slice(w, x, 0, width // 2), _slice(w, x, width // 2, width)
    first = w.op("Sub", w.op("Mul", a, cos), w.op("Mul", b, sin))
    second = w.op("Add", w.op("Mul", b, cos), w.op("Mul", a, sin))
    if not w.integer("interleaved"):
        return w.op("Concat", first, second, axis=-1)
    stacked = w.op("Concat", *(w.op("Unsqueeze", part, w.integers(-1)) for part in (first, second)), axis=-1)
    return w.op("Reshape", stacked, w.integers(0, 0, 0, width))


def _at_positions(w: Writer, cache: ir.Value, heads_axis: int) -> ir.Value:
    """Rows of the cache at the positions, with an axis for heads: [batch, 1, sequence, half] or …1, half]."""
    positions = w.required(1)
    if rank_of(positions) == 1:  # one number: the position of the first token
        x = w.required(0)
        length = w.size(x, 1 if rank_of(x) == 3 else 2)
        positions = w.op("Unsqueeze", w.count(length, start=positions), w.integers(0))
    return w.op("Unsqueeze", w.op("Gather", cache, positions, axis=0), w.integers(heads_axis))


def _part(w: Writer, x: ir.Value, start: int, stop: int, size: int) -> ir.Value:
    return x if (start, stop) == (0, size) else _slice(w, x, start, stop)


def _slice(w: Writer, x: ir.Value, start: int, stop: int) -> ir.Value:
    return w.op("Slice", x, w.integers(start), w.integers(stop), w.integers(-1))


def _obstacle(node: ir.Node) -> str | None:
    if node.attributes.get_float("scale", 1.0) != 1.0:
        return "its scale is not 1"
    if node.attributes.get_int("is_packed_batching", 0):
        return "its batches are packed (is_packed_batching)"
    if rank_of(operand(node, 0)) not in (3, 4) or fixed_size(operand(node, 0), -1) is None:
        return "the shape of its input is not known"
    if rank_of(operand(node, 1)) is None or fixed_size(operand(node, 2), -1) is None:
        return "the shape of its position_ids or cos_cache is not known"
    return None


OPERATORS = {"RotaryEmbedding": Operator(rotary, _obstacle)}
