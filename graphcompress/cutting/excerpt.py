"""A group as a model of its own: the nodes from the weights that it cuts to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence

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


def _computes_sizes(node: ir.Node) -> bool:
    """Whether all that ``node`` gives is integers, as sizes are."""
    return all(value.dtype == ir.DataType.INT64 for value in node.outputs)


def twin_group(twin: Model, wanted: Group) -> Group | None:
    """The group of ``twin``, a copy of a model or of a part of it, that cuts what ``wanted`` cuts."""

    def weights(group: Group) -> set[tuple[str | None, int]]:
        return {(part.value.name, part.axis) for part in group.slices}

    found = (g for g in couplings(twin) if g.size == wanted.size and weights(g) == weights(wanted))
    return next(found, None)
