"""Sizes that a graph reads with Shape and computes with, such as the square root of the head size."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphcompress.coupling.relations.rules import Elements, Relations
from graphcompress.graph.match import (
    fixed_size,
    inner_graphs,
    integers_of,
    is_standard,
    operand,
    rank_of,
    slice_ranges,
)
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import ONE

_SAME = frozenset({"Identity", "Squeeze", "Unsqueeze", "Reshape", "Cast"})
_MIXED = frozenset(
    ["Abs", "Add", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Sub", "Where"]
)
_TARGETS = ("Reshape", "Expand")
"""Operators whose second input says the shape of the result."""


def block_measured(relations: Relations, model: Model) -> None:
    """Block what the graph measures and uses as a number, not as a shape: a cut would change the number."""
    known = relations.measured
    for node in model.graph:
        found = _measured(relations, node, known)
        if found is not None:
            known[node.outputs[0]] = found
            continue
        written = _written(relations, node)
        for index, value in enumerate(node.inputs):
            if index not in written:
                _block(relations, value)
        if written and node.op_type in _TARGETS:
            _block_unwritable(relations, node)
        # A subgraph reads values of the graph around it without naming them as inputs of its node.
        for inner in (inner for graph in inner_graphs(node) for inner in graph.all_nodes()):
            for value in inner.inputs:
                _block(relations, value)
    for value in model.graph.outputs:
        _block(relations, value)


def target_elements(relations: Relations, target: ir.Value | None, rank: int) -> Elements:
    """For each of ``rank`` axes the atoms from whose sizes the target of a Reshape or Expand is computed."""
    elements = [] if target is None else relations.measured.get(target, [])
    # The target of an Expand may have fewer elements than the result has axes: it speaks of the last ones.
    return [frozenset[int]()] * (rank - len(elements)) + elements


def _written(relations: Relations, node: ir.Node) -> range:
    """Numbers of the inputs that a cut writes anew: another number may arrive there, and does no harm."""
    if is_standard(node, *_TARGETS) and relations.output(node) is not None:
        return range(1, 2)
    if is_standard(node, "Slice") and slice_ranges(node) is not None:
        return range(1, len(node.inputs))
    is_split = is_standard(node, "Split") and integers_of(operand(node, 1)) is not None
    return range(1, 2) if is_split else range(0)


def _block(relations: Relations, value: ir.Value | None) -> None:
    if value in relations.measured:
        _block_elements(relations, relations.measured[value])


def _block_elements(relations: Relations, elements: Elements) -> None:
    atoms = frozenset[int]().union(*elements)
    relations.block(relations.fixed_leaves(sorted(atoms)), "the graph computes with its size")


def _block_unwritable(relations: Relations, node: ir.Node) -> None:
    """Block what a target is computed from in a way that a cut cannot follow.

    A size that is fixed is written as a number, and a product is scaled by what is left of its factors. Of
    others a Reshape finds one by itself, where no other size of it may be left to be found as well.
    """
    axes = relations.output(node) or []
    pairs = zip(axes, target_elements(relations, node.inputs[1], len(axes)), strict=True)
    found = [parts for atom, parts in pairs if not _is_written(relations, atom, parts)]
    if node.op_type == "Expand" or len(found) > 1:
        _block_elements(relations, found)


def _is_written(relations: Relations, atom: int | None, parts: frozenset[int]) -> bool:
    sizes = relations.atoms.size
    return atom is None or sizes(atom).fixed or math.prod(map(sizes, parts), start=ONE) == sizes(atom)


def _measured(relations: Relations, node: ir.Node, known: dict[ir.Value, Elements]) -> Elements | None:
    """What the output of ``node`` is made from, when it still is an integer size."""
    if node.domain or (rank_of(node.outputs[0]) or 0) > 1:
        return None
    if node.op_type == "Shape":
        return _shape(relations, node)
    if node.op_type == "Size":
        return [frozenset(atom for atom in relations.operand(node, 0) or () if atom is not None)]
    operands = [known.get(value) if value is not None else None for value in node.inputs]
    if not any(operands) or (dtype := node.outputs[0].dtype) is None or dtype.is_floating_point():
        return None
    if node.op_type in _SAME and operands[0] is not None:
        return operands[0]
    if node.op_type in _MIXED:
        return _mixed(node, operands)
    if node.op_type == "Concat":
        return _joined(node, operands)
    return _picked(node, operands[0]) if operands[0] is not None else None


def _shape(relations: Relations, node: ir.Node) -> Elements | None:
    axes = relations.operand(node, 0)
    if axes is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(axes))
    return [frozenset() if atom is None else frozenset({atom}) for atom in axes[start:end]]


def _mixed(node: ir.Node, operands: list[Elements | None]) -> Elements | None:
    """Element by element, what the operands are made from there; one of a single element counts for each."""
    rows = [
        [frozenset[int]()] * (fixed_size(value, 0) or 1) if part is None else part
        for value, part in zip(node.inputs, operands, strict=True)
    ]
    length = max(len(row) for row in rows)
    if any(len(row) not in (1, length) for row in rows):
        return None
    wide = [row * (length // len(row)) for row in rows]
    return [frozenset[int]().union(*parts) for parts in zip(*wide, strict=True)]


def _joined(node: ir.Node, operands: list[Elements | None]) -> Elements:
    """The elements of a Concat; an operand that measures nothing has as many as its shape says."""
    elements: Elements = []
    for value, part in zip(node.inputs, operands, strict=True):
        filler: Elements = [frozenset()] * (fixed_size(value, 0) or 1)
        elements.extend(filler if part is None else part)
    return elements


def _picked(node: ir.Node, elements: Elements) -> Elements | None:
    """The elements that a Slice or Gather takes; None where the caller may choose which."""
    if node.op_type == "Slice":
        bounds = (slice_ranges(node) or {}).get(0)
        return None if bounds is None else elements[slice(*bounds)]
    positions = integers_of(operand(node, 1)) if node.op_type == "Gather" else None
    if positions is None or not all(-len(elements) <= position < len(elements) for position in positions):
        return None
    return [elements[position] for position in positions]
