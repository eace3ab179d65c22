"""Operators of com.microsoft that a lowered model has."""

from __future__ import annotations

import onnx_ir as ir
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator
from graphcompress.graph.runtime import CONTRIB


@operator("Gelu", domain=CONTRIB)
def gelu(builder: FxBuilder, node: ir.Node) -> Operand:
    """X · Φ(x)."""
    return builder.call(functional.gelu, builder.tensor(node.inputs[0]))
