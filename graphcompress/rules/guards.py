"""The guard of attention against rows without a visible position, in a cheaper form with the same numbers.

An exporter writes ``probs = Softmax(scores + Where(visible, 0, -inf)); Where(IsNaN(probs), 0, probs) ·
V``, two passes over [batch, heads, s, s] in every layer for rows that are masked throughout. With the
lowest finite number in place of -inf no NaN arises. A masked position still gets exactly 0: its
exponential underflows, as scores are provably small. A row without any visible position gets some
average of V, which is multiplied by 0 after the product, on [batch, heads, s, d]; the flag is computed
once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.arguments import scalar
from graphcompress.analysis.bounds import Bounds
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import constant, only_use, producer

LARGEST_SCORE = {ir.DataType.FLOAT: 1e30, ir.DataType.FLOAT16: 15.0}
"""Below this a score added to the lowest number leaves it finite, as less than half a step of the format, and
its exponential exactly 0; larger scores are not rewritten."""


@dataclass(frozen=True)
class _Guard:
    """The nodes of one guarded attention: Where(IsNaN(softmax), 0, softmax) · V with a mask of -inf."""

    softmax: ir.Node
    mask: ir.Node
    hidden_index: int
    product: ir.Node


def row_flag(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """Multiply what attention gives by whether the row sees anything, instead of searching for NaN."""
    guard = _find(node, bounds)
    if guard is None:
        return None
    attended = guard.product.outputs[0]
    visible = _visible(rw, guard)
    _hide_with_lowest(rw, guard)
    rw.set_input(guard.product, 0, guard.softmax.outputs[0])
    readers = list(attended.uses())
    shown = rw.node("Mul", attended, visible, before=readers[0].node, name=f"{attended.name}.shown")
    for reader in readers:
        rw.set_input(reader.node, reader.idx, shown)
    return "guard against NaN became a flag per row"


def drop_guard(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """As :func:`row_flag`, for a user who knows that every row sees something: without the flag."""
    guard = _find(node, bounds)
    if guard is None:
        return None
    _hide_with_lowest(rw, guard)
    rw.set_input(guard.product, 0, guard.softmax.outputs[0])
    return "guard against NaN, as every row is assumed to see something"


def _find(node: ir.Node, bounds: Bounds) -> _Guard | None:
    is_nan, softmax = producer(node.inputs[0], "IsNaN"), producer(node.inputs[2], "Softmax")
    if is_nan is None or softmax is None or scalar(node.inputs[1]) != 0 or softmax.inputs[0] is None:
        return None
    product = only_use(node.outputs[0])
    probabilities, scores = softmax.outputs[0], softmax.inputs[0]
    readers = {use.node for use in probabilities.uses()}
    if is_nan.inputs[0] is not probabilities or readers != {is_nan, node} or only_use(scores) is not softmax:
        return None
    last = softmax.attributes.get_int("axis", -1) in (-1, len(scores.shape or ()) - 1)
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not node.outputs[0] or not last:
        return None
    if product.outputs[0].is_graph_output() or bounds.of(product.inputs[1]) is None:
        return None
    masked = _mask_of(scores, bounds)
    return None if masked is None else _Guard(softmax, *masked, product)


def _mask_of(scores: ir.Value, bounds: Bounds) -> tuple[ir.Node, int] | None:
    """The Where that puts -inf on hidden positions, and the place of its -inf; the rest is provably small."""
    added = producer(scores, "Add")
    pairs = [(added.inputs[0], added.inputs[1]), (added.inputs[1], added.inputs[0])] if added else []
    for mask, other in [*pairs, (scores, None)]:
        where = producer(mask, "Where")
        index = next((i for i in (1, 2) if where is not None and scalar(where.inputs[i]) == -np.inf), None)
        if where is None or index is None:
            continue
        kept = [bounds.of(where.inputs[3 - index]), *([bounds.of(other)] if other is not None else [])]
        limit = LARGEST_SCORE.get(scores.dtype, 0.0) if scores.dtype is not None else 0.0
        if all(interval is not None and interval.magnitude < limit for interval in kept):
            return where, index
    return None


def _visible(rw: Rewriter, guard: _Guard) -> ir.Value:
    """[…, s or 1, 1] in the type of the product: 1 where a row has a visible position, else 0."""
    condition, before = guard.mask.inputs[0], guard.mask
    if guard.hidden_index == 1:
        condition = rw.node("Not", condition, before=before, name="visible")
    dtype = guard.product.outputs[0].dtype or ir.DataType.FLOAT
    number = rw.node("Cast", condition, before=before, name="visible.number", to=int(dtype))
    if rw.model.opset < 18:
        return rw.node("ReduceMax", number, before=before, name="row.visible", axes=[-1], keepdims=1)
    last = rw.constant(np.array([-1], np.int64), "row.axis")
    return rw.node("ReduceMax", number, last, before=before, name="row.visible", keepdims=1)


def _hide_with_lowest(rw: Rewriter, guard: _Guard) -> None:
    hidden = guard.mask.inputs[guard.hidden_index]
    array = constant(hidden)
    if hidden is None or array is None:
        return
    lowest = rw.constant(
        np.full_like(array, np.finfo(array.dtype).min), f"{hidden.name}.lowest", hidden.dtype
    )
    operands = list(guard.mask.inputs)
    operands[guard.hidden_index] = lowest
    masked = rw.node("Where", *operands, before=guard.mask, name=f"{guard.mask.outputs[0].name}.finite")
    reader = guard.softmax
    for node in (reader, producer(reader.inputs[0], "Add")):
        for index, value in enumerate(node.inputs if node is not None else ()):
            if node is not None and value is guard.mask.outputs[0]:
                rw.set_input(node, index, masked)
