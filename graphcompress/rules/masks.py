"""The arithmetic of attention masks: what is always true, gathers that move nothing, idle guards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.bounds import Bounds
from graphcompress.analysis.coordinates import coordinate
from graphcompress.analysis.intervals.interval import FALSE, TRUE
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule, producer, replaceable, same_dim, tolerates

Bounded = Callable[[Rewriter, ir.Node, Bounds], str | None]


def decided_logic(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """And(true, x) and Or(false, x) are x, where every reader broadcasts what x lacks."""
    neutral = TRUE if node.op_type == "And" else FALSE
    for value, other in (node.inputs, reversed(node.inputs)):
        if other is not None and bounds.of(value) == neutral and _may_stand_for(other, node.outputs[0]):
            rw.replace(node.outputs[0], other)
            return f"{node.op_type} with an operand that is always {'true' if neutral == TRUE else 'false'}"
    return None


def decided_where(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """A Where whose condition never changes is one of its branches: the guard of attention against NaN.

    Softmax gives NaN only when a row is -inf throughout or holds NaN or +inf; scores that are provably
    finite, also after the mask was added, cannot.
    """
    condition, then, otherwise = node.inputs
    decided = bounds.of(condition)
    chosen = then if decided == TRUE else otherwise if decided == FALSE else None
    if chosen is None or not _may_stand_for(chosen, node.outputs[0]):
        return None
    rw.replace(node.outputs[0], chosen)
    return "guard against NaN" if producer(condition, "IsNaN") else "Where that always chooses the same"


def idle_mask(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """A mask of an Attention that is true everywhere is not needed."""
    if len(node.inputs) < 4 or node.inputs[3] is None or bounds.of(node.inputs[3]) != TRUE:
        return None
    if node.inputs[3].dtype != ir.DataType.BOOL:
        return None
    rw.set_input(node, 3, None)
    return "mask of an Attention that is always true"


def gather_of_coordinates(rw: Rewriter, node: ir.Node) -> str | None:
    """GatherND by a mesh of counting indices, which selects every element of the data once: an Unsqueeze.

    ``data[i, j]`` for i, j counting along axes a < b of the result is the data itself with axes of size 1
    inserted; readers broadcast it, or nothing is changed.
    """
    data, indices = node.inputs
    out = node.outputs[0]
    mesh = producer(indices, "Concat")
    if mesh is None or data is None or data.shape is None or indices is None or indices.shape is None:
        return None
    if node.attributes.get_int("batch_dims", 0) != 0 or mesh.attributes.get_int("axis", 0) not in (
        -1,
        len(indices.shape) - 1,
    ):
        return None
    parts = [coordinate(part) for part in mesh.inputs]
    found = [part for part in parts if part is not None and part.axis != -1]
    if len(found) < len(parts) or len(parts) != len(data.shape):
        return None
    axes = [part.axis + len(indices.shape) for part in found]
    if axes != sorted(set(axes)):
        return None
    if not all(same_dim(part.size, size) for part, size in zip(found, data.shape, strict=True)):
        return None
    inserted = [axis for axis in range(len(indices.shape) - 1) if axis not in axes]
    narrow = [data.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(indices.shape) - 1)]
    if out.is_graph_output() or not tolerates(out, narrow):
        return None
    unsqueezed = rw.at(node).op("Unsqueeze", data, inserted, name="unsqueezed")
    unsqueezed.shape = ir.Shape(narrow)
    rw.replace(out, unsqueezed, take_name=True)
    return "GatherND that selects everything in order"


def gather_of_everything(rw: Rewriter, node: ir.Node) -> str | None:
    """GatherND by a stored table of all places in their order, as fixed sizes leave it: a Reshape."""
    data, indices = node.inputs
    out = node.outputs[0]
    if indices is None or indices.const_value is None or indices.is_graph_input():
        return None
    if data is None or data.shape is None or out.shape is None:
        return None
    if node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if not (data.shape.is_static() and out.shape.is_static()):
        return None
    sizes, table = data.shape.numpy(), indices.const_value.numpy()
    if table.shape != (*out.shape.numpy(), len(sizes)):
        return None
    if not np.array_equal(table.reshape(-1, len(sizes)), np.indices(sizes).reshape(len(sizes), -1).T):
        return None
    shape = rw.constant(np.array(out.shape.numpy(), np.int64), f"{out.name}.shape")
    rw.supersede(out, rw.node("Reshape", data, shape, before=node, name=f"{out.name}.reshaped"))
    return "GatherND that selects everything in order"


def double_not(rw: Rewriter, node: ir.Node) -> str | None:
    """Not(Not(x)) is x."""
    inner = producer(node.inputs[0], "Not")
    if inner is None or inner.inputs[0] is None or not replaceable(node.outputs[0], inner.inputs[0]):
        return None
    rw.replace(node.outputs[0], inner.inputs[0])
    return "Not of a Not"


def _may_stand_for(value: ir.Value, old: ir.Value) -> bool:
    return replaceable(old, value) and value.dtype == old.dtype and tolerates(old, value.shape)


RULES: dict[str, tuple[Rule, ...]] = {
    "GatherND": (gather_of_coordinates, gather_of_everything),
    "Not": (double_not,),
}
"""Operator → rules, tried in this order."""

BOUNDED_RULES: dict[str, tuple[Bounded, ...]] = {
    "And": (decided_logic,),
    "Attention": (idle_mask,),
    "Or": (decided_logic,),
    "Where": (decided_where,),
}
"""Operator → rules that ask for value ranges."""
