"""Operators that select, mix or average along an axis: Gather, Softmax, reductions and their like."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.coupling.relations.rules import AVERAGED, Relations
from graphcompress.graph.match import axis_of, fixed_size, integers_of, operand

_MEAN_LIKE = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_MIXING = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")

REDUCTIONS = (*_MEAN_LIKE, *_MIXING)
"""Operators that take an axis away."""

ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1}
"""Operators that mix one axis: operator → the axis when none is given."""


def gather(relations: Relations, node: ir.Node) -> None:
    """Indices take the place of the axis that they select from."""
    data, indices = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    axis = axis_of(node, len(data), 0)
    relations.block([data[axis]], "it is selected from by index")
    relations.unify(data[:axis] + indices + data[axis + 1 :], relations.output(node))


def gather_nd(relations: Relations, node: ir.Node) -> None:
    """Entries of the first axes behind those of the batch are looked up; the axes behind them stay."""
    data, indices = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    batch, looked_up = node.attributes.get_int("batch_dims", 0), fixed_size(operand(node, 1), -1)
    if looked_up is None:
        relations.block_node(node, "the number of axes that it selects from is not known")
        return
    behind = batch + looked_up
    relations.block([*data[batch:behind], indices[-1]], "it is selected from by index")
    relations.unify(data[:batch] + indices[batch:-1] + data[behind:], relations.output(node))


def gather_elements(relations: Relations, node: ir.Node) -> None:
    """Along every other axis, indices select from data at their own position."""
    data, indices = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    axis = axis_of(node, len(data), 0)
    relations.unify(indices, relations.output(node))
    relations.block([data[axis]], "it is selected from by index")
    for other, (one, index) in enumerate(zip(data, indices, strict=True)):
        # Indices may be shorter than data, and then only the first entries are read: the axes are not the
        # same.
        if other != axis and (one is None) != (index is None):
            relations.block([one, index], "GatherElements reads a part of it")
        elif other != axis:
            relations.atoms.unify(one, index)


def along_axis(relations: Relations, node: ir.Node) -> None:
    """Softmax, TopK and their like mix one axis and keep the others."""
    for index in range(len(node.outputs)):
        out = relations.output(node, index) or []
        axis = axis_of(node, len(out), ALONG_AXIS.get(node.op_type, -1))
        source = relations.operand(node, 0) or []
        relations.block([source[axis], out[axis]], f"{node.op_type} mixes it")
        relations.unify(source[:axis] + source[axis + 1 :], out[:axis] + out[axis + 1 :])


def cumsum(relations: Relations, node: ir.Node) -> None:
    """A running sum mixes its axis."""
    source = relations.operand(node, 0)
    relations.unify(source, relations.output(node))
    axis = integers_of(operand(node, 1))
    mixed = source if axis is None else [(source or [])[axis[0]]]
    relations.block(mixed, "CumSum mixes it")


def trilu(relations: Relations, node: ir.Node) -> None:
    """The last two axes are read by position."""
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    relations.block(source[-2:], "Trilu reads positions in it")


def pad(relations: Relations, node: ir.Node) -> None:
    """Axes that keep their size are the same."""
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    for one, other in zip(source, target, strict=True):
        if one is not None and other is not None and relations.atoms.size(one) == relations.atoms.size(other):
            relations.atoms.unify(one, other)
        else:
            relations.atoms.block([one, other], "it is padded")


def reduce(relations: Relations, node: ir.Node) -> None:
    """The axes that remain are the same; a mean over an axis is told from other mixing."""
    source, out = relations.operand(node, 0) or [], relations.output(node) or []
    axes = _reduced_axes(node, len(source))
    if axes is None:
        relations.block_node(node, "reduced axes are not constant")
        return
    kept = [axis for axis in range(len(source)) if axis not in axes]
    keepdims = node.attributes.get_int("keepdims", 1)
    relations.unify([source[axis] for axis in kept], [out[axis] for axis in kept] if keepdims else out)
    for axis in axes:
        _mix(relations, source[axis], node.op_type)


def _mix(relations: Relations, atom: int | None, op_type: str) -> None:
    if atom is None:
        return
    if op_type in _MEAN_LIKE:
        relations.atoms.mark(atom, AVERAGED, f"{op_type} runs over it")
    else:
        relations.atoms.block([atom], f"{op_type} mixes it")


def _reduced_axes(node: ir.Node, rank: int) -> list[int] | None:
    # These take one axis, by another attribute than the reductions.
    if node.op_type in ("ArgMax", "ArgMin"):
        return [node.attributes.get_int("axis", 0) % rank]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = integers_of(operand(node, 1))
    else:
        axes = list(node.attributes.get_ints("axes", []))
        # Without axes ONNX reduces all of them, unless this attribute makes the node do nothing.
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return []
    return None if axes is None else [axis % rank for axis in axes] or list(range(rank))
