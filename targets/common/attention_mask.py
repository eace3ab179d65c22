"""The mask of an attention as ONNX Runtime's operators take it: one, with a row for every query."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import is_standard
from graphcompress.rewrite.rewriter import Rewriter


def sum_of_masks(rw: Rewriter, masks: Sequence[ir.Value], before: ir.Node) -> ir.Value | None:
    """All of ``masks`` in one, or None where there is none; attentions that have the same ones share it."""
    return functools.reduce(lambda a, b: _sum(rw, a, b, before), masks) if masks else None


def above_lowest(rw: Rewriter, mask: ir.Value, before: ir.Node) -> ir.Value:
    """``mask`` with the number next to the lowest one in place of that.

    A query that the mask hides all keys from has the mean of the values: Softmax of equal scores. ONNX
    Runtime takes a row of the lowest number for one of -inf, and gives zeros. Other numbers keep all bits but
    the last.
    """
    if mask.dtype is None:
        return mask
    kind, name = mask.dtype.numpy().type, f"{mask.name}.above"
    made = _made_of(mask, "Mul", name)
    if made is not None:
        return made.outputs[0]
    below_one = rw.constant(np.nextafter(kind(1), kind(0)), f"{mask.name}.below_one", mask.dtype)
    value = rw.node("Mul", mask, below_one, before=before, name=name)
    value.type, value.shape = mask.type, None if mask.shape is None else mask.shape.copy()
    return value


def with_rows(rw: Rewriter, mask: ir.Value, queries: ir.Value, before: ir.Node) -> ir.Value:
    """The mask with a row for every query, which the operator wants; attentions of one length share it."""
    if mask.shape is None or mask.shape[2] != 1:
        return mask
    name = f"{mask.name}.rows"
    made = _made_of(mask, "Expand", name)
    if made is not None and _has_rows_for(queries, made):
        return made.outputs[0]
    sizes = rw.node("Shape", queries, before=before, name=f"{mask.name}.sizes")
    one = rw.constant(np.ones(1, np.int64), f"{mask.name}.one")
    rows = rw.node(
        "Gather", sizes, one, before=before, name=f"{mask.name}.queries"
    )  # opset 13 slices no Shape
    target = rw.node("Concat", one, one, rows, one, before=before, name=f"{mask.name}.target", axis=0)
    return rw.node("Expand", mask, target, before=before, name=name)


def _sum(rw: Rewriter, one: ir.Value, other: ir.Value, before: ir.Node) -> ir.Value:
    name = f"{one.name}.with.{other.name}"
    made = _made_of(one, "Add", name)
    if made is not None:
        return made.outputs[0]
    value = rw.node("Add", one, other, before=before, name=name)
    pairs = zip(one.shape or (), other.shape or (), strict=True)
    value.type, value.shape = one.type, ir.Shape([b if a == 1 else a for a, b in pairs])
    return value


def _made_of(mask: ir.Value, op_type: str, name: str) -> ir.Node | None:
    """The node that gives the value ``name``, written for another attention with the same mask."""
    readers = (reader for reader in mask.consumers() if is_standard(reader, op_type))
    return next((reader for reader in readers if reader.outputs[0].name == name), None)


def _has_rows_for(queries: ir.Value, expand: ir.Node) -> bool:
    """Whether an Expand written by :func:`with_rows` gives as many rows as there are ``queries``."""
    source: ir.Node | None = expand
    for index in (1, 2, 0):  # its target, the number of rows in that, the sizes that it is one of
        value = source.inputs[index] if source is not None else None
        source = value.producer() if value is not None else None
    other = source.inputs[0] if source is not None else None
    if other is None or other.shape is None or queries.shape is None:
        return False
    return other.shape[1] == queries.shape[1]
