"""Value ranges: between which numbers a value lies in every run, proved from the graph and its weights.

Interval arithmetic, one interval per value. A result proves that no NaN and no infinity occurs: a range
that cannot be shown to stay finite in the value's own type is unknown (None).
"""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.ranges.interval import Interval, fit, of_array, of_type
from graphcompress.ranges.operators import TRANSFER


class Bounds:
    """Intervals of the values of one graph, computed when asked and remembered until the graph is edited.

    Integer inputs of the model hold any number of their type. Float inputs are unknown, they may hold NaN,
    unless ``largest_input`` is given: then they lie in [-largest_input, largest_input].
    """

    def __init__(self, largest_input: float | None = None) -> None:
        self._largest_input = largest_input
        self._known: dict[ir.Value, Interval | None] = {}

    def of(self, value: ir.Value | None) -> Interval | None:
        """The interval of ``value``, or None when nothing finite can be proved."""
        if value is None:
            return None
        # A stack in place of recursion: a graph may be deeper than Python's limit.
        pending = [value]
        while pending:
            item = pending[-1]
            if item in self._known:
                pending.pop()
                continue
            missing = [operand for operand in _operands(item) if operand not in self._known]
            if missing:
                pending.extend(missing)
                continue
            self._known[item] = self._compute(item)
            pending.pop()
        return self._known[value]

    def _compute(self, value: ir.Value) -> Interval | None:
        # An initializer that is an input as well may be given another value by the caller.
        if value.const_value is not None and not value.is_graph_input():
            return of_array(value)
        node = value.producer()
        if self._largest_input is not None and value.is_graph_input() and value.dtype is not None:
            return fit(Interval.around(self._largest_input), value.dtype)
        if node is None or node.domain or not _is_described(value, node):
            return of_type(value.dtype)
        transfer = TRANSFER.get(node.op_type)
        operands = [None if operand is None else self._known.get(operand) for operand in node.inputs]
        interval = transfer(node, operands) if transfer is not None else None
        # Where no rule says anything, an integer still lies within its type.
        return fit(interval, value.dtype) if interval is not None else of_type(value.dtype)


def _is_described(value: ir.Value, node: ir.Node) -> bool:
    """Whether the operator's interval is that of ``value``: its first output, or any part of a Split."""
    return value is node.outputs[0] or node.op_type == "Split"


def _operands(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if value.const_value is not None or node is None or node.op_type not in TRANSFER:
        return []
    return [operand for operand in node.inputs if operand is not None]
