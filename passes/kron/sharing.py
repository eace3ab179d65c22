"""Who else reads a weight: what may be rewritten alone, and what only together."""

from __future__ import annotations

import onnx_ir as ir

_LAYOUT = frozenset({"Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def stored_tensor(weight: ir.Value) -> ir.Value | None:
    """The stored tensor that ``weight`` is, or is a mere layout of; None for another expression."""
    while weight.const_value is None:
        node = weight.producer()
        if node is None or node.domain or node.op_type not in _LAYOUT or node.inputs[0] is None:
            return None
        weight = node.inputs[0]
    return weight


def layout(weight: ir.Value) -> tuple[str, ...]:
    """Operators between the stored tensor and ``weight``, the last one first."""
    path: list[str] = []
    value: ir.Value | None = weight
    while value is not None and value.const_value is None and (node := value.producer()) is not None:
        path.append(node.op_type)
        value = node.inputs[0]
    return tuple(path)


def readers(tensor: ir.Value) -> set[ir.Node]:
    """Nodes that read a stored tensor, looked up through layout operators."""
    found: set[ir.Node] = set()
    pending = [tensor]
    while pending:
        for node, index in pending.pop().uses():
            if not node.domain and node.op_type in _LAYOUT and index == 0:
                pending.append(node.outputs[0])
            else:
                found.add(node)
    return found
