"""What every rule is and uses: its type, shape comparison, and what the readers of a value tolerate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import shape_of
from graphcompress.graph.sizes import Sizes, same_dim, same_shape
from graphcompress.rewrite.rewriter import Rewriter

Rule = Callable[[Rewriter, ir.Node], str | None]
"""Edits the graph around a node and says what it removed, or returns None and edits nothing."""

BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Where", "And", "Or", "Xor"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
}
ELEMENTWISE = {"Not", "Cast", "Neg", "Abs", "Identity", "Exp", "Sqrt", "Tanh", "Erf", "IsNaN"}


def replaceable(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``new`` may stand for ``old``: a graph output keeps its name, which an input cannot take."""
    # An output of a branch has to be made in that branch, and what a branch makes is not there outside.
    if old.graph is not new.graph and new.graph is not None:
        return False
    if not old.is_graph_output():
        return True
    return not (new.is_graph_output() or new.is_graph_input() or new.is_initializer())


def broadcast(shapes: Sequence[Sizes | None]) -> list[Dim] | None:
    """The shape that ``shapes`` broadcast to, or None when one is unknown or two cannot be compared."""
    known = [list(shape) for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    result: list[Dim] = []
    for offset in range(1, max(map(len, known), default=0) + 1):
        sizes = [shape[-offset] for shape in known if len(shape) >= offset]
        wide = [size for size in sizes if size != 1]
        if any(not same_dim(size, wide[0]) for size in wide):
            return None
        result.append(wide[0] if wide else 1)
    return result[::-1]


def tolerates(value: ir.Value, shape: Sizes | None) -> bool:
    """Whether every reader of ``value`` computes the same when it shrinks to ``shape``, which broadcasts.

    True when the sizes that get lost come back by broadcasting against another operand before anything but an
    elementwise operator sees them.
    """
    pending: list[tuple[ir.Value, Sizes | None]] = [(value, shape)]
    seen: set[tuple[ir.Value, str]] = set()  # a value is reached along as many paths as there are
    while pending:
        value, shape = pending.pop()
        if same_shape(shape, value.shape) or (value, str(shape)) in seen:
            continue
        if shape is None or value.is_graph_output():
            return False
        seen.add((value, str(shape)))
        for use in value.uses():
            narrow = _narrow(use.node, value, shape)
            if narrow is None:
                return False
            pending.append((use.node.outputs[0], narrow))
    return True


def _narrow(node: ir.Node, value: ir.Value, shape: Sizes) -> list[Dim] | None:
    """The shape of what ``node`` makes when ``value`` has ``shape``; None where that matters to it."""
    if node.domain or node.op_type not in BROADCASTING | ELEMENTWISE or value.graph is not node.graph:
        return None
    return broadcast([shape if operand is value else shape_of(operand) for operand in node.inputs])
