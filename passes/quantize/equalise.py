"""Moves a factor per feature out of an activation into the linears that read it, where that is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY, Linear
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.passes.quantize.quantisable import tied_table
from graphcompress.rewrite.bias import write_bias
from graphcompress.rewrite.rewriter import Rewriter

_GAINS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "Mul": (0, 1)}
"""Operators that multiply by a constant per feature: positions of the inputs that scale with their output."""


@dataclass(frozen=True, eq=False)
class Equalisable:
    """An activation that only ``readers`` read, and what before it scales with it.

    Attributes:
        value: the activation.
        readers: linears.
        constants: positions of the constants of its producer that scale with it.
        source: a linear whose outputs scale with it, where there are no such constants: the activation is a
            product with them, as behind a gate.
    """

    value: ir.Value
    readers: Sequence[Linear]
    constants: Sequence[int] = ()
    source: Linear | None = None


def equalisable(
    value: ir.Value, readers: Sequence[Linear], sources: Mapping[ir.Value, Linear] | None = None
) -> Equalisable | str:
    """``value`` as something that factors per feature can divide, or the reason why that is not exact.

    ``sources`` are linears by their output.
    """
    node = value.producer()
    if node is None or node.domain or node.op_type not in _GAINS:
        return "no normalisation or constant gain before it could take the factors"
    nodes = {linear.node for linear in readers}
    others = [user for user, _ in value.uses() if user not in nodes]
    if others or value.is_graph_output():
        return "the residual path, or another node that is not a quantised linear, reads the activation too"
    features = readers[0].in_features
    positions = [
        index
        for index in _GAINS[node.op_type]
        if index < len(node.inputs) and _is_gain(node.inputs[index], features)
    ]
    wanted = [
        index for index in _GAINS[node.op_type] if index < len(node.inputs) and node.inputs[index] is not None
    ]
    # One operand scales a product; a normalisation is scaled by its gain and its bias together.
    if node.op_type == "Mul":
        source = _gated(node, features, sources or {})
        if len(positions) == 1 or source is not None:
            return Equalisable(value, readers, positions, None if positions else source)
    if node.op_type == "Mul" or positions != wanted:
        return "its gain is not a constant with one entry per feature"
    return Equalisable(value, readers, positions)


def _gated(node: ir.Node, features: int, sources: Mapping[ir.Value, Linear]) -> Linear | None:
    """The linear whose output ``node`` alone reads, and multiplies by something else of the same width."""
    for value in node.inputs:
        source = None if value is None else sources.get(value)
        if source is None or value is None or source.out_features != features or tied_table(source):
            continue
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        stored = source.weight.const_value is not None and not source.weight.is_graph_input()
        if alone and stored and (source.bias is None or is_constant(source.bias)):
            return source
    return None


def divide(rw: Rewriter, items: Sequence[Equalisable], factors: np.ndarray) -> None:
    """Divide activations by ``factors`` [features] and multiply the rows of their readers' weights.

    What several ``items`` share is written once, so that it stays shared.
    """
    done: dict[tuple[ir.Value, str], ir.Value] = {}
    for item in items:
        node = item.value.producer()
        for index in item.constants if node is not None else ():
            old: ir.Value = node.inputs[index]  # type: ignore[assignment, union-attr]
            if (old, "gain") not in done:
                array = (evaluate(old) / factors).astype(np.float32)
                done[old, "gain"] = rw.constant(array, f"{old.name}.equalised")
            rw.set_input(node, index, done[old, "gain"])  # type: ignore[arg-type]
        for linear in item.readers:
            key = (linear.weight, f"rows {linear.transposed}")
            if key not in done:
                done[key] = _scaled_weight(rw, linear, factors if linear.transposed else factors[:, None])
            rw.set_input(linear.node, 1, done[key])
    _divide_outputs(rw, [item.source for item in items if item.source is not None], factors)


def _divide_outputs(rw: Rewriter, sources: Sequence[Linear], factors: np.ndarray) -> None:
    """Divide the outputs of linears by ``factors`` [out]: the columns of their weights, and their biases."""
    done: dict[tuple[ir.Value, bool], ir.Value] = {}
    biases: dict[ir.Value, list[Linear]] = {}
    for source in sources:
        key = (source.weight, source.transposed)
        if key not in done:
            done[key] = _scaled_weight(rw, source, 1.0 / (factors[:, None] if source.transposed else factors))
        rw.set_input(source.node, 1, done[key])
        if source.bias is not None:
            biases.setdefault(source.bias, []).append(source)
    for bias, readers in biases.items():
        write_bias(rw, readers, (evaluate(bias) / factors).astype(np.float32))


def _scaled_weight(rw: Rewriter, linear: Linear, factors: np.ndarray) -> ir.Value:
    """The weight of ``linear`` times ``factors``, which have the axes of its operand."""
    name = f"{linear.name}.equalised"
    if linear.weight.const_value is not None:
        scaled = rw.constant((evaluate(linear.weight) * factors).astype(np.float32), name)
    else:
        scale = rw.constant(factors.astype(np.float32), f"{linear.name}.factors")
        scaled = rw.at(linear.node, name).op("Mul", linear.weight, scale, name="")
        scaled.shape, scaled.type = linear.weight.shape, linear.weight.type
    scaled.metadata_props[NAME_KEY] = linear.name
    return scaled


def _is_gain(value: ir.Value | None, features: int) -> bool:
    if value is None or not is_constant(value) or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return False
    return list(value.shape) == [features]
