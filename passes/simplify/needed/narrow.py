"""Positions that no output reads are not computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.cost import counted_on, macs, node_costs
from graphcompress.graph.match import dtype_of, integers_of, operand, rank_of
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.needed.demands import Narrowed, Slicing, planned, target_of
from graphcompress.passes.simplify.needed.readers import Reader, reader_of
from graphcompress.passes.simplify.needed.rows import Demand, Fixed, picked
from graphcompress.rewrite.rewriter import Rewriter


def drop_unread(rw: Rewriter) -> bool:
    """Let layers compute the positions that are read of their results, and no others; whether any does now.

    A classifier that reads the first token needs the queries, the attention and the feed-forward part of the
    last layer for that token alone. Keys and values are computed for all tokens.
    """
    readers = [reader for node in rw.model.graph if (reader := reader_of(node)) is not None]
    useful = _useful(rw.model, readers) if readers else []
    if not useful:
        return False
    plan, before = planned(rw.model.graph, useful), macs(rw.model)
    _Narrowing(rw, plan).run()
    rw.clean()
    saved = before - macs(rw.model)
    rw.note(
        f"{len(plan.narrowed)} nodes compute {_described(useful)} alone, which is all that is read: "
        f"{saved:,} of {before:,} MACs ({saved / max(before, 1):.1%}) saved on {counted_on(rw.model)}"
    )
    return saved > 0


def report_unread(rw: Rewriter) -> None:
    """Tell which positions are computed although nothing reads them, and why."""
    readers = [reader for node in rw.model.graph if (reader := reader_of(node)) is not None]
    outputs = [(reader.data, reader.demand, "it is an output of the model") for reader in readers]
    mixed = [(value, *why) for value, why in planned(rw.model.graph, readers).mixed.items()]
    for value, demand, reason in [item for item in outputs if item[0].is_graph_output()] + mixed:
        # Columns of a product are no positions; a table of numbers costs nothing to compute.
        rank = rank_of(value) or 0
        if rank > 2 and demand.axis < rank - 1 and dtype_of(value).is_floating_point():
            rw.skip(value.name or "", f"{demand.rows} would be enough, but {reason}")


def _useful(model: Model, readers: Sequence[Reader]) -> list[Reader]:
    """Those of ``readers`` for which fewer numbers have to be multiplied."""
    products = {cost.node for cost in node_costs(model)}
    plan = planned(model.graph, readers)
    return [reader for reader in readers if any(step.node in products for step in plan.behind(reader))]


def _described(readers: Sequence[Reader]) -> str:
    return " and ".join(dict.fromkeys(str(reader.demand.rows) for reader in readers))


class _Narrowing:
    """Edits the graph as a plan says."""

    def __init__(self, rw: Rewriter, plan: Slicing) -> None:
        self.rw = rw
        self.plan = plan
        self._picked: dict[tuple[ir.Value, Demand], ir.Value] = {}

    def run(self) -> None:
        """Narrow every node, then what its readers read."""
        targets = {step.node: target_of(step) for step in self.plan.narrowed.values()}
        for step in reversed(list(self.plan.narrowed.values())):
            for index, demand in step.operands.items():
                self._feed(step.node, index, demand)
            self._resize(step, targets[step.node])
        for value, demand in self.plan.held.items():
            self._remember(value, demand)
        for reader in self.plan.readers:
            self._read(reader)

    def _part(self, value: ir.Value, demand: Demand, before: ir.Node) -> ir.Value:
        """``demand`` of ``value``, of which a part may be all that there is."""
        held = self.plan.held.get(value)
        if held == demand:
            return value
        if (value, demand) not in self._picked:
            # Nodes are gone through in order, so that its first reader stands before all others.
            self._picked[value, demand] = picked(self.rw.at(before, value.name), value, demand, held)
        return self._picked[value, demand]

    def _feed(self, node: ir.Node, index: int, demand: Demand) -> None:
        value = node.inputs[index]
        if value is not None:
            self.rw.set_input(node, index, self._part(value, demand, node))

    def _resize(self, step: Narrowed, target: list[int] | None) -> None:
        """Give a Reshape or an Expand the sizes that it makes now."""
        node = step.node
        if node.op_type == "Reshape" and target is not None:
            self.rw.set_input(node, 1, self.rw.at(node).constant(target, "shape"))
            self.rw.set_attribute(node, "allowzero", None)
        elif node.op_type == "Expand":
            sizes = integers_of(node.inputs[1]) or []
            sizes[step.demand.axis - len(node.outputs[0].shape or ())] = 1
            self.rw.set_input(node, 1, self.rw.at(node).constant(sizes, "shape"))

    def _read(self, reader: Reader) -> None:
        """Let a reader find its positions among those that are left."""
        node, data, demand = reader.node, reader.data, reader.demand
        held = self.plan.held.get(data)
        if held is None:
            return
        b, out, index = self.rw.at(node), node.outputs[0], operand(node, 1)
        if isinstance(held.rows, Fixed) and node.op_type == "Gather" and index is not None:
            places = held.rows.places(integers_of(index) or [])
            # Of one number the index has no axis, and the result none for it.
            shaped = np.array(places if rank_of(index) else places[0])
            self.rw.set_input(node, 1, b.constant(shaped, "places", index))
            return
        rows = data if held == demand else picked(b, data, demand, held)
        if len(out.shape or ()) < len(data.shape or ()):
            rows = b.op("Squeeze", rows, [demand.axis], name="position")
        self.rw.replace(out, rows)

    def _remember(self, value: ir.Value, demand: Demand) -> None:
        """What is shorter now has another name, or the model knows which positions it kept."""
        rows = demand.rows
        if isinstance(rows, Fixed) and min(rows.indices) >= 0 and demand.outer is None:
            self.rw.model.kept.setdefault(value.name or "", {})[demand.axis] = np.array(rows.indices)
        else:
            value.name = self.rw.fresh_name(f"{value.name}.needed")
