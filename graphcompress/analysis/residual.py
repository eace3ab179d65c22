"""The residual stream: additions of a value and of what linears make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.linears import Linear, linears
from graphcompress.graph.expressions import Constants
from graphcompress.graph.match import producer
from graphcompress.graph.model import Model

_PICKING = ("Gather", "GatherND", "Slice", "Squeeze", "Unsqueeze", "Transpose")
"""Operators by which positions are picked."""


@dataclass(frozen=True, eq=False)
class Branch:
    """``output = entry + f(entry)`` where f has linears: one step of a residual stream."""

    entry: ir.Value
    output: ir.Value
    linears: tuple[Linear, ...]
    attentions: tuple[Attention, ...]
    sums: frozenset[ir.Value]
    """Outputs of the additions inside f."""

    @property
    def stream(self) -> list[ir.Value]:
        """What is added, and the sum: values of the residual stream."""
        node = self.output.producer()
        return [self.output, *(value for value in (node.inputs if node else ()) if value is not None)]

    @property
    def feeds_forward(self) -> bool:
        """Whether it has linears that belong to no attention."""
        attending = {
            linear.node
            for attention in self.attentions
            for linear in (*attention.producers, *attention.consumers)
        }
        return any(linear.node not in attending for linear in self.linears)


def branches(model: Model) -> list[Branch]:
    """Branches in execution order; one that holds another is not one step of the stream and is left out."""
    order = {node: position for position, node in enumerate(model.graph)}
    by_node = {linear.node: linear for linear in linears(model)}
    attending = {attention.node: attention for attention in attentions(model)}
    constant = Constants()
    found = [
        branch
        for node in model.graph
        if node.op_type == "Add"
        and (branch := _branch(node, order, by_node, attending, constant)) is not None
    ]
    outputs = {branch.output for branch in found}
    return [branch for branch in found if not branch.sums & outputs]


def _branch(
    node: ir.Node,
    order: Mapping[ir.Node, int],
    by_node: Mapping[ir.Node, Linear],
    attending: Mapping[ir.Node, Attention],
    constant: Constants,
) -> Branch | None:
    left, right = node.inputs
    if left is None or right is None or not _same_width(left, right):
        return None
    if constant(left) or constant(right):
        return None
    # Where few positions are computed, they may be picked from the stream as late as they are added.
    entry, inner = sorted((left, right), key=lambda value: _position(picked_from(value), order))
    inside = _between(entry, inner, order) or _between(picked_from(entry), inner, order)
    within = [by_node[item] for item in inside if item in by_node]
    if not within:
        return None
    return Branch(
        entry=entry,
        output=node.outputs[0],
        linears=tuple(within),
        attentions=tuple(attending[item] for item in inside if item in attending),
        sums=frozenset(item.outputs[0] for item in inside if item.op_type == "Add"),
    )


def picked_from(value: ir.Value) -> ir.Value:
    """What the positions of ``value`` are picked of, where a block computes few of them; else itself."""
    while node := producer(value, *_PICKING):
        picked = node.inputs[0]
        if picked is None or picked.producer() is None:
            break
        value = picked
    return value


def _same_width(left: ir.Value, right: ir.Value) -> bool:
    """Whether both are of one shape, with a last axis of fixed size."""
    if left.shape is None or right.shape is None or len(left.shape) < 2:
        return False
    return left.shape == right.shape and isinstance(left.shape[-1], int)


def _position(value: ir.Value, order: Mapping[ir.Node, int]) -> int:
    node = value.producer()
    return -1 if node is None else order[node]


def _between(entry: ir.Value, inner: ir.Value, order: Mapping[ir.Node, int]) -> list[ir.Node]:
    """Nodes from ``entry`` to ``inner`` in execution order; none when ``inner`` is independent of it."""
    first, reached = _position(entry, order), False
    pending, seen = [inner], set()
    while pending:
        value = pending.pop()
        if value is entry:
            reached = True
            continue
        node = value.producer()
        if node is None or node in seen or order[node] <= first:
            continue
        seen.add(node)
        pending.extend(operand for operand in node.inputs if operand is not None)
    return sorted(seen, key=order.__getitem__) if reached else []
