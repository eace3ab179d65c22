"""What a model costs: parameters, bytes and multiply-accumulates (MACs)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import linears
from graphcompress.expressions import is_constant
from graphcompress.model import Model

BATCH, LENGTH = 1, 128


@dataclass(frozen=True)
class NodeCost:
    """MACs of one multiplying node."""

    name: str
    macs: int


def macs(model: Model, *, batch: int = BATCH, length: int = LENGTH) -> int:
    """MACs of one run on ``batch`` samples of ``length`` tokens: linears and batched MatMuls (attention)."""
    return sum(cost.macs for cost in node_costs(model, batch=batch, length=length))


def node_costs(model: Model, *, batch: int = BATCH, length: int = LENGTH) -> list[NodeCost]:
    """MACs of every linear and every batched MatMul, in execution order; a constant expression is free."""
    bindings = _bindings(model, batch, length)
    named = {linear.node: linear.name for linear in linears(model)}
    costs = []
    for node in model.graph:
        if (
            node.domain
            or node.op_type not in ("MatMul", "Gemm", "MatMulInteger")
            or is_constant(node.outputs[0])
        ):
            continue
        size = _sizes(node.outputs[0], bindings)
        inner = _sizes(node.inputs[0], bindings)
        if size is None or inner is None:
            continue
        contracted = inner[-2] if node.attributes.get_int("transA", 0) else inner[-1]
        costs.append(NodeCost(named.get(node, node.outputs[0].name or ""), int(np.prod(size)) * contracted))
    return costs


def _bindings(model: Model, batch: int, length: int) -> dict[str, int]:
    """Symbol → size: the first dimension of an input is the batch, every other symbol a length."""
    bindings: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                bindings.setdefault(str(dim.value), batch if axis == 0 else length)
    return bindings


def _sizes(value: ir.Value | None, bindings: dict[str, int]) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.evaluate(bindings) for dim in value.shape]
    known = [int(dim) for dim in dims if isinstance(dim, int)]
    return known if len(known) == len(dims) else None
