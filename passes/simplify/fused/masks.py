"""Masks of ONNX Runtime's attentions, as what is added to the scores: 0, or a very negative number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import dtype_of, rank_of, shape_of
from graphcompress.graph.sizes import size_of
from graphcompress.passes.simplify.fused.base import Writer

_FILTER = -10000.0
"""What a masked score gets, where the attribute mask_filter_value does not say."""


def masked(
    w: Writer, scores: ir.Value, mask: ir.Value | None, query: ir.Value, bias: ir.Value | None
) -> ir.Value:
    """``scores`` plus the mask and the bias.

    The mask is 1 for what is seen: [batch, keys] or [batch, queries, keys]; or it gives lengths: [batch], the
    end of what is seen, or [2·batch], ends and then starts. A causal mask replaces the other where it acts.
    """
    added = None if mask is None else _of_mask(w, scores, mask, query)
    if w.integer("unidirectional"):
        lowest = float(np.finfo(dtype_of(scores).numpy()).min)
        visible = _causal(w, scores)
        added = w.op("Where", visible, added or w.scalar(0.0, scores), w.scalar(lowest, scores))
    for term in (added, bias):
        scores = scores if term is None else w.op("Add", scores, term)
    return scores


def obstacle(mask: ir.Value | None, query: ir.Value | None) -> str | None:
    """Why a mask cannot be written in standard operators, or None."""
    if mask is None:
        return None
    rank = rank_of(mask)
    if rank in (2, 3):
        return None
    if rank != 1:
        return "the number of axes of its mask is not known" if rank is None else f"its mask has {rank} axes"
    if _lengths_per_sample(mask, query) is None:
        return "its mask has one axis whose size is neither the batch nor twice the batch"
    return None


def _of_mask(w: Writer, scores: ir.Value, mask: ir.Value, query: ir.Value) -> ir.Value:
    """[batch, 1, queries or 1, keys]: 0 where the mask lets a key be seen."""
    axes = {1: None, 2: (1, 2), 3: (1,)}[rank_of(mask) or 0]
    if axes is None:
        visible = _within_lengths(w, scores, mask, _lengths_per_sample(mask, query) or 1)
    else:
        zero = w.constant(0, "zero", like=mask)
        visible = w.op("Greater", w.op("Unsqueeze", mask, w.integers(*axes)), zero)
    hidden = w.scalar(w.number("mask_filter_value", _FILTER), scores)
    return w.op("Where", visible, w.scalar(0.0, scores), hidden)


def _within_lengths(w: Writer, scores: ir.Value, lengths: ir.Value, per_sample: int) -> ir.Value:
    """[batch, 1, 1, keys]: from the start on, if there is one, and before the end."""
    wide = w.op("Cast", lengths, to=int(ir.DataType.INT64))
    table = w.op("Reshape", wide, w.integers(per_sample, -1, 1, 1, 1))
    end, start = (w.op("Gather", table, w.constant(index, "index"), axis=0) for index in (0, per_sample - 1))
    keys = w.count(w.size(scores, 3))
    visible = w.op("Less", keys, end)
    if per_sample == 1:
        return visible
    return w.op("And", visible, w.op("GreaterOrEqual", keys, start))


def _causal(w: Writer, scores: ir.Value) -> ir.Value:
    """[queries, keys]: a query sees the keys up to its own position; the past lies before the first query."""
    queries, keys = w.size(scores, 2), w.size(scores, 3)
    own = w.count(queries, start=w.op("Sub", keys, queries))
    return w.op("LessOrEqual", w.count(keys), w.op("Unsqueeze", own, w.integers(1)))


def _lengths_per_sample(mask: ir.Value, query: ir.Value | None) -> int | None:
    """1 for a mask [batch], 2 for [2·batch]; None when neither can be told."""
    lengths, batches = shape_of(mask), shape_of(query)
    if lengths is None or batches is None:
        return None
    times = size_of(lengths[0]).over(size_of(batches[0]))
    return times.number if times and times.fixed and times.number in (1, 2) else None
