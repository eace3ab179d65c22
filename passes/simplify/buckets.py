"""Rows of tables that are read by buckets of distances, as T5 has them: those that no distance falls into.

Near distances have a bucket each, far ones share theirs by their logarithm; in an encoder, those to the left
and those to the right have different ones. Which buckets occur is found by computing that of every distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.cutting.excerpt import between, needed_for
from graphcompress.graph.match import axis_of, fixed_shape, is_standard, scalar
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.ranges.bounds import Bounds
from graphcompress.rewrite.rewriter import Rewriter

_ELEMENT_BY_ELEMENT = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *("LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sub", "Where"),
    )
)

MOST = 1 << 20
"""So many distances are looked at: a longer input is none that anybody promises."""


@dataclass(frozen=True)
class _Buckets:
    """How one Gather finds the row of a distance.

    Attributes:
        distance: what the buckets are computed from, element by element.
        index: the buckets.
        nodes: between the two.
        reach: [distances] all that may occur, and one more at each end: where a logarithm comes near a whole
            number, the runtime may round it to either side.
    """

    distance: ir.Value
    index: ir.Value
    nodes: Sequence[ir.Node]
    reach: np.ndarray

    def of_all(self, model: Model) -> np.ndarray:
        """[distances] the bucket of each."""
        _, part = between(model, {self.distance}, [self.index])
        (given,) = part.graph.inputs
        rank = len(self.distance.shape or ())
        given.shape = ir.Shape([*(1,) * (rank - 1), "distances"])
        with Runner(part) as runner:
            feed = {given.name or "": self.reach.reshape(*(1,) * (rank - 1), -1)}
            found: np.ndarray = runner(feed)[self.index.name or ""].reshape(-1)
        return found


def drop_buckets(rw: Rewriter, bounds: Bounds, limit: Callable[[ir.Value], int]) -> int:
    """Cut the rows that no distance reads out of tables that are read by buckets; of how many tables.

    ``limit`` says how many rows of a table are read at most, counted from the front.
    """
    cut = 0
    for table in list(rw.model.graph.initializers.values()):
        shape = fixed_shape(table)
        if shape is None or len(shape) != 2 or table.is_graph_input() or table.is_graph_output():
            continue
        found = [_buckets(use.node, use.idx, bounds) for use in table.uses()]
        readers = [each for each in found if each is not None]
        if readers and len(readers) == len(found):
            cut += _cut(rw, table, shape[0], readers, limit(table))
    return cut


def _cut(rw: Rewriter, table: ir.Value, size: int, readers: Sequence[_Buckets], limit: int) -> int:
    """Keep the rows of ``table`` that are read; 1 where any went."""
    before = [each.of_all(rw.model) for each in readers]
    used = np.unique(np.concatenate(before))
    used = used[used < limit]
    if not len(used) or used[0] < 0 or len(used) == size or table.const_value is None:
        return 0
    if not all(_renumber(rw, each, old, used) for each, old in zip(readers, before, strict=True)):
        # What is read has no simpler numbers than it had, so that rows go from the end alone.
        used = np.arange(used[-1] + 1)
        if len(used) == size:
            return 0
    told = f"{len(used):,} of {size:,} buckets of distances are left, which are all that an input can reach"
    rw.touch(table.name or "", told)
    axes = rw.model.kept.setdefault(table.name or "", {})
    axes[0] = axes[0][used] if 0 in axes else used
    rw.overwrite(table, np.ascontiguousarray(table.const_value.numpy()[used]))
    return 1


def _renumber(rw: Rewriter, reader: _Buckets, before: np.ndarray, used: np.ndarray) -> bool:
    """Let ``reader`` count the buckets ``used`` from 0, by another number in its arithmetic; whether it does.

    Buckets to the right begin behind all of those to the left: at another number where there are fewer.
    """
    wanted = np.searchsorted(used, before)
    if np.array_equal(wanted, before):
        return True
    gone = int(used[-1]) + 1 - len(used)
    for node, place, number in _numbers(reader.nodes):
        old = node.inputs[place]
        rw.set_input(node, place, rw.at(node).constant(np.array(number - gone), "first", old))
        if np.array_equal(reader.of_all(rw.model), wanted):
            return True
        rw.set_input(node, place, old)
    return False


def _numbers(nodes: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, int, int]]:
    """Whole numbers that ``nodes`` read: the node, the operand, and what it is."""
    for node in nodes:
        for place, value in enumerate(node.inputs):
            number = scalar(value)
            if number is not None and value is not None and value.dtype == ir.DataType.INT64:
                yield node, place, int(number)


def _buckets(node: ir.Node, place: int, bounds: Bounds) -> _Buckets | None:
    """How ``node`` reads rows of its operand ``place`` by buckets; None where it does otherwise."""
    index = node.inputs[1] if len(node.inputs) > 1 else None
    if place or index is None or not is_standard(node, "Gather") or axis_of(node, 2, 0) != 0:
        return None
    sources, nodes = _sources(index)
    if len(sources) != 1 or not any(each.op_type == "Log" for each in nodes):
        return None
    (distance,) = sources
    interval, dtype = bounds.of(distance), distance.dtype
    if interval is None or dtype is None or not dtype.is_integer() or distance.shape is None:
        return None
    if interval.high - interval.low > MOST or needed_for([index], {distance}) != [distance]:
        return None
    reach = np.arange(interval.low - 1, interval.high + 2).astype(dtype.numpy())
    return _Buckets(distance, index, nodes, reach)


def _is_one_number(node: ir.Node | None) -> bool:
    """Whether all elements of what ``node`` gives are one stored number."""
    if is_standard(node, "Expand"):
        return scalar(node.inputs[0]) is not None
    return is_standard(node, "ConstantOfShape")


def _sources(index: ir.Value) -> tuple[set[ir.Value], list[ir.Node]]:
    """The values that ``index`` is computed from element by element, and by which nodes.

    A node whose operands come from several values is itself the source.
    """
    known: dict[ir.Value, tuple[set[ir.Value], list[ir.Node]]] = {}

    def of(value: ir.Value) -> tuple[set[ir.Value], list[ir.Node]]:
        if value not in known:
            known[value] = computed(value)
        return known[value]

    def computed(value: ir.Value) -> tuple[set[ir.Value], list[ir.Node]]:
        node = value.producer()
        if scalar(value) is not None or _is_one_number(node):
            return set(), []
        if node is None or not is_standard(node, *_ELEMENT_BY_ELEMENT):
            return {value}, []
        parts = [of(operand) for operand in node.inputs if operand is not None]
        sources = set[ir.Value]().union(*(found for found, _ in parts))
        if len(sources) != 1:
            return {value}, []
        nodes = dict.fromkeys([node, *(each for _, several in parts for each in several)])
        return sources, list(nodes)

    return of(index)
