"""Attention in the spellings of exporters and people. Values are [N, S, width]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fuzz.blocks import linear, norm
from fuzz.graph import Graph, Part, Units

LONGEST = 96
"""Positions that tables of angles have."""


@dataclass
class _Heads:
    """One attention while it is written: query heads of ``size``, and ``stored`` key and value heads."""

    count: int
    stored: int
    size: int
    parts: tuple[Part, ...] = ()
    plain: bool = True

    @property
    def share(self) -> int:
        """Query heads of each stored head."""
        return self.count // self.stored


def attention(g: Graph, x: str, width: int, mask: str | None) -> str:
    """Self attention with ``mask`` added to the scores, which broadcasts to [N, heads, S, S]."""
    count = int(g.pick((2, 3, 4)))
    stored = count if g.chance(0.75) else (1 if count == 3 else 2)
    heads = _Heads(count, stored, int(g.pick((4, 5, 8, 6, 3))))
    q, k, v = _projected(g, x, width, heads)
    if g.opset >= 23 and g.chance(0.3):
        joined = _operator(g, q, k, v, heads, mask)
    elif g.chance(0.2) and heads.share == 1 and mask is None:
        joined = _flat(g, q, k, v, heads)
    else:
        joined = _spelled(g, q, k, v, heads, mask)
    look = g.pick(("", "", "", "", "norm", "mean", "shown"))
    if look == "norm":
        joined = norm(g, joined, heads.count * heads.size)
    elif look == "mean":
        x = g.op("Add", x, g.reduce("ReduceMean", joined, -1))
    elif look == "shown":
        g.inner.append(joined)
    y, read, _ = linear(g, joined, heads.count * heads.size, width, bias=g.chance(0.7), gain=0.7)
    reader = Part(read.name, read.axis, _columns(heads, heads.count))
    g.units.append(Units("head", heads.stored, heads.parts, (reader,), heads.plain and not look))
    return g.op("Add", x, y) if look == "mean" else y


def _columns(heads: _Heads, count: int, start: int = 0) -> np.ndarray:
    """[stored heads, features] of what is ``count`` heads wide, from feature ``start`` on."""
    per_unit = count // heads.stored * heads.size
    return start + np.arange(count * heads.size).reshape(heads.stored, per_unit)


def _projected(g: Graph, x: str, width: int, heads: _Heads) -> tuple[str, str, str]:
    """Queries, keys and values [N, S, heads · size], from one weight or from three."""
    wide, narrow = heads.count * heads.size, heads.stored * heads.size
    bias = g.chance(0.6)
    if g.chance(0.3):
        packed, _, made = linear(g, x, width, wide + 2 * narrow, bias=bias)
        value = _columns(heads, heads.stored, wide + narrow)
        heads.parts = tuple(Part(part.name, part.axis, value) for part in made)
        q, k, v = g.split(packed, 2, (wide, narrow, narrow))
        return q, k, v
    q, _, _ = linear(g, x, width, wide, bias=bias)
    k, _, _ = linear(g, x, width, narrow, bias=bias and g.chance(0.7))
    v, _, made = linear(g, x, width, narrow, bias=bias)
    value = _columns(heads, heads.stored)
    heads.parts = tuple(Part(part.name, part.axis, value) for part in made)
    if g.chance(0.1):  # a norm over all heads of the queries: every head counts in it
        q, heads.plain = norm(g, q, wide), False
    return q, k, v


def _apart(g: Graph, x: str, count: int, size: int) -> str:
    """[N, S, count · size] → [N, count, S, size]."""
    sizes = (0, 0, count, size) if g.chance(0.7) else (0, 0, -1, size)
    return g.op("Transpose", g.reshape(x, *sizes), perm=[0, 2, 1, 3])


def _spelled(g: Graph, q: str, k: str, v: str, heads: _Heads, mask: str | None) -> str:
    """Softmax between two products, four axes."""
    scale = heads.size**-0.5
    q = _apart(g, q, heads.count, heads.size)
    k, v = (_apart(g, x, heads.stored, heads.size) for x in (k, v))
    if g.chance(0.15):  # queries and keys normalised, head by head
        q, k = norm(g, q, heads.size), norm(g, k, heads.size)
    if heads.size % 2 == 0 and g.chance(0.2):
        q, k = _rotated(g, q, heads), _rotated(g, k, heads)
    if heads.share > 1:
        k, v = _repeated(g, k, heads), _repeated(g, v, heads)
    where = g.pick(("scores", "scores", "divided", "queries", "both"))
    if where == "queries":
        q = g.op("Mul", q, g.number(scale))
    if where == "both":
        q, k = g.op("Mul", q, g.number(scale**0.5)), g.op("Mul", k, g.number(scale**0.5))
    if g.chance(0.1):
        scores = g.op("Einsum", q, k, equation="bhqd,bhkd->bhqk")
    else:
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if where == "scores":
        scores = g.op("Mul", scores, g.number(scale))
    if where == "divided":
        scores = g.op("Div", scores, g.number(1 / scale))
    scores = _biased(g, scores, heads)
    if mask is not None:
        scores = g.op("Add", scores, mask)
    mixed = g.op("MatMul", _probabilities(g, scores, heads), v)
    if g.chance(0.1):  # a factor for every head
        mixed = g.op("Mul", mixed, g.weight(1, heads.count, 1, 1, stem="gate"))
    return g.reshape(g.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads.count * heads.size)


def _rotated(g: Graph, x: str, heads: _Heads) -> str:
    """Pairs of features [N, count, S, size], turned by angles that grow with the position (RoFormer)."""
    half = heads.size // 2
    angles = np.arange(LONGEST)[:, None] / 10.0 ** np.arange(half)
    tables = [g.stored(table.astype(np.float32), "angles") for table in (np.cos(angles), np.sin(angles))]
    length = g.size(x, 2)
    cos, sin = (g.op("Slice", table, g.ints(0), length, g.ints(0)) for table in tables)
    left, right = g.split(x, 3, (half, half))
    turned = g.op("Sub", g.op("Mul", left, cos), g.op("Mul", right, sin))
    other = g.op("Add", g.op("Mul", right, cos), g.op("Mul", left, sin))
    return g.op("Concat", turned, other, axis=3)


def _repeated(g: Graph, x: str, heads: _Heads) -> str:
    """Stored heads, once for every query head that reads them."""
    form = g.pick(("expand", "concat", "gather"))
    if form == "gather":
        order = np.repeat(np.arange(heads.stored), heads.share)
        return g.op("Gather", x, g.stored(order.astype(np.int64), "order"), axis=1)
    wide = g.op("Unsqueeze", x, g.ints(2))
    if form == "concat":
        wide = g.op("Concat", *[wide] * heads.share, axis=2)
    else:
        wide = g.op("Expand", wide, g.ints(1, 1, heads.share, 1, 1))
    shape = g.op("Concat", g.size(x, 0), g.ints(heads.count), g.size(x, 2), g.ints(heads.size), axis=0)
    return g.op("Reshape", wide, shape)


def _biased(g: Graph, scores: str, heads: _Heads) -> str:
    """Scores as they are, with slopes by position (ALiBi), or with a position bias of a table."""
    form = g.pick(("", "", "", "slopes", "table", "causal"))
    if form == "":
        return scores
    length = g.op("Squeeze", g.size(scores, 3), g.ints(0))
    zero, one = g.stored(np.array(0, np.int64)), g.stored(np.array(1, np.int64))
    positions = g.op("Range", zero, length, one)
    if form == "slopes":
        slopes = g.vector(heads.count, around=-0.3, stem="slopes")
        g.weights[slopes] = g.weights[slopes].reshape(1, heads.count, 1, 1)
        line = g.reshape(g.op("Cast", positions, to=1), 1, 1, 1, -1)
        return g.op("Add", scores, g.op("Mul", line, slopes))
    distance = g.op("Sub", g.op("Unsqueeze", positions, g.ints(0)), g.op("Unsqueeze", positions, g.ints(1)))
    if form == "causal":
        masked = g.op("Greater", distance, zero)
        floor = g.number(float(g.pick((-1e4, -1e9))))
        return g.op("Where", masked, floor, scores)
    bounded = g.op("Cast", g.op("Clip", g.op("Cast", distance, to=1), g.bound(-4.0), g.bound(4.0)), to=7)
    table = g.weight(9, heads.count, stem="table")
    rows = g.op("Gather", table, g.op("Add", bounded, g.stored(np.array(4, np.int64))), axis=0)
    return g.op("Add", scores, g.op("Unsqueeze", g.op("Transpose", rows, perm=[2, 0, 1]), g.ints(0)))


def _probabilities(g: Graph, scores: str, heads: _Heads) -> str:
    """A Softmax, with what stands around it in some models."""
    form = g.pick(("", "", "", "", "guard", "sink", "dropout", "shown", "capped"))
    if form == "capped":
        scores = g.op("Mul", g.op("Tanh", g.op("Div", scores, g.number(5.0))), g.number(5.0))
    if form == "sink":
        sink = g.weight(1, heads.count, 1, 1, stem="sink")
        zeros = g.op("Mul", g.reduce("ReduceMax", scores, -1), g.number(0.0))
        wide = g.op("Concat", scores, g.op("Add", zeros, sink), axis=-1)
        return g.slice(g.op("Softmax", wide, axis=-1), -1, 0, -1)
    shares = g.op("Softmax", scores, axis=-1)
    if form == "guard":
        return g.op("Where", g.op("IsNaN", shares), g.bound(0.0), shares)
    if form == "dropout":
        return g.op("Dropout", shares)
    if form == "shown":
        g.inner.append(shares)
        heads.plain = False
    return shares


def _flat(g: Graph, q: str, k: str, v: str, heads: _Heads) -> str:
    """Batch and heads in one axis, as BLOOM and fairseq write it."""
    total = heads.count * heads.size
    q, k, v = (_folded(g, value, heads) for value in (q, k, v))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    shares = g.op("Softmax", g.op("Mul", scores, g.number(heads.size**-0.5)), axis=-1)
    mixed = g.op("MatMul", shares, v)
    shape = g.op("Concat", g.ints(-1, heads.count), g.size(mixed, 1), g.ints(heads.size), axis=0)
    return g.reshape(g.op("Transpose", g.op("Reshape", mixed, shape), perm=[0, 2, 1, 3]), 0, 0, total)


def _folded(g: Graph, x: str, heads: _Heads) -> str:
    """[N, S, count · size] → [N · count, S, size]."""
    apart = _apart(g, x, heads.count, heads.size)
    shape = g.op("Concat", g.ints(-1), g.size(apart, 2), g.ints(heads.size), axis=0)
    return g.op("Reshape", apart, shape)


def _operator(g: Graph, q: str, k: str, v: str, heads: _Heads, mask: str | None) -> str:
    """The Attention operator of opset 23, on three axes or on four."""
    if mask is not None:  # the runtime wants a row for every query
        rows = g.op("Concat", g.ints(1, 1), g.size(q, 1), g.ints(1), axis=0)
        mask = g.op("Expand", mask, rows)
    operands = () if mask is None else (mask,)
    if g.chance(0.5):
        return g.op("Attention", q, k, v, *operands, q_num_heads=heads.count, kv_num_heads=heads.stored)
    q, k, v = (
        _apart(g, x, count, heads.size)
        for x, count in ((q, heads.count), (k, heads.stored), (v, heads.stored))
    )
    mixed = g.op("Attention", q, k, v, *operands)
    return g.reshape(g.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads.count * heads.size)
