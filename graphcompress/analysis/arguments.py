"""What the arguments of a node say that are known before it runs: axes and bounds."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import onnx_ir as ir


def constant_integers(node: ir.Node, index: int) -> list[int] | None:
    """The numbers of an integer input that is known, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def scalar(value: ir.Value | None) -> float | None:
    """The number of a stored tensor of one element that the caller of the model cannot override, or None."""
    if value is None or value.const_value is None or value.const_value.size != 1 or value.is_graph_input():
        return None
    return float(value.const_value.numpy().reshape(()))


def scaled(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """The value that a Mul or Div scales by a stored number, and the number that it is multiplied by."""
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return None
    left, right = node.inputs
    number = scalar(right)
    if left is not None and number:
        return left, number if node.op_type == "Mul" else 1.0 / number
    number = scalar(left) if node.op_type == "Mul" else None
    return (right, number) if right is not None and number is not None else None


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int | None, int]] | None:
    """Axis → (start, stop, step) of a Slice with constant bounds (stop None: to the end), or None."""
    operands = [constant_integers(node, index) for index in range(1, 5)]
    given = [index + 1 < len(node.inputs) and node.inputs[index + 1] is not None for index in range(4)]
    if any(want and got is None for want, got in zip(given, operands, strict=True)):
        return None
    starts, stops, axes, steps = operands
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


def is_standard(node: ir.Node | None, op_type: str) -> TypeGuard[ir.Node]:
    """Whether ``node`` is the operator ``op_type`` of the standard domain."""
    return node is not None and not node.domain and node.op_type == op_type


def operand_beside(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """The other operand of a node with two."""
    first, second = node.inputs[0], node.inputs[1]
    return second if first is value else first
