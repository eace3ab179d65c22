"""Backwards through the graph: which positions of values are read, and which nodes compute those alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphcompress.graph.expressions import Constants
from graphcompress.graph.match import fixed_size, rank_of, shape_of
from graphcompress.graph.sizes import reshape_target, same_dim
from graphcompress.passes.simplify.needed.axes import MixedError, Place, places_behind
from graphcompress.passes.simplify.needed.readers import Reader
from graphcompress.passes.simplify.needed.rows import Demand, PerRow


@dataclass(frozen=True)
class Narrowed:
    """A node that computes a part of what it did.

    Attributes:
        demand: the part of its outputs.
        operands: index of an operand → the part that it reads; all of the others.
    """

    node: ir.Node
    demand: Demand
    operands: dict[int, Demand]


@dataclass
class Slicing:
    """What is read of every value.

    Attributes:
        readers: nodes that began it.
        narrowed: node → how it is narrowed, readers before what they read.
        held: value → the part that is computed of it; values that are not named are whole.
        mixed: value → the part of it that is read, and why all of it is computed nevertheless.
    """

    readers: Sequence[Reader]
    narrowed: dict[ir.Node, Narrowed] = field(default_factory=dict)
    held: dict[ir.Value, Demand] = field(default_factory=dict)
    mixed: dict[ir.Value, tuple[Demand, str]] = field(default_factory=dict)

    def behind(self, reader: Reader) -> Iterator[Narrowed]:
        """The nodes that are narrowed for ``reader``, from it backwards."""
        pending, seen = [reader.data], set[ir.Node]()
        while pending:
            node = pending.pop().producer()
            step = None if node is None or node in seen else self.narrowed.get(node)
            if step is None or node is None:
                continue
            seen.add(node)
            yield step
            pending.extend(value for index in step.operands if (value := node.inputs[index]) is not None)


def planned(graph: ir.Graph, readers: Sequence[Reader]) -> Slicing:
    """What has to be computed when ``readers`` read parts; all else reads what it read."""
    whole_nodes: dict[ir.Node, str] = {}
    while True:
        plan = _backwards(graph, readers, whole_nodes)
        # Flattened positions cannot be picked there, so that what reads them stays whole.
        found = {
            step.node: "they are flattened" for step in plan.narrowed.values() if _picks_flattened(plan, step)
        }
        if not found:
            return plan
        whole_nodes |= found


def _picks_flattened(plan: Slicing, step: Narrowed) -> bool:
    return any(
        demand.outer is not None and plan.held.get(step.node.inputs[index]) != demand  # type: ignore[arg-type]
        for index, demand in step.operands.items()
    )


def _backwards(graph: ir.Graph, readers: Sequence[Reader], whole_nodes: dict[ir.Node, str]) -> Slicing:
    plan, read = Slicing(readers), _Read(graph)
    by_node = {reader.node: reader for reader in readers}
    for node in reversed(graph):
        reader, step = by_node.get(node), None
        demand = read.of_outputs(node)
        if demand is not None and reader is None:
            try:
                step = _narrowed(node, demand, whole_nodes)
            except MixedError as reason:
                plan.mixed[node.outputs[0]] = demand, str(reason)
        if step is not None:
            plan.narrowed[node] = step
            plan.held.update(dict.fromkeys(node.outputs, step.demand))
        parts = {0: reader.demand} if reader else step.operands if step else {}
        for index, value in enumerate(node.inputs):
            if value is not None and not (step and index not in parts and _is_shape(node, index)):
                read.by(value, parts.get(index))
    return plan


def _is_shape(node: ir.Node, index: int) -> bool:
    """Whether an operand gives sizes, which are written anew."""
    return index == 1 and node.op_type in ("Reshape", "Expand")


class _Read:
    """What is read of the values, so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self._parts: dict[ir.Value, Demand | None] = dict.fromkeys(graph.outputs)
        self._constant = Constants()
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            if inner.graph is not graph:
                self._parts.update({value: None for value in inner.inputs if value is not None})

    def by(self, value: ir.Value, part: Demand | None) -> None:
        """Note that a node reads a part, or (None) all of ``value``."""
        before = self._parts.get(value, part)
        # Readers of unlike parts need all of it together.
        self._parts[value] = None if part is None or before is None else before.joined(part)

    def of_outputs(self, node: ir.Node) -> Demand | None:
        """The part that is read of what ``node`` computes; None where that is all, or nothing."""
        parts = [self._parts[value] for value in node.outputs if value in self._parts]
        first = parts[0] if parts else None
        if first is None or any(part != first for part in parts) or self._constant(node.outputs[0]):
            return None
        sizes = node.outputs[0].shape or ir.Shape(())
        size, left = sizes[first.axis], first.narrowed(sizes)[first.axis]
        # Several readers of a position each may read all that there are.
        return None if isinstance(size, int) and isinstance(left, int) and left >= size else first


def _narrowed(node: ir.Node, demand: Demand, whole_nodes: dict[ir.Node, str]) -> Narrowed:
    """How ``node`` computes ``demand`` alone.

    Raises:
        MixedError: it does not.
    """
    if node in whole_nodes:
        raise MixedError(whole_nodes[node])
    places = places_behind(node, Place(demand.axis, demand.outer))
    rows = _batch_axes(node, demand, places) if isinstance(demand.rows, PerRow) else {}
    operands = {
        index: Demand(demand.rows, place.axis, rows.get(index), place.outer)
        for index, place in places.items()
    }
    step = Narrowed(node, demand, operands)
    if node.op_type == "Reshape" and target_of(step) is None:
        raise MixedError("a Reshape would have to compute its target")
    return step


def _batch_axes(node: ir.Node, demand: Demand, places: Mapping[int, Place]) -> dict[int, int]:
    """Index of an operand → the axis in it of the rows of the batch; a size of 1 stands for all of them.

    Raises:
        MixedError: an operand has no such axis.
    """
    found = {}
    merged = demand.outer is not None or any(place.outer is not None for place in places.values())
    behind = {} if merged else places_behind(node, Place(demand.batch or 0))
    for index, place in places.items():
        axis = _beside(place, demand, node.inputs[index]) if merged else _aligned(behind, node, index, demand)
        if axis is None:
            raise MixedError(f"{node.op_type} reads the same for every row")
        found[index] = axis
    return found


def _beside(place: Place, demand: Demand, value: ir.Value | None) -> int | None:
    """The axis of the batch where positions are flattened with it, or stand behind it."""
    if place.outer is not None:
        return place.axis
    sizes = shape_of(value)
    if sizes is None or not place.axis or demand.outer is None:
        return None
    return place.axis - 1 if same_dim(sizes[place.axis - 1], demand.outer) else None


def _aligned(behind: Mapping[int, Place], node: ir.Node, index: int, demand: Demand) -> int | None:
    """The axis of the batch in an operand: where it comes from, or where one row is repeated."""
    if index in behind:
        return behind[index].axis
    axis = (demand.batch or 0) - (rank_of(node.outputs[0]) or 0) + (rank_of(node.inputs[index]) or 0)
    return axis if axis >= 0 and fixed_size(node.inputs[index], axis) == 1 else None


def target_of(step: Narrowed) -> list[int] | None:
    """What a narrowed Reshape is given."""
    data, out = step.node.inputs[0], step.node.outputs[0]
    if data is None or data.shape is None or out.shape is None or 0 not in step.operands:
        return None
    return reshape_target(step.operands[0].narrowed(data.shape), step.demand.narrowed(out.shape))
