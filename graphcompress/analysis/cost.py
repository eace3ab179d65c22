"""What a model costs: parameters, bytes and multiply-accumulates (MACs)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.runtime import CONTRIB
from graphcompress.graph.expressions import Constants, is_constant
from graphcompress.graph.model import Model

BATCH, LENGTH = 1, 128


_INTEGER = frozenset({"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul"})


@dataclass(frozen=True)
class NodeCost:
    """MACs of one multiplying node."""

    node: ir.Node
    macs: int

    @property
    def integer(self) -> bool:
        """Whether the runtime multiplies 8-bit integers: by the operator, or between DequantizeLinear."""
        if self.node.op_type in _INTEGER:
            return True
        factors = [value.producer() if value is not None else None for value in self.node.inputs[:2]]
        return all(node is not None and node.op_type == "DequantizeLinear" for node in factors)


def macs(model: Model, *, batch: int = BATCH, length: int = LENGTH) -> int:
    """MACs of one run on ``batch`` samples of ``length`` tokens: linears, convolutions, attention."""
    return sum(cost.macs for cost in node_costs(model, batch=batch, length=length))


def counted_on(model: Model) -> str:
    """What :func:`macs` counts one run on: ``one sample``, of 128 tokens where a length is free."""
    free = any(
        isinstance(dim, ir.SymbolicDim) for value in model.graph.inputs for dim in (value.shape or ())[1:]
    )
    return f"one sample of {LENGTH} tokens" if free else "one sample"


def node_costs(model: Model, *, batch: int = BATCH, length: int = LENGTH) -> list[NodeCost]:
    """MACs of every linear, MatMul, Conv and Attention, in execution order; a constant expression is free.

    The operators of ONNX Runtime in which a target writes them count as well.
    """
    bindings = _bindings(model, batch, length)
    costs, constant = [], Constants()
    for node in model.graph:
        count = _COUNTS.get((node.domain, node.op_type))
        if count is None or constant(node.outputs[0]):
            continue
        found = count(node, bindings)
        if found is not None:
            costs.append(NodeCost(node, found))
    return costs


def _of_product(node: ir.Node, bindings: Mapping[str, int]) -> int | None:
    out, left = _sizes(node.outputs[0], bindings), _sizes(node.inputs[0], bindings)
    if out is None or left is None:
        return None
    return math.prod(out) * (left[-2] if node.attributes.get_int("transA", 0) else left[-1])


def _of_attention(node: ir.Node, bindings: Mapping[str, int]) -> int | None:
    """Every element of the queries and of the result meets every key, in [b, h, s, d] and in [b, s, h·d]."""
    query, key, out = (_sizes(value, bindings) for value in (*node.inputs[:2], node.outputs[0]))
    if query is None or key is None or out is None:
        return None
    past = _sizes(node.inputs[4], bindings) if len(node.inputs) > 4 else None
    keys = key[-2] + (past[-2] if past else 0)
    return (math.prod(query) + math.prod(out)) * keys


def _of_multi_head(node: ir.Node, bindings: Mapping[str, int]) -> int | None:
    query, key, out = (_sizes(value, bindings) for value in (*node.inputs[:2], node.outputs[0]))
    if query is None or key is None or out is None or len(key) != 3:
        return None
    return (math.prod(query) + math.prod(out)) * key[1]


def _of_conv(node: ir.Node, bindings: Mapping[str, int]) -> int | None:
    """Every element of the result meets one filter: [channels of a group, positions of the kernel]."""
    out, weight = _sizes(node.outputs[0], bindings), _sizes(node.inputs[1], bindings)
    return None if out is None or weight is None else math.prod(out) * math.prod(weight[1:])


_COUNTS: dict[tuple[str, str], Callable[[ir.Node, Mapping[str, int]], int | None]] = {
    ("", "Attention"): _of_attention,
    ("", "Conv"): _of_conv,
    ("", "Gemm"): _of_product,
    ("", "MatMul"): _of_product,
    ("", "MatMulInteger"): _of_product,
    (CONTRIB, "DynamicQuantizeMatMul"): _of_product,
    (CONTRIB, "MatMulIntegerToFloat"): _of_product,
    (CONTRIB, "MultiHeadAttention"): _of_multi_head,
}


def product_sizes(cost: NodeCost, model: Model, batch: int, length: int) -> tuple[int, int, int] | None:
    """Rows, inner size and columns of a product with a weight; None for one of two activations."""
    node = cost.node
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not is_constant(weight) or node.op_type == "Conv":
        return None
    bindings = _bindings(model, batch, length)
    out = _sizes(node.outputs[0], bindings)
    if not out or not math.prod(out):
        return None
    columns = out[-1]
    return math.prod(out) // columns, cost.macs // math.prod(out), columns


def _bindings(model: Model, batch: int, length: int) -> dict[str, int]:
    """Symbol → size: the first dimension of an input is the batch, every other symbol a length."""
    bindings: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                bindings.setdefault(str(dim.value), batch if axis == 0 else length)
    return bindings


def _sizes(value: ir.Value | None, bindings: Mapping[str, int]) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.evaluate(dict(bindings)) for dim in value.shape]
    known = [int(dim) for dim in dims if isinstance(dim, int)]
    return known if len(known) == len(dims) else None
