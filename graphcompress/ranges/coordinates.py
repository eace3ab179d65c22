"""Index maps: which values count along an axis, so that gathering with them moves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import scalar


@dataclass(frozen=True)
class Coordinate:
    """``value[…, i, …] = i`` along ``axis`` (counted from the last, negative) and the same everywhere else.

    Attributes:
        axis: negative axis along which it counts.
        size: how far it counts.
    """

    axis: int
    size: Dim


def coordinate(value: ir.Value | None) -> Coordinate | None:
    """What ``value`` counts: a Range from 0 by 1, moved by Unsqueeze, Reshape-free broadcasting and Cast."""
    node = None if value is None else value.producer()
    if node is None or node.domain or value is None or value.shape is None:
        return None
    if node.op_type == "Range":
        counts = scalar(node.inputs[0]) == 0 and scalar(node.inputs[2]) == 1
        return Coordinate(-1, value.shape[0]) if counts else None
    inner = (
        coordinate(node.inputs[0]) if node.op_type in ("Unsqueeze", "Expand", "Cast", "Identity") else None
    )
    if inner is None or node.op_type != "Unsqueeze":
        return inner
    axes = (
        None
        if node.inputs[1] is None or node.inputs[1].const_value is None
        else node.inputs[1].const_value.numpy()
    )
    if axes is None:
        return None
    rank = len(value.shape)
    added = {int(axis) % rank for axis in axes.reshape(-1)}
    # The axes of an Unsqueeze count in its result, whose other axes are those of the operand in order.
    kept = [axis for axis in range(rank) if axis not in added]
    return Coordinate(kept[inner.axis] - rank, inner.size)
