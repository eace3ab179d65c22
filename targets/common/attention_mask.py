"""The mask of an attention as ONNX Runtime's operators take it: one, with a row for every query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import dtype_of, fixed_size, is_standard, operand, producer, scalar, shape_of
from graphcompress.rewrite.rewriter import Rewriter


def one_mask(
    rw: Rewriter,
    masks: Sequence[ir.Value],
    queries: ir.Value,
    before: ir.Node,
    *,
    above_lowest: bool = False,
    tokens: int = 1,
) -> ir.Value | None:
    """All of ``masks`` in one, or None where there is none; attentions that have the same ones share it.

    ``above_lowest`` puts the next number in place of the lowest one. A query that the mask hides all keys
    from has the mean of the values: Softmax of equal scores. The operator Attention of ONNX Runtime takes a
    row of the lowest number for one of -inf, and gives zeros. ``tokens`` is the axis of ``queries`` that
    counts them.
    """
    if not masks:
        return None
    mask, *others = masks
    for other in others:
        mask = _sum(rw, mask, other, before)
    mask = _above_lowest(rw, mask, before) if above_lowest else mask
    return _with_rows(rw, mask, queries, before, tokens)


def _sum(rw: Rewriter, one: ir.Value, other: ir.Value, before: ir.Node) -> ir.Value:
    name = f"with.{other.name}"
    made = _made_of(one, "Add", f"{one.name}.{name}")
    if made is not None:
        return made.outputs[0]
    value = rw.at(before, one.name).op("Add", one, other, name=name)
    pairs = zip(one.shape or (), other.shape or (), strict=True)
    value.type, value.shape = one.type, ir.Shape([b if a == 1 else a for a, b in pairs])
    return value


def _above_lowest(rw: Rewriter, mask: ir.Value, before: ir.Node) -> ir.Value:
    """Every number times the largest one below 1: those other than the lowest keep all bits but the last."""
    made = _made_of(mask, "Mul", f"{mask.name}.above")
    if made is not None:
        return made.outputs[0]
    kind = dtype_of(mask).numpy().type
    below = np.nextafter(kind(1), kind(0))
    product = producer(mask, "Mul")
    if product is not None and scalar(operand(product, 1)) == below:  # an earlier build did so
        return mask
    place = rw.at(before, mask.name)
    value = place.op("Mul", mask, place.constant(below, "below_one", like=mask), name="above")
    value.type, value.shape = mask.type, None if mask.shape is None else mask.shape.copy()
    return value


def _with_rows(rw: Rewriter, mask: ir.Value, queries: ir.Value, before: ir.Node, tokens: int) -> ir.Value:
    """The mask with a row for every query, which the operators want; attentions of one length share it."""
    if fixed_size(mask, 2) != 1:
        return mask
    made = _made_of(mask, "Expand", f"{mask.name}.rows")
    if made is not None and _has_rows_for(queries, made, tokens):
        return made.outputs[0]
    place = rw.at(before, mask.name)
    sizes = place.op("Shape", queries, name="sizes")
    one = place.constant([1], "one")
    axis = place.constant([tokens], "tokens")
    rows = place.op("Gather", sizes, axis, name="queries")  # opset 13 slices no Shape
    target = place.op("Concat", one, one, rows, one, name="target", axis=0)
    return place.op("Expand", mask, target, name="rows")


def _made_of(mask: ir.Value, op_type: str, name: str) -> ir.Node | None:
    """The node that gives the value ``name``, written for another attention with the same mask."""
    readers = (reader for reader in mask.consumers() if is_standard(reader, op_type))
    return next((reader for reader in readers if reader.outputs[0].name == name), None)


def _has_rows_for(queries: ir.Value, expand: ir.Node, tokens: int) -> bool:
    """Whether an Expand written by :func:`_with_rows` gives as many rows as there are ``queries``."""
    target = producer(operand(expand, 1))
    rows = producer(operand(target, 2))
    sizes = producer(operand(rows, 0))
    other = shape_of(operand(sizes, 0))
    if other is None or queries.shape is None:
        return False
    return other[2 if len(other) == 4 else 1] == queries.shape[tokens]
