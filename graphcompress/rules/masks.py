"""The arithmetic of attention masks: what is always true, gathers that move nothing, idle guards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphcompress.graph.broadcasting import tolerates
from graphcompress.graph.match import array_of, fixed_shape, operand, producer, rank_of, shape_of
from graphcompress.graph.sizes import same_dim
from graphcompress.ranges.bounds import Bounds
from graphcompress.ranges.coordinates import coordinate
from graphcompress.ranges.interval import FALSE, TRUE
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule, replaceable

Bounded = Callable[[Rewriter, ir.Node, Bounds], str | None]


def decided_logic(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """And(true, x) and Or(false, x) are x, where every reader broadcasts what x lacks."""
    neutral = TRUE if node.op_type == "And" else FALSE
    for value, other in (node.inputs, reversed(node.inputs)):
        if bounds.of(value) == neutral and _takes_place(rw, node, other):
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
    if not _takes_place(rw, node, chosen):
        return None
    return "guard against NaN" if producer(condition, "IsNaN") else "Where that always chooses the same"


def idle_mask(rw: Rewriter, node: ir.Node, bounds: Bounds) -> str | None:
    """A mask of an Attention that is true everywhere is not needed."""
    mask = operand(node, "attn_mask")
    if mask is None or mask.dtype != ir.DataType.BOOL or bounds.of(mask) != TRUE:
        return None
    rw.set_input(node, 3, None)
    return "mask of an Attention that is always true"


def gather_of_coordinates(rw: Rewriter, node: ir.Node) -> str | None:
    """GatherND by a mesh of counting indices, which selects every element of the data once: an Unsqueeze.

    ``data[i, j]`` for i, j counting along axes a < b of the result is the data itself with axes of size 1
    inserted; readers broadcast it, or nothing is changed.
    """
    shape, rank = shape_of(node.inputs[0]), rank_of(node.inputs[1])
    mesh, out = producer(node.inputs[1], "Concat"), node.outputs[0]
    if mesh is None or shape is None or rank is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if mesh.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    parts = [coordinate(part) for part in mesh.inputs]
    found = [part for part in parts if part and part.axis != -1]
    if len(found) < len(parts) or len(parts) != len(shape):
        return None
    axes = [part.axis + rank for part in found]
    if axes != sorted(set(axes)):
        return None
    if not all(same_dim(part.size, size) for part, size in zip(found, shape, strict=True)):
        return None
    inserted = [axis for axis in range(rank - 1) if axis not in axes]
    narrow = [shape[axes.index(axis)] if axis in axes else 1 for axis in range(rank - 1)]
    if out.is_graph_output() or not tolerates({out: narrow}):
        return None
    unsqueezed = rw.at(node).op("Unsqueeze", node.inputs[0], inserted, name="unsqueezed")
    rw.replace(out, unsqueezed, take_name=True)
    return "GatherND that selects everything in order"


def gather_of_everything(rw: Rewriter, node: ir.Node) -> str | None:
    """GatherND by a stored table of all places in their order, as fixed sizes leave it: a Reshape."""
    data, indices = node.inputs
    sizes, shape, table = fixed_shape(data), fixed_shape(node.outputs[0]), array_of(indices)
    if sizes is None or shape is None or table is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if table.shape != (*shape, len(sizes)):
        return None
    if not np.array_equal(table.reshape(-1, len(sizes)), np.indices(sizes).reshape(len(sizes), -1).T):
        return None
    reshaped = rw.at(node).op("Reshape", data, shape, name="reshaped")
    rw.replace(node.outputs[0], reshaped, take_name=True)
    return "GatherND that selects everything in order"


def double_not(rw: Rewriter, node: ir.Node) -> str | None:
    """Not(Not(x)) is x."""
    plain = operand(producer(node.inputs[0], "Not"), 0)
    if plain is None or not replaceable(node.outputs[0], plain):
        return None
    rw.replace(node.outputs[0], plain)
    return "Not of a Not"


def _takes_place(rw: Rewriter, node: ir.Node, value: ir.Value | None) -> bool:
    """Let ``value`` stand for what ``node`` computes, where every reader broadcasts what it lacks."""
    old = node.outputs[0]
    if value is None or not replaceable(old, value) or value.dtype != old.dtype:
        return False
    if not tolerates({old: value.shape}):
        return False
    rw.replace(old, value)
    return True


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
