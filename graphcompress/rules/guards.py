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

from graphcompress.graph.match import (
    array_of,
    dtype_of,
    only_reader,
    operand,
    operand_beside,
    producer,
    rank_of,
    scalar,
)
from graphcompress.ranges.bounds import Bounds
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import AXES_AS_INPUT

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
    # Listed before the Mul is made, which is a reader as well and would be given its own result.
    readers = list(attended.uses())
    shown = rw.at(guard.product, attended.name).op("Mul", attended, visible, name="shown")
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
    if is_nan is None or softmax is None or scalar(node.inputs[1]) != 0:
        return None
    product = only_reader(node.outputs[0], "MatMul")
    probabilities, scores = softmax.outputs[0], softmax.inputs[0]
    readers = {use.node for use in probabilities.uses()}
    # Scores and probabilities of rows that see nothing become others, which only this guard may read.
    if is_nan.inputs[0] is not probabilities or readers != {is_nan, node} or not only_reader(scores):
        return None
    last = softmax.attributes.get_int("axis", -1) in (-1, (rank_of(scores) or 0) - 1)
    if product is None or product.inputs[0] is not node.outputs[0] or not last:
        return None
    if product.outputs[0].is_graph_output() or bounds.of(product.inputs[1]) is None:
        return None
    masked = _mask_of(scores, bounds)
    return None if masked is None else _Guard(softmax, *masked, product)


def _mask_of(scores: ir.Value | None, bounds: Bounds) -> tuple[ir.Node, int] | None:
    """The Where that puts -inf on hidden positions, and the place of its -inf; the rest is provably small."""
    added = producer(scores, "Add")
    for mask in added.inputs if added else [scores]:
        where = producer(mask, "Where")
        index = next((i for i in (1, 2) if scalar(operand(where, i)) == -np.inf), None)
        if where is None or index is None or not rank_of(where.inputs[0]):  # one flag for all, not for a row
            continue
        kept = [where.inputs[3 - index], *([operand_beside(added, mask)] if added else [])]
        limit = LARGEST_SCORE.get(dtype_of(scores), 0.0)
        if all(interval and interval.magnitude < limit for interval in map(bounds.of, kept)):
            return where, index
    return None


def _visible(rw: Rewriter, guard: _Guard) -> ir.Value:
    """[…, s or 1, 1] in the type of the product: 1 where a row has a visible position, else 0."""
    condition, b = guard.mask.inputs[0], rw.at(guard.mask, "")
    if guard.hidden_index == 1:
        condition = b.op("Not", condition, name="visible")
    number = b.op("Cast", condition, name="visible.number", to=dtype_of(guard.product.outputs[0]))
    if rw.model.opset < AXES_AS_INPUT:
        return b.op("ReduceMax", number, name="row.visible", axes=[-1], keepdims=1)
    return b.op("ReduceMax", number, b.constant([-1], "row.axis"), name="row.visible", keepdims=1)


def _hide_with_lowest(rw: Rewriter, guard: _Guard) -> None:
    hidden = guard.mask.inputs[guard.hidden_index]
    array = array_of(hidden)
    if hidden is None or array is None:
        return
    # Another Where, and not another number in the mask: attentions whose scores are not proven small read
    # that mask, too, and need its -inf. Masks of all layers that are equal become one when the graph is
    # cleaned up.
    lowest = np.full_like(array, np.finfo(array.dtype).min)
    operands = list(guard.mask.inputs)
    operands[guard.hidden_index] = rw.constant(lowest, f"{hidden.name}.lowest", hidden.dtype)
    masked = rw.at(guard.mask).op("Where", *operands, name="finite")
    reader = producer(guard.softmax.inputs[0], "Add") or guard.softmax
    for index, value in enumerate(reader.inputs):
        if value is guard.mask.outputs[0]:
            rw.set_input(reader, index, masked)
