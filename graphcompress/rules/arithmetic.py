"""Arithmetic with a neutral constant."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.graph.match import scalar
from graphcompress.graph.sizes import same_shape
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule, replaceable

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def neutral(rw: Rewriter, node: ir.Node) -> str | None:
    """Adding 0, multiplying or dividing by 1 changes nothing (but the sign of a zero)."""
    sides = ((0, 1), (1, 0)) if node.op_type in ("Add", "Mul") else ((0, 1),)
    for kept, other in sides:
        value, out = node.inputs[kept], node.outputs[0]
        if value is None or scalar(node.inputs[other]) != _NEUTRAL[node.op_type]:
            continue
        # A constant with more axes than the value gives it axes, whatever its numbers are.
        if same_shape(value.shape, out.shape) and value.dtype == out.dtype and replaceable(out, value):
            rw.replace(out, value)
            return f"{node.op_type} of a neutral constant"
    return None


RULES: dict[str, tuple[Rule, ...]] = dict.fromkeys(_NEUTRAL, (neutral,))
"""Operator → rules, tried in this order."""
