"""What operators do where operands broadcast, and whether readers of a value tolerate a smaller shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import shape_of
from graphcompress.graph.sizes import Sizes, same_dim, same_shape

BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Where", "And", "Or", "Xor"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
}
ELEMENTWISE = {"Not", "Cast", "Neg", "Abs", "Identity", "Exp", "Sqrt", "Tanh", "Erf", "IsNaN"}


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


def tolerates(narrowed: Mapping[ir.Value, Sizes | None]) -> bool:
    """Whether all readers compute the same when each of these values shrinks to its shape, which broadcasts.

    True when the sizes that get lost come back by broadcasting against another operand before anything but an
    elementwise operator sees them. All shrink at once: one of them brings back nothing that another one lost.
    """
    now: dict[ir.Value, Sizes] = {}
    pending = list(narrowed.items())
    while pending:
        value, shape = pending.pop()
        if same_shape(shape, now.get(value, value.shape)):
            continue
        if shape is None or value.is_graph_output():
            return False
        now[value] = shape
        for node in {use.node: None for use in value.uses()}:
            narrow = _narrow(node, value, now)
            if narrow is None:
                return False
            pending.append((node.outputs[0], narrow))
    return True


def _narrow(node: ir.Node, value: ir.Value, now: Mapping[ir.Value, Sizes]) -> list[Dim] | None:
    """The shape of what ``node`` makes of values of the shapes ``now``; None where they matter to it."""
    if node.domain or node.op_type not in BROADCASTING | ELEMENTWISE or value.graph is not node.graph:
        return None
    known = [None if operand is None else now.get(operand, shape_of(operand)) for operand in node.inputs]
    return broadcast(known)
