"""A group as a model of its own: the nodes from the weights that it cuts to what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphcompress.coupling.couplings import Group, couplings
from graphcompress.graph.model import Model


def excerpt(model: Model, group: Group, exits: Sequence[ir.Value]) -> tuple[list[ir.Value], Model]:
    """The nodes between the weights of ``group`` and ``exits``, after the values that come in from elsewhere.

    What computes the sizes that the nodes are given is in it, too: they may count the units. Stored tensors
    are shared with ``model``: clone the part before it is edited.
    """
    constant = group.relations.constant
    changed: set[ir.Value] = {part.value for part in group.slices}
    inside: set[ir.Node] = set()
    for node in model.graph:
        if changed.intersection(value for value in node.inputs if value is not None):
            inside.add(node)
            changed.update(node.outputs)
    needed: set[ir.Node] = set()
    pending = [value.producer() for value in exits]
    while pending:
        source = pending.pop()
        if source is None or source in needed or not (source in inside or _computes_sizes(source)):
            continue
        needed.add(source)
        pending.extend(value.producer() for value in source.inputs if value is not None)
    found: dict[ir.Value, None] = {}
    for node in model.graph:
        if node in needed:
            outer = (value for value in node.inputs if value is not None and value.producer() not in needed)
            found.update(dict.fromkeys(value for value in outer if not constant(value)))
    graph = ir.convenience.extract(model.graph, list(found), list(exits))
    return list(found), Model(ir.Model(graph, ir_version=model.ir.ir_version))


def between(
    model: Model, known: Collection[ir.Value], wanted: Sequence[ir.Value]
) -> tuple[list[ir.Value], Model]:
    """What computes ``wanted`` from values that are ``known`` and the inputs of ``model``.

    Returns those of them that are needed, and the nodes as a model of their own; stored tensors are shared.
    """
    needed = needed_for(wanted, known)
    graph = ir.convenience.extract(model.graph, needed, list(wanted))
    return needed, Model(ir.Model(graph, ir_version=model.ir.ir_version), inferred=True)


def needed_for(wanted: Sequence[ir.Value], known: Collection[ir.Value]) -> list[ir.Value]:
    """The inputs of the graph, and those of ``known``, from which ``wanted`` follow."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    pending = list(reversed(wanted))
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        source = value.producer()
        # An input with a value of its own need not be given.
        if value in known or (value.is_graph_input() and not value.is_initializer()):
            found[value] = None
        elif source is not None:
            pending.extend(reversed(read_by(source)))
    return list(found)


def behind(model: Model, values: Collection[ir.Value]) -> set[ir.Value]:
    """``values``, and all that is computed from them."""
    found = set(values)
    for node in model.graph:
        if not found.isdisjoint(read_by(node)):
            found.update(node.outputs)
    return found


def read_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, and those of its graph that its subgraphs read."""
    captured = [
        value
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        for value in inner.inputs
        if value is not None and value.graph is node.graph
    ]
    return [value for value in (*node.inputs, *captured) if value is not None]


def _computes_sizes(node: ir.Node) -> bool:
    """Whether all that ``node`` gives is integers, as sizes are."""
    return all(value.dtype == ir.DataType.INT64 for value in node.outputs)


def twin_group(twin: Model, wanted: Group) -> Group | None:
    """The group of ``twin``, a copy of a model or of a part of it, that cuts what ``wanted`` cuts."""

    def weights(group: Group) -> set[tuple[str | None, int]]:
        return {(part.value.name, part.axis) for part in group.slices}

    found = (g for g in couplings(twin) if g.size == wanted.size and weights(g) == weights(wanted))
    return next(found, None)
