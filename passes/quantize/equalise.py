"""Moves a factor per feature out of an activation into the linears that read it, where that is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY, Linear
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.rewrite.rewriter import Rewriter

_GAINS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "Mul": (0, 1)}
"""Operators that multiply by a constant per feature: positions of the inputs that scale with their output."""


@dataclass(frozen=True, eq=False)
class Equalisable:
    """An activation that only ``readers`` read, and the constants of its producer that scale with it."""

    value: ir.Value
    readers: Sequence[Linear]
    constants: Sequence[int]


def equalisable(value: ir.Value, readers: Sequence[Linear]) -> Equalisable | str:
    """``value`` as something that factors per feature can divide, or the reason why that is not exact."""
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
    if node.op_type == "Mul" and len(positions) == 1:
        return Equalisable(value, readers, positions)
    if node.op_type == "Mul" or positions != wanted:
        return "its gain is not a constant with one entry per feature"
    return Equalisable(value, readers, positions)


def divide(rw: Rewriter, item: Equalisable, factors: np.ndarray) -> None:
    """Divide the activation by ``factors`` [features] and multiply the rows of its readers' weights."""
    node = item.value.producer()
    for index in item.constants if node is not None else ():
        old: ir.Value = node.inputs[index]  # type: ignore[assignment, union-attr]
        array = (evaluate(old) / factors).astype(np.float32)
        rw.set_input(node, index, rw.constant(array, f"{old.name}.equalised"))  # type: ignore[arg-type]
    done: dict[tuple[ir.Value, bool], ir.Value] = {}
    for linear in item.readers:
        key = (linear.weight, linear.transposed)
        if key not in done:
            done[key] = _scaled_weight(rw, linear, factors)
        rw.set_input(linear.node, 1, done[key])


def _scaled_weight(rw: Rewriter, linear: Linear, factors: np.ndarray) -> ir.Value:
    by_row = factors if linear.transposed else factors[:, None]
    name = f"{linear.name}.equalised"
    if linear.weight.const_value is not None:
        scaled = rw.constant((evaluate(linear.weight) * by_row).astype(np.float32), name)
    else:
        scale = rw.constant(by_row.astype(np.float32), f"{linear.name}.factors")
        scaled = rw.at(linear.node, name).op("Mul", linear.weight, scale, name="")
        scaled.shape, scaled.type = linear.weight.shape, linear.weight.type
    scaled.metadata_props[NAME_KEY] = linear.name
    return scaled


def _is_gain(value: ir.Value | None, features: int) -> bool:
    if value is None or not is_constant(value) or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return False
    return list(value.shape) == [features]
