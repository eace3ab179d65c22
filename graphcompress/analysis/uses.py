"""Readers of a value for which some of its axes stand on their own.

A value that several readers share ties their dimensions together, where each of them reads the whole axis.
Two kinds of axes need not: one along which an Expand repeats the same numbers (each reader can have an Expand
of its own size), and the heads of what several attentions add to their scores, such as a bias by relative
position (each reader can look up the heads that it still has).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphcompress.graph.model import Model
from graphcompress.graph.sizes import size_of

Use = tuple[ir.Node, int]
"""A reader of a value: a node and the index of its input."""

OwnAxes = Mapping[Use, frozenset[int]]
"""Reader → the axes of what it reads that are its own."""


def repeated_uses(model: Model) -> dict[Use, frozenset[int]]:
    """Readers of an Expand that has several, with the axes that it repeats."""
    found: dict[Use, frozenset[int]] = {}
    for node in model.graph:
        if node.op_type != "Expand" or node.domain or len(node.outputs[0].uses()) < 2:
            continue
        axes = repeated_axes(node)
        if axes:
            found.update({(use.node, use.idx): axes for use in node.outputs[0].uses()})
    return found


def repeated_axes(node: ir.Node) -> frozenset[int]:
    """Axes that an Expand makes from size 1, as far as a number is in their size."""
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return frozenset()
    added = len(target.shape) - len(source.shape)
    before = [1] * added + list(source.shape)
    grown = (axis for axis, (old, _) in enumerate(zip(before, target.shape, strict=True)) if old == 1)
    return frozenset(axis for axis in grown if size_of(target.shape[axis]).number > 1)


def looked_up(uses: Iterable[Use]) -> dict[Use, frozenset[int]]:
    """Readers of terms of scores [..., queries, keys], with the axes before the last two that hold heads.

    Those are fixed, or a number of heads times the batch. A stored term that nothing else reads is not looked
    up in: it is cut itself.
    """
    found: dict[Use, frozenset[int]] = {}
    for node, index in uses:
        value = node.inputs[index]
        if value is None or (value.const_value is not None and len(value.uses()) == 1):
            continue
        shape = value.shape
        sizes = [size_of(dim) for dim in (shape or ())][:-2]
        axes = frozenset(axis for axis, size in enumerate(sizes) if size.number > 1)
        if axes:
            found[node, index] = axes
    return found
