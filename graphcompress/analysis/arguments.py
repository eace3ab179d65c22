"""What the arguments of a node say that are known before it runs: axes and bounds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import integers_of, operand


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int | None, int]] | None:
    """Axis → (start, stop, step) of a Slice with constant bounds (stop None: to the end), or None."""
    operands = [integers_of(operand(node, index)) for index in range(1, 5)]
    starts, stops, axes, steps = operands
    if any(operand(node, index) and operands[index - 1] is None for index in range(1, 5)):
        return None
    if starts is None or stops is None or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    rank = len(node.inputs[0].shape)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    last = np.iinfo(np.int32).max
    return {
        axis % rank: (start, None if stop >= last else stop, step)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)
    }


def axis_of(node: ir.Node, rank: int, default: int) -> int:
    """The attribute ``axis``, counted from the front."""
    return node.attributes.get_int("axis", default) % rank


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads ``value``, when there is one alone and the value is not an output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
