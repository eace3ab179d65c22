"""Operators that only arrange their operands: Reshape, Transpose, Split, Concat, Slice and their like."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphcompress.coupling.relations.rules import Axes, Relations
from graphcompress.graph.match import axis_of, slice_ranges
from graphcompress.graph.sizes import Size


def reshape(relations: Relations, node: ir.Node) -> None:
    """Two products of the same elements in the same order."""
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    relations.atoms.match([a for a in source if a is not None], [a for a in target if a is not None])


def squeeze(relations: Relations, node: ir.Node) -> None:
    """Squeeze and Unsqueeze: axes of size 1 come and go."""
    source: Axes = [atom for atom in relations.operand(node, 0) or [] if atom is not None]
    target: Axes = [atom for atom in relations.output(node) or [] if atom is not None]
    if len(source) == len(target):
        relations.unify(source, target)
    else:
        reshape(relations, node)
    if node.op_type == "Squeeze" and len(node.inputs) < 2:
        relations.block(source, "a Squeeze without axes would take away what shrinks to 1")


def transpose(relations: Relations, node: ir.Node) -> None:
    """The same axes in another order."""
    source = relations.operand(node, 0) or []
    order = node.attributes.get_ints("perm", list(reversed(range(len(source)))))
    relations.unify([source[axis] for axis in order], relations.output(node))


def expand(relations: Relations, node: ir.Node) -> None:
    """Broadcasting."""
    relations.broadcast(relations.operand(node, 0), relations.output(node))


def tile(relations: Relations, node: ir.Node) -> None:
    """Each axis is a product of its repeats and itself."""
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    for one, other in zip(source, target, strict=True):
        _tiled(relations, one, other)


def _tiled(relations: Relations, one: int | None, other: int | None) -> None:
    if other is None:
        return
    times = relations.atoms.size(other).over(Size(1) if one is None else relations.atoms.size(one))
    if times is None:
        relations.atoms.block([one, other], "it is repeated")
        return
    if times != Size(1):
        repeat = relations.atoms.new(times)
        # The repeats stand in a stored tensor that no cut follows.
        relations.atoms.block([repeat], "a constant number of repeats")
        one = repeat if one is None else relations.atoms.product([repeat, one])
    relations.atoms.unify(one, other)


def split(relations: Relations, node: ir.Node) -> None:
    """The operand is the concatenation of the results."""
    source = relations.operand(node, 0) or []
    outs = [relations.output(node, index) or [] for index in range(len(node.outputs))]
    axis = axis_of(node, len(source), 0)
    _segments(relations, source, outs, axis)


def concat(relations: Relations, node: ir.Node) -> None:
    """The result is the concatenation of the operands."""
    out = relations.output(node) or []
    parts = [relations.operand(node, index) or [] for index in range(len(node.inputs))]
    _segments(relations, out, parts, axis_of(node, len(out), 0))


def _segments(relations: Relations, whole: Axes, parts: Sequence[Axes], axis: int) -> None:
    """``whole`` is the concatenation of ``parts`` along ``axis``."""
    for part in parts:
        for other in range(len(whole)):
            if other != axis:
                relations.atoms.unify(whole[other], part[other])
    sizes = [part[axis] for part in parts]
    _concatenated(relations, whole[axis], sizes)


def _concatenated(relations: Relations, whole: int | None, parts: Sequence[int | None]) -> None:
    if whole is None:
        return
    if len(parts) == 1:
        relations.atoms.unify(whole, parts[0])
        return
    one = Size(1)
    # Axes of size 1 have no atom, but as segments they count.
    filled = [relations.atoms.new(one) if part is None else part for part in parts]
    if not all(relations.atoms.size(atom).fixed for atom in (whole, *filled)):
        relations.atoms.block([whole, *parts], "it is joined along an axis of variable size")
        return
    relations.atoms.unify(whole, relations.atoms.concat(filled))


def slice_(relations: Relations, node: ir.Node) -> None:
    """The operand is a concatenation of which the result is the middle, when the bounds are constant."""
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    ranges = slice_ranges(node)
    for axis, (one, other) in enumerate(zip(source, target, strict=True)):
        _sliced(relations, one, other, None if ranges is None else ranges.get(axis, (0, None, 1)))


def _sliced(
    relations: Relations, one: int | None, other: int | None, bounds: tuple[int, int | None, int] | None
) -> None:
    if one is None:
        return
    size = relations.atoms.size(one)
    if bounds is not None and bounds == (0, None, 1):
        relations.atoms.unify(one, other)
        return
    if bounds is None or bounds[2] != 1 or not size.fixed:
        relations.atoms.block([one, other], "it is sliced at bounds that are not constant or not contiguous")
        return
    start, stop, _ = slice(*bounds).indices(size.number)
    # A slice of one entry has no atom either, and still takes up a place in the whole.
    middle = relations.atoms.new(Size(1)) if other is None else other
    segments = [
        middle if begin == start else relations.atoms.new(Size(end - begin))
        for begin, end in ((0, start), (start, stop), (stop, size.number))
        if end > begin
    ]
    if start >= stop:
        relations.atoms.block([one, other], "an empty slice")
    else:
        _concatenated(relations, one, segments)
