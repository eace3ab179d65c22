"""Sizes that a graph reads with Shape and computes with, such as the square root of the head size."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphcompress.coupling.relations.rules import Elements, Relations
from graphcompress.graph.match import fixed_size, integers_of, operand, slice_ranges

_SAME = frozenset({"Identity", "Squeeze", "Unsqueeze", "Reshape", "Cast"})
_MIXED = frozenset(
    ["Abs", "Add", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Sub", "Where"]
)
_TARGETS = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Slice": (1, 2), "Split": (1,)}


def block_measured(relations: Relations, nodes: Iterable[ir.Node]) -> None:
    """Block what the graph measures and uses as a number, not as a shape: a cut would change the number."""
    known = relations.measured
    for node in nodes:
        found = _measured(relations, node, known)
        if found is not None:
            known[node.outputs[0]] = found
            continue
        for index, value in enumerate(node.inputs):
            if value in known and index not in _TARGETS.get(node.op_type, ()):
                atoms = frozenset[int]().union(*known[value])
                relations.block(relations.fixed_leaves(sorted(atoms)), "the graph computes with its size")


def _measured(relations: Relations, node: ir.Node, known: dict[ir.Value, Elements]) -> Elements | None:
    """What the output of ``node`` is made from, when it still is an integer size."""
    if node.op_type == "Shape":
        return _shape(relations, node)
    operands = [known.get(value) if value is not None else None for value in node.inputs]
    if not any(operands) or (dtype := node.outputs[0].dtype) is None or dtype.is_floating_point():
        return None
    if node.op_type in _SAME and operands[0] is not None:
        return operands[0]
    if node.op_type in _MIXED:
        return [frozenset[int]().union(*(part for operand in operands for part in operand or ()))]
    if node.op_type == "Concat":
        return _joined(node, operands)
    return _picked(node, operands[0]) if operands[0] is not None else None


def _shape(relations: Relations, node: ir.Node) -> Elements | None:
    axes = relations.operand(node, 0)
    if axes is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(axes))
    return [frozenset() if atom is None else frozenset({atom}) for atom in axes[start:end]]


def _joined(node: ir.Node, operands: list[Elements | None]) -> Elements:
    """The elements of a Concat; an operand that measures nothing has as many as its shape says."""
    elements: Elements = []
    for value, part in zip(node.inputs, operands, strict=True):
        filler: Elements = [frozenset()] * (fixed_size(value, 0) or 1)
        elements.extend(filler if part is None else part)
    return elements


def _picked(node: ir.Node, elements: Elements) -> Elements | None:
    """The elements that a Slice or Gather with constant bounds takes."""
    everything = [frozenset[int]().union(*elements)]
    if node.op_type == "Slice":
        bounds = (slice_ranges(node) or {}).get(0)
        return everything if bounds is None else elements[slice(*bounds)]
    if node.op_type != "Gather":
        return None
    positions = integers_of(operand(node, 1))
    if positions is None or not all(-len(elements) <= position < len(elements) for position in positions):
        return everything
    return [elements[position] for position in positions]
