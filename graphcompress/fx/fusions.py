"""Chains of ONNX nodes that PyTorch has one function for, where nobody looks at what is between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
from torch import fx
from torch.nn import functional

from graphcompress.analysis.activations import GELU, SILU, TANH_GELU, activations
from graphcompress.analysis.linears import linears
from graphcompress.fx.builder import FxBuilder
from graphcompress.fx.sdpa import attention_fusions
from graphcompress.graph.model import Model


@dataclass(frozen=True, eq=False)
class Fusion:
    """Nodes that are written as one, when their last node is reached."""

    nodes: tuple[ir.Node, ...]
    write: Callable[[FxBuilder], fx.Node]


def plan(model: Model, visible: Collection[ir.Value]) -> dict[ir.Node, Fusion | None]:
    """Last node of every fusion → the fusion; every other node of it → None.

    A fusion whose inner values are read elsewhere, are outputs or are among ``visible`` is left out.
    """
    chosen: dict[ir.Node, Fusion | None] = {}
    for fusion in _fusions(model):
        if any(node in chosen for node in fusion.nodes) or not _is_closed(fusion, visible):
            continue
        chosen.update(dict.fromkeys(fusion.nodes[:-1]))
        chosen[fusion.nodes[-1]] = fusion
    return chosen


def _fusions(model: Model) -> Iterator[Fusion]:
    yield from (Fusion(*written) for written in attention_fusions(model))
    yield from _activations(model)
    yield from _linears(model)


def _is_closed(fusion: Fusion, visible: Collection[ir.Value]) -> bool:
    inside = set(fusion.nodes)
    inner: Iterable[ir.Value] = (value for node in fusion.nodes[:-1] for value in node.outputs)
    return all(
        not value.is_graph_output()
        and value not in visible
        and all(user in inside for user, _ in value.uses())
        for value in inner
    )


def _activations(model: Model) -> Iterator[Fusion]:
    for found in activations(model):
        if len(found.nodes) > 1:  # one operator is in the op table
            call = _ACTIVATIONS[found.function]
            yield Fusion(found.nodes, lambda builder, x=found.x, call=call: call(builder, builder.tensor(x)))  # type: ignore[misc]


_ACTIVATIONS: dict[str, Callable[[FxBuilder, fx.Node], fx.Node]] = {
    GELU: lambda builder, x: builder.call(functional.gelu, x),
    TANH_GELU: lambda builder, x: builder.call(functional.gelu, x, approximate="tanh"),
    SILU: lambda builder, x: builder.call(functional.silu, x),
}


def _linears(model: Model) -> Iterator[Fusion]:
    for linear in linears(model):
        last = linear.output.producer()
        if linear.node.op_type != "MatMul" or linear.bias is None or last is None or last is linear.node:
            continue
        x, weight, bias = linear.node.inputs[0], linear.weight, linear.bias
        if last.op_type == "Add" and linear.node.outputs[0] in last.inputs:
            yield Fusion((linear.node, last), _linear(x, weight, bias))


def _linear(x: ir.Value | None, weight: ir.Value, bias: ir.Value) -> Callable[[FxBuilder], fx.Node]:
    def write(builder: FxBuilder) -> fx.Node:
        matrix = builder.tensor(weight)
        if matrix.target == "transpose" and matrix.args[1:] == (0, 1):
            matrix = matrix.args[0]  # type: ignore[assignment]
        else:
            matrix = builder.shared("t", matrix)
        return builder.call(functional.linear, builder.tensor(x), matrix, builder.tensor(bias))

    return write
